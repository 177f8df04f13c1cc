"""One data set before it is divided: features, targets, names, and what a natural division needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from hansa.data.partition import Partitioner, divide
from hansa.errors import DataError
from hansa.examples import Examples

if TYPE_CHECKING:
    from hansa.data.federated import FederatedData

Array = npt.NDArray[Any]
STANDARDIZE = ("none", "global", "party")
MOST_CLASSES = 1_000_000


@final
@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Arrays with their names; make one with :func:`load` or :func:`arrays`, which check it.

    Args:
        x: features, shape (n, ...), float32 or an integer type (token numbers).
        y: class numbers int64 of shape (n,), or real targets float32 of shape (n, ...).
        features: a name for each column of ``x``; empty where ``x`` is not a table.
        classes: a name for each class; empty for real targets.
        test: the source's own test set, or None.
        columns: further columns of n values, by which :class:`ByColumn` divides.
        mappings: for each encoded text column, its categories in the order of their numbers.
        name: what the data is called in messages.
        standardize: ``"global"`` or ``"party"`` brings each feature to mean 0 and deviation 1 when the data is divided,
            measured on training rows only: of all parties, or of each party by itself.
    """

    x: Array
    y: Array
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    test: Examples | None = None
    columns: Mapping[str, Array] = field(default_factory=dict)
    mappings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = "arrays"
    standardize: str = "none"

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class number of each row.

        Raises:
            DataError: the targets are not classes.
        """
        if not self.classes:
            raise DataError(
                f"{self.name} has no class labels, so it cannot be divided by label; use IID or QuantitySkew"
            )
        return self.y

    def partition(
        self, how: Partitioner, *, parties: int | None = None, seed: int = 0, test: float = 0.2
    ) -> FederatedData:
        """Divide the rows among parties, and each party's rows into training and test.

        Guarantees: the same arguments give the same division on any machine; each party keeps a training row.

        Args:
            how: a partitioner, such as ``Dirichlet(alpha=0.3)``.
            parties: how many; None where the data says it, as for :class:`ByColumn`.
            seed: drives the division; any integer.
            test: the share of each party's rows that it is tested on, in [0, 1); rounded, so small parties may have none.

        Raises:
            DataError: the data cannot be divided so.

        >>> from hansa.data import IID, arrays
        >>> fed = arrays([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]).partition(IID(), parties=2, test=0.5)
        >>> len(fed), fed.names[0], len(fed.shard(0).train), len(fed.shard(0).test)
        (2, 'client-0', 1, 1)
        """
        return divide(self, how, parties=parties, seed=seed, test=test)


def arrays(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    test: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    features: Sequence[str] = (),
    classes: Sequence[str] = (),
    columns: Mapping[str, npt.ArrayLike] | None = None,
    scale: float | None = None,
    shape: Sequence[int] = (),
    standardize: str = "none",
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays.

    Real features become float32; ``uint8`` features are read as pixels and divided by 255; other integers stay as they are.
    Integer targets are class numbers, texts are numbered in sorted order, real targets stay real (float32).

    Args:
        x, y: features (n, ...) and targets (n, ...).
        test: the data's own test set, as (x, y).
        features, classes: names; numbered where empty.
        columns: further columns of n values, for :class:`ByColumn`.
        scale: what features are divided by; None is 255 for ``uint8`` and 1 for the rest.
        shape: what each row of features is reshaped to, such as (1, 28, 28); empty leaves it.
        standardize: ``"none"``, ``"global"`` or ``"party"``, as in :class:`Dataset`.
        name: what the data is called in messages.

    Raises:
        DataError: lengths differ, a value is NaN or infinite, a label is out of range.

    >>> data = arrays([[0.5, 1.0], [2.0, 4.0]], ["no", "yes"])
    >>> data.classes, data.y.tolist(), data.features
    (('no', 'yes'), [0, 1], ('0', '1'))
    """
    if standardize not in STANDARDIZE:
        raise DataError(f"{name}: standardize must be one of {', '.join(STANDARDIZE)}, not {standardize!r}")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise DataError(f"{name}: scale must be above 0, not {scale!r}")
    ready = _reshaped(_features(x, features, name, scale), shape, name)
    if len(ready) == 0:
        raise DataError(f"{name} has no rows")
    target, names = _targets(y, tuple(classes), name)
    if len(ready) != len(target):
        raise DataError(f"{name}: x has {len(ready)} rows and y has {len(target)}; they must be equal")
    kept = {key: np.asarray(values) for key, values in (columns or {}).items()}
    for key, values in kept.items():
        if len(values) != len(ready):
            raise DataError(f"{name}: column '{key}' has {len(values)} values for {len(ready)} rows")
    own = None
    if test is not None:
        test_x = _reshaped(_features(test[0], features, f"{name} (test)", scale), shape, name)
        own, names = _own_test(test_x, test[1], ready, target, names, f"{name} (test)")
    columns_of_x = (tuple(features) or tuple(str(i) for i in range(ready.shape[1]))) if ready.ndim == 2 else ()
    return Dataset(ready, target, columns_of_x, names, own, kept, {}, name, standardize)


def _own_test(
    test_x: Array, test_y: npt.ArrayLike, x: Array, y: Array, classes: tuple[str, ...], where: str
) -> tuple[Examples, tuple[str, ...]]:
    """The source's own test set in the form of its training rows, and the classes of both together."""
    raw = np.asarray(test_y)
    numbered = classes == tuple(str(i) for i in range(len(classes)))
    real = y.dtype.kind == "f"
    given = raw.astype(np.float32) if real and raw.dtype.kind in "iub" else raw
    if real != (given.dtype.kind == "f"):
        raise DataError(f"{where}: its targets are {raw.dtype} and those of the training rows are {y.dtype}")
    ready, seen = _targets(given, () if numbered and raw.dtype.kind in "iub" else classes, where)
    if len(test_x) != len(ready):
        raise DataError(f"{where}: x has {len(test_x)} rows and y has {len(ready)}; they must be equal")
    if test_x.shape[1:] != x.shape[1:] or ready.shape[1:] != y.shape[1:]:
        raise DataError(f"{where}: a row has shape {test_x.shape[1:]} where a training row has {x.shape[1:]}")
    return Examples(test_x.astype(x.dtype, copy=False), ready), max(classes, seen, key=len)


def _reshaped(x: Array, shape: Sequence[int], name: str) -> Array:
    if not shape:
        return x
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise DataError(f"{name}: shape must be whole numbers of at least 1, not {tuple(shape)}")
    if int(np.prod(shape)) != int(np.prod(x.shape[1:])):
        raise DataError(f"{name}: rows of shape {x.shape[1:]} cannot be reshaped to {tuple(shape)}")
    return x.reshape(len(x), *shape)


def _features(x: npt.ArrayLike, names: Sequence[str], name: str, scale: float | None) -> Array:
    try:
        given = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{name}: the rows of x differ in shape; every row must have the same") from error
    if given.dtype.kind not in "fiub" or given.ndim == 0:
        raise DataError(f"{name}: x must be an array of numbers with one row an example, not {given.dtype}")
    if given.ndim == 1:
        given = given[:, None]
    if names and (given.ndim != 2 or given.shape[1] != len(names)):
        raise DataError(f"{name}: {len(names)} feature names for rows of shape {given.shape[1:]}")
    if given.dtype == np.uint8:
        return given.astype(np.float32) / np.float32(255 if scale is None else scale)
    if given.dtype.kind in "iu" and scale is None:
        return np.ascontiguousarray(given)
    with np.errstate(over="ignore"):
        ready = np.ascontiguousarray(given, dtype=np.float32)
    if not np.isfinite(ready).all():
        _name_the_cell(ready, names, name)
    return ready if scale is None else ready / np.float32(scale)


def _name_the_cell(x: Array, names: Sequence[str], name: str) -> None:
    where = np.argwhere(~np.isfinite(x))[0].tolist()
    column = names[where[1]] if names else ", ".join(str(i) for i in where[1:])
    value = x[tuple(where)]
    raise DataError(f"{name}: row {where[0]} of feature '{column}' is {value}; remove or fill it before loading")


def _targets(y: npt.ArrayLike, classes: tuple[str, ...], name: str) -> tuple[Array, tuple[str, ...]]:
    given = np.asarray(y)
    if given.ndim == 0:
        raise DataError(f"{name}: y must have one target a row")
    if given.dtype.kind in "USO":
        texts = given.astype(str)
        if texts.ndim != 1:
            raise DataError(f"{name}: text targets must be one a row, not of shape {texts.shape[1:]}")
        known = classes or tuple(np.unique(texts).tolist())
        order = {text: i for i, text in enumerate(known)}
        unknown = next((text for text in texts.tolist() if text not in order), None)
        if unknown is not None:
            raise DataError(f"{name}: target '{unknown}' is not among the classes {', '.join(known)}")
        return np.array([order[text] for text in texts.tolist()], dtype=np.int64), known
    if given.dtype.kind == "f":
        real = np.ascontiguousarray(given, dtype=np.float32)
        if not np.isfinite(real).all():
            row = np.argwhere(~np.isfinite(real))[0].tolist()
            raise DataError(
                f"{name}: the target of row {row[0]} is {real[tuple(row)]}; remove or fill it before loading"
            )
        if classes:
            raise DataError(f"{name}: class names are given but the targets are real numbers; make them integers")
        return real, ()
    if given.dtype.kind not in "iub":
        raise DataError(f"{name}: targets must be numbers or texts, not {given.dtype}")
    whole = np.ascontiguousarray(given, dtype=np.int64)
    if whole.ndim != 1 or not len(whole):
        return whole, ()
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or (classes and high >= len(classes)):
        bad = low if low < 0 else high
        row = int(np.flatnonzero(whole == bad)[0])
        bound = len(classes) if classes else "the number of classes"
        raise DataError(f"{name}: label {bad} in row {row} is out of range; labels go from 0 to below {bound}")
    if not classes and high >= MOST_CLASSES:
        raise DataError(
            f"{name}: label {high} would mean {high + 1} classes; number the classes from 0, or make y real"
        )
    return whole, classes or tuple(str(i) for i in range(high + 1))
