"""A hub or a node as a process of its own that kills itself where it is told to, wrapped from outside.

``python -m tests.deployment.faults.mortal hub HOME PORT [what] [number]``, ``... node HOME NAME [what] [number]``; ``what`` is
``before`` or ``after`` (a commit), ``reads`` or ``writes`` (a packet of a standing stream). It prints ``up`` when it is up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

from hansa.deployment import link as links
from hansa.deployment import node as nodes
from hansa.deployment import running, signals
from hansa.deployment.hub import Hub
from hansa.deployment.logs import Log, written
from hansa.deployment.metrics import Metrics
from hansa.deployment.node import Node
from hansa.deployment.quantity import Address
from hansa.deployment.service import serving
from hansa.deployment.store import Database
from hansa.deployment.worker.process import Workers
from hansa.errors import HansaError
from tests.deployment.faults.homes import Homes


def say(text: str, stream: TextIO) -> None:
    stream.write(text + "\n")
    stream.flush()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mortal(what: str, number: int) -> None:
    """Die at the ``number``-th commit or packet of this process."""
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == number

    if what in ("before", "after"):
        commit = Database.commit

        def counted(self: Database) -> None:
            last = self._open and due()
            if last and what == "before":
                die()
            commit(self)
            if last:
                die()

        Database.commit = counted  # type: ignore[method-assign]
    elif what in ("reads", "writes"):
        serve = links.Link.serve

        async def served(self: links.Link, read: links.Read, write: links.Write, theirs: Any) -> str:
            async def reading() -> bytes | None:
                packet = await read()
                if what == "reads" and due():
                    die()
                return packet

            async def writing(packet: bytes) -> None:
                await write(packet)
                if what == "writes" and due():
                    die()

            return await serve(self, reading, writing, theirs)

        links.Link.serve = served  # type: ignore[method-assign]


async def hub(homes: Homes, port: int) -> None:
    settings = homes.hub_settings(connections_per_minute=100_000)
    found = Hub(homes.hub, settings, Workers(), Log("hub"), Metrics())
    await found.start()
    try:
        async with serving(found, Address(homes.address.host, port)):
            say("up", sys.stdout)

            async def work() -> None:
                raise await found.broken()

            await signals.run_until_signal(work, lambda _: found.drain(), within=5.0, log=found.log)
    finally:
        await found.close()


async def node(homes: Homes, name: str) -> None:
    off = float(os.environ.get("CLOCK", "0"))
    found = Node(
        homes.node(name), homes.node_settings(name), Workers(), Log(name), Metrics(), lambda: time.time() + off
    )
    await found.start()

    async def told() -> None:
        await found.connected.wait()
        say("up", sys.stdout)

    telling = asyncio.ensure_future(told())

    async def work() -> None:
        ends: list[Awaitable[Any]] = [found.run(), found.broken()]
        tasks = [asyncio.ensure_future(end) for end in ends]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                result = task.result()
                if isinstance(result, HansaError):
                    raise result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(_: str) -> None:
        return None

    try:
        await signals.run_until_signal(work, drain, within=5.0, log=found.log)
    finally:
        telling.cancel()
        await found.close()


def main(arguments: list[str]) -> int:
    kind, home, which, *fault = arguments
    folder = Path(home)
    homes = Homes(folder, Address(os.environ.get("HOST", "127.0.0.1"), 0), os.environ["NAMES"].split())
    for module, name, value in ((nodes, "LONGEST_WAIT", "0.5"), (running, "LOST_AFTER", "600")):
        vars(module)[name] = float(os.environ.get(name, value))
    if fault:
        mortal(fault[0], int(fault[1]))
    being: Callable[[], Any] = (lambda: hub(homes, int(which))) if kind == "hub" else (lambda: node(homes, which))
    with written(level="info"):
        try:
            asyncio.run(being())
        except HansaError as error:
            say(f"hansa: {error}", sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
