"""A standing stream, as whoever dials sees it: greet, be welcomed, and serve the link until it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Final

import grpc
import grpc.aio

from hansa.deployment import packets, wire
from hansa.deployment.link import Link
from hansa.deployment.packets import Hello, Lane, Welcome
from hansa.errors import LinkError, Unreachable
from hansa.message import decode, encode

SOFTWARE: Final = version("hansa")
GREETING: Final = 10.0
"""Seconds that whoever dials has for its first packet."""
WELCOME: Final = 30.0
"""Seconds that whoever dials waits for a connection and the other side's first packet; later silence is for the pings to find."""


def hello(instance: str, link: Link) -> Hello:
    """The first packet of the process called ``instance``."""
    mailbox = link.mailbox
    return Hello(
        packets.PROTOCOL, packets.OLDEST, SOFTWARE, instance, mailbox.epoch, mailbox.known(link.peer), link.lanes()
    )


def welcome(federation: str, time: float, link: Link) -> Welcome:
    """The answer to whoever has dialled, and was met."""
    return Welcome(packets.PROTOCOL, SOFTWARE, federation, time, link.mailbox.epoch, link.lanes())


def theirs(word: Hello, link: Link) -> list[Lane]:
    """How far whoever has dialled has received the lanes of this side: nothing, if it speaks of a database that was here before."""
    return word.lanes if word.known == link.mailbox.epoch else []


async def greeted(read: Callable[[], Awaitable[bytes | None]]) -> Hello:
    """The first packet of whoever has dialled.

    Raises:
        LinkError, MessageError: it does not come in time, or is none.
        VersionMismatch: it speaks another protocol.
    """
    try:
        async with asyncio.timeout(GREETING):
            packet = await read()
    except TimeoutError:
        raise LinkError(f"nothing was said within {GREETING:g} s") from None
    if packet is None:
        raise LinkError("nothing was said")
    word = decode(packet, Hello, packets.MAX_PACKET)
    if word.protocol < packets.OLDEST or word.oldest > packets.PROTOCOL:
        raise packets.mismatch(word.protocol, word.oldest, word.software)
    return word


async def dialled(
    channel: grpc.aio.Channel, method: str, address: str, instance: str, link: Link, met: Callable[[Welcome], None]
) -> str:
    """One stream, from its beginning to its end; the reason that the other side gave.

    Args:
        channel: a connection.
        method: the gRPC method.
        address: of the other side, for errors.
        instance: of this process.
        link: this machine's end.
        met: called with the welcome; raises if this is not whom we wanted.

    Raises:
        HansaError: why the other side refused, or that it cannot be reached.
    """
    with wire.cancellable():
        return await _stood(channel.stream_stream(method)(), address, instance, link, met)


async def _stood(call: wire.Stream, address: str, instance: str, link: Link, met: Callable[[Welcome], None]) -> str:
    read = wire.reader(call.read)
    try:
        try:
            async with asyncio.timeout(WELCOME):
                await call.write(encode(hello(instance, link)))
                first = await read()
        except TimeoutError:
            raise Unreachable(f"{address} has said nothing within {WELCOME:g} s") from None
        if first is None:
            raise wire.translated(await _status(call), address)
        answer = decode(first, Welcome, packets.MAX_PACKET)
        met(answer)
        reason = await link.serve(read, call.write, answer.lanes)
        if call.done() and (ended := await _status(call)).code() is not grpc.StatusCode.OK:
            raise wire.translated(ended, address)
        return reason
    except grpc.aio.AioRpcError as error:
        raise wire.translated(error, address) from None
    except asyncio.InvalidStateError as error:
        raise Unreachable(f"{address} cannot be reached: {error}") from None
    finally:
        call.cancel()


async def _status(call: wire.Stream) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(await call.code(), nothing, nothing, details=await call.details())
