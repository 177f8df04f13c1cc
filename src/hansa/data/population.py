"""Populations whose parties are given one by one, or made by a function when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hansa.data.dataset import Dataset, arrays
from hansa.data.federated import TEST, TRAIN, FederatedData, Packed
from hansa.data.partition import Assignment, check_share, held_out, shuffled, standardized
from hansa.errors import DataError
from hansa.examples import Examples, Shard
from hansa.party import Roster
from hansa.rng import Key

Array = npt.NDArray[Any]
MOST_CALLS = 10_000


def from_parties(
    parties: Mapping[str, Dataset | Shard | tuple[npt.ArrayLike, ...]],
    *,
    seed: int = 0,
    test: float = 0.2,
    classes: Sequence[str] = (),
    features: Sequence[str] = (),
    standardize: str = "none",
) -> FederatedData:
    """Natural parties, each with its own rows.

    Args:
        parties: name to (x, y), to (x, y, x_test, y_test), to a :class:`Dataset` or to a ``Shard``; one with its own test
            rows keeps them, the others are divided by ``test``.
        seed: drives the division into training and test.
        test: the share of a party's rows that it is tested on, in [0, 1).
        classes, features: names; taken from the data sets where these are given as such.
        standardize: ``"none"``, ``"global"`` or ``"party"``, as in :class:`Dataset`.

    Raises:
        DataError: a party is empty, or parties differ in shape, features or kind of target.

    >>> fed = from_parties({"north": ([[0.0], [1.0]], [0, 1]), "south": ([[2.0]], [1])}, test=0.5)
    >>> fed.names, fed.sizes.tolist(), len(fed.central_test)
    (('north', 'south'), [1, 1], 1)
    """
    check_share(test)
    if not parties:
        raise DataError("from_parties needs at least one party")
    given = {name: _parts(name, value) for name, value in parties.items()}
    _alike(given)
    own = [len(parts) == 2 for parts in given.values()]
    pieces = [part for parts in given.values() for part in parts]
    kinds = {_kind(part.y) for part in pieces}
    if len(kinds) > 1:
        raise DataError(f"parties differ in their targets: {' and '.join(sorted(kinds))}; make them the same")
    sets = [value for value in parties.values() if isinstance(value, Dataset)]
    dataset = arrays(
        np.concatenate([part.x for part in pieces]),
        np.concatenate([part.y for part in pieces]),
        classes=classes or _union([value.classes for value in sets]),
        features=features or _same_features(sets),
        standardize=standardize,
        name="from_parties",
    )
    sizes = np.array([sum(len(part) for part in parts) for parts in given.values()], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    assigned = Assignment(np.arange(len(dataset)), offsets, tuple(given))
    train = np.where(own, [len(parts[0]) for parts in given.values()], sizes - held_out(sizes, test))
    mixed = shuffled(assigned, Key.root(seed).child("partition").child("order"))
    rows = np.where(np.repeat(own, sizes), assigned.rows, mixed)
    x, _ = standardized(dataset, rows, assigned, train)
    return Packed(
        x,
        dataset.y,
        rows.astype(np.int32 if len(dataset) < 2**31 else np.int64),
        offsets,
        train.astype(np.int32),
        names=tuple(given),
        classes=dataset.classes,
        features=dataset.features,
    )


def _parts(name: str, value: object) -> list[Examples]:
    """A party's rows: all together, or training and test where it has its own."""
    if isinstance(value, Dataset):
        parts = [Examples(value.x, value.y)] + ([] if value.test is None else [value.test])
        if value.classes:
            parts = [Examples(part.x, np.asarray(value.classes)[part.y]) for part in parts]
    elif isinstance(value, Shard):
        parts = [value.train, value.test]
    elif isinstance(value, tuple | list) and len(value) in (2, 4):
        try:
            parts = [Examples(np.asarray(value[i]), np.asarray(value[i + 1])) for i in range(0, len(value), 2)]
        except ValueError as error:
            raise DataError(f"party '{name}': its rows differ in shape; every row must have the same") from error
    else:
        raise DataError(f"party '{name}' must be (x, y), (x, y, x_test, y_test), a Dataset or a Shard")
    for part in parts:
        if part.x.ndim == 0 or part.y.ndim == 0 or len(part.x) != len(part.y):
            raise DataError(f"party '{name}': x and y must have one entry a row, and equally many")
    if not len(parts[0]):
        raise DataError(f"party '{name}' has no training row; leave it out")
    return parts


def _alike(given: Mapping[str, list[Examples]]) -> None:
    shape: tuple[int, ...] | None = None
    origin = ""
    for name, parts in given.items():
        for part in parts:
            if not len(part):
                continue
            if shape is None:
                shape, origin = part.x.shape[1:], name
            elif part.x.shape[1:] != shape:
                raise DataError(
                    f"party '{name}' has rows of shape {part.x.shape[1:]} and party '{origin}' of shape {shape}; "
                    "all must be equal"
                )


def _kind(y: Array) -> str:
    return {"f": "real numbers", "U": "texts", "S": "texts", "O": "texts"}.get(y.dtype.kind, "whole numbers")


def _same_features(sets: list[Dataset]) -> tuple[str, ...]:
    """The features' names of the data sets, which must agree: equal widths alone do not say equal columns."""
    for value in sets[1:]:
        if value.features != sets[0].features:
            odd = ", ".join(sorted(set(value.features) ^ set(sets[0].features))[:5]) or "their order"
            raise DataError(f"{value.name} and {sets[0].name} differ in features: {odd}")
    return sets[0].features if sets else ()


def _union(named: list[tuple[str, ...]]) -> tuple[str, ...]:
    """All class names, in the order of the longest list, then of appearance."""
    seen: dict[str, None] = {}
    for names in sorted(named, key=len, reverse=True):
        seen.update(dict.fromkeys(names))
    return tuple(seen)


def from_function(
    make: Callable[[int], tuple[npt.ArrayLike, npt.ArrayLike] | Shard],
    *,
    parties: int | Sequence[str],
    sizes: int | Sequence[int] | None = None,
    central_test: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    classes: Sequence[str] = (),
    features: Sequence[str] = (),
    seed: int = 0,
    test: float = 0.2,
) -> FederatedData:
    """A population whose parties' data are made when asked for, and not kept.

    Args:
        make: of a party's number, its (x, y) or its ``Shard``; must give the same for the same number.
        parties: how many, or their names.
        sizes: training examples of each party, one number for all or one each; None counts them by calling ``make`` for
            every party when they are first asked for, up to 10,000 parties.
        central_test: the central test set; None unites the parties' own, up to 10,000 parties.
        classes, features: names.
        seed, test: divide an (x, y) into training and test rows; a ``Shard`` is taken as it is.

    Raises:
        DataError: what ``make`` returned for a party cannot be used.

    >>> fed = from_function(lambda i: ([[float(i)]] * 4, [0, 1, 0, 1]), parties=1_000_000, sizes=3, test=0.25)
    >>> fed.shard(999_999).train.x.tolist()
    [[999999.0], [999999.0], [999999.0]]
    """
    check_share(test)
    if isinstance(parties, int):
        if isinstance(parties, bool) or parties < 1:
            raise DataError(f"parties must be a whole number of at least 1, not {parties!r}")
        names: Sequence[str] = Roster("client", parties)
    else:
        names = tuple(parties)
        if not names or len(set(names)) < len(names):
            raise DataError("the parties' names must be at least one, and all different")
    known = None
    if sizes is not None:
        known = np.broadcast_to(np.asarray(sizes, dtype=np.int64), (len(names),)) if np.ndim(sizes) == 0 else None
        if known is None:
            known = np.array(sizes, dtype=np.int64)
        if known.shape != (len(names),) or known.min() < 1:
            raise DataError(f"sizes must be one number of at least 1 for each of {len(names)} parties")
    own = None if central_test is None else arrays(*central_test, classes=classes, name="central_test")
    return Made(make, names, known, own, tuple(classes), tuple(features), seed, test)


@final
class Made(FederatedData):
    """A population made by a function; see :func:`from_function`."""

    def __init__(
        self,
        make: Callable[[int], tuple[npt.ArrayLike, npt.ArrayLike] | Shard],
        names: Sequence[str],
        sizes: npt.NDArray[np.int64] | None,
        central: Dataset | None,
        classes: tuple[str, ...],
        features: tuple[str, ...],
        seed: int,
        test: float,
    ) -> None:
        self.make = make
        self.names = names
        self.classes = classes
        self.features = features
        self._sizes = sizes
        self._central = central
        self._rng = Key.root(seed).child("partition").child("order")
        self._test = test

    def shard(self, party: int) -> Shard:
        if not 0 <= party < len(self.names):
            raise DataError(f"there are {len(self)} parties, numbered from 0, and no number {party}")
        value = self.make(party)
        name = self.names[party]
        if isinstance(value, Shard):
            train, test = value.train, value.test
            shard = Shard(_named(train, party, TRAIN), _named(test, party, TEST))
        elif isinstance(value, tuple) and len(value) == 2:
            data = arrays(*value, classes=self.classes, features=self.features, name=f"party '{name}'")
            count = len(data) - int(held_out(np.array([len(data)]), self._test)[0])
            order = self._rng.child("party", party).permutation(len(data))
            shard = Shard(
                Examples(data.x, data.y, order[:count], (party, TRAIN)),
                Examples(data.x, data.y, order[count:], (party, TEST)),
            )
        else:
            raise DataError(f"party '{name}': the function must return (x, y) or a Shard, not {type(value).__name__}")
        if not len(shard.train):
            raise DataError(f"party '{name}' has no training row")
        if self._sizes is not None and len(shard.train) != self._sizes[party]:
            raise DataError(
                f"party '{name}' has {len(shard.train)} training rows where sizes says {self._sizes[party]}; correct sizes"
            )
        return shard

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        if self._sizes is None:
            self._few("their sizes", "sizes")
            return np.array([len(self.shard(i).train) for i in range(len(self))], dtype=np.int64)
        return self._sizes

    @cached_property
    def central_test(self) -> Examples:
        if self._central is not None:
            return Examples(self._central.x, self._central.y)
        self._few("a central test set", "central_test")
        tests = [self.shard(i).test for i in range(len(self))]
        return Examples(np.concatenate([part.x for part in tests]), np.concatenate([part.y for part in tests]))

    @cached_property
    def example(self) -> Examples:
        return self.shard(0).train

    def _few(self, what: str, option: str) -> None:
        if len(self) > MOST_CALLS:
            raise DataError(f"{what} would need all {len(self)} parties to be made; give {option}= to from_function")


def _named(examples: Examples, party: int, split: int) -> Examples:
    x, y = examples.base
    return Examples(x, y, examples.rows, (party, split))
