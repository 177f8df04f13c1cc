"""Letters and bodies: frames between a program's messages and the pipe or the spool."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from hansa.deployment.worker.frames import Body, Letter
from hansa.deployment.worker.spool import Spool
from hansa.errors import MalformedMessage, StoreError
from hansa.message import Message, decode, parts
from hansa.protocol import Role


@final
@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A letter that was read: its message's tensors are views of ``pages``, where it was large."""

    number: int
    sender: str
    message: Message
    pages: mmap.mmap | None


def opened(letter: Letter, role: Role, rosters: Mapping[str, Sequence[str]], spool: Spool) -> Opened:
    """Read a letter for a party of ``role``.

    Raises:
        MessageError: what its sender wrote is nothing that the role accepts.
        StoreError: the spool does not hold what the letter says.
    """
    if not any(letter.sender in roster for roster in rosters.values()):
        raise MalformedMessage(f"the sender {letter.sender[:80]!r} is no party of this run")
    message, pages = read(letter.body, role.receives, spool)
    return Opened(letter.number, letter.sender, message, pages)


def read(body: Body, kinds: Sequence[type[Message]], spool: Spool) -> tuple[Message, mmap.mmap | None]:
    """The message of a body, and the mapping that it lies in, if it lies in one.

    Raises:
        MessageError: the frame is of none of ``kinds``.
        StoreError: the spool does not hold it.
    """
    if body.inline is not None:
        return decode(body.inline, kinds), None
    pages = spool.map(body.blob)
    if len(pages) != body.size:
        raise StoreError(f"the spool's frame {body.blob} has {len(pages)} bytes instead of {body.size}")
    return decode(memoryview(pages), kinds), pages


def stored(message: Message, inline: int, spool: Spool, durable: bool = False) -> Body:
    """The body of a message: at hand up to ``inline`` bytes, in the spool above, there ``durable`` or not.

    Raises:
        MalformedMessage: the message cannot travel.
        StoreError: the spool cannot take it.
    """
    pieces = parts(message)
    size = sum(map(len, pieces))
    if size <= inline:
        return Body(message.tag, size, b"".join(pieces))
    return Body(message.tag, size, None, spool.write(pieces, size, durable))
