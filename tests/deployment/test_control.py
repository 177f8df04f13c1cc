"""The owner's socket: for the owner alone, and nothing that comes over it can harm the node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("grpc")

from hansa.deployment import control
from hansa.deployment.api import Done
from hansa.deployment.logs import Log
from hansa.deployment.node import Node
from hansa.deployment.participation import Asked
from hansa.errors import ConfigError, HansaError, NotAuthorized, Unreachable


class FakeNode:
    """A node with one run that waits."""

    def __init__(self) -> None:
        self.said: list[tuple[str, ...]] = []
        self.database = self.participation = self

    def commit(self) -> None:
        self.said.append(("committed",))

    def asked(self) -> list[Asked]:
        return [Asked("00ff00ff00ff00ff", "trial", "ada", "hearts", "pending", "", "name = 'trial'")]

    def approve(self, run: str) -> None:
        if run != "00ff00ff00ff00ff":
            raise ConfigError(f"no run {run!r} waits for an answer; see: hansa pending")
        self.said.append(("approved", run))

    def refuse(self, run: str, reason: str) -> None:
        self.said.append(("refused", run, reason))


@contextlib.asynccontextmanager
async def running(home: Path) -> AsyncIterator[FakeNode]:
    node = FakeNode()
    async with control.listening(home, cast(Node, node), Log("node")):
        yield node


async def asked(home: Path, request: Any, answer: Any) -> Any:
    return await asyncio.to_thread(control.ask, home, request, answer)


def test_the_owner_is_obeyed(tmp_path: Path) -> None:
    async def trial() -> None:
        async with running(tmp_path) as node:
            (one,) = (await asked(tmp_path, control.ListAsked(), control.AskedList)).runs
            assert (one.run, one.submitter, one.plan) == ("00ff00ff00ff00ff", "ada", "name = 'trial'")
            await asked(tmp_path, control.Approve(one.run), Done)
            await asked(tmp_path, control.Refuse(one.run, "no"), Done)
            with pytest.raises(ConfigError, match="no run 'x' waits"):
                await asked(tmp_path, control.Approve("x"), Done)
            done = [said for said in node.said if said != ("committed",)]
            assert done == [("approved", one.run), ("refused", one.run, "no")]
            assert node.said[node.said.index(("approved", one.run)) + 1] == ("committed",)

    asyncio.run(trial())


def test_the_socket_is_the_owners_alone_and_goes_with_the_node(tmp_path: Path) -> None:
    async def trial() -> None:
        async with running(tmp_path):
            assert stat.S_IMODE((tmp_path / control.SOCKET).stat().st_mode) == 0o600
        assert not (tmp_path / control.SOCKET).exists()
        with pytest.raises(Unreachable, match="no node runs in"):
            await asked(tmp_path, control.ListAsked(), control.AskedList)

    asyncio.run(trial())


def test_what_a_killed_node_left_gives_way(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / control.SOCKET))

    async def trial() -> None:
        with pytest.raises(Unreachable, match="no node runs in"):
            await asked(tmp_path, control.ListAsked(), control.AskedList)
        async with running(tmp_path):
            await asked(tmp_path, control.ListAsked(), control.AskedList)

    asyncio.run(trial())


def test_a_home_with_a_long_path(tmp_path: Path) -> None:
    home = tmp_path / ("h" * 120)
    home.mkdir()

    async def trial() -> None:
        async with running(home):
            await asked(home, control.ListAsked(), control.AskedList)

    asyncio.run(trial())


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x01",
        struct.pack("<I", 0xFFFFFFFF) + b"x" * 100,
        struct.pack("<I", control.MOST + 1),
        struct.pack("<I", 100) + b"short",
        struct.pack("<I", 5) + b"\x00\xff\x00\xff\x00",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_nonsense_is_refused_and_the_next_is_served(tmp_path: Path, sent: bytes) -> None:
    async def trial() -> None:
        async with running(tmp_path) as node:
            reader, writer = await asyncio.open_unix_connection(tmp_path / control.SOCKET)
            writer.write(sent)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert b"approved" not in answer
            await asked(tmp_path, control.ListAsked(), control.AskedList)
            assert not [said for said in node.said if said[0] != "committed"]

    asyncio.run(trial())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused_whatever_the_mode_of_the_file() -> None:
    async def trial(home: Path) -> None:
        async with running(home) as node:
            (home / control.SOCKET).chmod(0o666)
            with pytest.raises(HansaError) as refused:
                await asyncio.to_thread(as_nobody, home)
            assert isinstance(refused.value, Unreachable | NotAuthorized)
            assert node.said == []

    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        asyncio.run(trial(Path(place)))


def as_nobody(home: Path) -> None:
    """Ask to approve, as another user; what came of it is raised here."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            control.ask(home, control.Approve("00ff00ff00ff00ff"), Done)
            os.write(writing, b"approved")
        except HansaError as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    if said != "approved":
        raise {"Unreachable": Unreachable, "NotAuthorized": NotAuthorized}[said](said)
