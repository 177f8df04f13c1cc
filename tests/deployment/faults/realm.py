"""A federation of real processes that are started again whenever they die, with a proxy of the test's own between them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hansa.deployment import api, dial
from hansa.deployment.dial import Caller
from hansa.deployment.quantity import Address
from hansa.deployment.store import TERMINAL, Database, Mailbox, RunTable
from hansa.deployment.worker.spool import Spool
from hansa.errors import HansaError
from tests.deployment.faults.homes import Homes
from tests.deployment.faults.village import parameters

ROOT = Path(__file__).resolve().parents[3]
START = 60.0
"""Seconds within which a process is up, on a busy machine too."""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Proxy:
    """Forwards TCP connections, until it is told to treat them badly."""

    target: Address
    port: int = 0
    delay: float = 0.0
    drip: int = 0
    cut_after: int = 0
    refusing: bool = False
    bytes: int = 0
    pairs: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Proxy:
        self.server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.cut()
        await asyncio.gather(*self.pairs, return_exceptions=True)

    def cut(self) -> int:
        """Cut all connections; how many there were."""
        count = len(self.pairs)
        for pair in list(self.pairs):
            pair.cancel()
        return count

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.pairs.add(task)
        ends = [writer]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if not self.refusing:
                far_reader, far_writer = await asyncio.open_connection(self.target.host, self.target.port)
                ends.append(far_writer)
                both = [
                    asyncio.ensure_future(self._pumped(reader, far_writer)),
                    asyncio.ensure_future(self._pumped(far_reader, writer)),
                ]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for one in both:
                        one.cancel()
                    await asyncio.gather(*both, return_exceptions=True)
        self.pairs.discard(task)
        for end in ends:
            end.transport.abort()

    async def _pumped(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self.drip or 1 << 16):
                self.bytes += len(data)
                if self.cut_after and self.bytes > self.cut_after:
                    self.cut_after = 0
                    return
                if self.delay:
                    await asyncio.sleep(self.delay)  # the line is that slow
                writer.write(data)
                await writer.drain()


@dataclass
class Machine:
    """A process that is started again when it dies."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    prefix: tuple[str, ...] = ()
    faults: list[str] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    ended: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    up: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    held: bool = False
    """Not started again until told."""
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    """Not started again at all."""

    async def live(self) -> None:
        while True:
            if self.held:
                self.wanted.clear()
                await self.wanted.wait()
            if self.over:
                return
            faults, self.faults = self.faults, []
            self.process = await asyncio.create_subprocess_exec(
                *self.prefix, sys.executable, "-m", "tests.deployment.faults.mortal", *self.arguments, *faults,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=self.environment, cwd=ROOT,
            )  # fmt: skip
            self.starts += 1
            if self.over:
                self.kill()
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            await asyncio.gather(self._heard(self.process.stdout), self._read(self.process.stderr))
            self.up.clear()
            self.ended.append(await self.process.wait())
            self._change()

    async def _heard(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            if line == b"up\n":
                self.up.set()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.said.append(line.decode(errors="replace").rstrip())
            self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, what: Callable[[], bool], seconds: float = START) -> None:
        """Wait until something holds of what it said or how it ended."""
        async with asyncio.timeout(seconds):
            while not what():
                await self.changed.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> bool:
        if self.process is None or self.process.returncode is not None:
            return False
        if number is signal.SIGKILL:
            self.up.clear()
        self.process.send_signal(number)
        return True

    def workers(self) -> list[int]:
        """The processes that it has started."""
        return [] if self.process is None else children(self.process.pid)

    def again(self) -> None:
        self.held = False
        self.wanted.set()

    def end(self) -> None:
        """Kill it for good. :meth:`live` returns when its pipes have closed: its workers hold them too, and die a little later."""
        self.over = True
        self.kill()
        self.again()


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
    return found


def marked(mark: str) -> list[int]:
    """All processes whose environment holds ``mark`` and that are no zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not dead and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


async def gone(pids: list[int], seconds: float = 20.0) -> None:
    """Wait until these processes have ended, whoever started them."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            over = asyncio.Event()
            loop.add_reader(descriptor, over.set)
            try:
                await over.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)


@dataclass
class Realm:
    """See the module's text."""

    homes: Homes
    port: int
    machines: dict[str, Machine]

    @property
    def hub(self) -> Machine:
        return self.machines["hub"]

    @property
    def mark(self) -> str:
        return f"TMPDIR={self.homes.folder / 'tmp'}"

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator[Caller]:
        """Calls the hub directly."""
        address = str(Address(self.homes.address.host, self.port))
        async with dial.calling(dataclasses.replace(self.homes.operator, addresses=(address,))) as caller:
            yield caller

    async def asked(self, request: Any, answer: type[Any]) -> Any:
        """Ask until the hub is there."""
        async with asyncio.timeout(START):
            while True:
                await self.hub.up.wait()
                with contextlib.suppress(HansaError):
                    async with self.operator() as caller:
                        return await caller.ask(request, answer)
                await asyncio.sleep(0)

    async def view(self, run: str) -> api.RunView:
        answer = await self.asked(api.ListRuns(), api.RunList)
        assert isinstance(answer, api.RunList)
        return next(view for view in answer.runs if view.run == run)

    async def events(self, run: str) -> AsyncIterator[api.Event]:
        """The run's events, each once, across the hub's deaths."""
        after = 0
        while True:
            await self.hub.up.wait()
            with contextlib.suppress(HansaError):
                async with self.operator() as caller:
                    async for event in caller.events(run, after):
                        after = event.number
                        yield event
                    return
            await asyncio.sleep(0)

    async def ended(self, run: str, seconds: float = 120.0) -> api.RunView:
        async with asyncio.timeout(seconds):
            while True:
                async for _ in self.events(run):
                    pass
                view = await self.view(run)
                if view.status in TERMINAL:
                    return view

    async def up(self, *names: str) -> None:
        async with asyncio.timeout(START):
            await asyncio.gather(*(self.machines[name].up.wait() for name in names or self.machines))

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End all processes for good."""
        for machine in self.machines.values():
            machine.held = True
            machine.kill(signal.SIGCONT)
            machine.kill(number)
        processes = [machine.process for machine in self.machines.values() if machine.process is not None]
        async with asyncio.timeout(START):
            await asyncio.gather(*(process.wait() for process in processes))

    def model(self, run: str) -> bytes:
        """The final model, from the files of a hub that has ended."""
        with contextlib.closing(Database(self.homes.hub / "hub.db")) as database:
            spool = Spool(self.homes.hub / "spool")
            record = RunTable(database, Mailbox(database, spool)).get(run)
            assert record is not None
            assert record.result is not None
            return parameters(record.result, spool)


@contextlib.asynccontextmanager
async def realm(
    homes: Homes, port: int, environment: dict[str, dict[str, str]] | None = None,
    prefixes: dict[str, tuple[str, ...]] | None = None, held: tuple[str, ...] = (),
) -> AsyncIterator[Realm]:  # fmt: skip
    """Start all machines of a federation, and end them."""
    (homes.folder / "tmp").mkdir(exist_ok=True)
    shared = {
        **os.environ,
        "TMPDIR": str(homes.folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "HOST": homes.address.host,
        "NAMES": " ".join(homes.names),
    }
    machines = {
        name: Machine(
            name,
            ["hub", str(homes.folder), str(port)] if name == "hub" else ["node", str(homes.folder), name],
            {**shared, **(environment or {}).get(name, {})},
            (prefixes or {}).get(name, ()),
            held=name in held,
        )
        for name in ("hub", *homes.names)
    }
    lives = [asyncio.ensure_future(machine.live()) for machine in machines.values()]
    try:
        yield Realm(homes, port, machines)
    finally:
        for machine in machines.values():
            machine.end()
        async with asyncio.timeout(START):
            await asyncio.gather(*lives)
