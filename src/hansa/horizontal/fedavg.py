"""Federated averaging.

Source: McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, algorithm 1 (FederatedAveraging). Threat model: that of :mod:`hansa.horizontal.rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from hansa.horizontal.rounds import Algorithm, Slots, Synchronous, moved
from hansa.learner import Learner
from hansa.learners import checks
from hansa.params import Params
from hansa.tensor import Array
from hansa.update import Mean


@final
@dataclass(frozen=True, kw_only=True)
class FedAvg(Synchronous):
    """Each party of the cohort trains from the server's model on its own examples; the server moves to their average.

    With the plan's ``mean()`` the step is ``w <- w + server_learning_rate * sum(n_k / n * (w_k - w))``; at 1.0 that is the
    paper's ``w <- sum(n_k / n * w_k)``.

    Args:
        server_learning_rate: the factor on the averaged change.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.
    """

    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        checks.positive("FedAvg.server_learning_rate", self.server_learning_rate)

    def algorithm(self, learner: Learner) -> Algorithm:
        rate = self.server_learning_rate

        def step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
            if rate == 1.0:
                return moved(params, mean), slots
            return params.flat + params.flat.dtype.type(rate) * mean.delta, slots

        return Algorithm(step)
