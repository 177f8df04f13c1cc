"""FedProx: federated averaging with a proximal term that holds each party near the server's model.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
algorithm 2. Threat model: that of :mod:`hansa.horizontal.rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from hansa.horizontal.rounds import Algorithm, Local, Slots, Synchronous, moved
from hansa.learner import Learner, LocalWork
from hansa.learners import checks, objectives
from hansa.params import Params
from hansa.tensor import Array
from hansa.update import Mean


@final
@dataclass(frozen=True, kw_only=True)
class FedProx(Synchronous):
    """Each party minimises ``F_k(w) + mu / 2 * ||w - w_t||^2`` from the server's model ``w_t``; the server moves to the average.

    The paper's inexactness is the learner's: as many epochs as it is set to. Its sampling and average are the plan's:
    ``mean("uniform")`` with :class:`~hansa.horizontal.sampling.Weighted` is algorithm 2 to the letter.

    >>> FedProx(rounds=50, cohort=10, mu=0.1).mu
    0.1

    Args:
        mu: the factor of the proximal term, 0 or above; 0 is FedAvg.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.
    """

    mu: float

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        checks.not_negative("FedProx.mu", self.mu)

    def algorithm(self, learner: Learner) -> Algorithm:
        term = objectives.proximal(self.mu)

        def work(local: Local) -> LocalWork:
            return term.work(round=local.round)

        return Algorithm(_step, work=work)


def _step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
    return moved(params, mean), slots
