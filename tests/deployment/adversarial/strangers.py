"""Those who should not get in, and what they bring: certificates of every wrong kind, and raw sockets."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hansa.deployment import packets, wire
from hansa.deployment.identity import Authority, Credentials, SealingKeys, make_request, make_tls_key, read_request
from hansa.deployment.identity.certificates import read_undated
from hansa.deployment.identity.keys import private_pem
from hansa.deployment.identity.names import MemberKind
from hansa.deployment.packets import Hello, Lane, Welcome
from hansa.message import Message, decode, encode
from tests.deployment.federation import Federation

STANDARD = """
name = "trial"
seed = 7
[protocol]
name = "fedavg"
rounds = 2
cohort = 2
[learner]
name = "softmax"
batch_size = 8
optimizer = { name = "sgd", learning_rate = 0.1 }
"""


@dataclass(frozen=True)
class Paper:
    """What a caller shows: as TLS takes it."""

    authority_pem: bytes
    certificate_pem: bytes
    key_pem: bytes


def paper(
    authority: Authority, name: str, kind: MemberKind = "node", issued: float = 0.0, lifetime: float = 600.0
) -> Paper:
    """A certificate that ``authority`` signs, ``issued`` seconds from now; no table knows it."""
    key = make_tls_key()
    request = read_request(make_request(name, key, SealingKeys.make()))
    pem = authority.issue_member(request, kind, name, time.time() + issued, lifetime)
    return Paper(authority.certificate_pem, pem, private_pem(key))


def paper_of(credentials: Credentials) -> Paper:
    """What the holder of credentials shows."""
    return Paper(credentials.authority_pem, credentials.certificate.pem, credentials.tls_key_pem)


def as_credentials(fed: Federation, held: Paper, sealing: SealingKeys) -> Credentials:
    """A paper as credentials, for those who call by them."""
    found = read_undated(held.certificate_pem, held.authority_pem)
    return Credentials(fed.folder, held.authority_pem, found, held.key_pem, sealing, (str(fed.address),))


def context(held: Paper | None, folder: Path) -> ssl.SSLContext:
    """TLS as a visitor speaks it who trusts everybody."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_alpn_protocols(["h2"])
    if held is not None:
        file = folder / "shown.pem"
        file.write_bytes(held.key_pem + held.certificate_pem)
        made.load_cert_chain(file)
    return made


def until_closed(connection: socket.socket, most: int = 1 << 20) -> int:
    """Read until the other side closes; the bytes that it sent. Fails if it does not within the socket's patience."""
    count = 0
    while count < most:
        try:
            found = connection.recv(65536)
        except (ConnectionResetError, ssl.SSLError):
            return count
        if not found:
            return count
        count += len(found)
    raise AssertionError(f"more than {most} bytes for a stranger")


def visit(port: int, patience: float = 20.0) -> socket.socket:
    """A TCP connection to the hub."""
    made = socket.create_connection(("127.0.0.1", port), timeout=patience)
    made.settimeout(patience)
    return made


@contextlib.asynccontextmanager
async def channel(fed: Federation, held: Paper) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC connection with any paper."""
    async with wire.channel(str(fed.address), held.authority_pem, held.certificate_pem, held.key_pem) as made:
        yield made


class Puppet:
    """A node of the test's own making: it says what the test wants, packet by packet."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def say(self, packet: bytes | Message) -> None:
        """Send one packet."""
        await self.stream.write(packet if isinstance(packet, bytes) else encode(packet))

    async def hear(self, *kinds: type[Message]) -> Message:
        """The next packet of one of these kinds; those of others are passed over."""
        while True:
            packet = await self.stream.read()
            assert packet is not grpc.aio.EOF, f"{await self.stream.code()}: {await self.stream.details()}"
            if packets.is_piece(packet):
                continue
            word = decode(packet, (*packets.LINK, Welcome))
            if not kinds or isinstance(word, kinds):
                return word

    async def refusal(self) -> str:
        """How the hub ends the stream."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await self.stream.read() is not grpc.aio.EOF:
                pass
        code, details = await self.stream.code(), await self.stream.details()
        assert code is grpc.StatusCode.ABORTED, (code, details)
        return str(details)


def hello(lanes: list[Lane] | None = None, instance: str = "puppet", **changed: Any) -> Hello:
    """What a node says first."""
    usual = Hello(packets.PROTOCOL, packets.OLDEST, "0", instance, "e" * 32, "", lanes or [])
    return Hello(**{**{name: getattr(usual, name) for name in usual.__struct_fields__}, **changed})


@contextlib.asynccontextmanager
async def puppet(fed: Federation, held: Paper, first: bytes | Message | None = None) -> AsyncIterator[Puppet]:
    """A stream of somebody who has said ``first``, or greeted as a node does and been welcomed."""
    async with channel(fed, held) as connection:
        stream: Any = connection.stream_stream(wire.LINK)()
        made = Puppet(stream)
        try:
            if first is None:
                await made.say(hello())
                await made.hear(Welcome)
            else:
                # A refusal may be here before the word has left; whoever reads then is told.
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await made.say(first)
            yield made
        finally:
            stream.cancel()


@contextlib.contextmanager
def book() -> Iterator[list[tuple[str, str, dict[str, Any]]]]:
    """All that is logged meanwhile: of whom, the event, and its fields."""
    lines: list[tuple[str, str, dict[str, Any]]] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = dict(record.__dict__.get("said", {}))
            if record.exc_info:
                said["traceback"] = str(record.exc_info[1])
            lines.append((record.name.removeprefix("hansa."), record.getMessage(), said))

    keeper, root, own = Keeper(), logging.getLogger(), logging.getLogger("hansa")
    before = own.level
    root.addHandler(keeper)
    own.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.removeHandler(keeper)
        own.setLevel(before)


def no_traceback(lines: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Nothing happened that nobody foresaw."""
    # gRPC's own poller speaks of the loops of earlier tests.
    lines = [line for line in lines if line[2].get("traceback") != "Event loop is closed"]
    odd = [line for line in lines if "traceback" in line[2] or line[0] in ("asyncio", "grpc", "grpc._cython.cygrpc")]
    assert not odd, odd


async def others_go_on(fed: Federation) -> None:
    """The other nodes complete a run, whatever has just been tried."""
    names = [name for name in fed.names if name in fed.nodes][:2]
    run = await fed.submit(STANDARD, parties=tuple(names), least=2)
    view = await fed.end(run)
    assert view.status == "completed", (view.status, view.cause, view.party)
