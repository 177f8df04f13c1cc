"""deployment: rounds over TLS between processes, what the hub holds meanwhile, and how soon it is back after a kill.

Ten nodes, each a process with its own worker process and identity, mutual TLS over loopback; the learner costs nothing. The
reference of a round is the same bytes through Python's ssl between processes (:mod:`bench.rawtls`), in turns with it. Then a
thousand nodes that are connected and idle, many in a process, each with an identity and a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Final

from bench.federation import PATIENCE, ROOT, Federation, federation
from bench.figure import Figure, Figures, Size, Unavailable
from bench.memory import Peak, children, held, require_proc, used
from bench.rawtls import raw_rounds
from hansa.deployment import dial
from hansa.errors import HansaError

NODES, CROWD, PROCESSES = 10, 1000, 4
SMALL, LARGE, MIDDLE = 250, 25_000_000, 2_500
"""Float32 of a model: 1 kB, 100 MB, 10 kB."""
_RAW: Final = "the bytes over raw TLS"
_MB: Final = 1e6
_SHM: Final = Path("/dev/shm")  # noqa: S108 - a folder of random name is made in it
_MEMORY: Final = _SHM if _SHM.is_dir() else None


def small_round(size: Size) -> Figures:
    """Milliseconds of a round with a model of 1 kB."""
    seconds, raw = asyncio.run(_beside(size.of(NODES, 2), SMALL, size.of(4, 1), size.of(120, 10), size.of(20, 2)))
    return [Figure("deployment/small_round", seconds * 1e3, "ms", _RAW, raw * 1e3)]


def large_round(size: Size) -> Figures:
    """Seconds of a round with a model of 100 MB."""
    parameters = size.of(LARGE, 25_000)
    seconds, raw = asyncio.run(_beside(size.of(NODES, 2), parameters, size.of(3, 1), size.of(4, 3), 1))
    return [Figure("deployment/large_round", seconds, "s", _RAW, raw)]


async def _beside(nodes: int, parameters: int, turns: int, rounds: int, warm: int) -> tuple[float, float]:
    """The median seconds of a round, and of its bytes over raw TLS: in turns, so many rounds each, the first of which do not count."""
    seconds: list[float] = []
    raw: list[float] = []
    async with _started(nodes) as made:
        await made.rounds(parameters, warm + 1, nodes)
        for _ in range(turns):
            raw += (await asyncio.to_thread(raw_rounds, nodes, parameters * 4, rounds))[warm:]
            seconds += (await made.rounds(parameters, rounds, nodes))[warm:]
    return median(seconds), median(raw)


def hub_memory(size: Size) -> Figures:
    """What the hub and its server's worker hold together at most, in such rounds with ten nodes and with two."""
    require_proc()
    parameters = size.of(LARGE, 25_000)
    few, many = (asyncio.run(_held(nodes, parameters, size.of(4, 2))) for nodes in (2, size.of(NODES, 3)))
    model, name = parameters * 4 / _MB, "deployment/hub_memory"
    return [
        Figure(name, many[1] / _MB, "MB", "the model", model),
        Figure(f"{name}/anonymous", many[0] / _MB, "MB", "the model", model),
        Figure(f"{name}/nodes", many[1] / _MB, "MB", "with two nodes", few[1] / _MB),
    ]


async def _held(nodes: int, parameters: int, rounds: int) -> tuple[int, int]:
    async with _started(nodes) as made:
        with contextlib.ExitStack() as over:
            peaks = []

            def look() -> None:
                # Of its children the first is the worker; the next one waits to be needed.
                peaks.append(over.enter_context(Peak([made.hub.pid, min(children(made.hub.pid))])))

            await made.rounds(parameters, rounds, nodes, look)
        return peaks[0].anonymous, peaks[0].resident


def idle_nodes(size: Size) -> Figures:
    """What a hub needs for a thousand nodes that do nothing, and a round among them with a model of 10 kB."""
    require_proc()
    crowd, seconds, rounds = size.of(CROWD, 20), size.of(30, 2), size.of(5, 2)

    async def run() -> Figures:
        # A thousand nodes do not share one disk; here theirs is memory. The hub's is the disk.
        with tempfile.TemporaryDirectory(prefix="hansa-bench-", dir=_MEMORY, ignore_cleanup_errors=True) as homes:
            async with _federation() as made:
                return await crowded(made, Path(homes))

    async def crowded(made: Federation, homes: Path) -> Figures:
        _, before = held(made.hub.pid)
        await made.light_nodes(crowd, size.of(PROCESSES, 2), homes)
        await asyncio.sleep(size.of(5, 1))
        began, idle = time.perf_counter(), used(made.hub.pid)
        await asyncio.sleep(seconds)
        passed = time.perf_counter() - began
        # Less than a tick of the system's clock cannot be seen.
        share = 100 * max(used(made.hub.pid) - idle, 1 / os.sysconf("SC_CLK_TCK")) / passed
        _, after = held(made.hub.pid)
        took = median((await made.rounds(MIDDLE, rounds, crowd, parties=crowd))[1:])
        name = "deployment/idle_nodes"
        return [
            Figure(name, took, "s", "the bound", 3.0),
            Figure(f"{name}/memory", after / _MB, "MB", "the hub alone", before / _MB),
            Figure(f"{name}/processor", share, "% of a core", "the bound", 2.0),
        ]

    return asyncio.run(run())


def recovery(size: Size) -> Figures:
    """Seconds from ``kill -9`` of a hub in the middle of a run to the next round that is reported."""
    nodes, kills = size.of(NODES, 2), size.of(5, 1)

    async def run() -> list[float]:
        async with _started(nodes) as made:
            async with dial.calling(made.credentials) as operator:
                name = await made.submit(operator, SMALL, 10_000, nodes)
            return [await _back(made, name) for _ in range(kills)]

    seconds = asyncio.run(run())
    imports = []
    for _ in range(kills):
        began = time.perf_counter()
        modules = "import hansa.deployment.service, hansa.deployment.worker.serve, hansa.horizontal"
        subprocess.run([sys.executable, "-c", modules], check=True, cwd=ROOT)
        imports.append(time.perf_counter() - began)
    return [Figure("deployment/recovery", median(seconds), "s", "a process that imports the hub", median(imports))]


async def _back(made: Federation, run: str) -> float:
    """Let the run go on for some rounds, kill its hub, start it again, and wait for a round."""
    last = await _rounds_after(made, run, 0, 100)
    killed = time.time()
    made.kill_hub()
    await made.open()
    return (await _rounds_after(made, run, last[0], 1))[1] - killed


async def _rounds_after(made: Federation, run: str, after: int, count: int) -> tuple[int, float]:
    """The number and the time of the event that reports the last of ``count`` rounds after an event."""
    try:
        async with asyncio.timeout(PATIENCE), dial.calling(made.credentials) as operator:
            if not after:
                async for event in operator.events(run, follow=False):
                    after = event.number
            async for event in operator.events(run, after):
                if event.kind == "round" and (count := count - 1) == 0:
                    return event.number, event.time
    except (TimeoutError, HansaError) as error:
        raise Unavailable(f"the run did not go on: {error}") from None
    raise Unavailable("the run ended")


@contextlib.asynccontextmanager
async def _federation() -> AsyncIterator[Federation]:
    with tempfile.TemporaryDirectory(prefix="hansa-bench-", ignore_cleanup_errors=True) as name:
        async with federation(Path(name)) as made:
            yield made


@contextlib.asynccontextmanager
async def _started(nodes: int) -> AsyncIterator[Federation]:
    async with _federation() as made:
        await made.nodes(nodes)
        yield made
