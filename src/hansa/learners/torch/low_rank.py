"""Exact low-rank training of dense chains: many parties at once, none of their weights ever built.

With gradients ``G_i = D_i^T A_i`` (errors times inputs) and any mixture of momentum, Nesterov, weight decay and a proximal term,
the weights after ``t`` steps are ``a_t W_0 + sum_i c_{t,i} G_i``: the optimizer moves the scalars only. So a forward pass is
the shared product ``X W_0^T``, one for all parties, and a correction of low rank, ``(X A^T * c) D``. A bias is a weight whose
input is 1, which adds 1 to every entry of ``X A^T``.

Equal to the plain loop but for the order of rounding. Its cost grows with the square of the examples seen, so it pays while
``steps * batch`` is small beside a layer's width, and for small models, whose cost is the number of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from hansa.learner import LocalWork
from hansa.learners.optimizers import SGD
from hansa.learners.torch.chain import Activation, Chain, Dense
from hansa.learners.torch.factored import Factored, Factors
from hansa.learners.torch.gemm import times_transposed
from hansa.learners.torch.losses import Loss
from hansa.learners.torch.padded import Padded

Trail: TypeAlias = list[tuple[Activation, torch.Tensor, torch.Tensor]]


def fit_low_rank(
    chain: Chain, loss: Loss, sgd: SGD, start: torch.Tensor, works: Sequence[LocalWork], data: Padded
) -> tuple[Factored, list[float]]:
    """Train each party from ``start``: their deltas as factors, and their mean training losses."""
    x, y = data.batch()
    parties, steps, width = data.parties, data.steps, data.width
    rows = steps * width
    inputs = [x.reshape(parties, rows, -1), *(start.new_empty((parties, rows, n.inputs)) for n in chain.layers[1:])]
    layers = [_Layer.over(spec, start, factors) for spec, factors in zip(chain.layers, inputs, strict=True)]
    layers[0].base = _shared(layers[0], layers[0].inputs)
    found = torch.zeros(parties, dtype=torch.float64, device=start.device)
    path = _Coefficients(sgd, works, data.rates)
    with torch.no_grad():
        for step in range(steps):
            done, here = slice(0, step * width), slice(step * width, (step + 1) * width)
            factor, shrink = path.tensors(step, width, start)
            saved, output = _forward(layers, done, here, factor, shrink)
            losses, error = _output_error(loss, output, y[:, step], data.share[:, step])
            found += (losses * data.real[:, step]).sum(1, dtype=torch.float64)
            _backward(layers, saved, error, done, here, factor, shrink)
            path.advance(step)
    final, shrunk = path.final(width, start)
    parts = tuple(Factors(layer.spec, layer.inputs, layer.errors.mul_(final)) for layer in layers)
    seen = np.maximum(data.seen, 1)
    return Factored(start, shrunk, parts), (found.cpu().numpy() / seen).tolist()


@dataclass
class _Layer:
    """A layer's shared weights and all parties' factors so far."""

    spec: Dense
    weight: torch.Tensor
    bias: torch.Tensor | None
    inputs: torch.Tensor
    errors: torch.Tensor
    base: torch.Tensor | None = None

    @staticmethod
    def over(spec: Dense, start: torch.Tensor, inputs: torch.Tensor) -> _Layer:
        weight = start[spec.weight : spec.weight + spec.outputs * spec.inputs].view(spec.outputs, spec.inputs)
        bias = None if spec.bias is None else start[spec.bias : spec.bias + spec.outputs]
        return _Layer(spec, weight, bias, inputs, start.new_empty((*inputs.shape[:2], spec.outputs)))


def _shared(layer: _Layer, x: torch.Tensor) -> torch.Tensor:
    """``x W_0^T + b_0`` for x of shape (parties, rows, inputs): one product for all parties."""
    flat = x.reshape(-1, layer.spec.inputs)
    if layer.bias is not None and flat.shape[0] * layer.weight.numel() < 2**24:
        product = torch.addmm(layer.bias, flat, layer.weight.T)
    else:
        product = times_transposed(flat, layer.weight)
        if layer.bias is not None:
            product += layer.bias
    return product.view(*x.shape[:2], layer.spec.outputs)


def _forward(
    layers: list[_Layer],
    done: slice,
    here: slice,
    factor: torch.Tensor | None,
    shrink: torch.Tensor | None,
) -> tuple[list[Trail], torch.Tensor]:
    """The parties' outputs at ``step``, and what each activation needs for its way back."""
    saved: list[Trail] = []
    value = layers[0].inputs[:, here]
    for layer in layers:
        if layer.base is not None:
            output = layer.base[:, here]
        else:
            layer.inputs[:, here] = value
            output = _shared(layer, value)
        if shrink is not None:
            output = output * shrink
        if factor is not None:
            kernel = torch.bmm(value, layer.inputs[:, done].transpose(1, 2))
            if layer.bias is not None:
                kernel += 1.0
            output = torch.baddbmm(output, kernel.mul_(factor), layer.errors[:, done])
        trail: Trail = []
        for activation in layer.spec.after:
            if activation is torch.relu:
                after = torch.relu(output)
                trail.append((activation, after, after))
            else:
                before = output.detach().requires_grad_()
                with torch.enable_grad():
                    after = activation(before)
                trail.append((activation, before, after))
            output = after.detach()
        saved.append(trail)
        value = output
    return saved, value


def _backward(
    layers: list[_Layer],
    saved: list[Trail],
    error: torch.Tensor,
    done: slice,
    here: slice,
    factor: torch.Tensor | None,
    shrink: torch.Tensor | None,
) -> None:
    """Write every layer's errors at this step."""
    for place in range(len(layers) - 1, -1, -1):
        layer = layers[place]
        for activation, before, after in reversed(saved[place]):
            if activation is torch.relu:
                error = error * (after > 0)
            else:
                (error,) = torch.autograd.grad(after, before, error)
        layer.errors[:, here] = error
        if place == 0:
            return
        flat = error.reshape(-1, layer.spec.outputs)
        below = times_transposed(flat, layer.weight.T).view(*error.shape[:2], layer.spec.inputs)
        if shrink is not None:
            below = below * shrink
        if factor is not None:
            kernel = torch.bmm(error, layer.errors[:, done].transpose(1, 2)).mul_(factor)
            below = torch.baddbmm(below, kernel, layer.inputs[:, done])
        error = below


def _output_error(
    loss: Loss, output: torch.Tensor, target: torch.Tensor, share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each example's loss, and the gradient of the batches' mean losses at the output."""
    if loss.name == "cross_entropy" and not target.is_floating_point():
        # by hand: the library's softmax is many times slower over an axis as short as a number of classes
        place = target.unsqueeze(-1)
        error = output - output.amax(-1, keepdim=True)
        right = error.gather(-1, place)
        total = error.exp_().sum(-1, keepdim=True)
        losses = (total.log() - right).squeeze(-1)
        error.div_(total).scatter_add_(-1, place, error.new_full((1, 1, 1), -1.0).expand(*target.shape, 1))
        return losses, error.mul_(share.unsqueeze(-1))
    assert loss.each is not None
    leaf = output.detach().flatten(0, 1).requires_grad_()
    with torch.enable_grad():
        losses = loss.each(leaf, target.flatten(0, 1))
    (error,) = torch.autograd.grad(losses, leaf, share.reshape(-1))
    return losses.detach().view(share.shape), error.view(output.shape)


class _Coefficients:
    """The optimizer on scalars: party ``p`` has the weights ``w[p, 0] W_0 + sum_i w[p, 1 + i] G_i``."""

    def __init__(self, sgd: SGD, works: Sequence[LocalWork], rates: npt.NDArray[np.float64]) -> None:
        parties, steps = rates.shape
        self._sgd, self._rates = sgd, rates
        self._proximal = np.array([work.proximal for work in works])[:, None]
        self._plain = not (sgd.momentum or sgd.weight_decay or self._proximal.any())
        self._start = np.zeros((1, 1 + steps))
        self._start[0, 0] = 1.0
        self.weights = np.repeat(self._start, parties, axis=0)
        self._velocity = np.zeros_like(self.weights)
        if self._plain:
            self.weights[:, 1:] = -rates

    def advance(self, step: int) -> None:
        """One optimizer step with the gradient of ``step``."""
        if self._plain:
            return
        sgd = self._sgd
        gradient = self._proximal * (self.weights - self._start) + sgd.weight_decay * self.weights
        gradient[:, 1 + step] += 1.0
        if sgd.momentum:
            self._velocity = sgd.momentum * self._velocity + gradient
            gradient = gradient + sgd.momentum * self._velocity if sgd.nesterov else self._velocity
        self.weights = self.weights - self._rates[:, step : step + 1] * gradient

    def tensors(self, step: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What multiplies the factors of the steps before ``step``, (parties, 1, step * width), and W_0; None for 0 and 1."""
        shrink = None
        if self._sgd.weight_decay and step:
            shrink = like.new_tensor(self.weights[:, 0])[:, None, None]
        return (self._spread(step, width, like) if step else None), shrink

    def final(self, width: int, like: torch.Tensor) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
        """What multiplies all factors in the end, (parties, steps * width, 1), and how much of W_0 is gone."""
        return self._spread(self._rates.shape[1], width, like).transpose(1, 2), self.weights[:, 0] - 1.0

    def _spread(self, steps: int, width: int, like: torch.Tensor) -> torch.Tensor:
        spread = np.repeat(self.weights[:, 1 : 1 + steps], width, axis=1)
        return torch.from_numpy(spread).to(like.device, like.dtype)[:, None, :]
