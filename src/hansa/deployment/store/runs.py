"""The hub's runs: what they are, who takes part, and everything that happened in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec

from hansa.deployment.api import Event
from hansa.deployment.shape import DataShape
from hansa.deployment.store.database import Database
from hansa.deployment.store.mailbox import Mailbox
from hansa.deployment.worker.frames import Body, Described
from hansa.message import decode, encode

ACTIVE: Final = ("joining", "running")
"""The states of a run that holds machines."""
TERMINAL: Final = ("completed", "stopped", "failed")
"""The states that a run does not leave by itself."""
PAGE: Final = 1 << 20
"""Bytes of what is read of events at a time, where one event alone is not more."""


@final
@dataclass(frozen=True)
class Record:
    """A run as it stands.

    Args:
        run: 16 hexadecimal digits.
        name: for people.
        owner: kind and name of whoever submitted it.
        described: its plan.
        request: the frame of the :class:`~hansa.deployment.api.Submit` that it came with.
        status: "queued", one of :data:`ACTIVE`, or one of :data:`TERMINAL`.
        cause, party, remedy: why it ended, about whom, and what to do.
        round: the last that was reported.
        created, started, ended: POSIX seconds.
        attempt: 1, and one more each time that it is resumed.
        anew: whether it cannot go on, as a machine was restored from a backup and has forgotten its part: it begins anew, as another run.
        result: what its server ended with, where that is here.
    """

    run: str
    name: str
    owner: tuple[str, str]
    described: Described
    request: bytes
    status: str
    cause: str
    party: str
    remedy: str
    round: int | None
    created: float
    started: float | None
    ended: float | None
    attempt: int
    anew: bool
    result: Body | None


@final
@dataclass(frozen=True)
class Seat:
    """A party of a run: on which machine, and what that answered.

    ``address`` is where other nodes may dial that machine, or empty; ``shape`` is that of its data, as it says;
    ``finished`` is 1 when a program that starts by itself has ended, 2 when it failed for good.
    """

    party: str
    host: str
    answer: str
    reason: str
    address: str
    shape: DataShape | None
    finished: int


@final
class RunTable:
    """Runs, their seats and their events."""

    def __init__(self, database: Database, mailbox: Mailbox) -> None:
        self._db = database
        self._mailbox = mailbox

    def add(
        self, run: str, name: str, owner: tuple[str, str], described: Described, request: bytes, now: float
    ) -> None:
        """A new run, in the queue."""
        self._db.write(
            "INSERT INTO runs (run, name, owner_kind, owner, described, request, status, created)"
            " VALUES (?, ?, ?, ?, ?, ?, 'queued', ?)",
            run, name, *owner, encode(described), request, now,
        )  # fmt: skip

    def get(self, run: str) -> Record | None:
        """The run called ``run``."""
        found = self._select("WHERE run = ?", run)
        return found[0] if found else None

    def all(self, statuses: Sequence[str] = ()) -> list[Record]:
        """All runs, or those in one of ``statuses``, the oldest first."""
        marks = ", ".join("?" for _ in statuses)
        return (
            self._select(f"WHERE status IN ({marks}) ORDER BY created, run", *statuses)
            if statuses
            else self._select("ORDER BY created, run")
        )

    def heads(
        self, host: str, before: tuple[float, str] | None = None, begins: str = ""
    ) -> list[tuple[str, tuple[str, str], bool]]:
        """The names and owners of runs, the newest first, and whether a machine has a seat in them.

        Args:
            host: the machine.
            before: when a run was made, and its name: only those that come after it in this order.
            begins: only those whose names begin so.
        """
        created, last = before if before is not None else (math.inf, "")
        rows = self._db.read(
            "SELECT run, owner_kind, owner, EXISTS (SELECT 1 FROM hosts WHERE hosts.run = runs.run AND host = ?) FROM runs"
            " WHERE (created < ? OR (created = ? AND run < ?)) AND substr(run, 1, ?) = ? ORDER BY created DESC, run DESC",
            host, created, created, last, len(begins), begins,
        )  # fmt: skip
        return [(run, (kind, owner), bool(seated)) for run, kind, owner, seated in rows]

    def set(self, run: str, **values: Any) -> None:
        """Change columns of a run."""
        names = ", ".join(f"{name} = ?" for name in values)
        self._db.write(f"UPDATE runs SET {names} WHERE run = ?", *values.values(), run)  # noqa: S608 - our own names

    def keep_result(self, run: str, body: Body) -> None:
        """Keep what a run's server ended with."""
        before = self.get(run)
        self._mailbox.hold(body)
        if before is not None and before.result is not None:  # of an earlier attempt
            self._mailbox.release(before.result.blob)
        self.set(run, tag=body.tag, size=body.size, inline=body.inline, blob=body.blob)

    def over(self, until: float, most: int) -> list[Record]:
        """Runs that had ended at a time, the first to end first."""
        marks = ", ".join("?" for _ in TERMINAL)
        return self._select(
            f"WHERE ended <= ? AND status IN ({marks}) ORDER BY ended, run LIMIT ?", until, *TERMINAL, most
        )

    def forget(self, run: str) -> None:
        """Forget a run, its seats, its events and its result."""
        for (blob,) in self._db.read("SELECT blob FROM runs WHERE run = ?", run):
            self._mailbox.release(blob)
        for table in ("events", "hosts", "runs"):
            self._db.write(f"DELETE FROM {table} WHERE run = ?", run)  # noqa: S608 - our own names

    def seat(self, run: str, party: str, host: str) -> None:
        """A party is to take part."""
        self._db.write("INSERT INTO hosts (run, party, host) VALUES (?, ?, ?)", run, party, host)

    def seats(self, run: str) -> list[Seat]:
        """The parties of a run, in the order in which they were asked."""
        rows = self._db.read(
            "SELECT party, host, answer, reason, address, shape, finished FROM hosts WHERE run = ? ORDER BY rowid", run
        )
        return [
            Seat(
                party,
                host,
                answer,
                reason,
                address,
                None if shape is None else msgspec.json.decode(shape, type=DataShape),
                done,
            )
            for party, host, answer, reason, address, shape, done in rows
        ]

    def answered(
        self, run: str, host: str, answer: str, reason: str, address: str = "", shape: DataShape | None = None
    ) -> None:
        """What a machine answered, for all its parties."""
        kept = None if shape is None else msgspec.json.encode(shape)
        self._db.write(
            "UPDATE hosts SET answer = ?, reason = ?, address = ?, shape = ? WHERE run = ? AND host = ?",
            answer, reason, address, kept, run, host,
        )  # fmt: skip

    def finished(self, run: str, party: str, how: int) -> None:
        """A party that started by itself ended (1) or failed (2)."""
        self._db.write("UPDATE hosts SET finished = ? WHERE run = ? AND party = ?", how, run, party)

    def unseat(self, run: str) -> None:
        """Ask everybody again."""
        self._db.write("UPDATE hosts SET answer = '', reason = '', finished = 0 WHERE run = ?", run)

    def happened(
        self, now: float, run: str, kind: str, text: str, party: str = "", round: int | None = None,
        progress: bytes | None = None,
    ) -> Event:  # fmt: skip
        """Write an event down."""
        number = self._db.write(
            "INSERT INTO events (time, run, kind, party, round, text, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
            now, run, kind, party, round, text, progress,
        )  # fmt: skip
        return Event(number, now, run, kind, party, round, text, progress)

    def events(self, run: str, after: int = 0, limit: int = 1000, kind: str = "") -> list[Event]:
        """The next of a run's events after a number, the oldest first: as many as :data:`PAGE` holds; none after the last."""
        wanted = "FROM events WHERE run = ? AND number > ? AND (? = '' OR kind = ?)"
        sizes = self._db.read(
            f"SELECT number, LENGTH(text) + COALESCE(LENGTH(data), 0) {wanted} ORDER BY number LIMIT ?",
            run, after, kind, kind, limit,
        )  # fmt: skip
        last, held = after, 0
        for number, size in sizes:
            held += size
            if held > PAGE and last != after:
                break
            last = number
        rows = self._db.read(
            f"SELECT number, time, run, kind, party, round, text, data {wanted} AND number <= ? ORDER BY number",
            run, after, kind, kind, last,
        )  # fmt: skip
        return [Event(*row) for row in rows]

    def said(self, run: str, since: float) -> dict[str, tuple[int, int]]:
        """How many words each party has said in a run since then, as far as events tell, and how many bytes they are."""
        rows = self._db.read(
            "SELECT party, COUNT(*), SUM(COALESCE(LENGTH(data), LENGTH(text))) FROM events"
            " WHERE run = ? AND time >= ? AND kind IN ('round', 'trouble', 'refused') GROUP BY party",
            run, since,
        )  # fmt: skip
        return {party: (words, size) for party, words, size in rows}

    def counts(self) -> dict[str, int]:
        """How many runs there are in each state."""
        return dict(self._db.read("SELECT status, COUNT(*) FROM runs GROUP BY status"))

    def unfinished(self, owner: tuple[str, str]) -> int:
        """How many runs of this owner have not ended."""
        marks = ", ".join("?" for _ in TERMINAL)
        statement = f"SELECT COUNT(*) FROM runs WHERE owner_kind = ? AND owner = ? AND status NOT IN ({marks})"  # noqa: S608
        return int(self._db.read(statement, *owner, *TERMINAL)[0][0])

    def _select(self, where: str, *values: Any) -> list[Record]:
        rows = self._db.read(f"SELECT {_COLUMNS} FROM runs {where}", *values)  # noqa: S608 - fixed texts
        return [_record(*row) for row in rows]


_COLUMNS: Final = (
    "run, name, owner_kind, owner, described, request, status, cause, party, remedy, round, created, started, ended, attempt,"
    " anew, tag, size, inline, blob"
)


def _record(run: str, name: str, kind: str, owner: str, *rest: Any) -> Record:
    described, request, status, cause, party, remedy, round, created, started, ended, attempt, anew, *body = rest
    return Record(
        run, name, (kind, owner), decode(described, Described), request, status, cause, party, remedy, round, created, started, ended, attempt, bool(anew),
        Body(*body) if body[0] else None,
    )  # fmt: skip
