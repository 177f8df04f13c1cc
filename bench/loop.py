"""The reference: a tight PyTorch loop, as somebody writes it who wants FedAvg in a single process and nothing else.

One resident model whose parameters are views of one flat buffer, the cohort's examples gathered at once, ``autograd.grad``, one
fused update in place a step, a running sum of the clients' models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from bench.figure import Disagreement
from bench.work import BATCH, EXAMPLES, RATE, plan, simulated
from hansa.data import FederatedData
from hansa.horizontal.sampling import Uniform
from hansa.rng import Key, permutations

Whole = npt.NDArray[np.int64]

TOLERANCE = 1e-5
"""How far two float32 computations of the same few rounds may be apart, absolutely, on weights of about 1."""


class TightLoop:
    """FedAvg over ``data``, one client after another.

    Args:
        model: makes the module.
        data: the parties' data; all of the same size.
        start: the flat parameters to begin with; None for the module's own.
    """

    def __init__(
        self, model: Callable[[], nn.Module], data: FederatedData, start: npt.NDArray[np.float32] | None = None
    ) -> None:
        x, y = data.example.base
        self.x, self.y = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
        self.rows = np.stack([np.asarray(data.shard(i).train.rows) for i in range(min(len(data), 1000))])
        self.module = model()
        self.parameters = list(self.module.parameters())
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        place = 0
        for p in self.parameters:
            p.data = self.flat[place : place + p.numel()].view_as(p)
            place += p.numel()
        self.weights = [p.data for p in self.parameters]
        self.model = self.flat.clone() if start is None else torch.from_numpy(start.copy())
        self.sum = torch.zeros_like(self.flat)
        self.draws = np.random.default_rng(0)

    def round(
        self, cohort: npt.NDArray[np.integer] | None = None, orders: Whole | None = None, count: int = 100
    ) -> None:
        """One round, over clients and orders given or drawn.

        Args:
            cohort: the clients' numbers, shape (count,).
            orders: for each the order of its examples, shape (count, 18).
            count: how many to draw.
        """
        if cohort is None:
            cohort = self.draws.choice(len(self.rows), count, replace=False)
        if orders is None:
            orders = self.draws.random((len(cohort), EXAMPLES), dtype=np.float32).argsort(axis=1)
        places = torch.from_numpy(np.take_along_axis(self.rows[cohort], orders, 1).astype(np.int64))
        x, y = self.x[places], self.y[places]
        # One call cuts all clients' batches.
        first = zip(x[:, :BATCH].unbind(), y[:, :BATCH].unbind(), strict=True)
        second = zip(x[:, BATCH:].unbind(), y[:, BATCH:].unbind(), strict=True)
        module, parameters, weights, flat = self.module, self.parameters, self.weights, self.flat
        self.sum.zero_()
        for batches in zip(first, second, strict=True):
            flat.copy_(self.model)
            for features, target in batches:
                gradients = torch.autograd.grad(F.cross_entropy(module(features), target), parameters)
                torch._foreach_add_(weights, gradients, alpha=-RATE)
            self.sum.add_(flat)
        torch.div(self.sum, len(cohort), out=self.model)


def agree(model: Callable[[], nn.Module], data: FederatedData, cohort: int, rounds: int = 2) -> float:
    """The largest difference between a parameter of Hansa's model and of the loop's after ``rounds`` rounds alike.

    Raises:
        Disagreement: it is above :data:`TOLERANCE`.
    """
    contract = plan(model, rounds, cohort)
    ran = simulated(contract, data)
    root = Key.root(0)
    start = contract.learner.init(root.child("server/init"), data.example)
    loop = TightLoop(model, data, start.flat)
    for number in range(1, rounds + 1):
        names = Uniform().draw(root.child("server/cohort", number), data.names, cohort)
        loop.round(*_drawn(root, data, names, number))
    assert ran.params is not None
    apart = float(np.abs(ran.params.flat - loop.model.numpy()).max())
    if not apart <= TOLERANCE:
        raise Disagreement(f"after {rounds} rounds a parameter differs by {apart:.3g} from the tight loop's")
    return apart


def _drawn(root: Key, data: FederatedData, names: Sequence[str], number: int) -> tuple[Whole, Whole]:
    keys = [root.child(f"{name}/fit", number) for name in names]
    return np.array([data.names.index(name) for name in names]), permutations(keys, EXAMPLES)
