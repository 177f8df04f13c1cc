"""Updates of dense layers as the factors that backpropagation makes, never multiplied out for one party.

After local SGD a dense layer has moved by ``sum_i c_i d_i a_i^T``: over the examples seen, the error at its output times its
input. The rows kept here are these ``a_i`` and scaled ``d_i``; a weighted sum over parties is one matrix product for each layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from hansa.learners.torch.chain import Dense
from hansa.learners.torch.gemm import times_transposed
from hansa.tensor import Array, Rows


@dataclass(frozen=True)
class Factors:
    """One layer's part of a batch of updates: party ``p`` has moved by ``errors[p].T @ inputs[p]``.

    Args:
        layer: the layer's place in the flat buffer.
        inputs: shape (parties, rank, layer.inputs).
        errors: shape (parties, rank, layer.outputs), scaled by the steps' coefficients.
    """

    layer: Dense
    inputs: torch.Tensor
    errors: torch.Tensor


@final
class Factored(Rows):
    """A batch of updates as factors.

    Args:
        start: the model that training started from, shape (size,).
        shrink: how much of it each update takes away, shape (parties,): not zero with weight decay only.
        layers: every layer's factors.
    """

    def __init__(self, start: torch.Tensor, shrink: npt.NDArray[np.float64], layers: tuple[Factors, ...]) -> None:
        self.count, self.size = len(shrink), len(start)
        self.dtype = np.dtype(str(start.dtype)[6:])
        self._start, self._shrink, self._layers = start, shrink, layers
        self._gram: npt.NDArray[np.float64] | None = None
        self._norms: npt.NDArray[np.float64] | None = None
        self._finite: npt.NDArray[np.bool_] | None = None

    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> Array:
        used = np.flatnonzero(coefficients)
        factor = torch.as_tensor(coefficients[used], dtype=self._start.dtype, device=self._start.device)
        if len(used) == self.count:
            pick: slice | torch.Tensor = slice(None)
        elif len(used) == 1:
            pick = slice(int(used[0]), int(used[0]) + 1)
        else:
            pick = torch.as_tensor(used, device=self._start.device)
        total = (
            self._start * float(coefficients @ self._shrink) if self._shrink.any() else torch.zeros_like(self._start)
        )
        for part in self._layers:
            layer = part.layer
            errors = (part.errors[pick] * factor[:, None, None]).reshape(-1, layer.outputs)
            inputs = part.inputs[pick].reshape(-1, layer.inputs)
            _view(total, layer).add_(_outer(errors, inputs))
            if layer.bias is not None:
                total[layer.bias : layer.bias + layer.outputs].add_(errors.sum(0))
        array: Array = total.cpu().numpy()
        return array

    def norms(self) -> npt.NDArray[np.float64]:
        if self._norms is None:
            squares = np.zeros(self.count)
            for part in self._layers:
                kernel = torch.bmm(part.inputs, part.inputs.transpose(1, 2))
                if part.layer.bias is not None:
                    kernel += 1.0
                kernel *= torch.bmm(part.errors, part.errors.transpose(1, 2))
                squares += _wide(kernel.sum((1, 2), dtype=torch.float64))
            overlap = self._overlap()
            if overlap is not None:
                squares += 2.0 * self._shrink * overlap + self._shrink**2 * self._start_square()
            self._norms = np.sqrt(np.maximum(squares, 0.0))
        return self._norms

    def finite(self) -> npt.NDArray[np.bool_]:
        if self._finite is None:
            self._finite = np.isfinite(self.norms())
        return self._finite

    def gram(self) -> npt.NDArray[np.float64]:
        if self._gram is None:
            products = np.zeros((self.count, self.count))
            for part in self._layers:
                for first in range(self.count):
                    products[first] += self._products(part, first)
            overlap = self._overlap()
            if overlap is not None:
                cross = np.outer(self._shrink, overlap)
                products += cross + cross.T + np.outer(self._shrink, self._shrink) * self._start_square()
            self._gram = (products + products.T) / 2.0
        return self._gram

    def _products(self, part: Factors, party: int) -> npt.NDArray[np.float64]:
        """One layer's inner products of ``party`` with all, from the factors' own inner products."""
        kernel = part.inputs.reshape(-1, part.layer.inputs) @ part.inputs[party].T
        if part.layer.bias is not None:
            kernel += 1.0
        kernel *= part.errors.reshape(-1, part.layer.outputs) @ part.errors[party].T
        return _wide(kernel.view(self.count, -1).sum(1, dtype=torch.float64))

    def _overlap(self) -> npt.NDArray[np.float64] | None:
        """Each party's inner product of its factored part with the start; None where the start plays no part."""
        if not self._shrink.any():
            return None
        overlap = np.zeros(self.count)
        for part in self._layers:
            outputs = part.inputs @ _view(self._start, part.layer).T
            if part.layer.bias is not None:
                outputs += self._start[part.layer.bias : part.layer.bias + part.layer.outputs]
            overlap += _wide((outputs * part.errors).sum((1, 2), dtype=torch.float64))
        return overlap

    def _start_square(self) -> float:
        return float(self._start.double().square().sum())


def _view(flat: torch.Tensor, layer: Dense) -> torch.Tensor:
    return flat[layer.weight : layer.weight + layer.outputs * layer.inputs].view(layer.outputs, layer.inputs)


def _outer(errors: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    if len(errors) * errors.shape[1] * inputs.shape[1] < 2**24:
        return errors.T @ inputs
    return times_transposed(errors.T.contiguous(), inputs.T.contiguous())


def _wide(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = tensor.cpu().numpy()
    return array
