"""Who gets which rows: the assignment a partitioner makes, and the packed population that is built from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

import numpy as np
import numpy.typing as npt

from hansa.data.federated import FederatedData, Packed, test_places
from hansa.errors import DataError
from hansa.examples import Examples
from hansa.party import Roster
from hansa.rng import Key

if TYPE_CHECKING:
    from hansa.data.dataset import Dataset

Array = npt.NDArray[Any]
Whole = npt.NDArray[np.int64]
_BLOCK = 65_536


@final
@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Rows of a data set, party after party.

    Args:
        rows: row numbers, the first party's first; any integer type.
        offsets: party ``i`` holds ``rows[offsets[i]:offsets[i + 1]]``; shape (parties + 1,).
        names: the parties' names; None numbers them.
        drawn: rows were drawn with replacement, in random order, so that one row may be at many parties.
    """

    rows: npt.NDArray[np.integer]
    offsets: Whole
    names: tuple[str, ...] | None = None
    drawn: bool = False

    @staticmethod
    def of(rows: Sequence[npt.ArrayLike], names: Sequence[str] | None = None) -> Assignment:
        """From one list of rows a party.

        >>> Assignment.of([[2, 0], [1]]).offsets.tolist()
        [0, 2, 3]
        """
        lists = [np.asarray(part, dtype=np.int64).reshape(-1) for part in rows]
        offsets = np.cumsum([0, *(len(part) for part in lists)])
        packed = np.concatenate(lists) if lists else np.zeros(0, np.int64)
        return Assignment(packed, offsets, None if names is None else tuple(names))

    @staticmethod
    def by_owner(owner: npt.NDArray[np.integer], parties: int, names: Sequence[str] | None = None) -> Assignment:
        """From the number of the party that owns each row.

        >>> Assignment.by_owner(np.array([1, 0, 1]), 2).rows.tolist()
        [1, 0, 2]
        """
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=parties))])
        return Assignment(np.argsort(owner, kind="stable"), offsets, None if names is None else tuple(names))


@runtime_checkable
class Partitioner(Protocol):
    """An extension point: says which rows each party gets.

    *Laws*: the result depends on the arguments only; every row is at exactly one party unless the class says otherwise.
    """

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """The rows of each of ``parties``; None where the data itself says how many."""
        ...


def divide(dataset: Dataset, how: Partitioner, *, parties: int | None, seed: int, test: float) -> FederatedData:
    """The body of :meth:`Dataset.partition`."""
    if parties is not None and (isinstance(parties, bool) or not isinstance(parties, int) or parties < 1):
        raise DataError(f"parties must be a whole number of at least 1, not {parties!r}")
    check_share(test)
    if not isinstance(how, Partitioner):
        raise DataError(f"a partitioner such as IID() or Dirichlet(alpha=0.3) is needed, not {how!r}")
    rng = Key.root(seed).child("partition")
    assigned = how.assign(dataset, parties, rng)
    sizes = _checked(assigned, dataset, parties, how)
    held = held_out(sizes, test)
    train = sizes - held
    if assigned.drawn:
        rows = _redrawn(assigned, len(dataset), train, test, rng.child("test"))
    else:
        rows = shuffled(assigned, rng.child("order"))
    x, own = standardized(dataset, rows, assigned, train)
    smallest = np.int32 if len(dataset) < 2**31 else np.int64
    return Packed(
        x,
        dataset.y,
        rows.astype(smallest, copy=False),
        assigned.offsets,
        train.astype(np.int32),
        names=Roster("client", len(sizes)) if assigned.names is None else assigned.names,
        classes=dataset.classes,
        features=dataset.features,
        central=own,
    )


def check_share(test: float) -> None:
    """Refuse a share of test rows outside [0, 1)."""
    if isinstance(test, bool) or not isinstance(test, int | float) or not 0 <= test < 1:
        raise DataError(f"test must be a share in [0, 1), not {test!r}")


def held_out(sizes: Whole, share: float) -> Whole:
    """How many of each party's rows are its test rows: the share, rounded half up, but never its last row.

    >>> held_out(np.array([1, 2, 5, 18]), 0.2).tolist()
    [0, 0, 1, 4]
    """
    rounded = np.floor(sizes * share + 0.5).astype(np.int64)
    return np.asarray(np.minimum(rounded, np.maximum(sizes - 1, 0)))


def _checked(assigned: Assignment, dataset: Dataset, parties: int | None, how: Partitioner) -> Whole:
    """The parties' sizes, once the assignment is known to be one."""
    who = type(how).__name__
    sizes: Whole = np.diff(assigned.offsets)
    if parties is not None and len(sizes) != parties:
        raise DataError(f"{who} divides {dataset.name} among {len(sizes)} parties, not {parties}; leave parties out")
    if len(assigned.rows) != assigned.offsets[-1] or assigned.offsets[0] != 0:
        raise DataError(f"{who} gave {len(assigned.rows)} rows but offsets that end at {assigned.offsets[-1]}")
    empty = np.flatnonzero(sizes < 1)
    if len(empty):
        raise DataError(
            f"{who} leaves {len(empty)} of {len(sizes)} parties without a row (the first is party {empty[0]}); "
            f"use fewer parties or less skew: {dataset.name} has {len(dataset)} rows"
        )
    if assigned.rows.min() < 0 or assigned.rows.max() >= len(dataset):
        raise DataError(f"{who} gave row {assigned.rows.max()} of {dataset.name}, which has {len(dataset)} rows")
    if assigned.names is not None and len(assigned.names) != len(sizes):
        raise DataError(f"{who} gave {len(assigned.names)} names for {len(sizes)} parties")
    if not assigned.drawn and np.bincount(assigned.rows, minlength=len(dataset)).max() > 1:
        raise DataError(f"{who} gave one row to two parties; set drawn=True on its Assignment if that is meant")
    return sizes


def shuffled(assigned: Assignment, rng: Key) -> npt.NDArray[np.integer]:
    """The rows with each party's own in random order."""
    order = rng.generator().permutation(len(assigned.rows))
    owner = np.repeat(np.arange(len(assigned.offsets) - 1), np.diff(assigned.offsets))
    rows: npt.NDArray[np.integer] = assigned.rows[order[np.argsort(owner[order], kind="stable")]]
    return rows


def _redrawn(assigned: Assignment, n: int, train: Whole, share: float, rng: Key) -> npt.NDArray[np.integer]:
    """Rows drawn with replacement, such that a row of the base is a test row for every party that has it, or for none.

    Draws on the wrong side are drawn again from the right one, which keeps each side uniform. Parties are taken in blocks,
    to keep the temporary arrays small.
    """
    if n < 2 or not np.any(train < np.diff(assigned.offsets)):
        return assigned.rows
    generator = rng.generator()
    mixed = generator.permutation(n)
    pools = np.split(mixed, [min(max(int(n * share + 0.5), 1), n - 1)])
    tests = np.zeros(n, bool)
    tests[pools[0]] = True
    rows = assigned.rows.copy()
    for first in range(0, len(train), _BLOCK):
        offsets = assigned.offsets[first : first + _BLOCK + 1]
        wanted = test_places(offsets, train[first : first + _BLOCK])
        block = rows[offsets[0] : offsets[-1]]
        for pool, side in zip(pools, (True, False), strict=True):
            wrong = np.flatnonzero((wanted == side) & (tests[block] != side))
            block[wrong] = pool[generator.integers(0, len(pool), len(wrong))]
    return rows


def standardized(dataset: Dataset, rows: Array, assigned: Assignment, train: Whole) -> tuple[Array, Examples | None]:
    """Features and own test set after ``dataset.standardize``; moments come from training rows only."""
    x = dataset.x
    if dataset.standardize == "none":
        return x, dataset.test
    if x.dtype.kind != "f" or x.ndim != 2:
        raise DataError(f"{dataset.name} is not a table of real features, so it cannot be standardized")
    if dataset.standardize == "party" and assigned.drawn:
        raise DataError(f"rows of {dataset.name} are at several parties, so standardize='party' cannot be used")
    starts = assigned.offsets[:-1]
    mean, deviation = moments(x[rows[~test_places(assigned.offsets, train)]])
    own = dataset.test
    if own is not None:
        own = Examples(((own.x - mean) / deviation).astype(np.float32), own.y)
    if dataset.standardize == "global":
        return ((x - mean) / deviation).astype(np.float32), own
    scaled = x.copy()
    for start, end, count in zip(starts, assigned.offsets[1:], train, strict=True):
        mine = rows[start:end]
        mean, deviation = moments(x[mine[:count]])
        scaled[mine] = (x[mine] - mean) / deviation
    return scaled, own


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column (in float64, over n); a constant column has deviation 1."""
    deviation = x.std(axis=0, dtype=np.float64)
    return x.mean(axis=0, dtype=np.float64), np.where(deviation > 1e-12, deviation, 1.0)
