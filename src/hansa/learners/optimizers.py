"""Local optimizers: what a party's training steps with, as values that every learner understands.

Each follows the formula that PyTorch documents for the class of the same name, so that learners agree. A party keeps nothing
between rounds: momentum and moments start at zero in every local training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias, final

from hansa.errors import ConfigError
from hansa.learner import LocalWork
from hansa.learners import checks
from hansa.learners.schedules import Constant, Cosine, Exponential, Linear, Schedule, StepDecay, Warmup


@final
@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent.

    With ``g`` the gradient plus ``weight_decay * w``: ``b = momentum * b + g`` (the first ``b`` is ``g``), then
    ``w -= rate * b``, or ``w -= rate * (g + momentum * b)`` with ``nesterov``.

    >>> SGD(0.05).learning_rate
    0.05

    Args:
        learning_rate: above 0.
        momentum: in [0, 1).
        nesterov: look ahead along the momentum; needs ``momentum`` above 0.
        weight_decay: the factor of the L2 term's gradient, 0 or above.
        schedule: a factor on the learning rate.

    Raises:
        ConfigError: a value out of its range.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    ICML 2013, in the form of ``torch.optim.SGD``.
    """

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        checks.positive("SGD.learning_rate", self.learning_rate)
        checks.in_unit("SGD.momentum", self.momentum, one=False)
        checks.not_negative("SGD.weight_decay", self.weight_decay)
        if self.nesterov and self.momentum == 0:
            raise ConfigError("SGD.nesterov needs a momentum above 0; set SGD.momentum, 0.9 for example")
        _check_schedule("SGD", self.schedule)


@final
@dataclass(frozen=True, slots=True)
class Adam:
    """Adam with bias correction; ``weight_decay`` is an L2 term added to the gradient.

    >>> Adam().betas
    (0.9, 0.999)

    Args:
        learning_rate: above 0.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: added to the root of the second moment, above 0.
        weight_decay: the factor of the L2 term's gradient, 0 or above.
        schedule: a factor on the learning rate.

    Raises:
        ConfigError: a value out of its range.

    Source: Kingma and Ba, "Adam: A method for stochastic optimization", ICLR 2015, algorithm 1.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        _check_adam("Adam", self)


@final
@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay: ``w -= rate * weight_decay * w`` before each step.

    >>> AdamW(0.01).weight_decay
    0.01

    Args:
        learning_rate: above 0.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: added to the root of the second moment, above 0.
        weight_decay: the decoupled decay, 0 or above.
        schedule: a factor on the learning rate, and so on the decay.

    Raises:
        ConfigError: a value out of its range.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        _check_adam("AdamW", self)


Optimizer: TypeAlias = SGD | Adam | AdamW
"""Any local optimizer."""


def learning_rate(optimizer: Optimizer, work: LocalWork, epoch: int = 0, step: int = 0) -> float:
    """The learning rate of one local step, the schedule and the algorithm's factor applied.

    >>> from hansa.learners.schedules import StepDecay
    >>> learning_rate(SGD(0.5, schedule=StepDecay(10, 0.1)), LocalWork(round=10))
    0.05

    Args:
        optimizer: the learner's own.
        work: what the algorithm asks; its ``round`` and ``learning_rate`` count.
        epoch: the local epoch in this training, from 0.
        step: the local step in this training, from 0.
    """
    index = {"rounds": work.round, "epochs": epoch, "steps": step}[optimizer.schedule.over]
    return optimizer.learning_rate * optimizer.schedule.factor(index) * work.learning_rate


def _check_adam(name: str, optimizer: Adam | AdamW) -> None:
    checks.positive(f"{name}.learning_rate", optimizer.learning_rate)
    if not isinstance(optimizer.betas, tuple | list) or len(optimizer.betas) != 2:
        raise ConfigError(f"{name}.betas must be two numbers, (0.9, 0.999) for example, not {optimizer.betas!r}")
    for place, beta in enumerate(optimizer.betas):
        checks.in_unit(f"{name}.betas[{place}]", beta, one=False)
    checks.positive(f"{name}.eps", optimizer.eps)
    checks.not_negative(f"{name}.weight_decay", optimizer.weight_decay)
    _check_schedule(name, optimizer.schedule)


def _check_schedule(name: str, schedule: object) -> None:
    if not isinstance(schedule, Constant | StepDecay | Exponential | Cosine | Linear | Warmup):
        raise ConfigError(f"{name}.schedule must be a schedule, Cosine(total=100) for example, not {schedule!r}")
