"""The boundary to machine learning: pure functions of parameters and examples.

A learner adapts one library. It keeps nothing between calls: the same arguments give the same result, in any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from hansa.examples import Examples
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Array
from hansa.update import Update

Metrics = Mapping[str, float]


class LocalWork(msgspec.Struct, frozen=True, gc=False):
    """What an algorithm asks of one local training, beyond the learner's own settings.

    The local objective is the learner's loss plus ``proximal / 2 * ||w - w0||^2 + <linear, w - w0>``, where ``w0`` is the
    received model: FedProx sets the first term, SCAFFOLD and FedDyn the second. So a step's gradient is
    ``g + proximal * (w - w0) + linear``. See ``hansa.learners.objectives`` for the named terms.

    Args:
        round: the round, for learning-rate schedules.
        proximal: the factor of the proximal term, not negative.
        linear: the linear term, shape (size,), or None.
        epochs: local epochs instead of the learner's own; None keeps those.
        steps: local steps instead of epochs; None counts by epochs.
        full_batch: one batch of all examples, whatever the learner's batch size.
        learning_rate: a factor on the learner's own learning rate.
    """

    round: int = 0
    proximal: float = 0.0
    linear: Array | None = None
    epochs: int | None = None
    steps: int | None = None
    full_batch: bool = False
    learning_rate: float = 1.0


@runtime_checkable
class Learner(Protocol):
    """Adapts one ML library. An extension point: three methods, all pure."""

    def init(self, rng: Key, example: Examples) -> Params:
        """Fresh parameters for examples like ``example`` (its shapes and dtypes are what counts)."""
        ...

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Train from ``params`` on ``data``; ``scalars`` holds at least ``loss`` and ``steps``."""
        ...

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """Means over ``data`` of the learner's metrics; ``loss`` always, the rest by task."""
        ...


@runtime_checkable
class BatchLearner(Learner, Protocol):
    """A learner that can train many parties in one go.

    *Law*: ``fit_many(p, datas, works, rngs)[i]`` equals ``fit(p, datas[i], works[i], rngs[i])`` within the learner's stated
    tolerance, whatever else is in the batch; and bit for bit when the batch is the same.
    """

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """``fit`` for each party; the updates may be rows of one unbuilt batch."""
        ...

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """``evaluate`` for each party."""
        ...

    def chunk(self, params: Params) -> int:
        """How many parties to train in one call, from the model's size alone; never more than a pool can balance."""
        ...
