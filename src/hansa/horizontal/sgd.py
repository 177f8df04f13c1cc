"""What some algorithms must know of a learner: that it steps by SGD, and how far.

Algorithms whose formulas hold the local learning rate or the number of steps are wrong, not just slower, with another
optimizer; they ask here and refuse.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from hansa.errors import PlanError
from hansa.learner import Learner, LocalWork
from hansa.learners.optimizers import SGD, learning_rate
from hansa.learners.schedules import Constant, Over


@runtime_checkable
class HasOptimizer(Protocol):
    """A learner that tells how it steps."""

    @property
    def optimizer(self) -> Any:
        """A value of :mod:`hansa.learners.optimizers`."""
        ...


def sgd_of(
    learner: Learner, algorithm: str, why: str, *, momentum: bool = False, schedules: tuple[Over, ...] = ("rounds",)
) -> SGD:
    """The learner's optimizer, which must be SGD.

    Args:
        learner: asked for its ``optimizer``.
        algorithm: the name for errors.
        why: ends the sentence that refuses another optimizer.
        momentum: whether momentum can be used.
        schedules: what its schedule may count; a constant one always may.

    Raises:
        PlanError: another optimizer, a momentum or a schedule that cannot be used.
    """
    optimizer = learner.optimizer if isinstance(learner, HasOptimizer) else None
    if not isinstance(optimizer, SGD):
        found = "none that it tells of" if optimizer is None else type(optimizer).__name__
        raise PlanError([f"{algorithm} needs a learner whose optimizer is SGD, this one has {found}: {why}"])
    if optimizer.momentum and not momentum:
        raise PlanError([f"{algorithm} needs SGD without momentum, not {optimizer.momentum}: {why}"])
    if not isinstance(optimizer.schedule, Constant) and optimizer.schedule.over not in schedules:
        units = " or ".join(schedules)
        found = f"a learning-rate schedule over {optimizer.schedule.over}"
        raise PlanError([f"{algorithm} cannot follow {found}: {why}; use one over {units}"])
    return optimizer


def rate_of(optimizer: SGD, round: int, step: int = 0) -> float:
    """The learning rate of local step ``step`` (from 0) in ``round``."""
    return learning_rate(optimizer, LocalWork(round=round), step=step)
