"""Federated SGD: one step on the gradient of all chosen parties' examples.

Source: McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, section 2 (FederatedSGD, the baseline). Threat model: that of
:mod:`hansa.horizontal.rounds`; a single full-batch step discloses a party's gradient itself, from which examples can be
recovered more easily than from an update of many steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from hansa.horizontal.rounds import Algorithm, Local, Slots, Synchronous, moved
from hansa.horizontal.sgd import sgd_of
from hansa.learner import Learner, LocalWork
from hansa.params import Params
from hansa.tensor import Array
from hansa.update import Mean


@final
@dataclass(frozen=True, kw_only=True)
class FedSGD(Synchronous):
    """Each party of the cohort takes one step on its full-batch gradient; the server moves to their average.

    With the plan's ``mean()`` the step is ``w <- w - rate * sum(n_k / n * grad F_k(w))``, with the learner's learning rate
    and its schedule over rounds. Batch size and epochs of the learner do not count.

    >>> FedSGD(rounds=100, cohort=10).rounds
    100

    The arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.

    Raises:
        PlanError: the learner's optimizer is not plain SGD, so its one step is not the gradient's.
    """

    def algorithm(self, learner: Learner) -> Algorithm:
        sgd_of(learner, "FedSGD", "its one local step must be the gradient times the learning rate", momentum=True)
        return Algorithm(_step, work=_work)


def _work(local: Local) -> LocalWork:
    return LocalWork(round=local.round, steps=1, full_batch=True)


def _step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
    return moved(params, mean), slots
