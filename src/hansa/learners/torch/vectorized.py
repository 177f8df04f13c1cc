"""Many parties at once through ``torch.func``: their weights stacked, one batched step for all; eager, or compiled.

Every party has its own weights in memory, so this pays for models that are small beside a processor's cache. Compiled, the
forward, backward and update become one kernel, which pays for small convolutional models once the compilation is earned.
"""

from __future__ import annotations

import os
import shutil
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, vmap

from hansa.learner import LocalWork
from hansa.learners.optimizers import SGD
from hansa.learners.torch.losses import Loss
from hansa.learners.torch.padded import Padded
from hansa.learners.torch.resident import Resident, tensor_of

Tensors: TypeAlias = list[torch.Tensor]
Step: TypeAlias = Callable[..., tuple[Tensors, Tensors, torch.Tensor]]
Maker: TypeAlias = Callable[[bool, bool], Step]


@dataclass(frozen=True)
class Terms:
    """What a step does beyond plain SGD: decided before it is made, because a compiled step has no branches.

    Args:
        momentum, nesterov, weight_decay: as of :class:`hansa.learners.optimizers.SGD`.
        proximal, linear: whether the objective has these terms.
        clip: the gradient's largest norm; None for no limit.
    """

    momentum: float
    nesterov: bool
    weight_decay: float
    proximal: bool
    linear: bool
    clip: float | None

    @staticmethod
    def of(sgd: SGD, works: Sequence[LocalWork], clip: float | None) -> Terms:
        """The terms that ``works`` need."""
        proximal, linear = any(w.proximal for w in works), any(w.linear is not None for w in works)
        return Terms(sgd.momentum, sgd.nesterov, sgd.weight_decay, proximal, linear, clip)


def fit_vectorized(
    resident: Resident,
    make: Maker,
    terms: Terms,
    start: torch.Tensor,
    works: Sequence[LocalWork],
    data: Padded,
) -> tuple[Tensors, list[float]]:
    """Train each party from ``start``: their changes, one stacked tensor a parameter, and their mean training losses.

    Args:
        resident: the model.
        make: gives a step, from :func:`make_step` or :func:`compiled_step`, by whether it starts from weights that all share
            and whether it is the last.
        terms: what the steps are made for.
        start: the received model, shape (size,).
        works, data: one of each a party, and their batches.
    """
    size, parties = resident.trained_size, data.parties
    resident.load(start)
    resident.training(True)
    weights = _parts(resident, start[:size])
    origin = weights
    velocity = [torch.zeros_like(part) for part in weights] if terms.momentum else []
    proximal = start.new_tensor([work.proximal for work in works])
    linear: Tensors = []
    if terms.linear:
        zero = np.zeros(size)
        rows = [zero if work.linear is None else np.asarray(work.linear)[:size] for work in works]
        linear = _split(resident, tensor_of(np.stack(rows)).to(resident.device, resident.dtype))
    rates = torch.from_numpy(data.rates).to(resident.device, resident.dtype)
    found = torch.zeros(parties, dtype=torch.float64, device=resident.device)
    for index in range(data.steps):
        x, y = data.batch(index)
        share = data.share[:, index, : x.shape[1]]
        last = index == data.steps - 1
        weights, velocity, losses = make(index == 0, last)(
            weights,
            velocity,
            origin if terms.proximal or last else [],
            x,
            y,
            share,
            rates[:, index].clone(),
            proximal,
            linear,
        )
        found += losses.double() * data.real[:, index].sum(1)
    means: list[float] = (found.cpu().numpy() / np.maximum(data.seen, 1)).tolist()
    return weights, means


def make_step(resident: Resident, loss: Loss, terms: Terms, shared: bool = False, last: bool = False) -> Step:
    """One SGD step of several parties, as a function of their weights.

    It takes weights and velocity (a stacked tensor a parameter; where ``shared``, one of all parties), origin (one of all
    parties), features, targets, shares, rates, proximal factors and linear terms, and returns the new weights (the ``last``
    step: their change from origin) and velocity, stacked, and each party's loss. From shared weights the forward pass is one
    large batch.
    """
    names = resident.layout.names[: len(resident.trained)]
    module, each = resident.module, loss.each
    assert each is not None

    def objective(weights: Tensors, x: torch.Tensor, y: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        output = functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return (each(output, y) * share).sum()

    batched = vmap(grad_and_value(objective), in_dims=(None if shared else 0, 0, 0, 0))

    def step(
        weights: Tensors,
        velocity: Tensors,
        origin: Tensors,
        x: torch.Tensor,
        y: torch.Tensor,
        share: torch.Tensor,
        rate: torch.Tensor,
        proximal: torch.Tensor,
        linear: Tensors,
    ) -> tuple[Tensors, Tensors, torch.Tensor]:
        found, losses = batched(weights, x, y, share)
        gradients = [*found]
        if terms.proximal:
            gradients = [g + _over(proximal, g) * (w - o) for g, w, o in zip(gradients, weights, origin, strict=True)]
        if terms.linear:
            gradients = [g + part for g, part in zip(gradients, linear, strict=True)]
        if terms.clip is not None:
            squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
            factor = torch.clamp(terms.clip / (squares.sqrt() + 1e-6), max=1.0)
            gradients = [g * _over(factor, g) for g in gradients]
        if terms.weight_decay:
            gradients = [g + terms.weight_decay * w for g, w in zip(gradients, weights, strict=True)]
        if terms.momentum:
            velocity = [v * terms.momentum + g for v, g in zip(velocity, gradients, strict=True)]
            ahead = zip(gradients, velocity, strict=True)
            gradients = [g + terms.momentum * v for g, v in ahead] if terms.nesterov else velocity
        if last:
            weights = [w - o for w, o in zip(weights, origin, strict=True)]
        weights = [torch.addcmul(w, g, _over(rate, g), value=-1.0) for w, g in zip(weights, gradients, strict=True)]
        return weights, velocity, losses

    return step


def compiled_step(resident: Resident, loss: Loss, terms: Terms, shared: bool, last: bool) -> Step:
    """:func:`make_step`, compiled anew for each signature of its tensors; the first call of one compiles.

    The compiler's own guards look at the whole module in every call. They are left out: a signature has a function of its own,
    and what else the step depends on (the module's structure, the terms) never changes for one resident.
    """
    made: dict[Any, Any] = {}

    def step(*arguments: Any) -> tuple[Tensors, Tensors, torch.Tensor]:
        parts = [part for a in arguments for part in (a if isinstance(a, list) else (a,))]
        signature = (torch.is_grad_enabled(), *((part.shape, part.stride(), part.dtype) for part in parts))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the compiler's notes about its own choices; nothing that a caller can act on
            if signature not in made:
                made[signature] = torch.compile(
                    _own_code(make_step(resident, loss, terms, shared, last)),
                    dynamic=False,
                    options={
                        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
                        "compile_threads": 1,  # the compiler's own worker processes do not survive a fork
                    },
                )
            result: tuple[Tensors, Tensors, torch.Tensor] = made[signature](*arguments)
        return result

    return step


def _own_code(function: Any) -> Any:
    """``function`` with a code object that no other has: the compiler keeps what it made by code object."""
    return types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def why_not_vmap(resident: Resident, loss: Loss, x_shape: tuple[int, ...]) -> str:
    """Why the model cannot be trained many at once; empty where it can. A trial with zeros tells."""
    if loss.each is None:
        return "its loss is a callable, which does not say what each example's share is"
    if resident.trained_size < resident.layout.size:
        return "it has buffers or frozen parameters"
    output = resident.output_shape(x_shape)
    x = resident.features(np.zeros((2, 2, *x_shape), np.float32))
    if loss.kind == "classes":
        y = torch.zeros((2, 2, *output[1:]), dtype=torch.int64, device=resident.device)
    else:
        y = torch.zeros((2, 2, *output), dtype=resident.dtype, device=resident.device)
    ones = x.new_ones(2, dtype=resident.dtype)
    weights = [part.detach().expand(2, *part.shape).clone() for part in resident.trained]
    step = make_step(resident, loss, Terms(0.0, False, 0.0, False, False, None))
    resident.training(True)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning here is a fall-back to a loop: correct, and slower than no vmap
            step(weights, [], weights, x, y, torch.full_like(y.reshape(2, 2, -1)[:, :, 0], 0.5, dtype=resident.dtype),
                 ones, ones, [])  # fmt: skip
    except Exception as error:  # the forward is the user's code: whatever it raises means that it cannot be batched
        return f"it cannot be batched over parties ({str(error).strip().partition(chr(10))[0]})"
    return ""


def has_compiler() -> bool:
    """Whether a C++ compiler is there for ``torch.compile``."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name)


def _parts(resident: Resident, flat: torch.Tensor) -> Tensors:
    """Views of flat parameters as one tensor a parameter."""
    parts = torch.split(flat, [part.numel() for part in resident.trained])
    return [part.view(old.shape) for part, old in zip(parts, resident.trained, strict=True)]


def _split(resident: Resident, rows: torch.Tensor) -> Tensors:
    """A copy of rows of flat parameters as one stacked tensor a parameter."""
    shapes = [part.shape for part in resident.trained]
    parts = torch.split(rows, [part.numel() for part in resident.trained], dim=1)
    return [part.contiguous().view(len(rows), *shape) for part, shape in zip(parts, shapes, strict=True)]


def _over(factor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return factor.view(-1, *[1] * (like.ndim - 1))
