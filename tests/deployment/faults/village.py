"""A hub and its nodes in one loop, with cables of the test's own between them, and exact crashes.

A crash is what ``kill -9`` leaves: the files as they are at that instant, copied to a home of their own, and nothing that the
killed process does afterwards reaches anybody. The next life begins from the copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.deployment import packets, standing
from hansa.deployment.api import Event, Submit
from hansa.deployment.hub import Hub
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.node import Node
from hansa.deployment.packets import Hello, Welcome
from hansa.deployment.shape import DataShape
from hansa.deployment.store import TERMINAL, Database, Record
from hansa.deployment.worker.frames import Body, Lost, Result, Setup
from hansa.deployment.worker.inline import InlineWorkers
from hansa.deployment.worker.spool import Spool
from hansa.errors import HansaError
from hansa.message import Message, decode, encode
from hansa.params import Params
from tests.deployment.faults import homes as homes_of
from tests.deployment.faults.homes import OWNER, Homes

PATIENCE = 30.0
"""Seconds after which a test that hangs fails."""

Machine = Hub | Node


@dataclass
class Kill:
    """Where to kill: a machine, at which of its commits counted from 1, and on which side of it."""

    machine: str
    commit: int
    after: bool

    def __str__(self) -> str:
        return f"{self.machine} {'after' if self.after else 'before'} its commit {self.commit}"


@dataclass
class Cut:
    """Where to cut a cable: at which packet, counted over both directions, and whether that one still arrives."""

    node: str
    packet: int
    arrives: bool


@dataclass
class KillWorker:
    """Which party's worker is killed, at which of its words, and whether that word was still heard."""

    party: str
    word: int
    heard: bool


class Fragile:
    """Workers in the owner's loop, of which one is killed at a word."""

    def __init__(self, village: Village) -> None:
        self.inner: InlineWorkers = homes_of.workers()
        self.village = village
        self.dead = False

    def die(self) -> None:
        """Workers end with their owner, wherever they are."""
        self.dead = True
        for worker in self.inner._started:
            worker._task.cancel()

    async def describe(self, plan: str) -> Any:
        return await self.inner.describe(plan)

    async def measure(self, data: Mapping[str, Any]) -> DataShape:
        return await self.inner.measure(data)

    async def start(self, setup: Setup, heard: Callable[[Any], None]) -> Any:
        village = self.village
        gone = False
        if self.dead:
            await asyncio.get_running_loop().create_future()

        def hear(word: Message | Lost) -> None:
            nonlocal gone
            if gone or self.dead:
                return
            count = village.words[setup.party] = village.words.get(setup.party, 0) + 1
            kill = village.kill_worker
            if kill is not None and (kill.party, kill.word) == (setup.party, count):
                gone = True
                village.faults += 1
                if kill.heard:
                    heard(word)
                heard(Lost("killed by the test"))
                return
            heard(word)

        return await self.inner.start(setup, hear)

    async def close(self) -> None:
        await self.inner.close()


class Cable:
    """One standing stream in memory."""

    def __init__(self, village: Village, node: str) -> None:
        self.village, self.node = village, node
        self.down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.dead = False

    def cut(self) -> None:
        """Nothing that is under way arrives any more."""
        self.dead = True
        for queue in (self.down, self.up):
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None)

    def writer(self, queue: asyncio.Queue[bytes | None]) -> Callable[[bytes], Awaitable[None]]:
        async def write(packet: bytes) -> None:
            await asyncio.sleep(0)
            if self.dead:
                return
            village = self.village
            village.packets[self.node] = count = village.packets.get(self.node, 0) + 1
            cut = village.cut
            if cut is not None and (cut.node, cut.packet) == (self.node, count):
                village.faults += 1
                if cut.arrives:
                    queue.put_nowait(packet)
                    await asyncio.sleep(0)
                self.cut()
                return
            queue.put_nowait(packet)
            if village.twice(packet):
                queue.put_nowait(packet)

        return write

    @staticmethod
    def reader(queue: asyncio.Queue[bytes | None]) -> Callable[[], Awaitable[bytes | None]]:
        async def read() -> bytes | None:
            packet = await queue.get()
            if packet is None:
                queue.put_nowait(None)
            return packet

        return read


@dataclass
class Life:
    """One life of a machine."""

    name: str
    home: Path
    machine: Machine
    workers: Fragile
    dead: bool = False


@dataclass
class Village:
    """See the module's text.

    Args:
        homes: a federation; it is copied and stays as it is.
        folder: where the copies are.
        kills, cut, kill_worker: what goes wrong.
        twice: packets that arrive twice.
    """

    homes: Homes
    folder: Path
    kills: Sequence[Kill] = ()
    cut: Cut | None = None
    kill_worker: KillWorker | None = None
    twice: Callable[[bytes], bool] = lambda packet: False
    lives: dict[str, Life] = field(default_factory=dict)
    commits: dict[str, int] = field(default_factory=dict)
    packets: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    faults: int = 0
    copies: int = 0
    computing: list[bool] = field(default_factory=list)
    cables: dict[str, Cable] = field(default_factory=dict)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False

    # Lives.

    @property
    def hub(self) -> Hub:
        hub = self.lives["hub"].machine
        assert isinstance(hub, Hub)
        return hub

    def node(self, name: str) -> Node:
        node = self.lives[name].machine
        assert isinstance(node, Node)
        return node

    async def begin(self) -> None:
        for name in ("hub", *self.homes.names):
            await self.wake(name, self.copied(self.homes.of(name), name))
        for name in self.homes.names:
            self.spawn(self.connected(name))

    async def wake(self, name: str, home: Path) -> None:
        """A machine's next life."""
        machine: Machine
        workers = Fragile(self)
        if name == "hub":
            machine = Hub(home, self.homes.hub_settings(), workers, Log("hub"), Metrics())
        else:
            machine = Node(home, self.homes.node_settings(name), workers, Log(name), Metrics())
        life = Life(name, home, machine, workers)
        self.watched(life)
        await machine.start()
        self.lives[name] = life
        self.changed.set()
        self.changed = asyncio.Event()

    def watched(self, life: Life) -> None:
        """Count the commits of a life, and end it where that was asked for."""
        database: Database = life.machine.database
        commit = database.commit

        def counted() -> None:
            if life.dead or not self.started or not database._open:
                commit()
                return
            number = self.commits[life.name] = self.commits.get(life.name, 0) + 1
            kill = next((kill for kill in self.kills if (kill.machine, kill.commit) == (life.name, number)), None)
            if kill is None:
                commit()
                return
            self.faults += 1
            if kill.after:
                self.parted(life)
                commit()
                self.crash(life)
            else:
                home = self.copied(life.home, life.name)
                self.crash(life, home)
                commit()

        database.commit = counted  # type: ignore[method-assign]

    def parted(self, life: Life) -> None:
        """Nothing leaves or reaches it any more."""
        life.dead = True
        life.workers.die()
        for node, cable in self.cables.items():
            if life.name in ("hub", node):
                cable.cut()

    def crash(self, life: Life, home: Path | None = None) -> None:
        """Kill a machine here and now; its next life begins soon."""
        self.parted(life)
        self.computing += [bool(live) for (live,) in life.machine.database.read("SELECT live FROM programs")]
        self.spawn(self.revived(life, home or self.copied(life.home, life.name)))

    async def revived(self, life: Life, home: Path) -> None:
        try:
            await self.wake(life.name, home)
        finally:
            with contextlib.suppress(Exception):
                await life.machine.close()

    def copied(self, home: Path, name: str) -> Path:
        self.copies += 1
        target = self.folder / f"{name}-{self.copies}"
        shutil.copytree(home, target, ignore=shutil.ignore_patterns("*-shm", "*.lock"))
        return target

    # Streams.

    async def connected(self, name: str) -> None:
        """Keep a node's cable plugged in."""
        while True:
            hub, node = self.lives["hub"], self.lives[name]
            if hub.dead or node.dead:
                await self.changed.wait()
                continue
            cable = self.cables[name] = Cable(self, name)
            await self.stream(cable, hub, node)
            cable.cut()
            await asyncio.sleep(0)

    async def stream(self, cable: Cable, hub_life: Life, node_life: Life) -> None:
        hub, node = hub_life.machine, node_life.machine
        assert isinstance(hub, Hub)
        assert isinstance(node, Node)
        hello = standing.hello(node._instance, node.link)
        certificate = hub.verified(node.credentials.certificate.pem)

        async def above() -> None:
            hello_read = decode(encode(hello), Hello, packets.MAX_PACKET)
            task = asyncio.current_task()
            assert task is not None

            def close(_: str) -> None:
                task.cancel()

            async with hub.stream(certificate, hello_read, close) as link:
                cable.down.put_nowait(encode(standing.welcome("league", hub.clock(), link)))
                await link.serve(cable.reader(cable.up), cable.writer(cable.down), standing.theirs(hello_read, link))

        async def below() -> None:
            first = await cable.reader(cable.down)()
            if first is not None:
                welcome = decode(first, Welcome, packets.MAX_PACKET)
                node.link.meet(welcome.epoch)
                await node.link.serve(cable.reader(cable.down), cable.writer(cable.up), welcome.lanes)

        ends = [asyncio.ensure_future(above()), asyncio.ensure_future(below())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            cable.cut()
            for end in ends:
                end.cancel()
            for found in await asyncio.gather(*ends, return_exceptions=True):
                # A machine that is dead may stumble over what was taken from it.
                if isinstance(found, Exception) and not (hub_life.dead or node_life.dead):
                    self.errors.append(found)

    # A run.

    async def submitted(self, plan: str, **settings: Any) -> str:
        run = await self.hub.runs.submit(OWNER, Submit(plan, data="table", **settings))
        self.hub.database.commit()
        self.started = True
        return run

    async def ended(self, run: str) -> Record:
        """The run, when it has ended on the hub and every node knows it."""
        while True:
            hub, changed = self.lives["hub"], self.changed
            if hub.dead:
                await changed.wait()
                continue
            record = self.hub.runs.table.get(run)
            assert record is not None
            if record.status in TERMINAL and self.quiet(run):
                return record
            if record.status in TERMINAL:
                await asyncio.sleep(0)
                continue
            await self.first(self.hub.runs.ledger.news(run).wait(), changed.wait())

    @staticmethod
    async def first(*waits: Any) -> None:
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def quiet(self, run: str) -> bool:
        """Nothing is under way, and the nodes know that the run is over."""
        if any(life.dead for life in self.lives.values()):
            return False
        for life in self.lives.values():
            db = life.machine.database
            if db.read("SELECT 1 FROM outbox") or db._open:
                return False
        return all(self.node(name).works.state(run) in ("ended", "") for name in self.homes.names)

    def model(self, run: str) -> bytes:
        record = self.hub.runs.table.get(run)
        assert record is not None and record.result is not None
        return parameters(record.result, self.hub.spool)

    def models(self, run: str) -> dict[str, bytes]:
        """What nodes ended with."""
        found = {}
        for name in self.homes.names:
            node = self.node(name)
            for party, body in node.works.results(run).items():
                found[party] = parameters(body, node.spool)
        return found

    def events(self, run: str, kind: str = "") -> list[Event]:
        return self.hub.runs.table.events(run, kind=kind)

    def leftovers(self) -> dict[str, list[Any]]:
        """What a machine still keeps though no run is under way."""
        found: dict[str, list[Any]] = {}
        for name, life in self.lives.items():
            db = life.machine.database
            for table in ("outbox", "letters", "steps", "states", "programs"):
                rows = db.read(f"SELECT * FROM {table}")
                if rows:
                    found[f"{name}.{table}"] = rows
            kept = {blob for (blob,) in db.read("SELECT blob FROM results UNION SELECT blob FROM runs")}
            files = {path.name for path in life.machine.spool.folder.iterdir()} - kept
            files = {file for file in files if not file.endswith(".free")}
            if files:
                found[f"{name}.spool"] = sorted(files)
        return found

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.done)

    def done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)
            if not isinstance(error, HansaError):
                raise error

    async def close(self) -> None:
        self.started = False  # what is committed from here on is nobody's step
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for life in self.lives.values():
            with contextlib.suppress(Exception):
                await life.machine.close()


def parameters(body: Body, spool: Spool) -> bytes:
    frame = body.inline if body.inline is not None else bytes(spool.map(body.blob))
    params = decode(frame, Result).params
    assert isinstance(params, Params)
    return params.flat.tobytes()


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    record: Record
    models: tuple[Any, ...]
    rounds: tuple[int | None, ...]
    troubles: tuple[str, ...]
    leftovers: dict[str, list[Any]]
    village: Village


def play(homes: Homes, folder: Path, plan: str, settings: dict[str, Any] | None = None, **faults: Any) -> Outcome:
    """Run a plan to its end."""

    async def run() -> Outcome:
        village = Village(homes, folder, **faults)
        try:
            async with asyncio.timeout(PATIENCE):
                await village.begin()
                name = await village.submitted(plan, **(settings or {}))
                record = await village.ended(name)
                for _ in range(3):
                    await asyncio.sleep(0)
            models: tuple[Any, ...] = tuple(sorted(village.models(name).items()))
            if record.result is not None:
                models = (village.model(name), *models)
            rounds = tuple(event.round for event in village.events(name, "round"))
            troubles = tuple(event.text for event in village.events(name) if event.kind in ("trouble", "refused"))
            return Outcome(record, models, rounds, troubles, village.leftovers(), village)
        finally:
            await village.close()

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        return asyncio.run(run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
