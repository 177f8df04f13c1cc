"""Pure work, batched: equal calls of many parties become one call of the learner.

Calls of ``learner.fit`` or ``learner.evaluate`` that share the same parameters gather, and go to ``fit_many`` together: as soon as
there are ``learner.chunk`` of them, or when the first result is due on the virtual clock. How they are cut depends on the order
of the calls alone, so results do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, final

import numpy as np

from hansa.examples import Examples
from hansa.learner import BatchLearner, Learner, LocalWork
from hansa.params import Params
from hansa.tensor import Dense, Tensor
from hansa.update import Update

MOST: Final = 512
"""Calls in one batch at most, so that what a worker answers always fits into a pipe."""


@final
class Job:
    """One party's call, and later its outcome."""

    __slots__ = ("arguments", "batch", "function", "group", "outcome", "place")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.group: tuple[str, int] | None = None
        self.batch: Batch | None = None
        self.place = 0
        self.outcome: Any = None


@final
class Batch:
    """Calls that run together: the learner's method ``name`` on the same parameters."""

    __slots__ = ("done", "jobs", "name", "params", "ticket")

    def __init__(self, name: str, params: Params | None, jobs: list[Job]) -> None:
        self.name = name
        self.params = params
        self.jobs = jobs
        self.done = False
        self.ticket: int | None = None
        for job in jobs:
            job.batch = self


class Pool(Protocol):
    """Worker processes that run batches."""

    def submit(self, batch: Batch) -> bool:
        """Begin a batch; False if it cannot travel, then it runs here."""
        ...

    def finish(self, batch: Batch) -> list[Any]:
        """Wait for a batch; an outcome a job, an exception where the job failed."""
        ...


@final
class Batching:
    """Collects calls and runs them, here or in a pool.

    Args:
        learner: the plan's learner, whose ``fit`` and ``evaluate`` are batched.
        pool: worker processes, or None to run everything here.
        plain: give each update as a vector of its own, not as a row of its batch. Where updates are under way for a while, a
            snapshot may fall between making and summing them, and a sum of rows differs from a sum of vectors in its last
            bits.
    """

    def __init__(self, learner: Learner, pool: Pool | None = None, plain: bool = False) -> None:
        self.learner = learner
        self.batched = learner if isinstance(learner, BatchLearner) else None
        self.pool = pool
        self.plain = plain
        self.waiting: dict[tuple[str, int], list[Job]] = {}
        self._chunk: dict[int, int] = {}

    def submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Job:
        """Take a call; nothing runs yet."""
        job = Job(function, arguments)
        if self.batched is not None and getattr(function, "__self__", None) is self.learner:
            job.group = (function.__name__, id(arguments[0]))
            waiting = self.waiting.setdefault(job.group, [])
            waiting.append(job)
            # A full batch begins at once: workers need not wait for the rest of the cohort to be told.
            if len(waiting) >= self._size(arguments[0]):
                self._cut(job.group)
        return job

    def result(self, job: Job) -> Any:
        """The result of a call, or its exception raised; runs what must run."""
        if job.group is None:
            return job.function(*job.arguments)
        if job.batch is None:
            self._cut(job.group)
        batch = job.batch
        assert batch is not None
        self.run(batch)
        outcome, job.outcome = job.outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def withdraw(self, job: Job) -> None:
        """Forget a call that waits; its outcome is known from elsewhere."""
        if job.group is not None and job in self.waiting.get(job.group, []):
            self.waiting[job.group].remove(job)
            if not self.waiting[job.group]:
                del self.waiting[job.group]

    def _cut(self, group: tuple[str, int]) -> None:
        jobs = self.waiting.pop(group)
        batch = Batch(group[0], jobs[0].arguments[0], jobs)
        if self.pool is not None:
            self.pool.submit(batch)

    def _size(self, params: Params) -> int:
        size = self._chunk.get(params.size)
        if size is None:
            assert self.batched is not None
            size = self._chunk[params.size] = min(MOST, max(1, self.batched.chunk(params)))
        return size

    def run(self, batch: Batch) -> None:
        """Run a batch that has been cut, if it has not run."""
        if batch.done:
            return
        if batch.ticket is not None and self.pool is not None:
            outcomes = self.pool.finish(batch)
        else:
            assert self.batched is not None and batch.params is not None
            outcomes = run_batch(self.batched, batch.name, batch.params, [job.arguments[1:] for job in batch.jobs])
        for job, outcome in zip(batch.jobs, outcomes, strict=True):
            job.outcome = _vector(outcome) if self.plain and isinstance(outcome, Update) else outcome
        batch.done = True


def run_batch(learner: BatchLearner, name: str, params: Params, calls: list[tuple[Any, ...]]) -> list[Any]:
    """The outcomes of one batch: results, or the exception of each call that failed by itself."""
    try:
        if name == "evaluate":
            return list(learner.evaluate_many(params, [call[0] for call in calls]))
        datas: list[Examples] = [call[0] for call in calls]
        works = _interned([call[1] for call in calls])
        return _one_batch(learner.fit_many(params, datas, works, [call[2] for call in calls]))
    except Exception as error:
        if len(calls) == 1:
            return [error]
        # One bad party must not cost the others their round: find it by running each alone.
        outcomes = [outcome for call in calls for outcome in run_batch(learner, name, params, [call])]
        if name == "fit":
            good = iter(_one_batch([outcome for outcome in outcomes if isinstance(outcome, Update)]))
            outcomes = [next(good) if isinstance(outcome, Update) else outcome for outcome in outcomes]
        return outcomes


def _vector(update: Update) -> Update:
    return Update(Tensor(update.delta.array), update.weight, update.scalars)


def _interned(works: list[LocalWork]) -> list[LocalWork]:
    """Equal works as one object: learners plan a work once, however many parties do it."""
    known: dict[LocalWork, LocalWork] = {}
    return [work if work.linear is not None else known.setdefault(work, work) for work in works]


def _one_batch(updates: Sequence[Update]) -> list[Update]:
    """The updates as rows of one batch, in order: so they are summed alike here and in a worker."""
    rows = updates[0].delta.rows if updates else None
    deltas = [update.delta for update in updates]
    whole = rows is not None and rows.count == len(updates)
    if whole and all(d.rows is rows and d.index == place and d.scale == 1.0 for place, d in enumerate(deltas)):
        return list(updates)
    if not updates:
        return []
    dense = Dense(np.stack([delta.array for delta in deltas]))
    return [Update(Tensor(None, dense, place), update.weight, update.scalars) for place, update in enumerate(updates)]
