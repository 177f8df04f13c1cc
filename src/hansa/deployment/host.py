"""Where programs live: the parties of one machine, in all runs that it takes part in.

A hub and a node are hosts alike. A host keeps a worker for each of its parties in a run, writes down what the worker says, and
passes on what its programs send: to a neighbour on the same machine, or to the courier. A worker that dies is replaced, and its
program brought back to where it stood.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, final

from hansa.deployment.logs import Log
from hansa.deployment.shape import DataShape
from hansa.deployment.store import Database, Journal, Mailbox
from hansa.deployment.worker.frames import (
    Body,
    Described,
    Dropped,
    Ended,
    Failed,
    Letter,
    Lost,
    Ready,
    Sent,
    Setup,
    Unusable,
)
from hansa.errors import StoreError
from hansa.message import Message
from hansa.protocol import OBSERVER

ATTEMPTS: Final = 3
"""How often a worker that dies at one and the same place is replaced."""
INLINE: Final = 1 << 16
"""Bytes of a frame above which it is kept in a file of its own."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds until a party whose disk was full is tried again, at first and at most."""
_MOST_TEXT: Final = 1 << 12


@final
@dataclass(frozen=True)
class Work:
    """A run, as a machine that takes part in it sees it.

    Args:
        run: the run; 16 hexadecimal digits.
        attempt: which attempt at it this is.
        plan: the plan as TOML.
        roles: the parties by role.
        starting: the roles whose programs start by themselves.
        hosts: for each party, the machine that it is on.
        data: what this machine binds for the run, as plain data; empty for nothing.
        shape: of the parties' data, for a program here that has none.
    """

    run: str
    attempt: int
    plan: str
    roles: Mapping[str, tuple[str, ...]]
    starting: frozenset[str]
    hosts: Mapping[str, str]
    data: Mapping[str, Any] = field(default_factory=dict)
    shape: DataShape | None = None

    def role_of(self, party: str) -> str:
        """The role of a party; empty for a stranger."""
        return next((role for role, names in self.roles.items() if party in names), "")


class Courier(Protocol):
    """Takes what leaves a machine's programs. Each call is part of the transaction that the program's step is in."""

    def send(self, work: Work, sender: str, receiver: str, body: Body) -> None:
        """A message for a party on another machine."""
        ...

    def report(self, work: Work, party: str, body: Body) -> None:
        """A message for the observer."""
        ...

    def finished(self, work: Work, party: str, result: Body) -> None:
        """A party that started by itself has ended."""
        ...

    def trouble(self, work: Work, party: str, failed: Failed, fatal: bool) -> None:
        """A program failed, or cannot be run at all."""
        ...


class Worker(Protocol):
    """A running worker; see :mod:`hansa.deployment.worker.process` and :mod:`hansa.deployment.worker.inline`."""

    def give(self, letter: Letter) -> None:
        """Hand a letter over."""
        ...

    async def stop(self, grace: float = 0.0) -> None:
        """End it."""
        ...


class Workers(Protocol):
    """Where workers come from."""

    async def describe(self, plan: str) -> Described:
        """What a plan is."""
        ...

    async def measure(self, data: Mapping[str, Any]) -> DataShape:
        """The shape of the data that a binding means."""
        ...

    async def start(self, setup: Setup, heard: Callable[[Message | Lost], None]) -> Worker:
        """Start one party's programs."""
        ...

    async def close(self) -> None:
        """Kill them all."""
        ...


@final
@dataclass(eq=False)
class _Program:
    """One party's programs in one run, while they run."""

    work: Work
    party: str
    role: str
    worker: Worker | None = None
    early: list[Letter] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    blob: str = ""


@final
class Host:
    """The programs of one machine.

    Args:
        name: the machine, as placements name it.
        database, mailbox, journal: where everything is kept.
        workers: where workers come from.
        courier: takes what leaves.
        spool: the folder of large frames.
        log: where what happens is noted.
        threads, memory: limits of each worker.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        mailbox: Mailbox,
        journal: Journal,
        workers: Workers,
        courier: Courier,
        spool: Path,
        log: Log,
        threads: int = 1,
        memory: int = 0,
    ) -> None:
        self.name = name
        self._db = database
        self._mailbox = mailbox
        self._journal = journal
        self._workers = workers
        self._courier = courier
        self._spool = spool
        self._log = log
        self._threads = threads
        self._memory = memory
        self._programs: dict[tuple[str, str], _Program] = {}
        self.broken: Callable[[StoreError], None] | None = None

    def begin(self, work: Work) -> None:
        """Run this machine's parties of a run, from the beginning or from where they stood."""
        for party, host in work.hosts.items():
            role = work.role_of(party)
            if host != self.name or not role or (work.run, party) in self._programs:
                continue
            self._journal.enter(work.run, party, role)
            _, ended = self._journal.progress(work.run, party)
            if role in work.starting and ended:
                continue
            program = self._programs[work.run, party] = _Program(work, party, role)
            program.task = asyncio.ensure_future(self._live(program))

    def deliver(self, run: str, sender: str, receiver: str, body: Body) -> bool:
        """Keep a message for a party of this machine and hand it over; False if there is no such party at work."""
        program = self._programs.get((run, receiver))
        if program is None:
            return False
        letter = self._journal.received(run, receiver, sender, body)
        if program.worker is None:
            program.early.append(letter)
        else:
            program.worker.give(letter)
        return True

    def running(self) -> set[str]:
        """The runs in which this machine has a program at work."""
        return {run for run, _ in self._programs}

    def end(self, run: str) -> asyncio.Future[list[None]]:
        """Stop this machine's programs of a run; what they saved stays.

        When this returns, nothing more is written down of them; to wait for its value is to wait for the end of their workers.
        """
        ended = [self._programs.pop(key) for key in list(self._programs) if key[0] == run]
        for program in ended:
            _leave(program)
        return asyncio.gather(*(self._stopped(program) for program in ended))

    async def close(self) -> None:
        """Stop all programs where they stand; a next start goes on from there."""
        programs, self._programs = list(self._programs.values()), {}
        for program in programs:
            _leave(program)
        await asyncio.gather(*(self._stopped(program) for program in programs))
        await self._workers.close()

    async def _stopped(self, program: _Program) -> None:
        if program.task is not None:
            await asyncio.gather(program.task, return_exceptions=True)
        if program.worker is not None:
            await program.worker.stop()
        self._mailbox.unpin(program.blob)

    async def _live(self, program: _Program) -> None:
        """Keep a worker for a party until it has nothing more to do."""
        work, party = program.work, program.party
        log = self._log.bind(run=work.run, party=party)
        stuck, before = 0, self._journal.progress(work.run, party)
        try:
            wait = FIRST_WAIT
            while True:
                lost = await self._serve(program, log)
                if lost is None:
                    return
                program.worker = None
                if isinstance(lost, Unusable):
                    log.warning("worker waits", reason=lost.reason, seconds=wait)
                    failed = Failed("StoreError", lost.reason, "", 0.0, remedy="make room; it tries again by itself")
                    self._courier.trouble(work, party, failed, fatal=False)
                    await asyncio.sleep(wait)
                    wait = min(LONGEST_WAIT, 2 * wait)
                    continue
                now = self._journal.progress(work.run, party)
                stuck = stuck + 1 if now == before else 1
                before = now
                log.warning("worker lost", reason=lost, attempt=stuck)
                if stuck >= ATTEMPTS:
                    failed = Failed(
                        "WorkerLost", f"its worker died {stuck} times at the same place: {lost}", "", now[0],
                        remedy="raise the limit of memory or look at the party's own log",
                    )  # fmt: skip
                    self._courier.trouble(work, party, failed, fatal=True)
                    return
        except StoreError as error:
            self._db.abandon(error)
            if self.broken is None:
                raise
            self.broken(error)
        except Exception as error:
            # What it said cannot be carried out: keys were recalled, say. Nobody may wait for it.
            log.failed("program ended", error)
            failed = Failed(type(error).__name__, str(error)[:_MOST_TEXT], "", 0.0)
            self._courier.trouble(work, party, failed, fatal=True)
            if program.worker is not None:
                await program.worker.stop()

    async def _serve(self, program: _Program, log: Log) -> str | Unusable | None:
        """One worker's life: why it was lost, what it lacked for now, or None if it is not needed any more."""
        work, party = program.work, program.party
        words: asyncio.Queue[Message | Lost] = asyncio.Queue()
        program.early = []  # what came until now is in the journal
        setup = Setup(
            run=work.run,
            party=party,
            role=program.role,
            plan=work.plan,
            rosters=dict(work.roles),
            data=dict(work.data),
            shape=work.shape,
            spool=str(self._spool),
            inline=INLINE,
            threads=self._threads,
            memory=self._memory,
            **self._journal.standing(work.run, party),
        )
        self._db.commit()
        try:
            worker = await self._workers.start(setup, words.put_nowait)
        except StoreError as error:
            return str(error)
        program.worker = worker
        for letter in program.early:
            worker.give(letter)
        program.early = []
        while True:
            word = await words.get()
            if isinstance(word, Lost):
                return word.reason
            if isinstance(word, Unusable) and word.passing:
                await worker.stop()
                return word
            if isinstance(word, Unusable):
                failed = Failed("Unusable", word.reason, "", 0.0)
                self._courier.trouble(work, party, failed, fatal=True)
                log.error("cannot run", reason=word.reason)
                await worker.stop()
                return None
            if self._heard(program, word, log):
                await worker.stop()
                return None

    def _heard(self, program: _Program, word: Message, log: Log) -> bool:
        """Write down what a worker said and act on it; whether that was its last word."""
        work, party = program.work, program.party
        if isinstance(word, Ready):
            log.info("program ready", examples=word.examples)
            return False
        self._journal.heard(work.run, party, word)
        if isinstance(word, Sent):
            self._sent(program, word)
            return False
        self._pin(program, "")
        if isinstance(word, Dropped):
            note = log.warning if word.hostile else log.info
            note("message refused" if word.hostile else "message came too late", sender=word.sender, reason=word.reason)
        elif isinstance(word, Failed):
            log.error("program failed", kind=word.kind, cause=word.what, round=word.round)
            log.debug("traceback", trace=word.traceback)
            fatal = program.role in work.starting
            self._courier.trouble(work, party, word, fatal)
            return fatal
        elif isinstance(word, Ended) and word.result is not None:
            self._pin(program, word.result.blob)
            self._courier.finished(work, party, word.result)
            return True
        return False

    def _sent(self, program: _Program, word: Sent) -> None:
        # The same file may be named by the next words too, when the first receiver has it already.
        self._pin(program, word.body.blob)
        work = program.work
        if word.to == OBSERVER:
            self._courier.report(work, program.party, word.body)
        elif work.hosts.get(word.to) == self.name:
            self.deliver(work.run, program.party, word.to, word.body)
        elif word.to in work.hosts:
            self._courier.send(work, program.party, word.to, word.body)
        else:
            self._log.error("message to nobody", run=work.run, party=program.party, receiver=word.to)

    def _pin(self, program: _Program, blob: str) -> None:
        if blob != program.blob:
            self._mailbox.pin(blob)
            before, program.blob = program.blob, blob
            self._mailbox.unpin(before)


def _leave(program: _Program) -> None:
    """Take no further word of it."""
    if program.task is not None and program.task is not asyncio.current_task():
        program.task.cancel()
