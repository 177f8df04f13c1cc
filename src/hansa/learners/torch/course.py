"""The course of one local training: how many steps, over which examples, at which rate. The same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hansa.learner import LocalWork
from hansa.learners.optimizers import Optimizer, learning_rate
from hansa.rng import Key, permutations


@dataclass(frozen=True, slots=True)
class Course:
    """``steps`` minibatches over ``examples`` examples.

    An epoch is ``per_epoch`` batches of ``batch`` examples, the last one shorter where it does not come out even; each epoch
    has an order of its own, ``key.permutation(examples, epoch)``.

    >>> Course(examples=18, batch=10, per_epoch=2, steps=3).sizes()
    [10, 8, 10]
    """

    examples: int
    batch: int
    per_epoch: int
    steps: int

    def size(self, step: int) -> int:
        """Examples in the batch of ``step``."""
        start = (step % self.per_epoch) * self.batch
        return min(self.batch, self.examples - start)

    def sizes(self) -> list[int]:
        """Examples in each step's batch."""
        return [self.size(step) for step in range(self.steps)]

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return -(-self.steps // self.per_epoch)

    @property
    def seen(self) -> int:
        """Examples over all steps, with repetition."""
        whole, rest = divmod(self.steps, self.per_epoch)
        epoch = min(self.examples, self.per_epoch * self.batch)
        return whole * epoch + min(rest * self.batch, epoch)


def course(
    examples: int, work: LocalWork, *, batch_size: int, epochs: int, steps: int | None, drop_last: bool
) -> Course:
    """The course of ``work`` over ``examples`` (at least 1): the work's epochs or steps, else the learner's own."""
    batch = examples if work.full_batch else min(batch_size, examples)
    per_epoch = max(1, examples // batch) if drop_last else -(-examples // batch)
    total = work.steps if work.steps is not None else None
    if total is None and work.epochs is not None:
        total = work.epochs * per_epoch
    if total is None:
        total = steps if steps is not None else epochs * per_epoch
    return Course(examples, batch, per_epoch, total)


def rates(optimizer: Optimizer, work: LocalWork, path: Course) -> list[float]:
    """The learning rate of each step of ``path``."""
    if optimizer.schedule.over == "rounds":
        return [learning_rate(optimizer, work)] * path.steps
    return [learning_rate(optimizer, work, step // path.per_epoch, step) for step in range(path.steps)]


def batches(path: Course, rng: Key) -> list[npt.NDArray[np.int64]]:
    """The places of each step's examples, in order."""
    orders = [rng.permutation(path.examples, epoch) for epoch in range(path.epochs)]
    places = []
    for step in range(path.steps):
        epoch, start = step // path.per_epoch, (step % path.per_epoch) * path.batch
        places.append(orders[epoch][start : start + path.size(step)])
    return places


def padded_batches(paths: Sequence[Course], rngs: Sequence[Key], width: int) -> npt.NDArray[np.int64]:
    """:func:`batches` of many parties at once: (parties, most steps, width), -1 where a party has no example.

    Parties with equal courses are shuffled together.
    """
    longest = max(path.steps for path in paths)
    groups: dict[Course, list[int]] = {}
    if all(path is paths[0] for path in paths):
        groups[paths[0]] = [*range(len(paths))]
    else:
        for place, path in enumerate(paths):
            groups.setdefault(path, []).append(place)
    table = np.full((len(paths), longest, width), -1, np.int64)
    for path, members in groups.items():
        keys = [rngs[place] for place in members]
        for epoch in range(path.epochs):
            order = permutations(keys, path.examples, epoch)
            used = min(path.examples, path.per_epoch * path.batch)
            whole = np.full((len(members), path.per_epoch * path.batch), -1, np.int64)
            whole[:, :used] = order[:, :used]
            first = epoch * path.per_epoch
            last = min(first + path.per_epoch, path.steps)
            block = whole.reshape(len(members), path.per_epoch, path.batch)[:, : last - first]
            if len(members) == len(paths):
                table[:, first:last, : path.batch] = block
            else:
                table[np.asarray(members)[:, None], np.arange(first, last), : path.batch] = block
    return table
