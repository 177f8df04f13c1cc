"""The batched engine: many parties' local training, step by step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from hansa.learner import LocalWork
from hansa.learners.numpy import stepping
from hansa.learners.numpy.network import Network, gradient
from hansa.learners.optimizers import Optimizer, learning_rate
from hansa.rng import Key, permutations
from hansa.tensor import Array

Ints = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """What a built-in learner trains with: its network and its settings."""

    network: Network
    optimizer: Optimizer
    batch_size: int
    epochs: int


@final
@dataclass(frozen=True, slots=True)
class Pool:
    """The examples of several parties, all read from the same two arrays.

    Args:
        x: features, shape (rows, features), of any numeric dtype.
        y: class numbers or values, shape (rows,) or (rows, outputs).
        rows: each party's row numbers.
    """

    x: Array
    y: Array
    rows: Sequence[Ints]


@final
@dataclass(frozen=True, slots=True)
class Trained:
    """What one local training of several parties gave, in their order.

    Args:
        delta: new minus old parameters, shape (parties, size).
        loss: each party's mean loss over the examples as it trained on them, penalties left out.
        steps: each party's number of steps.
    """

    delta: Array
    loss: npt.NDArray[np.float64]
    steps: Ints


def train(recipe: Recipe, flat: Array, pool: Pool, works: Sequence[LocalWork], rngs: Sequence[Key]) -> Trained:
    """Train every party from ``flat``, shape (size,).

    Parties are ordered by their number of steps, so those still training are always the first rows of every matrix, and no
    weight is ever masked; only a batch's missing examples are, by a share of 0.
    """
    parties = len(works)
    sizes = np.array([len(rows) for rows in pool.rows])
    batch = np.array([n if w.full_batch else recipe.batch_size for n, w in zip(sizes, works, strict=True)])
    per_epoch = -(-sizes // np.maximum(batch, 1))
    steps = np.array([_steps(recipe, w, int(s)) for w, s in zip(works, per_epoch, strict=True)], np.int64)
    order = np.lexsort((-sizes, -steps))
    rank = np.empty(parties, np.int64)
    rank[order] = np.arange(parties)
    ordered = [works[i] for i in order]
    batches = _Batches(pool, [rngs[i] for i in order], order, sizes[order], batch[order], per_epoch[order])
    weights = np.repeat(flat[None], parties, axis=0)
    grads = np.empty_like(weights)
    state = stepping.start(recipe.optimizer, weights)
    mu, linear = _terms(ordered, flat)
    total = np.zeros(parties)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        for index in range(int(steps.max(initial=0))):
            active = int(np.count_nonzero(steps > index))
            w, g = weights[:active], grads[:active]
            x, y, valid, count = batches.read(index, active, flat.dtype)
            share = (valid / count[:, None]).astype(flat.dtype)
            losses = gradient(recipe.network, recipe.network.layers(w), recipe.network.layers(g), x, y, share)
            total[:active] += np.where(valid, losses, 0.0).sum(axis=1, dtype=np.float64)
            if mu is not None:
                g += mu[:active] * (w - flat)
            if linear is not None:
                g += linear[:active]
            rate = _rates(recipe.optimizer, ordered[:active], index // per_epoch[order[:active]], index, flat.dtype)
            stepping.step(recipe.optimizer, w, g, tuple(s[:active] for s in state), rate, index)
        weights -= flat
    seen = np.maximum(batches.seen, 1)
    return Trained(weights[rank], (total / seen)[rank], steps)


def _steps(recipe: Recipe, work: LocalWork, per_epoch: int) -> int:
    if per_epoch == 0:
        return 0
    if work.steps is not None:
        return work.steps
    return per_epoch * (recipe.epochs if work.epochs is None else work.epochs)


def _terms(works: Sequence[LocalWork], flat: Array) -> tuple[Array | None, Array | None]:
    mu = np.array([[work.proximal] for work in works], flat.dtype)
    linear = None
    if any(work.linear is not None for work in works):
        linear = np.zeros((len(works), len(flat)), flat.dtype)
        for row, work in zip(linear, works, strict=True):
            if work.linear is not None:
                row[:] = work.linear
    return (mu if mu.any() else None), linear


def _rates(
    optimizer: Optimizer, works: Sequence[LocalWork], epochs: Ints, index: int, dtype: np.dtype[np.generic]
) -> Array | float:
    """One rate for all where they agree, else one a party."""
    known: dict[tuple[int, float, int], float] = {}
    rates = []
    for work, epoch in zip(works, epochs.tolist(), strict=True):
        key = (work.round, work.learning_rate, epoch)
        if key not in known:
            known[key] = learning_rate(optimizer, work, epoch, index)
        rates.append(known[key])
    if len(set(rates)) == 1:
        return rates[0]
    return np.array(rates, dtype)[:, None]


class _Batches:
    """The minibatches of parties in training order, each epoch shuffled by the party's key."""

    def __init__(self, pool: Pool, rngs: Sequence[Key], order: Ints, sizes: Ints, batch: Ints, per_epoch: Ints) -> None:
        self.pool, self.rngs, self.sizes, self.batch = pool, rngs, sizes, batch
        self.per_epoch = np.maximum(per_epoch, 1)
        self.rows = np.zeros((len(order), int((self.per_epoch * batch).max(initial=0))), np.int64)
        self.plain = [pool.rows[i] for i in order]
        self.epoch = np.full(len(order), -1, np.int64)
        self.seen = np.zeros(len(order), np.int64)

    def read(
        self, index: int, active: int, dtype: np.dtype[np.generic]
    ) -> tuple[Array, Array, npt.NDArray[np.bool_], Ints]:
        """Features, targets, which examples are real, and how many, for the first ``active`` parties."""
        epoch, within = np.divmod(index, self.per_epoch[:active])
        stale = np.flatnonzero(self.epoch[:active] != epoch)
        if len(stale):
            self._shuffle(stale, epoch[stale])
        start = within * self.batch[:active]
        count = np.minimum(self.batch[:active], self.sizes[:active] - start)
        self.seen[:active] += count
        columns = np.arange(int(count.max()))
        valid = columns < count[:, None]
        place = np.where(valid, start[:, None] + columns, 0)
        rows = np.take_along_axis(self.rows[:active], place, axis=1)
        x = np.take(self.pool.x, rows, axis=0).astype(dtype, copy=False)
        y = np.take(self.pool.y, rows, axis=0)
        if not valid.all():
            x[~valid] = 0
        return x, y if y.dtype.kind == "i" else y.astype(dtype, copy=False), valid, count

    def _shuffle(self, parties: Ints, epochs: Ints) -> None:
        """New orders for ``parties``; equal (size, epoch) are drawn together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for party, epoch in zip(parties.tolist(), epochs.tolist(), strict=True):
            groups.setdefault((int(self.sizes[party]), epoch), []).append(party)
        for (size, epoch), members in groups.items():
            orders = permutations([self.rngs[party] for party in members], size, epoch)
            plain = np.stack([self.plain[party] for party in members])
            self.rows[members, :size] = np.take_along_axis(plain, orders, axis=1)
        self.epoch[parties] = epochs
