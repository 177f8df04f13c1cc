"""Federated averaging whose server steps get smaller: an algorithm that trains in rounds is a handful of pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from hansa.errors import ConfigError
from hansa.horizontal.rounds import Algorithm, Slots, Synchronous
from hansa.learner import Learner
from hansa.params import Params
from hansa.tensor import Array
from hansa.update import Mean


@final
@dataclass(frozen=True, kw_only=True)
class Cooled(Synchronous):
    """``w <- w + 2 ** (-(round - 1) / half_life) * mean(delta)``.

    Args:
        half_life: rounds after which the step is half as long.
    """

    half_life: float = 10.0

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        if not self.half_life > 0:
            raise ConfigError(f"Cooled: half_life must be positive, not {self.half_life}")

    def algorithm(self, learner: Learner) -> Algorithm:
        """The server's step."""

        def step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
            rate = 2.0 ** (-(round - 1) / self.half_life)
            return params.flat + params.flat.dtype.type(rate) * mean.delta, slots

        return Algorithm(step)
