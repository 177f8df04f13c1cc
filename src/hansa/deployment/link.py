"""One end of the standing stream between two machines.

The stream carries the lanes of all runs at once. What is sent stays in the mailbox until the other side has it durably, so a
broken stream loses nothing: the two ends tell each other how far each lane has come and go on from there, within a large body
too. Lanes take turns, a piece each, so that no run waits behind another's model.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, final

from hansa.deployment import packets
from hansa.deployment.gate import Gate
from hansa.deployment.packets import Farewell, Lane, Piece, Probe, Received, Refused, Sending
from hansa.deployment.store import Database, Mailbox, Parcel
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Draft, Spool
from hansa.errors import LinkError, MalformedMessage
from hansa.message import Message, decode, encode

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]

_PARTIAL: Final = 64
"""Large bodies that may be under way from one peer at a time: one a run."""
_WORDS: Final = 1024
"""Words that may wait for a peer; one that asks for more answers than it reads is shown out."""


class Desk(Protocol):
    """Who takes what arrives."""

    def admit(self, peer: str, sending: Sending) -> str:
        """Why this parcel is refused, before any of its body is read; nothing if it is welcome."""
        ...

    def take(self, peer: str, parcel: Parcel) -> str:
        """Take a parcel, in this turn's transaction; why it is refused, or nothing."""
        ...

    def refused(self, peer: str, refused: Refused) -> None:
        """The peer refused a parcel of ours."""
        ...


@final
@dataclass
class _Outgoing:
    """A lane on which this end sends: what the other side has, and the body under way.

    The other side has ``offset`` bytes of number ``partial``, from an earlier stream or this one.
    """

    sent: int
    partial: int = 0
    offset: int = 0
    parcel: Parcel | None = None
    data: mmap.mmap | None = None


@final
@dataclass
class _Incoming:
    """A large body under way to this end, and how it was announced; ``draft`` is None for one that was refused."""

    parcel: Parcel
    word: Sending
    draft: Draft | None
    offset: int = 0


@final
@dataclass
class Link:
    """This machine's end towards one peer; it outlives the streams that it runs over.

    Args:
        peer: the other machine.
        database, mailbox, spool: where parcels are kept.
        desk: takes what arrives.
        largest: bytes of a body at most.
        room: bytes that the spool may hold; a peer that would fill it, or its share of it, waits and tries again.
        whole: whether this peer may fill all of the room: for a node's own hub, which relays what all others send.
        gate: which large bodies of this machine leave now; of this link alone, if not given.
    """

    peer: str
    database: Database
    mailbox: Mailbox
    spool: Spool
    desk: Desk
    largest: int
    room: int
    whole: bool = False
    gate: Gate = field(default_factory=Gate)
    _lanes: dict[str, _Outgoing] = field(default_factory=dict)
    _incoming: dict[str, _Incoming] = field(default_factory=dict)
    _turns: deque[str] = field(default_factory=deque)
    _words: deque[Message] = field(default_factory=deque)
    _received: dict[str, int] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    standing: asyncio.Event = field(default_factory=asyncio.Event)
    probed: asyncio.Event = field(default_factory=asyncio.Event)

    def lanes(self) -> list[Lane]:
        """How far this end has received each lane; what the first packet of a stream says."""
        self.database.commit()  # the other side forgets what it is told of
        received = self.mailbox.lanes(self.peer, packets.MAX_LANES - len(self._incoming))
        for run in self._incoming:
            received.setdefault(run, 0)
        return [Lane(run, seq, *self._partial(run)) for run, seq in received.items()]

    def meet(self, epoch: str, keep: Collection[str] = ()) -> bool:
        """The peer greets with its epoch; whether it had another, so that its lanes begin anew but those of the runs in ``keep``.

        Raises:
            LinkError: it is one that the peer has left.
        """
        if not self.mailbox.meet(self.peer, epoch, keep):
            return False
        for run in set(self._incoming) - set(keep):
            self._abandon(run)
        return True

    async def serve(self, read: Read, write: Write, theirs: Iterable[Lane]) -> str:
        """Send and receive over one stream until it ends; the reason that the other side gave.

        Args:
            read: the next packet, None at the end.
            write: sends one packet, and returns when the stream takes more.
            theirs: how far the other side says it has received each lane.

        Raises:
            LinkError, MalformedMessage: the other side broke the protocol.
            StoreError: there is no room for what arrives.
        """
        self._words.clear()
        self._turns.clear()
        self._lanes.clear()
        self._received.clear()
        for run in [run for run, under_way in self._incoming.items() if under_way.draft is None]:
            del self._incoming[run]  # nothing more of it comes on a new stream
        for lane in theirs:
            if lane.received > (last := self.mailbox.sent(self.peer, lane.run)):
                raise LinkError(
                    f"{self.peer} has received number {lane.received} of a lane on which {last} was the last: one of the two "
                    f"was set back to an older copy of its home, or does not tell the truth; if it was set back, take a backup "
                    f"of that home with: hansa backup, and restore it with: hansa restore"
                )
            self._lanes[lane.run] = _Outgoing(lane.received, lane.partial, lane.offset)
            self.mailbox.acknowledged(self.peer, lane.run, lane.received)
        self._turns.extend(self.mailbox.waiting(self.peer))
        self._wake.set()
        self.mailbox.listen(self.peer, self._ready)
        self.standing.set()
        tasks = [asyncio.ensure_future(self._reading(read)), asyncio.ensure_future(self._writing(write))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next((text for task in done if (text := task.result())), "")
        finally:
            self.standing.clear()
            self.mailbox.listen(self.peer, None)
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # who is cancelled here once more leaves its places too: others wait for them
                for run, under_way in self._lanes.items():
                    under_way.data = None
                    self.gate.leave((self.peer, run))

    def say(self, word: Message) -> None:
        """Send a word that is not kept: it is lost with the stream."""
        self._words.append(word)
        self._wake.set()

    def forget(self, run: str) -> None:
        """A run is over: of its large bodies under way, those that are sent stop here, and those that arrive are refused."""
        lane = self._lanes.get(run)
        if lane is not None and lane.parcel is not None:
            self._passed(run, lane)
        self.gate.leave((self.peer, run))
        under_way = self._incoming.get(run)
        if under_way is not None and under_way.draft is not None:
            self._abandon(run)
            self._incoming[run] = _Incoming(under_way.parcel, under_way.word, None)
            self._arrived(under_way.parcel, "the run has ended")

    def _ready(self, run: str) -> None:
        if run not in self._turns:
            self._turns.append(run)
        self._wake.set()

    def _partial(self, run: str) -> tuple[int, int]:
        under_way = self._incoming.get(run)
        if under_way is None or under_way.draft is None:
            return 0, 0
        return under_way.parcel.seq, under_way.offset

    async def _writing(self, write: Write) -> str:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._received or self._words or self._turns:
                # Nothing leaves that a crash could make unsaid.
                self.database.commit()
                if self._received:
                    run, seq = self._received.popitem()
                    await write(encode(Received(run, seq)))
                elif self._words:
                    word = self._words.popleft()
                    await write(encode(word))
                    if isinstance(word, Farewell):
                        return word.reason
                else:
                    await self._turn(write)

    async def _turn(self, write: Write) -> None:
        """The next packet of the lane whose turn it is; the lane goes to the end of the line, or leaves it."""
        # Control goes first: what it says of a run comes before the run's own messages.
        run = self._turns[0] if "" not in self._turns else ""
        self._turns.remove(run)
        lane = self._lanes.setdefault(run, _Outgoing(0))
        packet = self._first(run, lane) if lane.parcel is None else self._following(run, lane, lane.parcel)
        if packet is not None:
            self._turns.append(run)
            with self.gate.sending((self.peer, run)):
                await write(packet)

    def _first(self, run: str, lane: _Outgoing) -> bytes | None:
        """What announces the next parcel of a lane, or is all of it; None if there is no parcel, or the gate is closed to it."""
        parcel = self.mailbox.next(self.peer, run, lane.sent)
        if parcel is None or parcel.body.inline is not None:
            self.gate.leave((self.peer, run))  # what it was to be for was withdrawn
        elif not self.gate.enter((self.peer, run), partial(self._ready, run)):
            return None
        if parcel is None:
            return None
        body = parcel.body
        if body.inline is None:
            lane.parcel, lane.data = parcel, self.spool.map(body.blob)
            if lane.partial != parcel.seq or lane.offset >= body.size:
                lane.partial, lane.offset = parcel.seq, 0
        else:
            lane.sent = parcel.seq
        offset = 0 if lane.parcel is None else lane.offset
        return encode(
            Sending(
                run, parcel.seq, parcel.sender, parcel.receiver, parcel.sealed, body.tag, body.size, body.inline, offset
            )
        )

    def _following(self, run: str, lane: _Outgoing, parcel: Parcel) -> bytes:
        """The next piece of the large body that is under way."""
        assert lane.data is not None
        start, end = lane.offset, min(lane.offset + packets.PIECE_BYTES, parcel.body.size)
        with memoryview(lane.data) as data, data[start:end] as part:
            packet = packets.piece(run, parcel.seq, start, part)
        # What is sent once is not read again, and would count as this process's memory for as long as the file is mapped.
        lane.data.madvise(mmap.MADV_DONTNEED, start - start % mmap.PAGESIZE, end - start + start % mmap.PAGESIZE)
        lane.offset = end
        if end == parcel.body.size:
            self._passed(run, lane)
        return packet

    def _passed(self, run: str, lane: _Outgoing) -> None:
        assert lane.parcel is not None
        lane.sent, lane.parcel, lane.data = lane.parcel.seq, None, None
        self.gate.leave((self.peer, run))

    async def _reading(self, read: Read) -> str:
        while True:
            packet = await read()
            if packet is None:
                return ""
            if len(self._words) > _WORDS:
                raise LinkError(f"{self.peer} sends what is answered, and reads no answer")
            if packets.is_piece(packet):
                self._piece(packets.read_piece(packet))
                continue
            word = decode(packet, packets.LINK, packets.MAX_PACKET)
            if isinstance(word, Sending):
                self._sending(word)
            elif isinstance(word, Received):
                self._acknowledged(word.run, word.seq)
            elif isinstance(word, Refused):
                if self._acknowledged(word.run, word.seq):
                    self.desk.refused(self.peer, word)
            elif isinstance(word, Probe):
                if word.answer:
                    self.probed.set()
                else:
                    self.say(Probe(word.nonce, answer=True))
            elif isinstance(word, Farewell):
                return word.reason
            else:
                raise LinkError(f"{self.peer} sent {type(word).__name__} on a stream that is open already")

    def _acknowledged(self, run: str, seq: int) -> bool:
        """The other side has this; whether that is news."""
        lane = self._lanes.get(run)
        last = 0 if lane is None else lane.sent if lane.parcel is None else lane.parcel.seq
        if lane is None or seq > last:
            raise LinkError(f"{self.peer} acknowledged number {seq} of a lane on which {last} was the last")
        if lane.parcel is not None and lane.parcel.seq <= seq:
            self._passed(run, lane)
        return self.mailbox.acknowledged(self.peer, run, seq)

    def _sending(self, word: Sending) -> None:
        body = Body(word.kind, word.size, word.inline)
        parcel = Parcel(word.run, word.seq, word.sender, word.receiver, word.sealed, body)
        flaw = f"a body of {word.size} bytes; at most {self.largest} are taken" if word.size > self.largest else ""
        flaw = flaw or self.desk.admit(self.peer, word)
        if word.inline is not None:
            if len(word.inline) != word.size:
                raise MalformedMessage("a parcel whose size is not that of its body")
            self._arrived(parcel, flaw)
            return
        if word.size < 1 or not word.run:
            raise MalformedMessage("a large body of no size, or on the lane of control")
        before = self._incoming.get(word.run)
        if before is not None:
            known = before.parcel == parcel and before.offset == word.offset and before.draft is not None
            if known and not flaw:
                return  # its pieces go on where they stopped
            self._abandon(word.run)
        if flaw:
            # Its pieces may be on the way already; they are passed over.
            refused = [run for run, under_way in self._incoming.items() if under_way.draft is None]
            if len(refused) >= _PARTIAL:
                del self._incoming[refused[0]]
            self._incoming[word.run] = _Incoming(parcel, word, None)
            self._arrived(parcel, flaw)
            return
        if word.offset:
            raise LinkError(f"{self.peer} goes on at {word.offset} with a body of which nothing is here")
        if flaw := self.mailbox.crowded(self.peer, word.size, self.room, self.whole):
            raise LinkError(flaw)
        if sum(under_way.draft is not None for under_way in self._incoming.values()) >= _PARTIAL:
            raise LinkError(f"{self.peer} sends more than {_PARTIAL} large bodies at a time")
        self._incoming[word.run] = _Incoming(parcel, word, self.spool.draft(word.size))
        self._counted()

    def _piece(self, piece: Piece) -> None:
        run = piece.run
        under_way = self._incoming.get(run)
        if under_way is None or under_way.parcel.seq != piece.seq:
            raise LinkError(f"{self.peer} sent a piece of a body that it did not announce")
        if under_way.draft is None:
            return
        parcel = under_way.parcel
        end = piece.offset + len(piece.data)
        if piece.offset != under_way.offset or end > parcel.body.size:
            raise LinkError(f"{self.peer} sent a piece from {piece.offset} where {under_way.offset} was due")
        under_way.draft.write(piece.data)
        under_way.offset = end
        if end == parcel.body.size:
            del self._incoming[run]
            self._counted()
            blob = under_way.draft.finish()
            body = Body(parcel.body.tag, parcel.body.size, None, blob)
            # It was long under way, and what was welcome when it began may not be now.
            flaw = self.desk.admit(self.peer, under_way.word)
            self._arrived(Parcel(parcel.run, parcel.seq, parcel.sender, parcel.receiver, parcel.sealed, body), flaw)

    def _arrived(self, parcel: Parcel, flaw: str) -> None:
        self.mailbox.pin(parcel.body.blob)
        if flaw and not self.mailbox.met(self.peer, parcel.run):
            pass  # of a lane that somebody made up nothing is kept
        elif not self.mailbox.take(self.peer, parcel.run, parcel.seq):
            flaw = ""  # it was judged when it came first
        elif not flaw:
            with self.mailbox.of(self.peer):
                flaw = self.desk.take(self.peer, parcel)
        # Whoever needs the file has said so by now.
        self.mailbox.unpin(parcel.body.blob)
        if flaw:
            refusal = Refused(parcel.run, parcel.seq, packets.sentence(flaw))
            self.database.after(lambda: self.say(refusal))
        else:
            self.database.after(lambda: self._confirm(parcel.run, parcel.seq))

    def _confirm(self, run: str, seq: int) -> None:
        self._received[run] = seq
        self._wake.set()

    def _abandon(self, run: str) -> None:
        under_way = self._incoming.pop(run)
        self._counted()
        if under_way.draft is not None:
            with contextlib.suppress(Exception):
                under_way.draft.abandon()

    def _counted(self) -> None:
        drafts = [under_way.parcel.body.size for under_way in self._incoming.values() if under_way.draft is not None]
        self.mailbox.coming[self.peer] = sum(drafts)
