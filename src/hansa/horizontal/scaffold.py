"""SCAFFOLD: control variates correct each party's drift away from the common objective.

Source: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020, algorithm 1 with option II for the control variates.

*Threat model*: that of :mod:`hansa.horizontal.rounds`. What a party sends is two vectors in one contribution: the change of
its model and the change of its control variate, which is its mean gradient over the round's steps. The server's control
variate, an average over all parties' past gradients, goes to every party of a cohort. A clip bounds the two vectors together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from hansa.horizontal.rounds import Algorithm, Local, Slots, Synchronous, buffer_mask
from hansa.horizontal.sgd import rate_of, sgd_of
from hansa.learner import Learner, LocalWork
from hansa.learners import checks, objectives
from hansa.params import Params
from hansa.tensor import Array, Tensor
from hansa.update import Mean, Update


@final
@dataclass(frozen=True, kw_only=True)
class Scaffold(Synchronous):
    """Local steps ``y <- y - rate * (g(y) - c_i + c)``; control variates ``c_i`` stay with the parties, ``c`` with the server.

    After ``K`` steps at rate ``eta``: ``c_i+ = c_i - c + (x - y) / (K eta)``; the server moves by
    ``x <- x + server_learning_rate * mean(y - x)`` and ``c <- c + |S| / N * mean(c_i+ - c_i)``.

    *Guarantees*: with the plain mean, ``c`` is the mean of all parties' ``c_i`` after every round, whatever was lost, late
    or sent twice: a party whose contribution the server did not count falls back to the ``c_i`` that the server counts on.
    All parties weigh the same, as in the paper, because only then does that hold with any cohort. With
    ``weights="examples"`` both means are weighted by the parties' examples, so the objective is FedAvg's, and ``c`` is the
    weighted mean of all ``c_i`` as long as every round hears every party. A clip that shortens a contribution, or noise, lets
    ``c`` and the mean of the ``c_i`` drift apart.

    >>> Scaffold(rounds=50, cohort=10).server_learning_rate
    1.0

    Args:
        server_learning_rate: the paper's eta_g, above 0.
        weights: ``"uniform"`` as in the paper, or ``"examples"``; the plan's mean must weigh by examples, as it does unless told.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.

    Raises:
        PlanError: the learner's optimizer is not SGD without momentum at a rate that is constant within a round.
    """

    server_learning_rate: float = 1.0
    weights: Literal["uniform", "examples"] = "uniform"

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        checks.positive("Scaffold.server_learning_rate", self.server_learning_rate)
        checks.choice("Scaffold.weights", self.weights, ("uniform", "examples"))

    def algorithm(self, learner: Learner) -> Algorithm:
        optimizer = sgd_of(learner, "SCAFFOLD", "its control variates are read from the sum of plain gradient steps")
        server_rate, weighted = self.server_learning_rate, self.weights == "examples"

        def slots(params: Params) -> Slots:
            return {"c": np.zeros_like(params.flat)}

        def work(local: Local) -> LocalWork:
            return objectives.control_variate(local.shared["c"], _own(local)).work(round=local.round)

        def report(local: Local, update: Update) -> tuple[Update, Slots]:
            delta, c_i = update.delta.array, _own(local)
            travelled = update.scalars["steps"] * rate_of(optimizer, local.round)
            change = -local.shared["c"] - delta * delta.dtype.type(1.0 / travelled)
            if local.params.layout.buffers:
                change[buffer_mask(local.params)] = 0
            both = Tensor(np.concatenate([delta, change]))
            return Update(both, update.weight if weighted else 1.0, update.scalars), {"c": c_i + change}

        def step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
            kind = params.flat.dtype.type
            flat = params.flat + kind(server_rate) * mean.delta[: params.size]
            return flat, {"c": slots["c"] + kind(share) * mean.delta[params.size :]}

        return Algorithm(step, slots, ("c",), work, report, width=2, confirmed=True)


def _own(local: Local) -> Array:
    c_i = local.own.get("c")
    return np.zeros_like(local.params.flat) if c_i is None else c_i
