"""The pipe between an owner and its worker: a length of eight bytes, little-endian, then a Hansa frame, again and again."""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from hansa.errors import MalformedMessage, OversizedMessage
from hansa.message import Message, encode

MOST: Final = 1 << 28
"""Bytes of a frame at most: 256 MiB. What a party holds goes through the spool; this is for the letters of a setup."""
_LENGTH = struct.Struct("<Q")


async def read(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame; None where the other side is gone.

    Raises:
        OversizedMessage: a frame above :data:`MOST` is announced.
        MalformedMessage: the other side left in the middle of a frame.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MOST:
            raise OversizedMessage(f"a frame of {length} bytes; at most {MOST} go through this pipe")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        if error.partial or error.expected != _LENGTH.size:
            raise MalformedMessage("the other side left in the middle of a frame") from None
        return None
    except ConnectionError:
        return None


def write(writer: asyncio.StreamWriter, message: Message) -> None:
    """Send a message; it waits in memory until the other side reads."""
    frame = encode(message)
    writer.write(_LENGTH.pack(len(frame)) + frame)
