"""Learning-rate schedules: a factor on the learning rate for a round, a local epoch or a local step.

A party keeps nothing between rounds, so an epoch or a step is counted from 0 within the local training of one round; the
round is the federation's. All indices start at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

from hansa.errors import ConfigError, nearest
from hansa.learners import checks

Over: TypeAlias = Literal["rounds", "epochs", "steps"]
"""What a schedule counts."""

_UNITS = ("rounds", "epochs", "steps")


@final
@dataclass(frozen=True, slots=True)
class Constant:
    """The learning rate as it is.

    >>> Constant().factor(1000)
    1.0
    """

    over: Over = "rounds"

    def __post_init__(self) -> None:
        _check_over("Constant", self.over)

    def factor(self, step: float) -> float:
        """1 at every ``step``."""
        return 1.0


@final
@dataclass(frozen=True, slots=True)
class StepDecay:
    """Multiply by ``gamma`` after every ``every`` units.

    >>> [StepDecay(every=10, gamma=0.5).factor(t) for t in (0, 9, 10, 25)]
    [1.0, 1.0, 0.5, 0.25]

    Args:
        every: units between two decays, at least 1.
        gamma: the factor of one decay, in (0, 1].
        over: the unit.
    """

    every: int
    gamma: float
    over: Over = "rounds"

    def __post_init__(self) -> None:
        checks.count("StepDecay.every", self.every)
        checks.in_unit("StepDecay.gamma", self.gamma, zero=False)
        _check_over("StepDecay", self.over)

    def factor(self, step: float) -> float:
        """``gamma ** floor(step / every)``."""
        return float(self.gamma ** math.floor(step / self.every))


@final
@dataclass(frozen=True, slots=True)
class Exponential:
    """Multiply by ``gamma`` after every unit.

    >>> Exponential(0.5).factor(3)
    0.125

    Args:
        gamma: the factor of one unit, in (0, 1].
        over: the unit.
    """

    gamma: float
    over: Over = "rounds"

    def __post_init__(self) -> None:
        checks.in_unit("Exponential.gamma", self.gamma, zero=False)
        _check_over("Exponential", self.over)

    def factor(self, step: float) -> float:
        """``gamma ** step``."""
        return float(self.gamma**step)


@final
@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a cosine from 1 down to ``floor`` over ``total`` units, ``floor`` from then on.

    >>> [round(Cosine(total=10).factor(t), 3) for t in (0, 5, 10, 20)]
    [1.0, 0.5, 0.0, 0.0]

    Args:
        total: units until the floor, at least 1.
        floor: the last factor, in [0, 1].
        over: the unit.

    Source: Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017, equation 5, without
    restarts.
    """

    total: int
    floor: float = 0.0
    over: Over = "rounds"

    def __post_init__(self) -> None:
        checks.count("Cosine.total", self.total)
        checks.in_unit("Cosine.floor", self.floor)
        _check_over("Cosine", self.over)

    def factor(self, step: float) -> float:
        """``floor + (1 - floor) * (1 + cos(pi * step / total)) / 2`` until ``total``."""
        share = min(step / self.total, 1.0)
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * share))


@final
@dataclass(frozen=True, slots=True)
class Linear:
    """A straight line from 1 down to ``floor`` over ``total`` units, ``floor`` from then on.

    >>> [Linear(total=10, floor=0.5).factor(t) for t in (0, 5, 10, 20)]
    [1.0, 0.75, 0.5, 0.5]

    Args:
        total: units until the floor, at least 1.
        floor: the last factor, in [0, 1].
        over: the unit.
    """

    total: int
    floor: float = 0.0
    over: Over = "rounds"

    def __post_init__(self) -> None:
        checks.count("Linear.total", self.total)
        checks.in_unit("Linear.floor", self.floor)
        _check_over("Linear", self.over)

    def factor(self, step: float) -> float:
        """``1 - (1 - floor) * step / total`` until ``total``."""
        return 1.0 - (1.0 - self.floor) * min(step / self.total, 1.0)


@final
@dataclass(frozen=True, slots=True)
class Warmup:
    """A straight rise over the first ``steps`` units, then another schedule, which counts from its own 0.

    >>> [Warmup(4, then=StepDecay(1, 0.5)).factor(t) for t in (0, 1, 3, 4, 5)]
    [0.25, 0.5, 1.0, 1.0, 0.5]

    Args:
        steps: units of the rise, at least 1; the first has the factor ``1 / steps``, so no unit is spent at 0.
        then: the schedule that follows; it must count the same unit, as must one inside it.
        over: the unit.
    """

    steps: int
    then: Schedule = field(default_factory=Constant)
    over: Over = "rounds"

    def __post_init__(self) -> None:
        checks.count("Warmup.steps", self.steps)
        _check_over("Warmup", self.over)
        if isinstance(self.then, Constant):
            return
        if not isinstance(self.then, StepDecay | Exponential | Cosine | Linear | Warmup):
            raise ConfigError(f"Warmup.then must be a schedule, not {self.then!r}")
        if self.then.over != self.over:
            raise ConfigError(
                f"Warmup counts {self.over} but its `then`, {type(self.then).__name__}, counts {self.then.over};"
                f" give both the same `over`"
            )

    def factor(self, step: float) -> float:
        """``(step + 1) / steps`` during the rise, ``then.factor(step - steps)`` after it."""
        if step < self.steps:
            return min((step + 1.0) / self.steps, 1.0)
        return self.then.factor(step - self.steps)


Schedule: TypeAlias = Constant | StepDecay | Exponential | Cosine | Linear | Warmup
"""Any learning-rate schedule."""


def _check_over(owner: str, over: object) -> None:
    if over not in _UNITS:
        raise ConfigError(f"{owner}.over {over!r} is not a unit that a schedule counts; {nearest(str(over), _UNITS)}")
