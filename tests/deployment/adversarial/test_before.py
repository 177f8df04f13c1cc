"""Before anybody is known: sockets that say nothing, too much, or the wrong thing, at the level of TCP, TLS and HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansa.deployment import wire
from hansa.deployment.identity import Credentials
from hansa.deployment.quantity import Address
from hansa.deployment.service import serving
from hansa.deployment.settings import HubLimits, HubSettings
from hansa.errors import ConfigError
from tests.deployment.adversarial.strangers import (
    Paper,
    book,
    context,
    no_traceback,
    others_go_on,
    paper_of,
    until_closed,
    visit,
)
from tests.deployment.federation import Federation, drive, federation

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
QUICK = 300
"""Milliseconds that a handshake may take here."""


@pytest.fixture(autouse=True)
def quick_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same options as always, but for the time that is given to a handshake."""
    kept = tuple(option for option in wire.SERVER_OPTIONS if option[0] != "grpc.server_handshake_timeout_ms")
    assert len(kept) == len(wire.SERVER_OPTIONS) - 1, "there is a limit"
    monkeypatch.setattr(wire, "SERVER_OPTIONS", (*kept, ("grpc.server_handshake_timeout_ms", QUICK)))


def member(fed: Federation, name: str = "node-3") -> Paper:
    return paper_of(Credentials.load(fed.folder / name, fed.clock()))


def http2(kind: int, flags: int, stream: int, payload: bytes, said: int | None = None) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1); ``said`` is the length that it claims."""
    length = len(payload) if said is None else said
    return struct.pack(">I", length)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def plain(port: int, data: bytes) -> float:
    """Say ``data`` without TLS; how long the hub listened."""
    began = time.monotonic()
    with visit(port) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        until_closed(connection)
    return time.monotonic() - began


def dripped(port: int, data: bytes) -> float:
    """Say ``data`` a byte at a time, each when the hub has not closed for a while; how long the hub listened."""
    began = time.monotonic()
    with visit(port) as connection:
        connection.settimeout(0.05)
        for byte in data:
            try:
                connection.sendall(bytes((byte,)))
                if not connection.recv(65536):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("the hub listens to whoever drips")
    return time.monotonic() - began


def secure(port: int, ctx: ssl.SSLContext, data: bytes) -> int:
    """Say ``data`` inside TLS; the bytes that the hub said before it closed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(OSError))
        connection = stack.enter_context(ctx.wrap_socket(stack.enter_context(visit(port))))
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return until_closed(connection)
    return 0


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
    PREFACE + http2(4, 0, 0, b""),
    b"\x00" * 4096,
    b"\xff" * 4096,
    b"\x16\x03\x01\xff\xff\x01\x00\xff\xfc" + b"\x00" * 70_000,  # a ClientHello as long as a record can say
    b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00",  # one of 16 MB
    b"HNSA" + b"\x01" * 64,
    b"",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_who_speaks_no_tls_is_shown_out_in_time(tmp_path: Path, data: bytes) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            took = await asyncio.to_thread(plain, fed.address.port, data)
            assert took < QUICK / 1000 + 3

    drive(scenario())


def test_who_drips_a_handshake_is_shown_out_in_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            shaking = context(None, tmp_path).wrap_bio(incoming, outgoing)
            with contextlib.suppress(ssl.SSLWantReadError):
                shaking.do_handshake()
            opening = outgoing.read()
            assert len(opening) > 200
            # Each byte comes long before the time is over; all of them would take 10 s.
            took = await asyncio.to_thread(dripped, fed.address.port, opening)
            assert took < QUICK / 1000 + 3

    drive(scenario())


def test_without_a_certificate_nobody_gets_a_word_of_http2(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            with book() as lines:
                anybody = context(None, tmp_path)
                for data in (b"", PREFACE + http2(4, 0, 0, b""), PREFACE + http2(4, 0, 0, b"") * 10_000):
                    assert await asyncio.to_thread(secure, fed.address.port, anybody, data) == 0
                await others_go_on(fed)
            no_traceback(lines)

    drive(scenario())


def test_a_member_that_breaks_http2_is_shown_out_and_harms_nobody(tmp_path: Path) -> None:
    settings = http2(4, 0, 0, b"")

    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            shown = context(member(fed), tmp_path)
            with book() as lines:
                for data in (
                    b"",  # no preface at all
                    b"GET / HTTP/1.1\r\n\r\n",
                    PREFACE,  # and no settings
                    PREFACE + http2(4, 0, 0, b"\x00" * 5),
                    PREFACE + settings + http2(0, 0, 0, b"x"),  # data outside a stream
                    PREFACE + settings + http2(1, 4, 2, b"\x82"),  # a stream that only a server may open
                    PREFACE + settings + http2(1, 4, 1, b"\xff\xff\xff\xff\xff"),  # headers that are none
                    PREFACE + settings + http2(1, 4, 1, b"", said=0xFFFFFF),
                    PREFACE + settings + http2(6, 0, 0, b"1234567"),  # a ping of the wrong size
                    PREFACE + settings + http2(8, 0, 0, b"\x00\x00\x00\x00"),  # a window that grows by nothing
                ):
                    await asyncio.wait_for(asyncio.to_thread(_tried, fed.address.port, shown, data), 10)
                await others_go_on(fed)
            no_traceback(lines)

    drive(scenario(), 60)


def _tried(port: int, ctx: ssl.SSLContext, data: bytes) -> None:
    with visit(port, patience=1.0) as connection, contextlib.suppress(OSError), ctx.wrap_socket(connection) as inside:
        inside.sendall(data)
        with contextlib.suppress(TimeoutError):  # who has kept to the protocol so far may stay
            until_closed(inside)


@contextlib.contextmanager
def crowd(port: int, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Many at once that have said ``data``."""
    with contextlib.ExitStack() as stack:
        yield [_entered(stack, port, data) for _ in range(count)]


def _entered(stack: contextlib.ExitStack, port: int, data: bytes) -> socket.socket:
    made = stack.enter_context(visit(port))
    if data:
        made.sendall(data)
    return made


def test_a_crowd_without_certificates_keeps_nobody_out_and_is_gone_in_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with crowd(fed.address.port, 150, b"\x16\x03\x01\x40\x00\x01\x00") as visitors:
                # While they are there, a node comes and a run is made.
                await fed.start_node("node-2")
                await others_go_on(fed)
                assert (
                    sum(await asyncio.gather(*(asyncio.to_thread(until_closed, each) for each in visitors))) < 100_000
                )
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert after - before < 100_000, f"{after - before} KiB for 150 visitors"
            await others_go_on(fed)

    drive(scenario(), 60)


def test_connections_have_a_limit_and_those_that_stand_are_not_touched_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "VISITORS", 6)
    settings = HubSettings(limits=HubLimits(connections=4))

    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"], hub=settings) as fed:
            began = time.monotonic()
            with crowd(fed.address.port, 60) as visitors:
                # Ten in all: the operator, two nodes, and seven whose time is not over.
                await fed.until(
                    lambda: len(select.select(visitors, [], [], 0)[0]) >= 60 - 10, "those above the limit close"
                )
                assert time.monotonic() - began < 3
                await others_go_on(fed)
            await fed.start_node("node-2")
            await others_go_on(fed)

    drive(scenario(), 60)


def test_the_limit_leaves_the_process_its_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert dict(wire.server_options(5000))["grpc.max_allowed_incoming_connections"] == 1024 - wire.OWN_FILES
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1 << 20))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    assert dict(wire.server_options(5000))["grpc.max_allowed_incoming_connections"] == 6000
    assert raised == [(6000 + wire.OWN_FILES, 1 << 20)]


def test_a_listener_binds_what_it_says_and_shares_it_with_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path / "one", start=[]) as fed:
            assert fed.address.port > 0
            assert fed.address == fed.hub.address
            # Nowhere else: the same port of another address of this machine is free.
            with socket.create_server(("127.0.0.2", fed.address.port)):
                pass
            with pytest.raises(OSError, match="in use"), socket.socket() as another:
                another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                another.bind(("127.0.0.1", fed.address.port))
            async with federation(tmp_path / "two", start=[]) as other:
                async with serving(other.hub, Address("127.0.0.1", 0)) as free:
                    assert free.port not in (0, fed.address.port, other.address.port)
                with pytest.raises(ConfigError, match=f"cannot listen on {fed.address}"):
                    async with serving(other.hub, fed.address):
                        pass

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    drive(scenario())
