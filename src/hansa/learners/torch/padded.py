"""Minibatches of many parties as one table: what the engines that train parties together read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from hansa.errors import DataError
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.learners.optimizers import Optimizer
from hansa.learners.torch.course import Course, padded_batches, rates
from hansa.learners.torch.losses import Loss
from hansa.learners.torch.resident import Resident
from hansa.rng import Key
from hansa.tensor import Array


@final
class Padded:
    """The batches of ``parties``, filled up to the same number of steps and the same width.

    A place with no example repeats an example of somebody and has ``share`` 0; a step that a party does not have has rate 0.

    Args:
        resident: the model that the examples are for.
        loss, optimizer: the learner's.
        datas, works, paths, rngs: one of each a party.
        width: places in a batch.
        trim: whether a step is as narrow as its largest batch, instead of ``width``.
    """

    def __init__(
        self,
        resident: Resident,
        loss: Loss,
        optimizer: Optimizer,
        datas: Sequence[Examples],
        works: Sequence[LocalWork],
        paths: Sequence[Course],
        rngs: Sequence[Key],
        width: int,
        trim: bool = False,
    ) -> None:
        self.parties, self.width = len(datas), width
        table = padded_batches(paths, rngs, width)
        self.steps = table.shape[1]
        real = table >= 0
        self._resident, self._loss = resident, loss
        self._x, self._y, self._rows = _gathered(datas, table)
        self._real = torch.from_numpy(real)
        sizes = real.sum(2)
        self.seen = sizes.sum(1)
        share = real / np.maximum(sizes, 1)[:, :, None]
        self.share = torch.from_numpy(share).to(resident.device, resident.dtype)
        self.real = self._real.to(resident.device, resident.dtype)
        self._widths = sizes.max(0).tolist() if trim else [width] * self.steps
        self.rates = _rate_table(optimizer, works, paths, self.steps)

    def batch(self, step: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and targets of one step, (parties, its width, ...); of all, (parties, steps, width, ...), for None.

        Raises:
            ConfigError: the model does not take such features, or the loss not such targets.
        """
        rows = self._rows if step is None else self._rows[:, step, : self._widths[step]]
        flat = rows.reshape(-1)
        x = self._resident.features(np.take(self._x, flat, axis=0))
        y = self._resident.targets(self._loss, tuple(x.shape[1:]), np.take(self._y, flat, axis=0))
        return x.view(*rows.shape, *x.shape[1:]), y.view(*rows.shape, *y.shape[1:])


def _rate_table(
    optimizer: Optimizer, works: Sequence[LocalWork], paths: Sequence[Course], steps: int
) -> npt.NDArray[np.float64]:
    if all(work is works[0] for work in works) and all(path is paths[0] for path in paths):
        return np.tile(np.asarray(rates(optimizer, works[0], paths[0])), (len(works), 1))
    table = np.zeros((len(works), steps))
    known: dict[tuple[int, Course], npt.NDArray[np.float64]] = {}
    for place, (work, path) in enumerate(zip(works, paths, strict=True)):
        key = (id(work), path)
        if key not in known:
            known[key] = np.asarray(rates(optimizer, work, path))
        table[place, : path.steps] = known[key]
    return table


def _gathered(datas: Sequence[Examples], table: npt.NDArray[np.int64]) -> tuple[Array, Array, npt.NDArray[np.int64]]:
    """Arrays, and where in them each place of ``table`` is; parties that share their arrays are not copied together."""
    x, y = datas[0].base
    selected = [data.rows for data in datas if data.rows is not None]
    counts = [len(rows) for rows in selected] if len(selected) == len(datas) else [len(data) for data in datas]
    places = np.maximum(table, 0)
    places += np.cumsum([0, *counts[:-1]])[:, None, None]
    if len(selected) == len(datas) and all(a is x and b is y for a, b in [data.base for data in datas]):
        return x, y, np.concatenate(selected)[places]
    for of, arrays in (("features", [data.base[0] for data in datas]), ("targets", [data.base[1] for data in datas])):
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) > 1:
            raise DataError(
                f"the parties' {of} differ in shape: {' and '.join(map(str, sorted(shapes)))} for one example"
            )
    return np.concatenate([data.x for data in datas]), np.concatenate([data.y for data in datas]), places
