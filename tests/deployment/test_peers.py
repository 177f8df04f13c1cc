"""Direct streams between two nodes: one at a time for each peer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hansa.deployment import peers as direct
from hansa.deployment.link import Link
from hansa.deployment.logs import Log
from hansa.deployment.packets import OLDEST, PROTOCOL, Hello
from hansa.deployment.peers import Peers
from hansa.deployment.store import Database, Mailbox
from hansa.deployment.worker.spool import Spool
from hansa.message import encode
from tests.deployment.adversarial.strangers import book
from tests.deployment.federation import drive

HELLO = encode(Hello(PROTOCOL, OLDEST, "0", "one", "e" * 32, "", []))


class Call:
    """A peer's stream: it greets, and is silent."""

    def __init__(self) -> None:
        self.packets = [HELLO]

    async def read(self) -> bytes:
        if not self.packets:
            await asyncio.get_running_loop().create_future()
        return self.packets.pop()

    async def write(self, _: bytes) -> None:
        await asyncio.sleep(0)  # another stream may come meanwhile


def test_of_streams_that_come_at_one_instant_one_is_served_at_a_time_and_the_last_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two on one link would take each other's turns, and the end of one would leave the other deaf."""

    async def scenario() -> None:
        database, spool = Database(tmp_path / "node.db"), Spool(tmp_path / "spool")
        own: Any = SimpleNamespace(identity=SimpleNamespace(federation="trial"))
        desk: Any = None
        peers = Peers(
            database, Mailbox(database, spool), spool, desk, lambda: own, lambda _: True, lambda *_: frozenset(), "two",
            1 << 20, Log("node"), lambda: 0.0,
        )  # fmt: skip
        caller = SimpleNamespace(identity=SimpleNamespace(name="peer"))
        monkeypatch.setattr(peers, "_caller", lambda _: caller)
        serve, served, most = Link.serve, 0, 0

        async def counted(
            link: Link, read: Any, write: Callable[[bytes], Awaitable[None]], lanes: Iterable[Any]
        ) -> str:
            nonlocal served, most
            served += 1
            most = max(most, served)
            try:
                return await serve(link, read, write, lanes)
            finally:
                served -= 1

        monkeypatch.setattr(Link, "serve", counted)
        calls: list[Any] = [Call() for _ in range(5)]
        tasks = [asyncio.ensure_future(peers._answer(None, call)) for call in calls]
        for _ in range(500):  # turns of the loop, of which each stream needs a few
            await asyncio.sleep(0)
        standing = [task for task in tasks if not task.done()]
        assert (len(standing), served, most) == (1, 1, 1)
        assert peers._link("peer").standing.is_set()
        await peers.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        database.close()

    drive(scenario())


def test_a_way_to_a_peer_that_fails_as_nobody_foresaw_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that needs this stream would else wait for it for ever, and nobody would know why."""
    monkeypatch.setattr(direct, "FIRST_WAIT", 0.001)

    async def scenario() -> None:
        database, spool = Database(tmp_path / "node.db"), Spool(tmp_path / "spool")
        own: Any = SimpleNamespace(authority_pem=None, tls_key_pem=None, certificate=SimpleNamespace(pem=None))
        desk: Any = None
        peers = Peers(
            database, Mailbox(database, spool), spool, desk, lambda: own, lambda _: True, lambda *_: frozenset(), "two",
            1 << 20, Log("node"), lambda: 0.0,
        )  # fmt: skip
        tries, again = 0, asyncio.Event()

        async def dialled(*_: object) -> str:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise RuntimeError("a wire fell off")
            again.set()
            return str(await asyncio.get_running_loop().create_future())

        monkeypatch.setattr(direct, "dialled", dialled)
        with book() as lines:
            peers.meet("a", {"b": "127.0.0.1:1"}, {"a", "b"})
            await again.wait()
        told = [said for _, event, said in lines if event == "no direct link"]
        assert len(told) == 2 and all("a wire fell off" in said["traceback"] for said in told)
        await peers.close()
        database.close()

    drive(scenario())
