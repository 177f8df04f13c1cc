"""The shape of a party's data: what a model must fit, and what all parties of a run must have alike."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Annotated, final

import msgspec
import numpy as np

from hansa.data import FederatedData
from hansa.errors import DataError
from hansa.examples import Examples

Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
MOST_CLASSES = 1 << 20
"""Classes that a shape may say; a server makes an example of each."""
_WIDEST = 1 << 28


@final
class DataShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody who holds no data must know to make a model for it.

    Args:
        features: of one example's features, such as (64,) or (1, 28, 28).
        tokens: whether they are numbers of tokens, not real numbers.
        targets: of one example's target; empty for one number.
        classes: how many there are; 0 for real targets.
        names: a digest of the names of features and classes, by which parties see whether theirs are the same.
    """

    features: Annotated[tuple[Side, ...], msgspec.Meta(max_length=8)]
    tokens: bool
    targets: Annotated[tuple[Side, ...], msgspec.Meta(max_length=8)]
    classes: Annotated[int, msgspec.Meta(ge=0, le=MOST_CLASSES)]
    names: Annotated[str, msgspec.Meta(max_length=64)]

    def example(self) -> Examples:
        """No examples, over arrays of this shape in which each class is there once: enough for a learner's ``init``.

        Raises:
            DataError: nobody has examples as large as this.
        """
        rows = max(self.classes, 1)
        if rows * int(np.prod(self.features, dtype=np.float64)) > _WIDEST:
            raise DataError(
                f"examples of shape {self.features} in {self.classes} classes are more than any model takes"
            )
        x = np.zeros((rows, *self.features), np.int64 if self.tokens else np.float32)
        y = np.zeros((rows, *self.targets), np.int64 if self.classes else np.float32)
        if self.classes:
            y.reshape(rows, -1)[:] = np.arange(rows)[:, None]
        return Examples(x, y, np.zeros(0, np.int64))

    def __str__(self) -> str:
        what = f"{self.classes} classes" if self.classes else f"targets of shape {self.targets or (1,)}"
        return f"features of shape {self.features} and {what}"

    def differs(self, other: DataShape) -> str:
        """Why two parties cannot train one model, or nothing."""
        if (self.features, self.tokens, self.targets, self.classes) != (
            other.features, other.tokens, other.targets, other.classes,
        ):  # fmt: skip
            return f"its data have {self}, those of the others {other}"
        if self.names != other.names:
            return "its features or classes have other names, or another order, than those of the others"
        return ""


def shape_of(data: FederatedData) -> DataShape:
    """The shape of a data set.

    Raises:
        DataError: it has more classes, or wider examples, than can be said.

    >>> from hansa.data import IID, load
    >>> shape = shape_of(load("sklearn:iris").partition(IID(), parties=1))
    >>> shape.features, shape.classes, shape.example().base[1].tolist(), len(shape.example())
    ((4,), 3, [0, 1, 2], 0)
    """
    x, y = data.example.base
    real = y.dtype.kind == "f"
    names = sha256(json.dumps([list(data.features), list(data.classes)]).encode()).hexdigest()
    classes = 0 if real else len(data.classes) or int(y.max(initial=0)) + 1
    shape = DataShape(x.shape[1:], x.dtype.kind in "iu", y.shape[1:], classes, names)
    try:
        return msgspec.convert(msgspec.to_builtins(shape), DataShape)
    except msgspec.ValidationError as error:
        raise DataError(f"data of that shape cannot be trained on over a network: {error}") from None
