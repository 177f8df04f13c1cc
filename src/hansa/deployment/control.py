"""What a node's owner says to the running node: a socket in the node's home, on this machine and for this user alone.

Approval is the owner's own word, so it never comes through the hub: there is no message with which a hub could give it; nor is
there one with which it could ask for a model that stays on the node. The socket is a file of mode 0600 in a folder of mode
0700, and the kernel tells whose process is at its other end (``SO_PEERCRED``, unix(7)); another user than the node's own, or
root, is refused.

Each request is one frame of Hansa's codec behind its length, and so is its answer; a connection serves one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from hansa.deployment.api import Done, Problem
from hansa.deployment.logs import Log
from hansa.deployment.node import Node
from hansa.deployment.worker.frames import Body
from hansa.errors import ConfigError, HansaError, MessageError, NotAuthorized, StoreError, Unreachable
from hansa.message import Message, decode, encode

SOCKET: Final = "control.sock"
MOST: Final = 8 << 20
"""Bytes of a request or an answer at most."""
PATIENCE: Final = 10.0
"""Seconds that a connection may last."""
_LENGTH: Final = struct.Struct("<I")
_LONGEST_PATH: Final = 100

M = TypeVar("M", bound=Message)


class ListAsked(Message, frozen=True):
    """The runs that wait for the owner's answer."""

    tag = "hansa.control.list-asked/1"
    discloses = "nothing but who asks"


class Waiting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run that waits for the owner's answer; see :class:`hansa.deployment.participation.Asked`."""

    run: str
    name: str
    submitter: str
    data: str
    plan: str


class AskedList(Message, frozen=True):
    """Runs, the oldest first."""

    tag = "hansa.control.asked-list/1"
    discloses = "what this party was asked to take part in, to its owner"

    runs: tuple[Waiting, ...]


class Approve(Message, frozen=True):
    """Take part in a run."""

    tag = "hansa.control.approve/1"
    discloses = "nothing but who asks"

    run: str


class Refuse(Message, frozen=True):
    """Take no part in a run."""

    tag = "hansa.control.refuse/1"
    discloses = "nothing but who asks"

    run: str
    reason: str = ""


class ShowKept(Message, frozen=True):
    """What the node's own programs ended with in a run."""

    tag = "hansa.control.show-kept/1"
    discloses = "nothing but who asks"

    run: str


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a party's program ended with: a frame of :class:`~hansa.deployment.worker.frames.Result`, here or in the node's spool."""

    party: str
    body: Body


class KeptList(Message, frozen=True):
    """Results of one run."""

    tag = "hansa.control.kept-list/1"
    discloses = "the models that this node made, to its owner"

    results: tuple[Kept, ...]


_REQUESTS: Final = (ListAsked, Approve, Refuse, ShowKept)


@contextlib.asynccontextmanager
async def listening(home: Path, node: Node, log: Log) -> AsyncIterator[None]:
    """Answer the owner of ``node`` while the context lasts.

    Raises:
        StoreError: the socket cannot be made.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
                async with asyncio.timeout(PATIENCE):
                    _require_owner(writer.get_extra_info("socket"))
                    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                    if length > MOST:
                        return
                    frame = _framed(_answer(node, await reader.readexactly(length)))
                    writer.write(frame)
                    await writer.drain()
        except NotAuthorized as error:
            log.warning("owner's socket refused", reason=str(error))
        finally:
            writer.close()

    with _bound(home / SOCKET) as listener:
        server = await asyncio.start_unix_server(serve, sock=listener, limit=1 << 16)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()
            with contextlib.suppress(OSError):
                (home / SOCKET).unlink()


def _answer(node: Node, frame: bytes) -> Message:
    try:
        request = decode(frame, _REQUESTS, MOST)
        if isinstance(request, ListAsked):
            found = node.participation.asked()
            return AskedList(tuple(Waiting(one.run, one.name, one.submitter, one.data, one.plan) for one in found))
        if isinstance(request, ShowKept):
            return KeptList(tuple(Kept(party, body) for party, body in node.works.results(request.run).items()))
        if isinstance(request, Approve):
            node.participation.approve(request.run)
        elif isinstance(request, Refuse):
            node.participation.refuse(request.run, request.reason)
        # What is answered is done: it is on the disk.
        node.database.commit()
    except HansaError as error:
        return Problem("ConfigError" if isinstance(error, ConfigError | MessageError) else "StoreError", str(error))
    return Done()


def _require_owner(peer: socket.socket) -> None:
    """The kernel's word on who is at the other end; where it gives none, the file's mode must do.

    Raises:
        NotAuthorized: another user than the node's own, or root.
    """
    if sys.platform == "linux":
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        if user not in (os.geteuid(), 0):
            raise NotAuthorized(f"user {user} is not the owner of this node, who is user {os.geteuid()}")


def ask(home: Path, request: Message, answer: type[M]) -> M:
    """One request to the node that runs in ``home``, one answer.

    Raises:
        Unreachable: no node runs there.
        ConfigError: the node cannot do it.
    """
    path = home / SOCKET
    try:
        with contextlib.ExitStack() as stack:
            link = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            link.settimeout(PATIENCE)
            link.connect(stack.enter_context(_short(path)))
            link.sendall(_framed(request))
            (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
            if length > MOST:
                raise MessageError(f"an answer of {length} bytes")
            found = decode(_exactly(link, length), (answer, Problem), MOST)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unreachable(f"no node runs in {home}; start it with: hansa node --home {home}") from None
    except PermissionError:
        raise NotAuthorized(f"the node in {home} is another user's; only its owner can answer for it") from None
    except (OSError, EOFError) as error:
        raise Unreachable(f"the node in {home} does not answer: {error}") from None
    if isinstance(found, Problem):
        raise (ConfigError if found.kind == "ConfigError" else StoreError)(found.what)
    assert isinstance(found, answer)
    return found


def _framed(message: Message) -> bytes:
    frame = encode(message)
    return _LENGTH.pack(len(frame)) + frame


def _exactly(link: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        more = link.recv(count - len(found))
        if not more:
            raise EOFError("it closed the connection, which it does to whoever is not its owner")
        found += more
    return bytes(found)


@contextlib.contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at ``path``, with mode 0600 from its first instant; one that a killed node left gives way."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        try:
            # The home's database is locked by this process, so nobody else can be listening here.
            path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                with _short(path) as name:
                    listener.bind(name)
            finally:
                os.umask(before)
        except OSError as error:
            raise StoreError(f"the owner's socket {path} cannot be made: {error.strerror or error}") from None
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for a socket's address, which holds about a hundred bytes: by way of the open folder, where the path is longer."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    if sys.platform != "linux":
        raise OSError(f"the path {path} is too long for a socket; choose a shorter --home")
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
