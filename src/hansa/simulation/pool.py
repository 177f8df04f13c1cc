"""Worker processes: one a core, one thread each, forked so that learner and data are there already.

What travels through a pipe is small and is Hansa's own frames: which parties, which keys. Models travel through shared memory.
A worker keeps the updates that it made; this process asks it for sums over them, so no single client's update is ever copied
between processes unless somebody asks for it.
"""

from __future__ import annotations

import mmap
import multiprocessing
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from hansa.errors import ConfigError, WorkerLost
from hansa.learner import BatchLearner, Learner
from hansa.message import Message, decode, encode
from hansa.params import Params
from hansa.simulation.batching import Batch
from hansa.simulation.worker import (
    Failed,
    Forget,
    Norms,
    Population,
    Products,
    Ran,
    Run,
    Sum,
    Summed,
    serve,
    travelling,
)
from hansa.tensor import Array, Rows, Tensor
from hansa.update import Update

_SLOTS: Final = 4
"""Models in shared memory at a time: an asynchronous protocol trains from several."""
_AHEAD: Final = 2
"""Batches a worker has at once, so that it never waits for the next."""
_RESULTS: Final = 4
"""Sums that a worker may have ready before this process takes them."""


@final
class ProcessPool:
    """Forked workers.

    Args:
        processes: how many.
        learner: what runs the batches.
        data: where workers find a party's examples.
        params: a model of the size and dtype to come.

    Raises:
        ConfigError: this platform cannot fork, or the learner cannot train batches.
    """

    def __init__(self, processes: int, learner: Learner, data: Population, params: Params, threads: int = 1) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ConfigError("simulation: workers > 1 needs a platform that can fork processes; use workers = 1")
        if not isinstance(learner, BatchLearner):
            raise ConfigError(f"simulation: {type(learner).__name__} cannot train batches; use workers = 1")
        context = multiprocessing.get_context("fork")
        self.layout = params.layout
        self._models = [_shared(params.flat) for _ in range(_SLOTS)]
        self._workers: list[_Worker] = []
        for _ in range(processes):
            here, there = context.Pipe()
            results = [_shared(params.flat) for _ in range(_RESULTS)]
            inherited = [worker.pipe for worker in self._workers] + [here]
            process = context.Process(
                target=serve,
                args=(there, inherited, learner, data, params, self._models, results, threads),
                daemon=True,
            )
            process.start()
            there.close()
            self._workers.append(_Worker(process, here, results))
        self._slots: list[_Slot] = [_Slot() for _ in range(_SLOTS)]
        self._queue: deque[tuple[Batch, Message]] = deque()
        self._batches: dict[int, _Sent] = {}
        self._next = 0

    def submit(self, batch: Batch) -> bool:
        """Begin a batch; False where its examples cannot be named to a worker, and it must run here."""
        refs = [job.arguments[0 + 1].ref for job in batch.jobs]
        if any(ref is None for ref in refs) or batch.params is None or batch.params.layout != self.layout:
            return False
        works, keys = [], []
        if batch.name == "fit":
            works = travelling([job.arguments[2] for job in batch.jobs])
            keys = [job.arguments[3].digest for job in batch.jobs]
        batch.ticket = self._next
        self._next += 1
        run = Run(batch.ticket, batch.name, self._slot(batch.params), refs, works, keys)
        self._queue.append((batch, run))
        self._pump()
        return True

    def finish(self, batch: Batch) -> list[Any]:
        """Wait for a batch; an outcome a job, an exception where the job failed."""
        assert batch.ticket is not None
        while True:
            sent = self._batches.get(batch.ticket)
            if sent is not None and sent.reply is not None:
                break
            self._pump()
            self._hear(block=True)
        del self._batches[batch.ticket]
        return _outcomes(self, sent.worker, batch, sent.reply)

    def begin(self, worker: int, question: Callable[[int], Message]) -> Callable[[], Tensor | Array]:
        """Ask a worker for a sum, inner products or norms; what is returned waits for the answer.

        Args:
            worker: which one.
            question: makes the message, for the number of the shared result that a sum goes to.
        """
        target = self._workers[worker]
        while len(target.asked) >= _RESULTS:
            self._hear_from(target)
        asked = _Asked(target.next)
        target.next = (target.next + 1) % _RESULTS
        target.asked.append(asked)
        self._send(target, encode(question(asked.slot)))

        def finish() -> Tensor | Array:
            while asked.answer is None:
                self._hear_from(target)
            return asked.answer

        return finish

    def ask(self, worker: int, message: Message) -> Tensor | Array:
        """:meth:`begin`, and wait."""
        return self.begin(worker, lambda _: message)()

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _slot(self, params: Params) -> int:
        while True:
            for place, slot in enumerate(self._slots):
                if slot.params is params:
                    slot.users += 1
                    return place
            for place, slot in enumerate(self._slots):
                if slot.users == 0:
                    slot.params = params
                    slot.users = 1
                    self._models[place][:] = params.flat
                    return place
            self._pump()
            self._hear(block=True)

    def _pump(self) -> None:
        """Give queued batches to workers that have room, the least busy first."""
        while self._queue:
            place = min(range(len(self._workers)), key=lambda i: self._workers[i].busy)
            worker = self._workers[place]
            if worker.busy >= _AHEAD:
                return
            batch, run = self._queue.popleft()
            assert batch.ticket is not None and isinstance(run, Run)
            worker.busy += 1
            self._batches[batch.ticket] = _Sent(place, run.slot)
            self._send(worker, encode(run))

    def _hear(self, block: bool) -> None:
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(pipes), timeout=None if block else 0):
            self._hear_from(pipes[pipe])  # type: ignore[index]

    def _hear_from(self, worker: _Worker) -> None:
        try:
            reply = decode(worker.pipe.recv_bytes(), [Ran, Summed])
        except (EOFError, OSError):
            code = worker.process.exitcode
            raise WorkerLost(
                f"a worker process ended by itself (exit code {code})",
                remedy="it may have run out of memory; use fewer workers",
            ) from None
        if isinstance(reply, Summed):
            asked = worker.asked.popleft()
            asked.answer = worker.results[asked.slot].copy() if reply.products is None else reply.products
            return
        assert isinstance(reply, Ran)
        worker.busy -= 1
        sent = self._batches[reply.ticket]
        sent.reply = reply
        self._slots[sent.slot].users -= 1
        self._pump()

    def _send(self, worker: _Worker, frame: bytes) -> None:
        try:
            worker.pipe.send_bytes(frame)
        except (BrokenPipeError, OSError):
            raise WorkerLost(
                "a worker process has ended", remedy="it may have run out of memory; use fewer workers"
            ) from None

    def forget(self, worker: int, ticket: int) -> None:
        """Let a worker drop a batch's rows; one that has ended has none."""
        if not self._workers[worker].pipe.closed:
            with suppress(WorkerLost):
                self._send(self._workers[worker], encode(Forget(ticket)))


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    results: list[Array]
    busy: int = 0
    next: int = 0

    def __post_init__(self) -> None:
        self.asked: deque[_Asked] = deque()


@dataclass
class _Asked:
    """A question to a worker, and its answer once it is there."""

    slot: int
    answer: Tensor | Array | None = None


@dataclass
class _Slot:
    params: Params | None = None
    users: int = 0


@dataclass
class _Sent:
    worker: int
    slot: int
    reply: Ran | None = None


@final
class _RemoteRows(Rows):
    """The rows of a batch that a worker keeps."""

    def __init__(self, pool: ProcessPool, worker: int, ran: Ran, dtype: np.dtype[Any]) -> None:
        self.pool = pool
        self.worker = worker
        self.ticket = ran.ticket
        self.count = ran.finite.shape[0]
        self.size = ran.size
        self.dtype = dtype
        self._finite = ran.finite.array
        self._norms: npt.NDArray[np.float64] | None = None
        weakref.finalize(self, pool.forget, worker, ran.ticket).atexit = False

    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> Array:
        return self.begin_sum(coefficients)()

    def begin_sum(self, coefficients: npt.NDArray[np.float64]) -> Callable[[], Array]:
        wait_for = self.pool.begin(self.worker, lambda slot: Sum(self.ticket, Tensor(coefficients), slot))

        def finish() -> Array:
            summed = wait_for()
            assert isinstance(summed, np.ndarray)
            return summed

        return finish

    def norms(self) -> npt.NDArray[np.float64]:
        if self._norms is None:
            norms = self.pool.ask(self.worker, Norms(self.ticket))
            assert isinstance(norms, Tensor)
            self._norms = norms.array
        return self._norms

    def finite(self) -> npt.NDArray[np.bool_]:
        return self._finite

    def gram(self) -> npt.NDArray[np.float64]:
        products = self.pool.ask(self.worker, Products(self.ticket))
        assert isinstance(products, Tensor)
        return products.array


def _outcomes(pool: ProcessPool, worker: int, batch: Batch, ran: Ran) -> list[Any]:
    failed = {f.place: _error(f) for f in ran.failed}
    table, present = ran.scalars.array, ran.present.array
    rows = _RemoteRows(pool, worker, ran, np.dtype(pool.layout.dtype)) if batch.name == "fit" and ran.size else None
    outcomes: list[Any] = []
    place = 0
    for job in range(len(batch.jobs)):
        if job in failed:
            outcomes.append(failed[job])
            continue
        known = zip(ran.names, table[place], present[place], strict=True)
        scalars = {name: float(value) for name, value, there in known if there}
        outcomes.append(
            scalars if rows is None else Update(Tensor(None, rows, place), float(ran.weights.array[place]), scalars)
        )
        place += 1
    return outcomes


def _error(failed: Failed) -> Exception:
    error: Exception = type(failed.kind, (Exception,), {})(failed.text)
    error.add_note(f"in a worker process:\n{failed.traceback}")
    return error


def _shared(like: Array) -> Array:
    memory = mmap.mmap(-1, max(1, like.nbytes))
    return np.frombuffer(memory, dtype=like.dtype, count=like.size)
