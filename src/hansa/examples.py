"""Examples: what a party owns and a learner reads.

An :class:`Examples` is a window on arrays that many parties may share in a simulation: rows are gathered when read, so a
million parties over one data set cost their row numbers only.
"""

from __future__ import annotations

from typing import final

import msgspec
import numpy as np
import numpy.typing as npt

from hansa.tensor import Array


@final
class Examples:
    """``len(self)`` examples: features ``x`` (n, ...) and targets ``y`` (n, ...).

    Args:
        x, y: the arrays read from, first axis the examples'.
        rows: which rows of them are these examples, in order; None for all.
        ref: a number by which the process pool of a simulation names these examples instead of sending them: (party, split).
    """

    __slots__ = ("_x", "_y", "ref", "rows")

    def __init__(
        self, x: Array, y: Array, rows: npt.NDArray[np.integer] | None = None, ref: tuple[int, int] | None = None
    ) -> None:
        self._x = x
        self._y = y
        self.rows = rows
        self.ref = ref

    def __len__(self) -> int:
        return len(self._y) if self.rows is None else len(self.rows)

    @property
    def x(self) -> Array:
        """Features, gathered: shape (n, ...)."""
        return self._x if self.rows is None else self._x[self.rows]

    @property
    def y(self) -> Array:
        """Targets, gathered: shape (n, ...)."""
        return self._y if self.rows is None else self._y[self.rows]

    @property
    def base(self) -> tuple[Array, Array]:
        """The arrays that ``rows`` points into; batched learners gather from them for many parties at once."""
        return self._x, self._y


class Shard(msgspec.Struct, frozen=True, gc=False):
    """One party's own data: what it trains on and what it is tested on (either may be empty)."""

    train: Examples
    test: Examples
