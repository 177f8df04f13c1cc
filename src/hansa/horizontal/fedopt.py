"""Adaptive federated optimization: the averaged change is a pseudo-gradient for an optimizer on the server.

Sources: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive Federated Optimization", ICLR 2021,
algorithms 1 (FedOpt) and 2 (FedAdagrad, FedYogi, FedAdam); for FedAvgM Hsu, Qi and Brown, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", 2019, section 4.3. The formulas stand in
:mod:`hansa.learners.server_optimizers`. Threat model: that of :mod:`hansa.horizontal.rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from hansa.horizontal.rounds import Algorithm, Slots, Synchronous
from hansa.learner import Learner
from hansa.learners.server_optimizers import ServerAdagrad, ServerAdam, ServerOptimizer, ServerSGD, ServerYogi
from hansa.params import Params
from hansa.tensor import Array
from hansa.update import Mean


@final
@dataclass(frozen=True, kw_only=True)
class FedAvgM(Synchronous):
    """Federated averaging with momentum on the server: ``b <- momentum * b + delta; w <- w + server_learning_rate * b``.

    >>> FedAvgM(rounds=50, cohort=10).momentum
    0.9

    Args:
        server_learning_rate: above 0.
        momentum: in [0, 1).

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.
    """

    server_learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        self._optimizer()

    def _optimizer(self) -> ServerSGD:
        return ServerSGD(self.server_learning_rate, self.momentum)

    def algorithm(self, learner: Learner) -> Algorithm:
        return stepping(self._optimizer())


@final
@dataclass(frozen=True, kw_only=True)
class FedAdagrad(Synchronous):
    """Adagrad on the server.

    >>> FedAdagrad(rounds=50, cohort=10, server_learning_rate=0.1).tau
    0.001

    Args:
        server_learning_rate: the paper's eta, above 0; it has no default because it must be tuned for each task.
        beta_1: in [0, 1).
        tau: adaptivity, above 0; the larger, the nearer to plain averaging.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.
    """

    server_learning_rate: float
    beta_1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        self._optimizer()

    def _optimizer(self) -> ServerAdagrad:
        return ServerAdagrad(self.server_learning_rate, self.beta_1, self.tau)

    def algorithm(self, learner: Learner) -> Algorithm:
        return stepping(self._optimizer())


@final
@dataclass(frozen=True, kw_only=True)
class FedAdam(Synchronous):
    """Adam on the server, without bias correction, as in the paper.

    >>> FedAdam(rounds=50, cohort=10, server_learning_rate=0.01).beta_2
    0.99

    Args:
        server_learning_rate: the paper's eta, above 0; it has no default because it must be tuned for each task.
        beta_1, beta_2: decay of the first and of the second moment, each in [0, 1).
        tau: adaptivity, above 0; the larger, the nearer to plain averaging.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.
    """

    server_learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        self._optimizer()

    def _optimizer(self) -> ServerAdam:
        return ServerAdam(self.server_learning_rate, self.beta_1, self.beta_2, self.tau)

    def algorithm(self, learner: Learner) -> Algorithm:
        return stepping(self._optimizer())


@final
@dataclass(frozen=True, kw_only=True)
class FedYogi(Synchronous):
    """Yogi on the server.

    >>> FedYogi(rounds=50, cohort=10, server_learning_rate=0.01).beta_1
    0.9

    Args:
        server_learning_rate: the paper's eta, above 0; it has no default because it must be tuned for each task.
        beta_1, beta_2: decay of the first and of the second moment, each in [0, 1).
        tau: adaptivity, above 0; the larger, the nearer to plain averaging.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.
    """

    server_learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        self._optimizer()

    def _optimizer(self) -> ServerYogi:
        return ServerYogi(self.server_learning_rate, self.beta_1, self.beta_2, self.tau)

    def algorithm(self, learner: Learner) -> Algorithm:
        return stepping(self._optimizer())


def stepping(optimizer: ServerOptimizer) -> Algorithm:
    """The algorithm that trains as FedAvg does and steps with ``optimizer`` (the paper's algorithm 1)."""

    def slots(params: Params) -> Slots:
        return optimizer.init(params.size, params.layout.dtype)

    def step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
        return optimizer.step(params.flat, mean.delta, slots, round)

    return Algorithm(step, slots)
