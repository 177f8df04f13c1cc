"""What a party learns in one round, and what is known about it.

The classes are the states of an update on its way: :class:`Update` is what a learner returns, :class:`Bounded` has passed a
clip, so one party's influence has a limit, :class:`Noised` has passed a privacy mechanism. Only the functions that do the
work make the next state, so a type checker sees a pipeline that forgets one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from hansa.tensor import Array, Tensor

U = TypeVar("U")


class Update(msgspec.Struct, frozen=True, gc=False):
    """One party's change of the model.

    Args:
        delta: new minus old parameters, shape (size,).
        weight: how much it counts in an average by examples: the number of examples trained on.
        scalars: numbers averaged with it (``loss``, ``steps``, ...).
    """

    delta: Tensor
    weight: float
    scalars: Mapping[str, float]


class Bounded(msgspec.Struct, frozen=True, gc=False):
    """An update whose L2 norm is at most ``bound``. Made by ``clip`` alone."""

    update: Update
    bound: float


@dataclass(frozen=True, slots=True)
class Mean(Generic[U]):
    """The average over the parties that contributed.

    Args:
        delta: the averaged change, shape (size,); made for whoever holds the mean, who may write over it.
        weight: the sum of the weights.
        count: how many parties contributed.
        scalars: the averaged scalars.
        bound: the L2 bound of every contribution, where there is one.
    """

    delta: Array
    weight: float
    count: int
    scalars: Mapping[str, float]
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Noised:
    """An aggregate that has passed a privacy mechanism. Made by mechanisms alone."""

    mean: Mean[Bounded]
