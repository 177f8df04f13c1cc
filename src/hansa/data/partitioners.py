"""Ways to divide one data set among parties, each after the paper that made it usual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt

from hansa.data.partition import Assignment, Partitioner
from hansa.errors import DataError
from hansa.rng import Key

if TYPE_CHECKING:
    from hansa.data.dataset import Dataset

Whole = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True)
class IID:
    """Every party a uniform sample; sizes differ by one at most.

    Args:
        examples: rows a party, training and test together; None divides all rows. Where ``parties * examples`` is more than
            there is, rows are drawn with replacement (and a row is then a test row for every party that has it, or for none);
            where it is less, the rest is left out.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, 3 (IID).
    """

    examples: int | None = None

    def __post_init__(self) -> None:
        if self.examples is not None:
            _whole("IID.examples", self.examples)

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """A permutation of the rows cut in equal parts, or ``examples`` rows for each party."""
        n, generator = len(dataset), rng.generator()
        count = _needed(parties, "IID")
        if self.examples is None:
            _enough(dataset, count, 1, "IID")
            return Assignment(generator.permutation(n), equal_cuts(n, count))
        offsets = np.arange(count + 1, dtype=np.int64) * self.examples
        if count * self.examples <= n:
            return Assignment(generator.permutation(n)[: count * self.examples], offsets)
        kind = np.int32 if n < 2**31 else np.int64
        return Assignment(generator.integers(0, n, count * self.examples, dtype=kind), offsets, drawn=True)


@final
@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Label skew: each class is divided among the parties by shares drawn from a symmetric Dirichlet distribution.

    Parties left with fewer than ``least`` rows take random rows from the largest ones, so a small ``alpha`` with many parties
    works at once (the original draws everything again until it fits).

    Args:
        alpha: concentration, above 0; small is skewed, large tends to IID.
        least: rows that each party has at least, training and test together.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, section 4 (shares by
    class). Hsu et al. (arXiv:1909.06335), section 3, draws each party's mixture of classes instead, at equal sizes.
    """

    alpha: float
    least: int = 1

    def __post_init__(self) -> None:
        _above_zero("Dirichlet.alpha", self.alpha)
        _whole("Dirichlet.least", self.least)

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Shares for each class, then the least sizes."""
        count = _needed(parties, "Dirichlet")
        labels = dataset.labels
        _enough(dataset, count, self.least, "Dirichlet")
        generator = rng.generator()
        owner = np.empty(len(labels), np.int64)
        for rows in rows_by_class(labels, len(dataset.classes), generator):
            shares = generator.dirichlet(np.full(count, self.alpha))
            if not math.isclose(shares.sum(), 1.0, rel_tol=1e-6):
                shares = np.zeros(count)
                shares[generator.integers(count)] = 1.0
            cuts = np.floor(np.cumsum(shares) * len(rows) + 0.5).astype(np.int64)
            owner[rows] = np.minimum(np.searchsorted(cuts, np.arange(len(rows)), side="right"), count - 1)
        return Assignment.by_owner(topped_up(owner, count, self.least, generator), count)


def rows_by_class(labels: Whole, classes: int, generator: np.random.Generator) -> list[Whole]:
    """The rows of each class, each in random order."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.split(order, np.cumsum(np.bincount(labels, minlength=classes))[:-1])


def topped_up(owner: Whole, parties: int, least: int, generator: np.random.Generator) -> Whole:
    """``owner`` after the largest parties gave random rows to those with fewer than ``least``.

    Donors are lowered to one common level, so nobody but the largest is touched.
    """
    sizes = np.bincount(owner, minlength=parties)
    missing = np.maximum(least - sizes, 0)
    wanted = int(missing.sum())
    if not wanted:
        return owner
    level = _level(sizes, wanted)
    given = np.maximum(sizes - level, 0)
    spare = int(given.sum()) - wanted
    given[np.flatnonzero(given > 0)[:spare]] -= 1
    order = generator.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.arange(len(owner)) - np.repeat(starts, sizes)
    moved = order[place < np.repeat(given, sizes)]
    result = owner.copy()
    result[generator.permutation(moved)] = np.repeat(np.arange(parties), missing)
    return result


def _level(sizes: Whole, wanted: int) -> int:
    """The highest level above which the parties together hold at least ``wanted`` rows."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.maximum(sizes - middle, 0).sum()) >= wanted:
            low = middle
        else:
            high = middle - 1
    return low


def equal_cuts(n: int, parts: int) -> Whole:
    """Offsets that cut ``n`` rows into ``parts`` whose sizes differ by one at most.

    >>> equal_cuts(7, 3).tolist()
    [0, 2, 4, 7]
    """
    return np.arange(parts + 1, dtype=np.int64) * n // parts


def _needed(parties: int | None, who: str) -> int:
    if parties is None:
        raise DataError(f"{who} needs to know how many parties: give parties=")
    return parties


def _enough(dataset: Dataset, parties: int, least: int, who: str) -> None:
    if parties * least > len(dataset):
        each = "" if least == 1 else f" with at least {least} rows each"
        raise DataError(f"{who} cannot make {parties} parties{each} from the {len(dataset)} rows of {dataset.name}")


def _whole(place: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{place} must be a whole number of at least {least}, not {value!r}")


def _above_zero(place: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise DataError(f"{place} must be a number above 0, not {value!r}")


PARTITIONERS: dict[str, type[Partitioner]] = {"iid": IID, "dirichlet": Dirichlet}
