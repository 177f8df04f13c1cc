"""A worker process: what it is asked, what it answers, and its life.

Requests and answers are frames of Hansa's own codec, so nothing that a pipe carries is ever executed.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

import msgspec
import numpy as np

from hansa.examples import Examples, Shard
from hansa.learner import BatchLearner, LocalWork
from hansa.message import Message, decode, encode
from hansa.params import Params
from hansa.rng import Key
from hansa.simulation.batching import run_batch
from hansa.tensor import Array, Rows, Tensor
from hansa.threads import limit_threads


class Population(Protocol):
    """Where a worker finds a party's examples."""

    def shard(self, party: int) -> Shard:
        """The data of one party."""
        ...


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A :class:`~hansa.learner.LocalWork` that travels."""

    round: int
    proximal: float
    linear: Tensor | None
    epochs: int | None
    steps: int | None
    full_batch: bool
    learning_rate: float


class Run(Message, frozen=True):
    """Run a batch."""

    tag = "hansa.pool.run/1"
    discloses = "nothing: it stays on the simulating machine"

    ticket: int
    name: str
    slot: int
    refs: list[tuple[int, int]]
    works: list[Work]
    keys: list[bytes]


class Sum(Message, frozen=True):
    """Sum the rows of a batch into one of the worker's shared results."""

    tag = "hansa.pool.sum/1"
    discloses = "nothing: it stays on the simulating machine"

    ticket: int
    coefficients: Tensor
    slot: int


class Products(Message, frozen=True):
    """The inner products of a batch's rows."""

    tag = "hansa.pool.products/1"
    discloses = "nothing: it stays on the simulating machine"

    ticket: int


class Norms(Message, frozen=True):
    """The norms of a batch's rows."""

    tag = "hansa.pool.norms/1"
    discloses = "nothing: it stays on the simulating machine"

    ticket: int


class Forget(Message, frozen=True):
    """A batch's rows are no longer needed."""

    tag = "hansa.pool.forget/1"
    discloses = "nothing: it stays on the simulating machine"

    ticket: int


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of a batch raised."""

    place: int
    kind: str
    text: str
    traceback: str


class Ran(Message, frozen=True):
    """What a batch gave, without its vectors. ``scalars`` has a row a result and a column a name, ``present`` where there is one."""

    tag = "hansa.pool.ran/1"
    discloses = "nothing: it stays on the simulating machine"

    ticket: int
    names: list[str]
    scalars: Tensor
    present: Tensor
    weights: Tensor
    finite: Tensor
    size: int
    failed: list[Failed]


class Summed(Message, frozen=True):
    """A sum is in its shared result; or the inner products or norms are here."""

    tag = "hansa.pool.summed/1"
    discloses = "nothing: it stays on the simulating machine"

    products: Tensor | None


def travelling(works: Sequence[LocalWork]) -> list[Work]:
    """The works, or a single one where all are alike."""
    first = works[0]
    alike = first.linear is None and all(work.linear is None and work == first for work in works[1:])
    return [
        Work(
            w.round,
            w.proximal,
            None if w.linear is None else Tensor(w.linear),
            w.epochs,
            w.steps,
            w.full_batch,
            w.learning_rate,
        )
        for w in (works[:1] if alike else works)
    ]


def serve(
    pipe: Connection,
    inherited: Sequence[Connection],
    learner: BatchLearner,
    data: Population,
    params: Params,
    models: Sequence[Array],
    results: Sequence[Array],
    threads: int,
) -> None:
    """A worker's life: ends when the pipe does, so a worker never outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in inherited:
        other.close()
    kept: dict[int, Rows] = {}
    with limit_threads(threads):
        while True:
            try:
                request = decode(pipe.recv_bytes(), [Run, Sum, Products, Norms, Forget])
            except (EOFError, OSError):
                return
            if isinstance(request, Run):
                # A copy: the slot may be given to another model while rows of this batch still refer to it.
                model = params.replaced(models[request.slot].copy())
                answer: Message = _run(learner, data, model, request, kept)
            elif isinstance(request, Sum):
                results[request.slot][:] = kept[request.ticket].weighted_sum(request.coefficients.array)
                answer = Summed(None)
            elif isinstance(request, Products):
                answer = Summed(Tensor(kept[request.ticket].gram()))
            elif isinstance(request, Norms):
                answer = Summed(Tensor(kept[request.ticket].norms()))
            else:
                assert isinstance(request, Forget)
                kept.pop(request.ticket, None)
                continue
            try:
                pipe.send_bytes(encode(answer))
            except OSError:
                return


def _run(learner: BatchLearner, data: Population, params: Params, request: Run, kept: dict[int, Rows]) -> Message:
    examples = [_examples(data.shard, ref) for ref in request.refs]
    calls: list[tuple[Any, ...]]
    if request.name == "fit":
        works = [
            LocalWork(
                w.round,
                w.proximal,
                None if w.linear is None else w.linear.array,
                w.epochs,
                w.steps,
                w.full_batch,
                w.learning_rate,
            )
            for w in request.works
        ]
        if len(works) == 1:
            works = works * len(examples)
        calls = [(e, w, Key(k)) for e, w, k in zip(examples, works, request.keys, strict=True)]
    else:
        calls = [(e,) for e in examples]
    outcomes = run_batch(learner, request.name, params, calls)
    failed = [
        Failed(place, type(o).__name__, str(o), "".join(traceback.format_exception(o)))
        for place, o in enumerate(outcomes)
        if isinstance(o, Exception)
    ]
    good = [o for o in outcomes if not isinstance(o, Exception)]
    tables = [o.scalars for o in good] if request.name == "fit" else good
    names = sorted({name for table in tables for name in table})
    shape = (len(good), len(names))
    scalars = np.array([[table.get(name, 0.0) for name in names] for table in tables]).reshape(shape)
    present = np.array([[name in table for name in names] for table in tables], bool).reshape(shape)
    weights, finite, size = np.zeros(0), np.zeros(0, bool), 0
    if request.name == "fit" and good:
        rows = good[0].delta.rows
        kept[request.ticket] = rows
        weights = np.array([update.weight for update in good])
        finite, size = rows.finite(), rows.size
    return Ran(request.ticket, names, Tensor(scalars), Tensor(present), Tensor(weights), Tensor(finite), size, failed)


def _examples(shard: Callable[[int], Shard], ref: tuple[int, int]) -> Examples:
    party, split = ref
    data = shard(party)
    return data.test if split else data.train
