"""FedNova: normalised averaging, so that parties that take more local steps do not pull the average their way.

Source: Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, equations 4 to 7 and section 4. Threat model: that of :mod:`hansa.horizontal.rounds`; besides, a
party discloses how far its steps reach (``reach``), that is how many it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from hansa.errors import RunError
from hansa.horizontal.rounds import Algorithm, Local, Slots, Synchronous, buffer_mask
from hansa.horizontal.sgd import rate_of, sgd_of
from hansa.learner import Learner, LocalWork
from hansa.learners import checks, objectives
from hansa.params import Params
from hansa.tensor import Array, Tensor
from hansa.update import Mean, Update


@final
@dataclass(frozen=True, kw_only=True)
class FedNova(Synchronous):
    """Each party sends its change divided by ``||a_i||_1``; the server multiplies their average by ``tau_eff``.

    ``a_i`` holds the weights of a party's gradients in its change: all 1 for plain SGD, larger with momentum, smaller with a
    proximal term. With ``p_i`` the weights of the plan's average, ``tau_eff = sum(p_i ||a_i||_1)`` and
    ``w <- w + server_learning_rate * tau_eff * sum(p_i delta_i / ||a_i||_1)``. Equal steps make it FedAvg.

    A clip in the plan bounds the normalised change, the size of one step.

    >>> FedNova(rounds=50, cohort=10).mu
    0.0

    Args:
        mu: the factor of a proximal term, 0 or above.
        server_learning_rate: above 0.

    The other arguments are those of :class:`~hansa.horizontal.rounds.Synchronous`.

    Raises:
        PlanError: the learner's optimizer is not SGD (with or without momentum), or its schedule counts epochs.
    """

    mu: float = 0.0
    server_learning_rate: float = 1.0

    def __post_init__(self) -> None:
        Synchronous.__post_init__(self)
        checks.not_negative("FedNova.mu", self.mu)
        checks.positive("FedNova.server_learning_rate", self.server_learning_rate)

    def algorithm(self, learner: Learner) -> Algorithm:
        why = "its averages are normalised by the weights of single gradients, which only SGD has in closed form"
        optimizer = sgd_of(learner, "FedNova", why, momentum=True, schedules=("rounds", "steps"))
        term = objectives.proximal(self.mu)

        def work(local: Local) -> LocalWork:
            return term.work(round=local.round)

        def report(local: Local, update: Update) -> tuple[Update, Slots]:
            base = rate_of(optimizer, local.round)
            travelled = reach(
                round_steps(update),
                lambda step: rate_of(optimizer, local.round, step),
                optimizer.momentum,
                optimizer.nesterov,
                self.mu,
            )
            # In units of the round's first learning rate, so that a plain step reaches 1.
            units = travelled / base
            delta = update.delta.scaled(1.0 / units)
            if local.params.layout.buffers:
                delta = Tensor(np.where(buffer_mask(local.params), update.delta.array, delta.array))
            return Update(delta, update.weight, {**update.scalars, "reach": units}), local.own

        def step(params: Params, slots: Slots, mean: Mean[Any], round: int, share: float) -> tuple[Array, Slots]:
            effective = mean.scalars.get("reach")
            if effective is None:
                raise RunError(
                    "FedNova needs the averaged scalar 'reach', which the aggregation has dropped",
                    round=round,
                    remedy="use an aggregation that averages scalars",
                )
            factor = params.flat.dtype.type(self.server_learning_rate * effective)
            return params.flat + factor * mean.delta, slots

        return Algorithm(step, work=work, report=report)


def round_steps(update: Update) -> int:
    """The local steps that an update is made of."""
    return max(1, round(update.scalars["steps"]))


def reach(
    steps: int, rate: Callable[[int], float], momentum: float = 0.0, nesterov: bool = False, mu: float = 0.0
) -> float:
    """How far local training moves along a gradient of constant 1: ``||a_i||_1`` times the learning rate.

    It is the optimizer's own recursion on one number. For a constant rate it equals the paper's closed forms:
    ``rate * steps`` for plain SGD, ``rate * (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)`` with
    momentum, ``(1 - (1 - rate * mu)**steps) / mu`` with a proximal term.

    >>> reach(3, lambda step: 0.5), reach(3, lambda step: 1.0, momentum=0.5), reach(2, lambda step: 0.5, mu=1.0)
    (1.5, 4.25, 0.75)
    """
    moved, velocity = 0.0, 0.0
    for step in range(steps):
        gradient = 1.0 - mu * moved
        velocity = momentum * velocity + gradient
        moved += rate(step) * (gradient + momentum * velocity if nesterov else velocity)
    if not (math.isfinite(moved) and moved > 0):
        raise RunError(
            f"{steps} local steps with mu={mu:g} and momentum={momentum:g} do not move along the gradient",
            remedy="lower mu or the learning rate",
        )
    return moved
