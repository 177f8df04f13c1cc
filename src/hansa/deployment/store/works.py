"""A node's runs: what it was asked, what it answered, and what its own programs ended with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import msgspec

from hansa.deployment.packets import MAX_PACKET, Offer, Start
from hansa.deployment.shape import DataShape
from hansa.deployment.store.database import Database
from hansa.deployment.worker.frames import Body, Described
from hansa.message import decode, encode

UNDER_WAY: Final = ("offered", "looked at", "pending", "approved", "accepted", "started")
"""The states of a run that its node has not done with."""
_REMEMBERED: Final = 16
"""Offers that are kept in memory."""


@final
@dataclass(frozen=True)
class Task:
    """A run as its node sees it: "offered", "looked at", "pending", "approved", "accepted", "refused", "started" or "ended"."""

    run: str
    state: str
    reason: str
    since: float


@final
class WorkTable:
    """The runs that a node was asked to take part in."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._offers: OrderedDict[str, Offer] = OrderedDict()
        database.write("UPDATE works SET state = 'offered' WHERE state = 'looked at'")
        database.commit()

    def offered(self, offer: Offer, now: float) -> None:
        """The hub asks; a further attempt at a run takes the place of the one before."""
        self._remember(offer)
        self._db.write("DELETE FROM recalls WHERE run = ?", offer.run)
        self._db.write(
            "INSERT INTO works (run, state, offer, since) VALUES (?, 'offered', ?, ?) ON CONFLICT (run) DO UPDATE SET"
            " state = 'offered', reason = '', offer = excluded.offer, described = NULL, shape = NULL, start = NULL,"
            " began = NULL, ended = NULL, since = excluded.since",
            offer.run, encode(offer), now,
        )  # fmt: skip

    def recall(self, name: str) -> None:
        """A machine's certificate counts no more: not in the runs that are offered or under way, until they are offered anew."""
        for work in self.all(UNDER_WAY):
            if name in self.offer(work.run).certificates:
                self._db.write("INSERT INTO recalls VALUES (?, ?) ON CONFLICT (run, name) DO NOTHING", work.run, name)

    def recalled(self, run: str) -> frozenset[str]:
        """The machines of a run that were recalled since it was offered."""
        return frozenset(name for (name,) in self._db.read("SELECT name FROM recalls WHERE run = ?", run))

    def described(self, run: str) -> Described | None:
        """What the plan of a run is, if it could be read here."""
        rows = self._db.read("SELECT described FROM works WHERE run = ?", run)
        return decode(rows[0][0], Described) if rows and rows[0][0] is not None else None

    def shape(self, run: str) -> DataShape | None:
        """The shape of this node's data for a run, where it has some."""
        rows = self._db.read("SELECT shape FROM works WHERE run = ?", run)
        return msgspec.json.decode(rows[0][0], type=DataShape) if rows and rows[0][0] is not None else None

    def measure(self, run: str, shape: DataShape) -> None:
        """Keep the shape of this node's data for a run."""
        self._db.write("UPDATE works SET shape = ? WHERE run = ?", msgspec.json.encode(shape), run)

    def describe(self, run: str, described: Described) -> None:
        """Keep what the plan of a run is."""
        self._db.write("UPDATE works SET described = ? WHERE run = ?", encode(described), run)

    def started(self, start: Start, now: float) -> None:
        """The run begins."""
        self._db.write(
            "UPDATE works SET state = 'started', start = ?, began = ? WHERE run = ?", encode(start), now, start.run
        )

    def began(self, run: str) -> float | None:
        """When the run began here, POSIX seconds; None for one that has not."""
        rows = self._db.read("SELECT began FROM works WHERE run = ?", run)
        return None if not rows or rows[0][0] is None else float(rows[0][0])

    def set(self, run: str, state: str, reason: str = "") -> None:
        """The run's new state."""
        self._db.write("UPDATE works SET state = ?, reason = ? WHERE run = ?", state, reason, run)

    def state(self, run: str) -> str:
        """The run's state; empty for an unknown one."""
        rows = self._db.read("SELECT state FROM works WHERE run = ?", run)
        return str(rows[0][0]) if rows else ""

    def offer(self, run: str) -> Offer:
        """What was offered; of a known run."""
        if run not in self._offers:
            frame = self._db.read("SELECT offer FROM works WHERE run = ?", run)[0][0]
            self._remember(decode(frame, Offer, MAX_PACKET))
        return self._offers[run]

    def _remember(self, offer: Offer) -> None:
        """It is asked for often; but it may be large, and there is no end to offers."""
        self._offers[offer.run] = offer
        self._offers.move_to_end(offer.run)
        if len(self._offers) > _REMEMBERED:
            self._offers.popitem(last=False)

    def attempt(self, run: str) -> int:
        """Which attempt at a run was offered last; 0 for an unknown run."""
        return self.offer(run).attempt if self.state(run) else 0

    def start(self, run: str) -> Start | None:
        """Who takes part, once the run has begun."""
        rows = self._db.read("SELECT start FROM works WHERE run = ?", run)
        return decode(rows[0][0], Start, MAX_PACKET) if rows and rows[0][0] is not None else None

    def all(self, states: Sequence[str]) -> list[Task]:
        """The runs in one of ``states``, the oldest first."""
        marks = ", ".join("?" for _ in states)
        rows = self._db.read(
            f"SELECT run, state, reason, since FROM works WHERE state IN ({marks}) ORDER BY since, run",  # noqa: S608
            *states,
        )
        return [Task(*row) for row in rows]

    def over(self, now: float, until: float, most: int) -> list[str]:
        """Runs that this node had done with at a time, the first first: as far as it was known by a call such as this."""
        marks = ", ".join("?" for _ in UNDER_WAY)
        self._db.write(f"UPDATE works SET ended = ? WHERE ended IS NULL AND state NOT IN ({marks})", now, *UNDER_WAY)  # noqa: S608
        rows = self._db.read("SELECT run FROM works WHERE ended <= ? ORDER BY ended, run LIMIT ?", until, most)
        return [str(run) for (run,) in rows]

    def forget(self, run: str) -> None:
        """Forget all of a run but that there was one; the files of its results must be released already."""
        self._offers.pop(run, None)
        for table in ("works", "results", "recalls"):
            self._db.write(f"DELETE FROM {table} WHERE run = ?", run)  # noqa: S608 - our own names
        self._db.write("INSERT INTO lapsed VALUES (?) ON CONFLICT (run) DO NOTHING", run)

    def lapsed(self, run: str) -> bool:
        """Whether a run was forgotten here."""
        return bool(self._db.read("SELECT 1 FROM lapsed WHERE run = ?", run))

    def keep_result(self, run: str, party: str, body: Body) -> None:
        """Keep what one of this node's programs ended with; its file must be held already."""
        self._db.write(
            "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, party) DO UPDATE SET"
            " tag = excluded.tag, size = excluded.size, inline = excluded.inline, blob = excluded.blob",
            run, party, body.tag, body.size, body.inline, body.blob,
        )  # fmt: skip

    def results(self, run: str) -> dict[str, Body]:
        """What this node's programs ended with in a run, by party."""
        rows = self._db.read("SELECT party, tag, size, inline, blob FROM results WHERE run = ?", run)
        return {party: Body(*body) for party, *body in rows}
