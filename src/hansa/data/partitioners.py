"""Ways to divide one data set among parties, each after the paper that made it usual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from hansa.data.partition import Assignment, Partitioner
from hansa.errors import DataError, nearest
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


@final
@dataclass(frozen=True, slots=True)
class Shards:
    """Rows sorted by label and cut into ``parties * per_party`` equal shards, of which each party gets ``per_party`` at random.

    Real targets are sorted by value.

    Args:
        per_party: shards a party; 2 in the paper, so most parties see two labels.

    Source: McMahan et al., AISTATS 2017, section 3 (pathological non-IID).
    """

    per_party: int = 2

    def __post_init__(self) -> None:
        _whole("Shards.per_party", self.per_party)

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Sort, cut, deal."""
        count = _needed(parties, "Shards")
        _enough(dataset, count, self.per_party, "Shards")
        if dataset.y.ndim != 1:
            raise DataError(
                f"Shards sorts by one target a row; {dataset.name} has targets of shape {dataset.y.shape[1:]}"
            )
        shards = count * self.per_party
        cuts = equal_cuts(len(dataset), shards)
        party_of_shard = np.empty(shards, np.int64)
        party_of_shard[rng.permutation(shards)] = np.repeat(np.arange(count), self.per_party)
        owner = np.empty(len(dataset), np.int64)
        owner[np.argsort(dataset.y, kind="stable")] = np.repeat(party_of_shard, np.diff(cuts))
        return Assignment.by_owner(owner, count)


@final
@dataclass(frozen=True, slots=True)
class LabelLimited:
    """Every party sees at most ``classes`` labels; a class is divided equally among the parties that see it.

    Party ``i`` sees class ``i`` modulo their number and ``classes - 1`` others drawn at random, so every class is seen; with
    fewer parties than classes, the classes are dealt in turn.

    Args:
        classes: labels a party.

    Source: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, IV-A (quantity-based
    label imbalance, #C = k).
    """

    classes: int

    def __post_init__(self) -> None:
        _whole("LabelLimited.classes", self.classes)

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Choose each party's labels, then divide each class among those that hold it."""
        count = _needed(parties, "LabelLimited")
        labels, generator = dataset.labels, rng.generator()
        present = np.unique(labels)
        kinds = len(present)
        if self.classes > kinds:
            raise DataError(f"LabelLimited.classes is {self.classes} but {dataset.name} has rows of {kinds} classes")
        if count * self.classes < kinds:
            raise DataError(
                f"LabelLimited cannot place {kinds} classes on {count} parties of {self.classes} each; use more parties"
            )
        _enough(dataset, count, 1, "LabelLimited")
        if count < kinds:
            dealt = generator.permutation(kinds)
            seen = dealt[np.arange(count * self.classes).reshape(count, -1) % kinds]
        else:
            draws = generator.random((count, kinds))
            draws[np.arange(count), np.arange(count) % kinds] = -1.0
            seen = np.argsort(draws, axis=1)[:, : self.classes]
        owner = np.empty(len(labels), np.int64)
        for place, rows in enumerate(rows_by_class(np.searchsorted(present, labels), kinds, generator)):
            holders = generator.permutation(np.flatnonzero((seen == place).any(axis=1)))
            owner[rows] = np.repeat(holders, np.diff(equal_cuts(len(rows), len(holders))))
        return Assignment.by_owner(owner, count)


@final
@dataclass(frozen=True, slots=True)
class QuantitySkew:
    """Parties of very different sizes, each a uniform sample.

    Args:
        distribution: ``"lognormal"`` (weights ``exp(sigma * z)``, z standard normal) or ``"power"`` (weight
            ``rank ** -exponent``, ranks dealt at random).
        sigma: spread of the log-normal; 0 is equal sizes.
        exponent: of the power law; 0 is equal sizes.
        least: rows that each party has at least.

    Source: log-normal sizes as in Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020, 5.1 and
    its code; power law as in Caldas et al., "LEAF", arXiv:1812.01097, and Kairouz et al., "Advances and Open Problems in
    Federated Learning", 2021, 3.1 (quantity skew).
    """

    distribution: str = "lognormal"
    sigma: float = 1.0
    exponent: float = 1.0
    least: int = 1

    def __post_init__(self) -> None:
        if self.distribution not in ("lognormal", "power"):
            hint = nearest(str(self.distribution), ["lognormal", "power"])
            raise DataError(f"QuantitySkew.distribution cannot be {self.distribution!r}: {hint}")
        _not_negative("QuantitySkew.sigma", self.sigma)
        _not_negative("QuantitySkew.exponent", self.exponent)
        _whole("QuantitySkew.least", self.least)

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Draw weights, give everyone ``least`` rows, and the rest by weight (largest remainders)."""
        count = _needed(parties, "QuantitySkew")
        _enough(dataset, count, self.least, "QuantitySkew")
        generator = rng.generator()
        if self.distribution == "lognormal":
            exponents = self.sigma * generator.standard_normal(count)
        else:
            exponents = -self.exponent * np.log(generator.permutation(count) + 1.0)
        weights = np.exp(exponents - exponents.max())
        spare = len(dataset) - count * self.least
        ideal = weights / weights.sum() * spare
        sizes = np.floor(ideal).astype(np.int64)
        left = spare - int(sizes.sum())
        sizes[np.argsort(sizes - ideal, kind="stable")[:left]] += 1
        offsets = np.concatenate([[0], np.cumsum(sizes + self.least)])
        return Assignment(generator.permutation(len(dataset)), offsets)


@final
@dataclass(frozen=True, slots=True)
class FeatureSkew:
    """Feature skew (covariate shift): rows sorted along a direction and cut into equal parties, so each sees its own range.

    It moves rows and changes none; data that differ by noise or by a transform at each party come from :func:`from_function`.
    Without ``feature``, near-equal rows may be ordered otherwise on a machine whose linear algebra rounds otherwise.

    Args:
        strength: 1 sorts wholly, 0 is IID; between, the rank is mixed with a uniform draw.
        feature: name or number of the feature that is sorted by; None takes the first principal component.

    Source: the setting of Kairouz et al., "Advances and Open Problems in Federated Learning", 2021, section 3.1 (feature
    distribution skew); the noise and transform variants are those of Li et al., ICDE 2022, IV-B.
    """

    strength: float = 1.0
    feature: str | int | None = None

    def __post_init__(self) -> None:
        _not_negative("FeatureSkew.strength", self.strength)
        if self.strength > 1:
            raise DataError(f"FeatureSkew.strength must be in [0, 1], not {self.strength!r}")

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Sort by the mixed ranks and cut."""
        n, generator = len(dataset), rng.generator()
        count = _needed(parties, "FeatureSkew")
        _enough(dataset, count, 1, "FeatureSkew")
        values = self._direction(dataset, generator)
        ranks = np.empty(n)
        ranks[np.argsort(values, kind="stable")] = np.arange(n) / n
        mixed = self.strength * ranks + (1 - self.strength) * generator.random(n)
        return Assignment(np.argsort(mixed, kind="stable"), equal_cuts(n, count))

    def _direction(self, dataset: Dataset, generator: np.random.Generator) -> npt.NDArray[Any]:
        flat = dataset.x.reshape(len(dataset), -1)
        if self.feature is None:
            return principal(flat, generator)
        if isinstance(self.feature, str):
            if self.feature not in dataset.features:
                hint = nearest(self.feature, dataset.features)
                raise DataError(f"FeatureSkew: {dataset.name} has no feature '{self.feature}'; {hint}")
            return flat[:, dataset.features.index(self.feature)]
        if not 0 <= self.feature < flat.shape[1]:
            raise DataError(f"FeatureSkew: {dataset.name} has {flat.shape[1]} features, and no number {self.feature}")
        return flat[:, self.feature]


def principal(x: npt.NDArray[Any], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Each row's coordinate along the first principal component, by 30 steps of power iteration."""
    wide: npt.NDArray[np.float32] = x.astype(np.float32, copy=False)
    mean: npt.NDArray[np.float32] = wide.mean(axis=0)
    direction = generator.standard_normal((wide.shape[1],)).astype(np.float32)
    for _ in range(30):
        scores = np.asarray(wide @ direction - mean @ direction)
        direction = np.asarray(scores @ wide - scores.sum() * mean)
        norm = float(np.linalg.norm(direction))
        if norm == 0:
            return np.zeros(len(wide), np.float32)
        direction = direction / np.float32(norm)
    return np.asarray(wide @ direction)


@final
@dataclass(frozen=True, slots=True)
class ByColumn:
    """The natural division: one party for each value of a column, named by it, in sorted order.

    Args:
        column: a column of ``Dataset.columns`` (such as the ``party`` of a table), or a feature.

    Source: natural client partitions as in Caldas et al., "LEAF: A Benchmark for Federated Settings", arXiv:1812.01097.
    """

    column: str

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Group equal values; ``parties`` may be None, or else must be their number."""
        del rng
        if self.column in dataset.columns:
            column = dataset.columns[self.column]
        elif self.column in dataset.features:
            column = dataset.x[:, dataset.features.index(self.column)]
        else:
            hint = nearest(self.column, [*dataset.columns, *dataset.features])
            raise DataError(f"ByColumn: {dataset.name} has no column '{self.column}'; {hint}")
        values, owner = np.unique(column, return_inverse=True)
        if parties is not None and parties != len(values):
            raise DataError(
                f"column '{self.column}' of {dataset.name} makes {len(values)} parties, not {parties}; leave parties out"
            )
        return Assignment.by_owner(owner.reshape(-1), len(values), [str(value) for value in values.tolist()])


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


def _not_negative(place: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DataError(f"{place} must be a number of at least 0, not {value!r}")


PARTITIONERS: dict[str, type[Partitioner]] = {
    "by_column": ByColumn,
    "dirichlet": Dirichlet,
    "feature_skew": FeatureSkew,
    "iid": IID,
    "label_limited": LabelLimited,
    "quantity_skew": QuantitySkew,
    "shards": Shards,
}
"""Name in a plan to partitioner; ``hansa.registry`` adds those of other packages."""
