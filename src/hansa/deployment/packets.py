"""What a hub and those who dial it say to each other; docs/wire.md specifies the bytes.

Everything is a frame of Hansa's codec, but for the pieces of a large body, which have a fixed head of their own (:func:`piece`).
A receiver accepts the classes named for its place and nothing else.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final

import msgspec

from hansa.deployment.shape import DataShape
from hansa.deployment.worker.frames import Body
from hansa.errors import MalformedMessage, VersionMismatch
from hansa.message import Message, encode

PROTOCOL: Final = 1
"""The version of this protocol; two sides that do not share one part with a named refusal."""
OLDEST: Final = 1
"""The oldest version that this program still speaks."""
PIECE_BYTES: Final = 1 << 20
"""Bytes of a large body that travel at a time."""
MAX_PACKET: Final = 4 << 20
"""Bytes of one packet at most, read or written."""

BUSY: Final = "busy"
"""How the reason of an answer begins that is pending because other runs are under way, not because an owner is asked."""
LARGEST: Final = 1 << 33
"""Bytes of a body at most, unless a machine's own file says less."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number that is no negative one and that a database can keep."""
Number = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
"""The number of a parcel on its lane."""
RunName = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
"""The name of a run: 16 hexadecimal digits."""
LaneName = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{16})?\Z")]
"""The name of a lane: a run's, or nothing for the lane of control."""
Epoch = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
"""The name of a home's database, which a restored one changes: 32 hexadecimal digits."""
Known = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{32})?\Z")]
"""An epoch, or nothing."""
Name = Annotated[str, msgspec.Meta(max_length=64)]
"""Of a party, a machine or a role, or another short word."""
Tag = Annotated[str, msgspec.Meta(max_length=255)]
"""The tag of a message."""
Sentence = Annotated[str, msgspec.Meta(max_length=4000)]
"""What is said to people; :func:`sentence` makes one of any text."""
MAX_LANES: Final = 4096
"""Lanes that one side tells of; one that is left out is sent again from what waits."""

_PIECE: Final = struct.Struct("<4s4xQQQ")
_PIECE_MAGIC: Final = b"HNSP"


class Lane(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far one side has received a lane.

    Args:
        run: the run of the lane; empty for the lane of control.
        received: all parcels up to this number were taken.
        partial: the number of the parcel whose large body is under way; 0 for none.
        offset: bytes of that body that were received.
    """

    run: LaneName
    received: Count
    partial: Count = 0
    offset: Count = 0


class Hello(Message, frozen=True):
    """The first packet of whoever dials.

    Args:
        protocol, oldest: the newest and the oldest version spoken.
        software: the version of the program, for people.
        instance: random, one for each start of the process: two processes with one identity have two.
        epoch: of the caller's database.
        known: the epoch of the other side with which its lanes are counted; empty before the first meeting.
        lanes: how far it has received each lane.
    """

    tag = "hansa.link.hello/1"
    discloses = "the version of the software, and how far the lanes have been received"

    protocol: int
    oldest: int
    software: Sentence
    instance: Name
    epoch: Epoch
    known: Known
    lanes: Annotated[list[Lane], msgspec.Meta(max_length=MAX_LANES)]


class Welcome(Message, frozen=True):
    """The answer to :class:`Hello`.

    Args:
        protocol: the version that is spoken from now on.
        software: the version of the program, for people.
        federation: the federation's name.
        time: POSIX seconds on the hub's clock, by which a node sees that its own is wrong.
        epoch: of the database of whoever was dialled.
        lanes: how far it has received each lane from the epoch that the caller named as its own.
    """

    tag = "hansa.link.welcome/1"
    discloses = "the version of the software, and how far the lanes have been received"

    protocol: int
    software: Sentence
    federation: Name
    time: float
    epoch: Epoch
    lanes: Annotated[list[Lane], msgspec.Meta(max_length=MAX_LANES)]


class Sending(Message, frozen=True):
    """A parcel; where its body is not inline, its pieces follow on this stream from ``offset``, those of other lanes between.

    Args:
        run: the lane; empty for the lane of control.
        seq: its number on the lane, from 1.
        sender, receiver: parties of the run; empty on the lane of control.
        sealed: whether the body is an envelope.
        kind: the tag of the message, which an envelope holds inside.
        size: bytes of the body.
        inline: the body, or nil if its pieces follow.
        offset: where the pieces of a body that is not inline begin.
    """

    tag = "hansa.link.sending/1"
    discloses = "who sends a message of which class and size to whom in which run"

    run: LaneName
    seq: Number
    sender: Name
    receiver: Name
    sealed: bool
    kind: Tag
    size: Count
    inline: bytes | None
    offset: Count = 0


class Received(Message, frozen=True):
    """The receiver has a lane durably up to a number.

    Args:
        run, seq: the lane and the number.
    """

    tag = "hansa.link.received/1"
    discloses = "how far a lane has been received"

    run: LaneName
    seq: Number


class Refused(Message, frozen=True):
    """A parcel is not accepted and never will be; it counts as received.

    Args:
        run, seq: the parcel.
        reason: one sentence for the sender's log.
    """

    tag = "hansa.link.refused/1"
    discloses = "that a message was refused, and why"

    run: LaneName
    seq: Number
    reason: Sentence


class Probe(Message, frozen=True):
    """Asks whether the other side is alive, which answers.

    Args:
        nonce: any number; the answer repeats it.
        answer: whether this is the answer.
    """

    tag = "hansa.link.probe/1"
    discloses = "that this side is alive"

    nonce: Count
    answer: bool = False


class Farewell(Message, frozen=True):
    """The sender closes this link in order.

    Args:
        reason: why; one sentence.
    """

    tag = "hansa.link.farewell/1"
    discloses = "why a link is closed"

    reason: Sentence


LINK: Final[tuple[type[Message], ...]] = (Hello, Welcome, Sending, Received, Refused, Probe, Farewell)


class Piece(msgspec.Struct, frozen=True):
    """Some bytes of the body of the parcel under way on a lane."""

    run: str
    seq: int
    offset: int
    data: memoryview


def piece(run: str, seq: int, offset: int, data: bytes | memoryview) -> bytes:
    """The packet of a :class:`Piece`: 32 bytes of head, then the data.

    >>> packet = piece("00000000000000ff", 7, 1 << 20, b"abc")
    >>> (found := read_piece(packet)).seq, bytes(found.data)
    (7, b'abc')
    """
    return b"".join((_PIECE.pack(_PIECE_MAGIC, int(run, 16), seq, offset), data))


def is_piece(packet: bytes) -> bool:
    """Whether a packet is a :class:`Piece`; anything else is a frame."""
    return packet[:4] == _PIECE_MAGIC


def read_piece(packet: bytes) -> Piece:
    """The piece in a packet.

    Raises:
        MalformedMessage: it is shorter than its head, or empty, or its head holds what a sender never writes.
    """
    if len(packet) <= _PIECE.size or packet[4:8] != bytes(4):
        raise MalformedMessage("a piece that is shorter than its head, or whose head is not zero where it must be")
    _, run, seq, offset = _PIECE.unpack_from(packet)
    return Piece(f"{run:016x}", seq, offset, memoryview(packet)[_PIECE.size :])


# The lane of control: what hub and nodes agree about runs.


class Offer(Message, frozen=True):
    """The hub asks a node to take part in a run.

    Args:
        run: the run; 16 hexadecimal digits.
        attempt: 1, and one more each time that the run is resumed.
        name: for people.
        plan, digest: the plan as TOML and its digest, which the node computes itself.
        submitter: who wants it.
        data: the name by which the nodes bind their data.
        roles: for each role, the parties that are asked.
        hosts: for each party, the machine that runs it.
        certificates: of the hub and the machines with whose parties this node would talk, PEM; it pins their sealing keys.
        seconds: within which the answer is wanted.
    """

    tag = "hansa.control.offer/1"
    discloses = "a plan, who submitted it, and who is asked to take part"

    run: RunName
    attempt: Count
    name: Sentence
    plan: str
    digest: Name
    submitter: Tag
    data: Tag
    roles: dict[str, tuple[str, ...]]
    hosts: dict[str, str]
    certificates: dict[str, str]
    seconds: float


class Answer(Message, frozen=True):
    """A node's answer to an :class:`Offer`.

    Args:
        run, attempt: of the offer.
        verdict: "accepted", "refused", or "pending": its owner has been asked, and another answer will follow.
        reason: the line of its policy, or whom to ask.
        address: where other nodes may dial this one, ``host:port``; empty for nowhere.
        shape: of the party's data, where it takes part with some.
    """

    tag = "hansa.control.answer/1"
    discloses = (
        "whether a party takes part in a run, and the line of its policy if it does not; how many features and classes its "
        "data have, and whether their names are those of the others"
    )

    run: RunName
    attempt: Count
    verdict: Name
    reason: Sentence = ""
    address: Tag = ""
    shape: DataShape | None = None


class Start(Message, frozen=True):
    """The run begins.

    Args:
        run, attempt: of the offer.
        roles: for each role, the parties that take part, in their order.
        addresses: of the nodes that said one: these and the others talk directly.
        shape: of the parties' data, for a node that runs a role without any.
        epochs: of the nodes with whose parties this one would talk; their letters are bound to them.
    """

    tag = "hansa.control.start/1"
    discloses = "who takes part in a run, where they may be dialled, and the shape of their data"

    run: RunName
    attempt: Count
    roles: dict[str, tuple[str, ...]]
    addresses: dict[str, str] = {}
    shape: DataShape | None = None
    epochs: dict[str, Epoch] = {}


class End(Message, frozen=True):
    """The run is over, however it ended.

    Args:
        run, attempt: of the offer.
        status: "completed", "failed", "stopped", or "left out": it began without this node.
        cause: one sentence; empty where it was completed.
    """

    tag = "hansa.control.end/1"
    discloses = "how a run ended"

    run: RunName
    attempt: Count
    status: Name
    cause: Sentence


class Report(Message, frozen=True):
    """What a program tells the observer.

    Args:
        run, party: whose program.
        progress: the frame of a `hansa.progress/1`.
    """

    tag = "hansa.control.report/1"
    discloses = "what a program tells the owner of the run"

    run: RunName
    party: Name
    progress: bytes


class Trouble(Message, frozen=True):
    """A party's program failed, or its worker did.

    Args:
        run, attempt, party: where.
        kind: the name of the error's class.
        cause: its sentence; a traceback stays with the party.
        round: where known.
        remedy: what to do about it.
        fatal: whether this party cannot go on in this run.
    """

    tag = "hansa.control.trouble/1"
    discloses = "that a party's program failed, and the error's own sentence"

    run: RunName
    attempt: Count
    party: Name
    kind: Name
    cause: Sentence
    round: Count | None = None
    remedy: Sentence = ""
    fatal: bool = False


class Finished(Message, frozen=True):
    """A party that started by itself has ended; what it ended with stays with it.

    Args:
        run, attempt, party: which one.
    """

    tag = "hansa.control.finished/1"
    discloses = "that a party's program has ended"

    run: RunName
    attempt: Count
    party: Name


class Recall(Message, frozen=True):
    """Members whose certificates count no more: in runs that were offered before, what is sealed by them is refused, and nothing
    is sealed for them.

    Args:
        names: of the members.
    """

    tag = "hansa.control.recall/1"
    discloses = "whose certificate was revoked"

    names: list[Name]


TO_NODE: Final[tuple[type[Message], ...]] = (Offer, Start, End, Recall)
TO_HUB: Final[tuple[type[Message], ...]] = (Answer, Report, Trouble, Finished)


def control(word: Message) -> Body:
    """A word for the lane of control, as a body."""
    frame = encode(word)
    return Body(word.tag, len(frame), frame)


def sentence(text: str) -> str:
    """``text`` as a :data:`Sentence`: its beginning, where it is longer.

    >>> sentence("no such plan")
    'no such plan'
    """
    return text if len(text) <= 4000 else text[:3990] + "..."


def mismatch(newest: int, oldest: int, software: str) -> VersionMismatch:
    """The refusal of somebody who speaks versions ``oldest`` to ``newest`` only."""
    which = "older" if newest < OLDEST else "newer"
    return VersionMismatch(
        f"the other side (Hansa {software[:40]}) speaks versions {oldest} to {newest} of the protocol and this one "
        f"{OLDEST} to {PROTOCOL}: it is {which}; upgrade the older of the two"
    )
