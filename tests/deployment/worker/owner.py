"""A tiny owner in memory: it writes down what its workers say, delivers their letters, and kills one of them when told to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import hansa as hs
from hansa.deployment.worker.frames import (
    Body,
    Dropped,
    Ended,
    Failed,
    Heard,
    Letter,
    Lost,
    Result,
    Sent,
    Setup,
    Unusable,
)
from hansa.deployment.worker.journal import Journal
from hansa.deployment.worker.letters import read
from hansa.deployment.worker.spool import Spool
from hansa.message import Message
from hansa.params import Params
from hansa.protocol import OBSERVER, Progress

PATIENCE = 20.0
"""Seconds after which a test that hangs fails."""


class AnyWorker(Protocol):
    def give(self, letter: Letter) -> None: ...
    async def stop(self, grace: float = 0.0) -> None: ...


class AnyWorkers(Protocol):
    async def start(self, setup: Setup, heard: Heard) -> Any: ...
    async def close(self) -> None: ...


@dataclass
class Seat:
    """One party at the owner's table."""

    first: Setup
    journal: Journal = field(default_factory=Journal)
    worker: AnyWorker | None = None
    words: list[Message | Lost] = field(default_factory=list)
    numbers: int = 0
    lives: int = 0


@dataclass(frozen=True)
class Mail:
    """A message that went out: who, to whom, and a digest of its bytes."""

    sender: str
    to: str
    tag: str
    digest: str


class Owner:
    """Runs a plan with one worker a party.

    Args:
        plan: what runs.
        rosters: names by role.
        workers: inline or processes.
        folder: where the spools are.
        data: each party's binding.
        kill: a party and a number k: its worker is killed when k of its words were written down.
        inline: bytes above which a frame goes through the spool.
    """

    def __init__(
        self,
        plan: hs.Plan,
        rosters: Mapping[str, tuple[str, ...]],
        workers: AnyWorkers,
        folder: Path,
        data: Callable[[str], dict[str, Any]],
        kill: tuple[str, int] | None = None,
        inline: int = 1 << 16,
    ) -> None:
        self.workers = workers
        self.kill = kill
        self.killed = 0
        self.mail: list[Mail] = []
        self.progress: list[Progress] = []
        self.dropped: list[Dropped] = []
        self.failures: dict[str, Failed] = {}
        self.troubles: list[str] = []
        self.results: dict[str, Params | None] = {}
        self.spool = Spool(folder)
        self.done = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.names = dict(rosters)
        self.seats = {
            name: Seat(
                Setup("run", name, role, plan.to_toml(), self.names, data(name), str(folder), inline), Journal(), None
            )
            for role, names in rosters.items()
            for name in names
        }
        roles = plan.protocol.roles(plan.learner, plan.aggregation)
        self.starting = {name for role, names in rosters.items() if roles[role].starts for name in names}

    async def run(self) -> None:
        """Until every party that starts by itself has ended, or nothing can."""
        try:
            for name in self.seats:
                await self.seat(name)
            async with asyncio.timeout(PATIENCE):
                await self.done.wait()
        finally:
            await self.workers.close()

    async def seat(self, name: str) -> None:
        seat = self.seats[name]
        seat.lives += 1
        life = seat.lives
        setup = seat.journal.setup(seat.first)
        known = {letter.number for letter in setup.letters}
        seat.worker = await self.workers.start(setup, lambda word: self.heard(name, life, word))
        for letter in seat.journal.letters:
            if letter.number not in known:  # it came while the worker started
                seat.worker.give(letter)

    def heard(self, name: str, life: int, word: Message | Lost) -> None:
        seat = self.seats[name]
        if life != seat.lives:
            return
        if isinstance(word, Lost):
            self.again(name)
            return
        seat.words.append(word)
        # Files are kept: who had read them may be asked for them again by a test.
        seat.journal.heard(word)
        if isinstance(word, Sent):
            self.deliver(name, word)
        elif isinstance(word, Dropped):
            self.dropped.append(word)
        elif isinstance(word, Failed):
            self.failures[name] = word
            self.over(name, None)
        elif isinstance(word, Unusable):
            self.troubles.append(word.reason)
            self.done.set()
        elif isinstance(word, Ended) and word.result is not None:
            result, _ = read(word.result, [Result], self.spool)
            assert isinstance(result, Result)
            self.over(name, result.params)
        if self.kill is not None and self.kill[0] == name and len(seat.words) == self.kill[1] and not self.killed:
            self.killed += 1
            self.again(name)

    def over(self, name: str, params: Params | None) -> None:
        if name in self.starting:
            self.results[name] = params
            if self.starting <= self.results.keys():
                self.done.set()

    def again(self, name: str) -> None:
        """Kill the worker, whatever it is about to do, and start the next from what was written down."""
        seat = self.seats[name]
        seat.lives += 1
        worker, seat.worker = seat.worker, None

        async def restart() -> None:
            if worker is not None:
                await worker.stop()
            if not self.done.is_set() and name not in self.results:
                await self.seat(name)

        task = asyncio.get_running_loop().create_task(restart())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def deliver(self, sender: str, sent: Sent) -> None:
        self.mail.append(Mail(sender, sent.to, sent.body.tag, self.digest(sent.body)))
        if sent.to == OBSERVER:
            message, _ = read(sent.body, [Progress], self.spool)
            assert isinstance(message, Progress)
            self.progress.append(message)
        else:
            self.post(sent.to, sender, sent.body)

    def post(self, to: str, sender: str, body: Body) -> Letter:
        seat = self.seats[to]
        seat.numbers += 1
        letter = Letter(seat.numbers, sender, body)
        seat.journal.received(letter)
        if seat.worker is not None:
            seat.worker.give(letter)
        return letter

    def digest(self, body: Body) -> str:
        frame = body.inline if body.inline is not None else self.spool.path(body.blob).read_bytes()
        return blake2b(frame, digest_size=12).hexdigest()

    @property
    def posted(self) -> Counter[Mail]:
        """How often each message went out."""
        return Counter(self.mail)
