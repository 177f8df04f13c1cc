"""Dense networks whose weights are rows of one matrix: losses and gradients of many parties' models at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, final

import numpy as np

from hansa.params import Layout
from hansa.tensor import Array

Activation: TypeAlias = Literal["relu", "tanh"]
Loss: TypeAlias = Literal["cross_entropy", "mse"]


class Layer(NamedTuple):
    """Views of one dense layer of every party: weights (parties, out, in), biases (parties, out)."""

    weight: Array
    bias: Array


@final
@dataclass(frozen=True, slots=True)
class Network:
    """The shape of a dense network.

    Args:
        widths: features, hidden widths, outputs.
        activation: between the layers.
        loss: ``cross_entropy`` over classes, or ``mse`` as the mean over the outputs.
        l2: the factor of ``l2 / 2 * ||weights||^2``, biases left out.
    """

    widths: tuple[int, ...]
    activation: Activation
    loss: Loss
    l2: float = 0.0

    def layout(self, dtype: str) -> Layout:
        """The parameters' layout; a lone layer is named as PyTorch's ``Linear`` names its tensors."""
        prefixes = [f"layers.{i}." for i in range(len(self.widths) - 1)] if len(self.widths) > 2 else [""]
        names = tuple(f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias"))
        pairs = zip(self.widths[1:], self.widths[:-1], strict=True)
        shapes = tuple(shape for out, inner in pairs for shape in ((out, inner), (out,)))
        return Layout(names, shapes, dtype)

    def layers(self, flat: Array) -> list[Layer]:
        """Views into ``flat``, shape (parties, size)."""
        layers, start = [], 0
        for out, inner in zip(self.widths[1:], self.widths[:-1], strict=True):
            middle, end = start + out * inner, start + out * inner + out
            layers.append(Layer(flat[:, start:middle].reshape(-1, out, inner), flat[:, middle:end]))
            start = end
        return layers


def forward(network: Network, layers: Sequence[Layer], x: Array) -> list[Array]:
    """The input of each layer and the network's output, for ``x`` of shape (parties, examples, features)."""
    values = [x]
    for place, layer in enumerate(layers):
        z: Array = values[-1] @ layer.weight.swapaxes(1, 2)
        z += layer.bias[:, None, :]
        if place < len(layers) - 1:
            z = np.maximum(z, 0.0, out=z) if network.activation == "relu" else np.tanh(z, out=z)
        values.append(z)
    return values


def loss_and_slope(loss: Loss, output: Array, target: Array) -> tuple[Array, Array]:
    """Each example's loss, shape (parties, examples), and its derivative by the output, which may reuse ``output``.

    Args:
        loss: the network's.
        output: shape (parties, examples, outputs).
        target: class numbers, shape (parties, examples); or values shaped as ``output``.
    """
    if loss == "mse":
        output -= target
        slope = output * (2.0 / output.shape[-1])
        squares: Array = np.einsum("pno,pno->pn", output, output) / output.shape[-1]
        return squares, slope
    rows = output.reshape(-1, output.shape[-1])
    place = np.arange(len(rows)), target.ravel()
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[place]
    np.exp(rows, out=rows)
    total = rows @ np.ones(rows.shape[1], rows.dtype)
    rows /= total[:, None]
    rows[place] -= 1.0
    losses: Array = (np.log(total) - chosen).reshape(target.shape)
    return losses, output


def gradient(
    network: Network, layers: Sequence[Layer], into: Sequence[Layer], x: Array, target: Array, share: Array
) -> Array:
    """Write every party's gradient into the views ``into``; return each example's loss, shape (parties, examples).

    Args:
        network: the shape.
        layers: the weights.
        into: views of a matrix like the weights'.
        x: shape (parties, examples, features).
        target: see :func:`loss_and_slope`.
        share: the weight of each example in its party's mean, 0 for padding, shape (parties, examples).
    """
    *values, output = forward(network, layers, x)
    losses, slope = loss_and_slope(network.loss, output, target)
    slope *= share[:, :, None]
    for place in reversed(range(len(layers))):
        layer, value = layers[place], values[place]
        np.matmul(slope.swapaxes(1, 2), value, out=into[place].weight)
        np.sum(slope, axis=1, out=into[place].bias)
        if network.l2:
            into[place].weight[...] += network.l2 * layer.weight
        if place:
            slope = slope @ layer.weight
            slope *= (value > 0) if network.activation == "relu" else (1.0 - np.square(value))
    return losses
