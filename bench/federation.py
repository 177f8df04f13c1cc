"""A federation of real processes on this machine: a hub, its nodes, each with its own identity, mutual TLS over loopback.

python -m bench.federation hub FOLDER PORT            runs the hub of FOLDER and says its address and process
python -m bench.federation node FOLDER NUMBER         runs a node with its worker processes
python -m bench.federation light FOLDER ADDRESS HOMES FIRST COUNT
                                                     runs so many nodes in one process, each with its own identity and stream,
                                                      and its home in HOMES
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from bench.figure import Unavailable
from bench.resting import package
from hansa.deployment import api, dial
from hansa.deployment.binding import Binding
from hansa.deployment.heap import one_heap
from hansa.deployment.hub import Hub, create
from hansa.deployment.identity import Credentials, read_invitation
from hansa.deployment.logs import Log, written
from hansa.deployment.metrics import Metrics
from hansa.deployment.node import Node
from hansa.deployment.policy import Policy
from hansa.deployment.quantity import Address
from hansa.deployment.service import serving
from hansa.deployment.settings import HubLimits, HubSettings, NodeSettings
from hansa.deployment.worker.inline import InlineWorkers
from hansa.deployment.worker.process import Workers
from hansa.examples import Examples, Shard

ROOT: Final = Path(__file__).resolve().parent.parent
PATIENCE: Final = 300.0
"""Seconds for whatever has to happen before something can be measured."""
DATA: Final = "few"
_ANY: Final = Policy(
    protocols=("*",), learners=("*",), submitters=("*",), data=("*",), servers=("*",), least_parties=1,
    approval="automatic",
)  # fmt: skip


class Process:
    """One of the programs below, as whoever started it sees it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        path = os.pathsep.join((str(folder / "package"), str(ROOT), os.environ.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.federation", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def said(self) -> dict[str, Any]:
        """The next line that it says.

        Raises:
            Unavailable: it says no more.
        """
        out: IO[bytes] | None = self._process.stdout
        assert out is not None
        try:
            async with asyncio.timeout(PATIENCE):
                line = await asyncio.to_thread(out.readline)
        except TimeoutError:
            raise Unavailable(f"a process of the federation said nothing for {PATIENCE:g} s") from None
        if not line:
            raise Unavailable(f"a process of the federation ended with status {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def kill(self) -> None:
        """End it at once; its workers end with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class Federation:
    """A hub and whoever has joined it. Made by :func:`federation`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.processes: list[Process] = []
        self._hub: Process | None = None

    @property
    def hub(self) -> Process:
        """The hub's process."""
        assert self._hub is not None
        return self._hub

    @property
    def credentials(self) -> Credentials:
        """The operator's."""
        found = Credentials.load(self.folder / "hub" / "operator", time.time())
        return replace(found, addresses=(self.address,))

    async def open(self) -> None:
        """Start the hub; again at the same port, if it ran before."""
        port = self.address.rpartition(":")[2] or "0"
        self._hub = Process(self.folder, "hub", str(self.folder), port)
        self.processes.append(self._hub)
        self.address = (await self.hub.said())["address"]

    def kill_hub(self) -> None:
        """``kill -9``."""
        self.hub.kill()
        self.processes.remove(self.hub)

    async def nodes(self, count: int) -> None:
        """Let so many nodes join, each in a process of its own, and wait until all are connected."""
        for number in range(count):
            await _join(self.folder, number, self.credentials)
        started = [Process(self.folder, "node", str(self.folder), str(number)) for number in range(count)]
        self.processes += started
        for process in started:
            await process.said()

    async def light_nodes(self, count: int, processes: int, homes: Path) -> None:
        """Let so many nodes join, spread over a few processes, their homes in ``homes``; wait until all are connected."""
        share = -(-count // processes)
        where = (str(self.folder), self.address, str(homes))
        started = [
            Process(self.folder, "light", *where, str(first), str(min(share, count - first)))
            for first in range(0, count, share)
        ]
        self.processes += started
        for process in started:
            await process.said()

    async def rounds(
        self, parameters: int, rounds: int, cohort: int, first: Callable[[], None] | None = None, parties: int = 0
    ) -> list[float]:
        """Run a plan with a model of so many float32: the seconds of each round, by the hub's clock.

        Args:
            parameters, rounds, cohort: of the plan.
            parties: how many of the nodes are asked; all for 0.
            first: called when the run's first event of a round is there: all workers are at work by then.

        Raises:
            Unavailable: the run failed.
        """
        times = []
        async with dial.calling(self.credentials) as operator:
            run = await self.submit(operator, parameters, rounds, cohort, parties)
            async for event in operator.events(run):
                if event.kind == "round":
                    times.append(event.time)
                    if first is not None and len(times) == 1:
                        first()
            (view,) = [view for view in (await operator.ask(api.ListRuns(), api.RunList)).runs if view.run == run]
        if view.status != "completed":
            raise Unavailable(f"the run {view.status}: {view.cause}")
        return [later - earlier for earlier, later in pairwise(times)]

    async def submit(self, operator: dial.Caller, parameters: int, rounds: int, cohort: int, parties: int = 0) -> str:
        """Begin a run; its name."""
        plan = (
            f'name = "bench"\nseed = 1\n[protocol]\nname = "fedavg"\nrounds = {rounds}\ncohort = {cohort}\n'
            "evaluation = { every = 0, parties = 0 }\n"
            f'[learner]\nname = "resting"\nparameters = {parameters}\n'
        )
        names = tuple(f"node-{number}" for number in range(parties))
        return (await operator.ask(api.Submit(plan, data=DATA, seconds=60.0, parties=names), api.Submitted)).run


@contextlib.asynccontextmanager
async def federation(folder: Path) -> AsyncIterator[Federation]:
    """A federation with a running hub, in an empty folder, while the context lasts."""
    package(folder / "package")
    np.savez(folder / "few.npz", x=np.ones((8, 2), np.float32), y=np.zeros(8, np.int64))
    create(folder / "hub", "bench", "ada", _hub_settings(0), time.time())
    made = Federation(folder)
    try:
        await made.open()
        yield made
    finally:
        for process in reversed(made.processes):
            process.kill()


def _hub_settings(port: int) -> HubSettings:
    limits = HubLimits(connections_per_minute=1_000_000, enrolments_per_minute=1_000_000)
    return HubSettings(listen=Address("127.0.0.1", port), limits=limits)


async def _join(folder: Path, number: int, operator: Credentials) -> None:
    async with dial.calling(operator) as hub:
        await _enrol(folder, number, hub)


async def _enrol(folder: Path, number: int, hub: dial.Caller) -> None:
    invited = await hub.ask(api.Invite(f"node-{number}"), api.Invited)
    await dial.join(folder / f"node-{number}", read_invitation(invited.token), time.time())


async def _hub(folder: Path, port: int) -> None:
    settings = _hub_settings(port)
    hub = Hub(folder / "hub", settings, Workers(), Log("hub"), Metrics())
    await hub.start()
    async with serving(hub, settings.listen) as address:
        _say(address=str(address))
        await hub.broken()


async def _node(folder: Path, number: int) -> None:
    settings = NodeSettings(data={DATA: Binding(f"npz:{folder / 'few.npz'}", test=0.0)}, policy=_ANY)
    node = Node(folder / f"node-{number}", settings, Workers(), Log("node"), Metrics())
    await node.start()
    running = asyncio.ensure_future(node.run())
    await node.connected.wait()
    _say(connected=1)
    await running


async def _light(folder: Path, address: str, homes: Path, first: int, count: int) -> None:
    found = Credentials.load(folder / "hub" / "operator", time.time())
    async with dial.calling(replace(found, addresses=(address,))) as operator:
        for number in range(first, first + count):
            await _enrol(homes, number, operator)
    settings = NodeSettings(data={DATA: Binding(f"npz:{folder / 'few.npz'}", test=0.0)}, policy=_ANY)
    nodes, running = [], []
    for number in range(first, first + count):
        node = Node(homes / f"node-{number}", settings, InlineWorkers(_few), Log("node"), Metrics())
        await node.start()
        nodes.append(node)
        running.append(asyncio.ensure_future(node.run()))
        await node.connected.wait()
    _say(connected=len(nodes))
    await asyncio.gather(*running)


def _few(plain: Mapping[str, Any], many: bool) -> Shard:
    """What all the nodes of one process have."""
    few = Examples(np.ones((8, 2), np.float32), np.zeros(8, np.int64))
    return Shard(few, few)


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def main(arguments: list[str]) -> None:
    """One of the programs of the module's text."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    one_heap()
    kind, folder, *rest = arguments
    programs = {
        "hub": lambda: _hub(Path(folder), int(rest[0])),
        "node": lambda: _node(Path(folder), int(rest[0])),
        "light": lambda: _light(Path(folder), rest[0], Path(rest[1]), int(rest[2]), int(rest[3])),
    }
    with written(level="warning"):
        asyncio.run(programs[kind]())


if __name__ == "__main__":
    main(sys.argv[1:])
