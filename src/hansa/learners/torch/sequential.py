"""One party after another in one resident module: the engine that runs everything.

A party costs one copy of the model, then per step a forward, a backward and one fused update; nothing is built or kept between
parties. Plain SGD updates the parameters tensor by tensor in one fused call, everything else works on one flat gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.learners.optimizers import SGD, AdamW, Optimizer
from hansa.learners.torch.course import Course, padded_batches, rates
from hansa.learners.torch.losses import Loss
from hansa.learners.torch.resident import Resident, seed_torch, tensor_of
from hansa.rng import Key
from hansa.tensor import Array, Dense

if TYPE_CHECKING:
    from hansa.learners.torch.learner import Torch

_LEAST_SCALE, _FIRST_SCALE = 1.0, 65536.0


def fit_sequential(
    learner: Torch,
    resident: Resident,
    start: Array,
    datas: Sequence[Examples],
    works: Sequence[LocalWork],
    paths: Sequence[Course],
    rngs: Sequence[Key],
) -> tuple[Dense, list[float]]:
    """Train each party from ``start``: their deltas as rows, and their mean training losses."""
    origin = tensor_of(start).to(resident.device)
    matrix = np.empty((len(datas), len(start)), start.dtype)  # NumPy asks for huge pages, which torch does not
    deltas = torch.from_numpy(matrix)
    losses = []
    devices = [resident.device] if resident.device.type == "cuda" else []
    resident.training(True)
    orders = padded_batches(paths, rngs, max(path.batch for path in paths))
    with torch.random.fork_rng(devices=devices):
        for row, data, work, path, rng, order in zip(deltas, datas, works, paths, rngs, orders, strict=True):
            resident.load(origin)
            seed_torch(rng.child("torch"), resident.device)
            losses.append(_train(learner, resident, origin, data, work, path, order[order >= 0]))
            if learner.buffers == "local":
                resident.flat[resident.state_start :] = origin[resident.state_start :]
            if resident.device.type == "cpu":
                torch.sub(resident.flat, origin, out=row)
            else:
                row.copy_(resident.flat - origin)
    return Dense(matrix), losses


def _train(
    learner: Torch,
    resident: Resident,
    origin: torch.Tensor,
    data: Examples,
    work: LocalWork,
    path: Course,
    order: npt.NDArray[np.int64],
) -> float:
    loss = learner.resolved_loss
    x_all = resident.features(data.x)
    y_all = resident.targets(loss, tuple(x_all.shape[1:]), data.y)
    step = _stepper(learner, resident, origin, work)
    places = torch.from_numpy(order).to(resident.device)
    sizes = path.sizes()
    found = []
    for rate, x, y in zip(
        rates(learner.optimizer, work, path),
        torch.split(x_all[places], sizes),
        torch.split(y_all[places], sizes),
        strict=True,
    ):
        value, gradients = _gradients(learner, resident, loss, x, y)
        step(gradients, rate)
        found.append(value)
    values = torch.stack(found).tolist() if resident.device.type == "cuda" else [value.item() for value in found]
    total: float = sum(value * size for value, size in zip(values, sizes, strict=True))
    return total / max(1, path.seen)


def _gradients(
    learner: Torch, resident: Resident, loss: Loss, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    reduced = learner.autocast_dtype
    if reduced is None:
        value = loss.mean(resident.module(x), y)
        return value.detach(), torch.autograd.grad(value, resident.trained, materialize_grads=True)
    scale = _FIRST_SCALE if reduced == torch.float16 else 1.0
    while True:
        with torch.autocast(resident.device.type, reduced):
            value = loss.mean(resident.module(x).to(resident.dtype), y)
        gradients = torch.autograd.grad(value * scale, resident.trained, materialize_grads=True)
        if scale == 1.0:
            return value.detach(), gradients
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if torch.isfinite(norm) or scale <= _LEAST_SCALE:
            torch._foreach_div_(gradients, scale)
            return value.detach(), gradients
        scale = max(scale / 16.0, _LEAST_SCALE)  # the half-precision gradient overflowed: the same step, scaled less


class _Flat:
    """One step of the learner's optimizer on the flat buffer, momentum and moments kept for one training."""

    def __init__(self, learner: Torch, resident: Resident, origin: torch.Tensor, work: LocalWork) -> None:
        size = resident.trained_size
        self.optimizer: Optimizer = learner.optimizer
        self.clip = learner.clip_gradient
        self.weights, self.origin = resident.flat[:size], origin[:size]
        self.proximal = work.proximal
        self.linear = None
        if work.linear is not None:
            self.linear = tensor_of(np.asarray(work.linear)).to(resident.device, resident.dtype)[:size]
        self.gradient = torch.empty_like(self.weights)
        self.first: torch.Tensor | None = None
        self.second: torch.Tensor | None = None
        self.count = 0

    def __call__(self, gradients: tuple[torch.Tensor, ...], rate: float) -> None:
        g = torch.cat([part.reshape(-1) for part in gradients], out=self.gradient)
        if self.proximal:
            g.add_(self.weights - self.origin, alpha=self.proximal)
        if self.linear is not None:
            g.add_(self.linear)
        if self.clip is not None:
            g.mul_(torch.clamp(self.clip / (torch.linalg.vector_norm(g) + 1e-6), max=1.0))
        self.count += 1
        if isinstance(self.optimizer, SGD):
            self._sgd(self.optimizer, g, rate)
        else:
            self._adam(g, rate)

    def _sgd(self, sgd: SGD, g: torch.Tensor, rate: float) -> None:
        if sgd.weight_decay:
            g.add_(self.weights, alpha=sgd.weight_decay)
        if sgd.momentum:
            self.first = g.clone() if self.first is None else self.first.mul_(sgd.momentum).add_(g)
            g = g.add_(self.first, alpha=sgd.momentum) if sgd.nesterov else self.first
        self.weights.add_(g, alpha=-rate)

    def _adam(self, g: torch.Tensor, rate: float) -> None:
        adam = self.optimizer
        assert not isinstance(adam, SGD)
        if adam.weight_decay and isinstance(adam, AdamW):
            self.weights.mul_(1.0 - rate * adam.weight_decay)
        elif adam.weight_decay:
            g.add_(self.weights, alpha=adam.weight_decay)
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(g), torch.zeros_like(g)
        beta_1, beta_2 = adam.betas
        self.first.lerp_(g, 1.0 - beta_1)
        self.second.mul_(beta_2).addcmul_(g, g, value=1.0 - beta_2)
        root = self.second.sqrt().div_((1.0 - beta_2**self.count) ** 0.5).add_(adam.eps)
        self.weights.addcdiv_(self.first, root, value=-rate / (1.0 - beta_1**self.count))


class _Plain:
    """One step of plain SGD, without a flat gradient."""

    def __init__(self, resident: Resident) -> None:
        self.weights = [part.data for part in resident.trained]

    def __call__(self, gradients: tuple[torch.Tensor, ...], rate: float) -> None:
        torch._foreach_add_(self.weights, gradients, alpha=-rate)


def _stepper(learner: Torch, resident: Resident, origin: torch.Tensor, work: LocalWork) -> _Flat | _Plain:
    sgd = learner.optimizer
    plain = isinstance(sgd, SGD) and not sgd.momentum and not sgd.weight_decay and learner.clip_gradient is None
    if plain and not work.proximal and work.linear is None:
        return _Plain(resident)
    return _Flat(learner, resident, origin, work)
