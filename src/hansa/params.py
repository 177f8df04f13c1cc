"""A model's parameters: one flat buffer and a layout.

Averaging, clipping, encoding and checkpointing see one vector; a learner sees named tensors, which are views into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from hansa.errors import nearest
from hansa.tensor import Array


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in a flat buffer, in order.

    Args:
        names: one name a tensor, all different.
        shapes: each tensor's shape.
        dtype: the dtype of the whole buffer, ``"float32"`` or ``"float64"``.
        buffers: the names that are state, not trained (running statistics).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"
    buffers: frozenset[str] = frozenset()
    offsets: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + math.prod(shape))
        object.__setattr__(self, "offsets", tuple(ends))

    @property
    def size(self) -> int:
        """Number of elements of the flat buffer."""
        return self.offsets[-1]

    def views(self, flat: Array) -> dict[str, Array]:
        """Named views into ``flat`` (shape (size,)); writing to one writes to the buffer."""
        return {
            name: flat[start : start + math.prod(shape)].reshape(shape)
            for name, shape, start in zip(self.names, self.shapes, self.offsets, strict=False)
        }


@final
class Params:
    """One flat contiguous vector and the layout that names its parts.

    >>> p = Params.of({"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)})
    >>> p.flat.shape, p["weight"].shape
    ((8,), (2, 3))
    """

    # Not a dataclass: the codec's library would take one apart by itself, and never ask how it travels.
    __slots__ = ("flat", "layout")

    def __init__(self, flat: Array, layout: Layout) -> None:
        self.flat = flat
        self.layout = layout

    @staticmethod
    def of(tensors: Mapping[str, Array], buffers: Sequence[str] = (), dtype: str = "float32") -> Params:
        """Copy named tensors into one flat buffer, in the mapping's order."""
        layout = Layout(tuple(tensors), tuple(tuple(t.shape) for t in tensors.values()), dtype, frozenset(buffers))
        parts = [np.asarray(t, dtype=dtype).ravel() for t in tensors.values()]
        return Params(np.concatenate(parts) if parts else np.zeros(0, dtype), layout)

    def __getitem__(self, name: str) -> Array:
        if name not in self.layout.names:
            raise KeyError(f"no tensor is named {name!r}; {nearest(name, self.layout.names)}")
        place = self.layout.names.index(name)
        start, shape = self.layout.offsets[place], self.layout.shapes[place]
        view: Array = self.flat[start : start + math.prod(shape)].reshape(shape)
        return view

    def tensors(self) -> dict[str, Array]:
        """All tensors by name, as views."""
        return self.layout.views(self.flat)

    def replaced(self, flat: Array) -> Params:
        """The same layout over other values of the same size and dtype."""
        if flat.shape != (self.layout.size,):
            raise ValueError(f"expected {self.layout.size} values, got shape {flat.shape}")
        return Params(np.ascontiguousarray(flat, dtype=self.layout.dtype), self.layout)

    def __add__(self, delta: Array) -> Params:
        moved: Any = self.flat + delta.astype(self.flat.dtype, copy=False)
        return self.replaced(moved)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.layout.size
