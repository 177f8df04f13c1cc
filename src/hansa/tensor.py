"""Tensors as messages carry them, and batches of rows that need not be built.

A simulator that trains a hundred clients at once has their updates as one object: a matrix, or factors of one, perhaps in
another process. :class:`Rows` is what such an object can do without building any single row; a :class:`Tensor` is either an
array or one row of such a batch, and becomes an array only when somebody asks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK = 16_384
"""Elements that are widened at a time: they stay in the processor's cache, where a wide copy of a whole model would not."""


class Rows(ABC):
    """``count`` vectors of length ``size``, as an algebraic object.

    *Laws*, for the matrix ``M`` of shape (count, size) that it stands for: ``weighted_sum(c) == c @ M``,
    ``gram() == M @ M.T``, ``norms() == sqrt(diag(gram()))``, each within the rounding of ``dtype``.
    """

    count: int
    size: int
    dtype: np.dtype[Any]

    @abstractmethod
    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> Array:
        """``sum(coefficients[i] * row[i])``, shape (size,), touching only rows whose coefficient is not zero."""

    @abstractmethod
    def norms(self) -> npt.NDArray[np.float64]:
        """The L2 norm of each row, shape (count,)."""

    @abstractmethod
    def gram(self) -> npt.NDArray[np.float64]:
        """All inner products, shape (count, count)."""

    @abstractmethod
    def finite(self) -> npt.NDArray[np.bool_]:
        """Whether each row's norm is finite, shape (count,); mostly without the time that exact norms take."""


@runtime_checkable
class SumsLater(Protocol):
    """Rows whose sums are made elsewhere: asked for now, waited for when they are needed."""

    def begin_sum(self, coefficients: npt.NDArray[np.float64]) -> Callable[[], Array]:
        """Begin :meth:`Rows.weighted_sum`; what is returned waits for it."""
        ...


@final
class Dense(Rows):
    """Rows held as a matrix of shape (count, size): the book's version, the oracle of all others.

    >>> Dense(np.eye(3, dtype=np.float32)).weighted_sum(np.array([1.0, 0.0, 2.0])).tolist()
    [1.0, 0.0, 2.0]
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.count, self.size = matrix.shape
        self.dtype = matrix.dtype
        self._norms: npt.NDArray[np.float64] | None = None
        self._finite: npt.NDArray[np.bool_] | None = None

    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> Array:
        used = np.flatnonzero(coefficients)
        if len(used) == 1:
            row: Array = self.matrix[used[0]] * self.dtype.type(coefficients[used[0]])
            return row
        if len(used) == self.count:
            total: Array = coefficients.astype(self.dtype) @ self.matrix
            return total
        some: Array = coefficients[used].astype(self.dtype) @ self.matrix[used]
        return some

    def norms(self) -> npt.NDArray[np.float64]:
        # Every row of a batch is asked for its norm, one by one.
        if self._norms is None:
            if self.size > _BLOCK:
                squares = np.array([_square(row) for row in self.matrix])
            else:
                at_once = max(1, 2 * _BLOCK // max(1, self.size))
                parts = [self.matrix[start : start + at_once] for start in range(0, self.count, at_once)]
                squares = np.concatenate([_squares(part.astype(np.float64)) for part in parts] or [np.zeros(0)])
            self._norms = np.sqrt(squares)
        return self._norms

    def gram(self) -> npt.NDArray[np.float64]:
        wide = self.matrix.astype(np.float64)
        products: npt.NDArray[np.float64] = wide @ wide.T
        return products

    def finite(self) -> npt.NDArray[np.bool_]:
        if self._finite is None:
            if self.size > _BLOCK and self._norms is None:
                self._finite = np.array([_is_finite(row) for row in self.matrix])
            else:
                self._finite = np.isfinite(self.norms())
        return self._finite


@final
class Tensor:
    """A tensor in a message: an array, or one scaled row of a batch that is built on demand.

    Args:
        array: the values, any shape; None for a row.
        rows, index, scale: the batch, the row's place in it and its factor; for a row only.
    """

    __slots__ = ("_array", "index", "rows", "scale")

    def __init__(self, array: Array | None, rows: Rows | None = None, index: int = 0, scale: float = 1.0) -> None:
        self._array = array
        self.rows = rows
        self.index = index
        self.scale = scale

    @property
    def array(self) -> Array:
        """The values; a row is built at the first call and kept."""
        if self._array is None:
            assert self.rows is not None
            one_hot = np.zeros(self.rows.count)
            one_hot[self.index] = self.scale
            self._array = self.rows.weighted_sum(one_hot)
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, known without building it."""
        return (self.rows.size,) if self.rows is not None else self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The tensor's dtype, known without building it."""
        return self.rows.dtype if self.rows is not None else self.array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return (self.rows.size * self.rows.dtype.itemsize) if self.rows is not None else self.array.nbytes

    def norm(self) -> float:
        """The L2 norm over all elements, in float64."""
        if self.rows is not None:
            return abs(self.scale) * self.rows.norms().item(self.index)
        return math.sqrt(_square(self.array.ravel()))

    def finite(self) -> bool:
        """Whether :meth:`norm` is finite; where there is no doubt, without the time that an exact norm takes."""
        if self.rows is not None:
            return self.rows.finite().item(self.index)
        return _is_finite(self.array.ravel())

    def scaled(self, factor: float) -> Tensor:
        """This tensor times ``factor``; a row stays unbuilt."""
        if self.rows is not None:
            return Tensor(None, self.rows, self.index, self.scale * factor)
        return Tensor(self.array * self.array.dtype.type(factor))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        # The byte order is the machine's affair, not the value's: a message that has travelled equals the one that was sent.
        same = self.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
        return same and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.dtype.newbyteorder("=").str, self.shape))

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, shape={self.shape})"


def all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite, mostly in the time of one product and without a mask of the array's length.

    >>> all_finite(np.array([1e38, -1e38], np.float32)), all_finite(np.array([0.0, np.inf]))
    (True, False)
    """
    flat = array.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(np.dot(flat, flat)):
            return True
    return all(np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK))


def _is_finite(flat: Array) -> bool:
    # A sum of squares in the vector's own precision is finite only if all elements are; if not, it may have overflowed.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.dot(flat, flat)) or math.isfinite(_square(flat))


def _square(flat: Array) -> float:
    """The sum of squares, in float64."""
    if flat.dtype == np.float64:
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.dot(flat, flat))
    wide = np.empty(min(flat.size, _BLOCK))
    total = 0.0
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        widened = wide[: part.size]
        np.copyto(widened, part)
        total += float(np.dot(widened, widened))
    return total


def _squares(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each row's sum of squares; it does not depend on the other rows."""
    with np.errstate(over="ignore", invalid="ignore"):
        found: npt.NDArray[np.float64] = (matrix[:, None, :] @ matrix[:, :, None])[:, 0, 0]  # a dot product a row
        return found
