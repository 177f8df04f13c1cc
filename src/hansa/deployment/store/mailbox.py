"""What is under way between this machine and its peers: numbered lanes, kept until the other side has it durably.

A lane is one direction of one run between two machines (the empty run is the lane of control). Parcels on a lane have rising
numbers; the receiver takes each number once, in order. So a parcel that was accepted is never taken twice, and never
lost: it leaves the sender's disk when the receiver's has it.

A count holds between two databases. Each has a random name of its own, its *epoch*; one that was restored from a backup has
another, because its counts are of the past, and lanes with it begin anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from hansa.deployment.store.database import Database
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Spool
from hansa.errors import LinkError

_FORMER: Final = 16
"""Epochs of a peer that are remembered."""


@final
@dataclass(frozen=True)
class Parcel:
    """A body on its way from one party to another.

    Args:
        run: the run; empty for the lane of control.
        seq: its number on its lane.
        sender, receiver: parties of the run's roster; empty on the lane of control.
        sealed: whether the body is an envelope that only the receiver's machine can open.
        body: the frame, or the envelope.
    """

    run: str
    seq: int
    sender: str
    receiver: str
    sealed: bool
    body: Body


@final
class Mailbox:
    """The lanes of one machine.

    Args:
        database: where they are kept.
        spool: the folder of large bodies.

    Attributes:
        epoch: the database's own.
        coming: bytes of the bodies that are under way from each peer, and not here as a whole.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        self._db = database
        self._spool = spool
        self._wake: dict[str, Callable[[str], None]] = {}
        self._pinned: set[str] = set()
        self._bringing = ""
        self.coming: dict[str, int] = {}
        self.epoch = self.known("")

    def listen(self, peer: str, wake: Callable[[str], None] | None) -> None:
        """Call ``wake`` with a run when a parcel to ``peer`` may leave on that run's lane; None ends that."""
        if wake is None:
            self._wake.pop(peer, None)
        else:
            self._wake[peer] = wake

    def put(self, peer: str, run: str, sender: str, receiver: str, body: Body, sealed: bool = False) -> None:
        """Put a body under way; it leaves when it is durable here."""
        db, seq = self._db, self.sent(peer, run) + 1
        db.write(
            "INSERT INTO lanes (peer, run, sent) VALUES (?, ?, ?) ON CONFLICT (peer, run) DO UPDATE SET sent = excluded.sent",
            peer, run, seq,
        )  # fmt: skip
        db.write(
            "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            peer, run, seq, sender, receiver, sealed, body.tag, body.size, body.inline, body.blob,
        )  # fmt: skip
        self.hold(body)
        db.after(lambda: self._notify(peer, run))

    def next(self, peer: str, run: str, after: int) -> Parcel | None:
        """The first parcel of a lane numbered above ``after``."""
        rows = self._db.read(
            "SELECT seq, sender, receiver, sealed, tag, size, inline, blob FROM outbox"
            " WHERE peer = ? AND run = ? AND seq > ? ORDER BY seq LIMIT 1",
            peer, run, after,
        )  # fmt: skip
        for seq, sender, receiver, sealed, *body in rows:
            return Parcel(run, seq, sender, receiver, bool(sealed), Body(*body))
        return None

    def lanes(self, peer: str, most: int) -> dict[str, int]:
        """For each run, the last number that was taken from ``peer``: of the lane of control and of the newest, ``most`` in all."""
        rows = self._db.read(
            "SELECT run, received FROM lanes WHERE peer = ? ORDER BY run = '' DESC, rowid DESC LIMIT ?", peer, most
        )
        return dict(rows)

    def sent(self, peer: str, run: str) -> int:
        """The number of the last parcel that was put on a lane; before the first, that from which it goes on."""
        rows = self._db.read("SELECT sent FROM lanes WHERE peer = ? AND run = ?", peer, run)
        if not rows and run:
            rows = self._db.read("SELECT sent FROM floors WHERE peer = ?", peer)
        return int(rows[0][0]) if rows else 0

    def met(self, peer: str, run: str) -> bool:
        """Whether there is such a lane."""
        return bool(self._db.read("SELECT 1 FROM lanes WHERE peer = ? AND run = ?", peer, run))

    def waiting(self, peer: str) -> Iterator[str]:
        """The runs whose lanes to ``peer`` hold something."""
        for (run,) in self._db.read("SELECT DISTINCT run FROM outbox WHERE peer = ?", peer):
            yield run

    def acknowledged(self, peer: str, run: str, seq: int) -> bool:
        """``peer`` has everything up to ``seq`` durably; whether that is news."""
        rows = self._db.read(
            "SELECT blob FROM outbox WHERE peer = ? AND run = ? AND seq <= ?", peer, run, seq
        )  # fmt: skip
        if rows:
            self._db.write("DELETE FROM outbox WHERE peer = ? AND run = ? AND seq <= ?", peer, run, seq)
            for (blob,) in rows:
                self.release(blob)
        return bool(rows)

    def take(self, peer: str, run: str, seq: int) -> bool:
        """Take number ``seq``: False where it was taken before.

        Numbers only rise; those between were withdrawn by their sender, on whose order a peer relies for its own parcels alone.
        """
        rows = self._db.read("SELECT received FROM lanes WHERE peer = ? AND run = ?", peer, run)
        if rows and seq <= rows[0][0]:
            return False
        self._db.write(
            "INSERT INTO lanes (peer, run, sent, received) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (peer, run) DO UPDATE SET received = excluded.received",
            peer, run, self.sent(peer, run), seq,
        )  # fmt: skip
        return True

    def drop(self, run: str, peer: str | None = None) -> None:
        """Forget what is under way in a run: to one peer, or to all."""
        where, values = "run = ?", [run]
        if peer is not None:
            where, values = "run = ? AND peer = ?", [run, peer]
        for (blob,) in self._db.read(f"SELECT blob FROM outbox WHERE {where}", *values):  # noqa: S608 - fixed texts
            self.release(blob)
        self._db.write(f"DELETE FROM outbox WHERE {where}", *values)  # noqa: S608 - fixed texts

    def withdraw(self, peer: str, tags: Sequence[str], unwanted: Callable[[bytes], bool]) -> int:
        """Take back words of the lane of control that a peer has not said it has; how many there were.

        It may have some all the same. The others keep their numbers: the peer takes those that come after a gap.
        """
        marks = ", ".join("?" for _ in tags)
        statement = f"SELECT seq, inline FROM outbox WHERE peer = ? AND run = '' AND tag IN ({marks})"  # noqa: S608
        found = [seq for seq, frame in self._db.read(statement, peer, *tags) if unwanted(frame)]
        for seq in found:
            self._db.write("DELETE FROM outbox WHERE peer = ? AND run = '' AND seq = ?", peer, seq)
        return len(found)

    def known(self, peer: str) -> str:
        """The epoch that the lanes with ``peer`` are of; empty before it was met."""
        rows = self._db.read("SELECT epoch FROM epochs WHERE peer = ? ORDER BY number DESC LIMIT 1", peer)
        return str(rows[0][0]) if rows else ""

    def meet(self, peer: str, epoch: str, keep: Collection[str] = ()) -> bool:
        """``peer`` greets with its epoch; whether it had another, so that lanes with it begin anew.

        Args:
            peer, epoch: which.
            keep: the runs that began with this epoch of the peer, whose lanes were never counted with another.

        Raises:
            LinkError: it is one that the peer has left: somebody has started the home that another has taken the place of.
        """
        rows = self._db.read("SELECT epoch, number FROM epochs WHERE peer = ? ORDER BY number DESC", peer)
        if rows and rows[0][0] == epoch:
            return False
        if epoch in (former for former, _ in rows):
            raise LinkError(
                f"'{peer}' comes with the home that it had before it was restored from a backup; the two must not run beside each "
                f"other: stop this one, or if it is the one to keep, take a backup of it and restore that"
            )
        last = rows[0][1] if rows else 0
        self._db.write("INSERT INTO epochs VALUES (?, ?, ?)", peer, epoch, last + 1)
        self._db.write("DELETE FROM epochs WHERE peer = ? AND number <= ?", peer, last + 1 - _FORMER)
        if rows:
            self.part(peer, keep)
        return bool(rows)

    def forget(self, peer: str) -> None:
        """Forget a peer, its lanes and its epochs: another machine has its name from now on."""
        self.part(peer)
        self._db.write("DELETE FROM epochs WHERE peer = ?", peer)
        self.coming.pop(peer, None)

    def end(self, run: str) -> None:
        """A run is over here: forget its lanes, and the numbers of its envelopes.

        It may be resumed, and a peer may remember its lanes. So whatever lane begins with that peer goes on above all numbers of
        those that were forgotten; what the peer says again of this attempt is refused, because the run is not under way here
        until the peer has heard of this end.
        """
        self.drop(run)
        for peer, sent in self._db.read("SELECT peer, sent FROM lanes WHERE run = ?", run):
            self._db.write(
                "INSERT INTO floors VALUES (?, ?) ON CONFLICT (peer) DO UPDATE SET sent = excluded.sent"
                " WHERE excluded.sent > floors.sent",
                peer, sent,
            )  # fmt: skip
        self._db.write("DELETE FROM lanes WHERE run = ?", run)
        self._db.write("DELETE FROM sequences WHERE run LIKE ?", f"{run}/%")

    def part(self, peer: str, keep: Collection[str] = ()) -> None:
        """Forget all lanes of a peer but those of the runs in ``keep``: both begin with number 1."""
        for (run,) in self._db.read("SELECT run FROM lanes WHERE peer = ?", peer):
            if run not in keep:
                self.drop(run, peer)
                self._db.write("DELETE FROM lanes WHERE peer = ? AND run = ?", peer, run)
        self._db.write("DELETE FROM floors WHERE peer = ?", peer)

    def number(self, run: str, sender: str, receiver: str) -> int:
        """The next number of an envelope from one party to another, beginning with 1."""
        self._db.write(
            "INSERT INTO sequences VALUES (?, ?, ?, 1)"
            " ON CONFLICT (run, sender, receiver) DO UPDATE SET last = last + 1",
            run, sender, receiver,
        )  # fmt: skip
        return self.last_number(run, sender, receiver)

    def last_number(self, run: str, sender: str, receiver: str) -> int:
        """The number of the last envelope from one party to another; 0 before the first."""
        rows = self._db.read(
            "SELECT last FROM sequences WHERE run = ? AND sender = ? AND receiver = ?", run, sender, receiver
        )
        return int(rows[0][0]) if rows else 0

    def hold(self, body: Body) -> None:
        """One more place needs a body's file."""
        if body.blob:
            self._db.write(
                "INSERT INTO blobs VALUES (?, 1, ?) ON CONFLICT (name) DO UPDATE SET refs = refs + 1",
                body.blob, body.size,
            )  # fmt: skip
            if self._bringing:
                self._db.write(
                    "INSERT INTO brought VALUES (?, ?) ON CONFLICT (name) DO NOTHING", body.blob, self._bringing
                )

    def release(self, blob: str) -> None:
        """One place less needs a file; the last one removes it, once that is durable."""
        if not blob:
            return
        self._db.write("UPDATE blobs SET refs = refs - 1 WHERE name = ?", blob)
        if self._db.read("SELECT 1 FROM blobs WHERE name = ? AND refs <= 0", blob):
            self._db.write("DELETE FROM blobs WHERE name = ?", blob)
            self._db.write("DELETE FROM brought WHERE name = ?", blob)
            self._db.after(lambda: self._remove(blob))

    def frame(self, body: Body) -> bytes:
        """The frame of a body, wherever it lies."""
        return body.inline if body.inline is not None else bytes(self._spool.map(body.blob))

    def pin(self, blob: str) -> None:
        """Keep a file while this process is not done with it, whoever else is."""
        if blob:
            self._pinned.add(blob)

    def unpin(self, blob: str) -> None:
        """This process is done with a file; it goes if nothing else needs it."""
        if blob in self._pinned:
            self._pinned.discard(blob)
            self._db.after(lambda: self._remove(blob))

    def _remove(self, blob: str) -> None:
        if blob not in self._pinned and not self._db.read("SELECT 1 FROM blobs WHERE name = ?", blob):
            self._spool.remove(blob)

    def spooled(self) -> int:
        """Bytes of the files that are needed."""
        return int(self._db.read("SELECT COALESCE(SUM(size), 0) FROM blobs")[0][0])

    @contextlib.contextmanager
    def of(self, peer: str) -> Iterator[None]:
        """Files that are needed first in this block were brought by ``peer``."""
        self._bringing = peer
        try:
            yield
        finally:
            self._bringing = ""

    def crowded(self, peer: str, size: int, room: int, whole: bool) -> str:
        """Why ``peer`` must wait with a body of ``size`` bytes; nothing if it need not.

        Whoever has something here brings more only while it then has no more than is left free: so one that floods leaves half of
        the room, two leave a third, and whoever has nothing finds a place.

        Args:
            peer: who brings it.
            size: bytes.
            room: bytes that all files may have.
            whole: whether this peer may have all of it.

        Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998, with alpha = 1.
        """
        ((brought,),) = self._db.read(
            "SELECT COALESCE(SUM(size), 0) FROM blobs JOIN brought ON brought.name = blobs.name WHERE peer = ?", peer
        )
        has, free = brought + self.coming.get(peer, 0), room - self.spooled() - sum(self.coming.values())
        if size > free:
            return f"the spool has no room for {size} more bytes of its {room}; it takes them later"
        if has and not whole and has + size > free - size:
            return (
                f"'{peer}' has {has} bytes in the spool, where {free} of {room} are free; {size} more are taken later"
            )
        return ""

    def sweep(self) -> int:
        """Remove files that nothing refers to, left by a process that was killed; how many there were."""
        return self._spool.sweep({name for (name,) in self._db.read("SELECT name FROM blobs")})

    def _notify(self, peer: str, run: str) -> None:
        wake = self._wake.get(peer)
        if wake is not None:
            wake(run)
