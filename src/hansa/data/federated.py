"""A population's data: packed arrays, or a function called on demand; never an object a party.

A party is a number; its data are made when asked for, in a microsecond or two, so a million parties over one data set cost
their row numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from hansa.errors import DataError
from hansa.examples import Examples, Shard

if TYPE_CHECKING:
    from hansa.data.skew import SkewReport

Array = npt.NDArray[Any]
TRAIN, TEST = 0, 1


class FederatedData(ABC):
    """What every party of a population holds.

    Attributes:
        names: the parties' names, in order.
        classes: names of the classes; empty for real targets.
        features: names of the features; empty where rows are not tables.
    """

    names: Sequence[str]
    classes: tuple[str, ...]
    features: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def shard(self, party: int) -> Shard:
        """The data of one party; its examples are named by ``ref`` (party, 0) for training and (party, 1) for test."""

    @property
    @abstractmethod
    def sizes(self) -> npt.NDArray[np.int64]:
        """Training examples of each party, shape (parties,)."""

    @property
    @abstractmethod
    def central_test(self) -> Examples:
        """The source's own test set, or else the parties' test rows together."""

    @property
    @abstractmethod
    def example(self) -> Examples:
        """A few training examples, for shapes and dtypes; their ``base`` is the whole arrays where there are such."""

    def skew(self) -> SkewReport:
        """How differently the parties' training data are distributed, in numbers and a picture."""
        from hansa.data.skew import measure

        return measure(self)


def test_places(offsets: npt.NDArray[np.int64], train: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Which places between ``offsets[0]`` and ``offsets[-1]`` hold test rows: all but the first ``train`` of each party.

    >>> test_places(np.array([0, 3, 5]), np.array([2, 2])).tolist()
    [False, False, True, False, False]
    """
    step = np.zeros(int(offsets[-1] - offsets[0]) + 1, np.int8)
    np.add.at(step, offsets[:-1] - offsets[0] + train, 1)
    np.add.at(step, offsets[1:] - offsets[0], -1)
    return np.cumsum(step[:-1], dtype=np.int8).astype(bool)


@final
class Packed(FederatedData):
    """A population over shared arrays.

    Args:
        x, y: the arrays that all parties read from.
        rows: row numbers, party after party, each party's training rows first.
        offsets: party ``i`` holds ``rows[offsets[i]:offsets[i + 1]]``; shape (parties + 1,).
        train: training rows of each party, shape (parties,).
        names, classes, features: as in :class:`FederatedData`.
        central: the source's own test set; None takes the parties' test rows.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        rows: npt.NDArray[np.integer],
        offsets: npt.NDArray[np.int64],
        train: npt.NDArray[np.integer],
        *,
        names: Sequence[str],
        classes: tuple[str, ...] = (),
        features: tuple[str, ...] = (),
        central: Examples | None = None,
    ) -> None:
        self.x = x
        self.y = y
        self.rows = rows
        self.offsets = offsets
        self.train = train
        self.names = names
        self.classes = classes
        self.features = features
        self._central = central
        for shared in (rows, offsets, train):
            shared.flags.writeable = False

    def shard(self, party: int) -> Shard:
        if not 0 <= party < len(self.train):
            raise DataError(f"there are {len(self)} parties, numbered from 0, and no number {party}")
        start = self.offsets.item(party)
        middle = start + self.train.item(party)
        x, y, rows = self.x, self.y, self.rows
        return Shard(
            Examples(x, y, rows[start:middle], (party, TRAIN)),
            Examples(x, y, rows[middle : self.offsets.item(party + 1)], (party, TEST)),
        )

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        wide = self.train.astype(np.int64)
        wide.flags.writeable = False
        return wide

    @cached_property
    def central_test(self) -> Examples:
        if self._central is not None:
            return self._central
        return Examples(self.x, self.y, np.unique(self.rows[test_places(self.offsets, self.train)]))

    @cached_property
    def example(self) -> Examples:
        return Examples(self.x, self.y, self.rows[: min(8, int(self.train[0]))])
