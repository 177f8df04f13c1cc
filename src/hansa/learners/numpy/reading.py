"""From a party's examples to the arrays that the engines read, every mistake in them named."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from hansa.errors import DataError
from hansa.examples import Examples
from hansa.learners.numpy.network import Network
from hansa.learners.numpy.training import Pool
from hansa.tensor import Array


def pool(name: str, network: Network, datas: Sequence[Examples]) -> Pool:
    """The examples of ``datas`` over one pair of arrays: the shared one where all share it, else their own, joined.

    Raises:
        DataError: a wrong number of features or outputs, or a label that is no class number in range.
    """
    first = datas[0].base
    if all(data.base[0] is first[0] and data.base[1] is first[1] for data in datas):
        x, y = first
        rows = [np.arange(len(y)) if data.rows is None else np.asarray(data.rows, np.int64) for data in datas]
        return Pool(_features(name, network, x), _targets(name, network, y, np.concatenate(rows)), rows)
    xs = [_features(name, network, data.x) for data in datas]
    ys = [_targets(name, network, data.y, None) for data in datas]
    ends = np.cumsum([0, *map(len, ys)])
    rows = [np.arange(start, end) for start, end in pairwise(ends.tolist())]
    return Pool(np.concatenate([x.reshape(len(x), network.widths[0]) for x in xs]), np.concatenate(ys), rows)


def _targets(name: str, network: Network, y: Array, used: Array | None) -> Array:
    """Class numbers as integers, or values as (n, outputs); checked in the rows ``used``, all where None."""
    if network.loss == "mse":
        return values(name, network.widths[-1], y)
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    chosen = labels if used is None else labels[used]
    check_labels(name, chosen, network.widths[-1])
    if labels.dtype.kind == "i":
        return labels
    # Only the rows in use are known to be class numbers, so only they are turned into integers.
    numbers = np.zeros(len(labels), np.int64)
    numbers[slice(None) if used is None else used] = chosen.astype(np.int64)
    return numbers


def values(name: str, outputs: int, y: Array) -> Array:
    """Targets of a regression as (n, outputs)."""
    shaped = y.reshape(len(y), -1) if y.ndim != 2 else y
    if shaped.shape[1] != outputs or shaped.dtype.kind not in "biuf":
        raise DataError(
            f"{name} predicts {outputs} numbers for an example but the targets are {y.dtype} of shape {y.shape};"
            f" give numbers of shape (n, {outputs})"
        )
    return shaped


def check_labels(name: str, labels: Array, classes: int | None) -> None:
    """Check that ``labels`` are class numbers 0 .. ``classes`` - 1; None leaves the upper end open."""
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        raise DataError(
            f"{name} needs class numbers of shape (n,) as targets but they are {labels.dtype} of shape {labels.shape};"
            f" number the classes from 0"
        )
    if labels.size == 0:
        return
    with np.errstate(invalid="ignore"):
        if labels.dtype.kind == "f" and not np.all(labels == np.floor(labels)):
            wrong = labels[~(labels == np.floor(labels))][0]
            raise DataError(
                f"{name} found the label {wrong} where a whole class number is needed; number the classes from 0"
            )
    low, high = labels.min(), labels.max()
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        limit = "0 or above" if classes is None else f"from 0 to {classes - 1}"
        raise DataError(
            f"{name} found the label {int(wrong)} but class numbers are {limit}; renumber the labels or set classes"
        )


def check_finite(name: str, data: Pool) -> None:
    """Name the first NaN or infinity in the examples of ``data``."""
    for what, array in (("feature", data.x), ("target", data.y)):
        if array.dtype.kind != "f":
            continue
        for rows in data.rows:
            finite = np.isfinite(array[rows])
            if not finite.all():
                place = np.argwhere(~finite)[0].tolist()
                raise DataError(
                    f"{name} found a NaN or an infinite value in {what} {place[-1] if len(place) > 1 else 0}"
                    f" of example {place[0]}; fill it or leave the example out before training"
                )


def _features(name: str, network: Network, x: Array) -> Array:
    flat = x if x.ndim == 2 else x.reshape(len(x), -1)
    if flat.dtype.kind not in "biuf":
        raise DataError(f"{name} needs numbers as features but they are {flat.dtype}; encode them as numbers first")
    if len(flat) and flat.shape[1] != network.widths[0]:
        raise DataError(
            f"{name} was made for {network.widths[0]} features but the examples have {flat.shape[1]};"
            f" use the same columns at every party"
        )
    return flat
