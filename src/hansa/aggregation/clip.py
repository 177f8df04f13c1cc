"""Clipping: one party's influence gets a limit.

Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, section 3.1; for whole client updates McMahan et
al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, section 2 ("flat clipping").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from hansa.errors import ConfigError, NonFinite
from hansa.pipeline import ClientStage, Form
from hansa.rng import Key
from hansa.update import Bounded, Update


@final
@dataclass(frozen=True)
class Clip(ClientStage[Update, Bounded]):
    """Scales an update down to L2 norm ``bound`` where it is longer. See :func:`clip`."""

    bound: float

    flow: ClassVar[Mapping[Form, Form]] = {"update": "bounded"}
    needs: ClassVar[str] = (
        "clip limits what one party can change, so it belongs before the updates are combined or noised"
    )

    effect: ClassVar[str] = "no single party changes the model by more than L2 norm {bound:g}; the collector checks it"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ConfigError(f"clip: bound must be a positive number, not {self.bound}")

    def on_client(self, value: Update, rng: Key) -> Bounded:
        norm = value.delta.norm()
        if not math.isfinite(norm):
            raise NonFinite("the update holds NaN or infinity", remedy="lower the learning rate or check the data")
        if norm <= self.bound:
            return Bounded(value, self.bound)
        return Bounded(Update(value.delta.scaled(self.bound / norm), value.weight, value.scalars), self.bound)


def clip(bound: float) -> ClientStage[Update, Bounded]:
    """Limit each party's update to L2 norm ``bound``.

    *Guarantees*: the result's norm, computed in float64 before the last rounding, is at most ``bound``; the direction is kept.

    ===================  =======================================
    norm of the update   result
    ===================  =======================================
    at most ``bound``    unchanged
    more                 scaled by ``bound / norm``
    zero                 unchanged
    NaN or infinite      ``NonFinite``; the party withdraws from the round
    ===================  =======================================

    Args:
        bound: the largest L2 norm, in the units of the parameters.

    Raises:
        ConfigError: ``bound`` is not a positive finite number.

    >>> import numpy as np
    >>> from hansa.tensor import Tensor
    >>> bounded = Clip(1.0).on_client(Update(Tensor(np.array([3.0, 4.0])), 1.0, {}), Key.root(0))
    >>> bounded.update.delta.array.tolist()
    [0.6000000000000001, 0.8]
    """
    return Clip(bound)
