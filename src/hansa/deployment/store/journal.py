"""What programs received, did and saved: enough to bring each of them back to where it stood.

The rule by which a worker's words become the setup of the next worker is that of :class:`hansa.deployment.worker.journal.Journal`;
here it is kept in tables. A word goes to the disk before anything that follows from it leaves the machine.
"""

from __future__ import annotations

from typing import Any, final

from hansa.deployment.store.database import Database
from hansa.deployment.store.mailbox import Mailbox
from hansa.deployment.worker.frames import (
    Began,
    Body,
    Dropped,
    Ended,
    Failed,
    Letter,
    Saved,
    Sent,
    Step,
    Stepped,
)
from hansa.message import Message


@final
class Journal:
    """The programs of one machine, by run and party."""

    def __init__(self, database: Database, mailbox: Mailbox) -> None:
        self._db = database
        self._mailbox = mailbox

    def enter(self, run: str, party: str, role: str) -> None:
        """Begin to keep a party's programs in a run; what is kept of them already stays."""
        self._db.write(
            "INSERT INTO programs (run, party, role) VALUES (?, ?, ?) ON CONFLICT (run, party) DO NOTHING",
            run, party, role,
        )  # fmt: skip

    def received(self, run: str, party: str, sender: str, body: Body) -> Letter:
        """Keep a letter until its program has done with it."""
        number = self._db.write(
            "INSERT INTO letters (run, party, sender, tag, size, inline, blob) VALUES (?, ?, ?, ?, ?, ?, ?)",
            run, party, sender, body.tag, body.size, body.inline, body.blob,
        )  # fmt: skip
        self._mailbox.hold(body)
        return Letter(number, sender, body)

    def heard(self, run: str, party: str, word: Message) -> None:
        """Keep what a worker said."""
        db = self._db
        if isinstance(word, Stepped):
            step = word.step
            db.write(
                "INSERT INTO steps (run, party, kind, time, letter) VALUES (?, ?, ?, ?, ?)",
                run, party, step.kind, step.time, step.letter,
            )  # fmt: skip
            if step.kind == "took":
                db.write("UPDATE letters SET taken = 1 WHERE number = ? AND run = ?", step.letter, run)
            db.write("UPDATE programs SET time = ? WHERE run = ? AND party = ?", step.time, run, party)
        elif isinstance(word, Sent):
            db.write("UPDATE programs SET sent = sent + 1 WHERE run = ? AND party = ?", run, party)
        elif isinstance(word, Dropped):
            self._remove("number = ? AND run = ?", word.number, run)
        elif isinstance(word, Began):
            self._since(run, party, word.time, live=True)
        elif isinstance(word, Saved):
            self._keep(run, party, word.body)
            self._since(run, party, word.time, live=True)
        elif isinstance(word, Ended | Failed):
            if word.saved is not None:
                self._keep(run, party, word.saved)
            self._since(run, party, word.time, live=False)
            db.write("UPDATE programs SET ended = ended + 1 WHERE run = ? AND party = ?", run, party)

    def standing(self, run: str, party: str) -> dict[str, Any]:
        """Where a party stands, as the arguments of a :class:`~hansa.deployment.worker.frames.Setup`."""
        ((live, since, sent, time),) = self._db.read(
            "SELECT live, since, sent, time FROM programs WHERE run = ? AND party = ?", run, party
        )
        steps = self._db.read(
            "SELECT kind, time, letter FROM steps WHERE run = ? AND party = ? ORDER BY number", run, party
        )
        letters = self._db.read(
            "SELECT number, sender, tag, size, inline, blob FROM letters WHERE run = ? AND party = ? ORDER BY number",
            run, party,
        )  # fmt: skip
        return {
            "saved": self._state(run, party),
            "live": bool(live),
            "since": since,
            "steps": [Step(*step) for step in steps],
            "sent": sent,
            "letters": [Letter(number, sender, Body(*body)) for number, sender, *body in letters],
            "time": time,
        }

    def progress(self, run: str, party: str) -> tuple[float, int]:
        """A value that differs when a program has come further: one that is brought back again and again must not stand still."""
        ((time, ended),) = self._db.read("SELECT time, ended FROM programs WHERE run = ? AND party = ?", run, party)
        return time, ended

    def rewind(self, run: str) -> None:
        """Forget all of a run's programs but what they saved: a further attempt begins from there."""
        self._remove("run = ?", run)
        self._db.write("DELETE FROM steps WHERE run = ?", run)
        self._db.write("UPDATE programs SET live = 0, sent = 0, ended = 0 WHERE run = ?", run)

    def runs(self) -> list[str]:
        """The runs of which something is kept."""
        return [run for (run,) in self._db.read("SELECT DISTINCT run FROM programs")]

    def forget(self, run: str) -> None:
        """Forget a run's programs and what they saved."""
        self.rewind(run)
        for (blob,) in self._db.read("SELECT blob FROM states WHERE run = ?", run):
            self._mailbox.release(blob)
        self._db.write("DELETE FROM states WHERE run = ?", run)
        self._db.write("DELETE FROM programs WHERE run = ?", run)

    def _since(self, run: str, party: str, time: float, live: bool) -> None:
        """From here on the party's steps are counted."""
        self._db.write(
            "UPDATE programs SET live = ?, since = ?, time = ?, sent = 0 WHERE run = ? AND party = ?",
            live, time, time, run, party,
        )  # fmt: skip
        self._db.write("DELETE FROM steps WHERE run = ? AND party = ?", run, party)
        self._remove("run = ? AND party = ? AND taken = 1", run, party)

    def _state(self, run: str, party: str) -> Body | None:
        rows = self._db.read("SELECT tag, size, inline, blob FROM states WHERE run = ? AND party = ?", run, party)
        return Body(*rows[0]) if rows else None

    def _keep(self, run: str, party: str, body: Body) -> None:
        before = self._state(run, party)
        self._mailbox.hold(body)
        self._db.write(
            "INSERT INTO states VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run, party) DO UPDATE SET"
            " tag = excluded.tag, size = excluded.size, inline = excluded.inline, blob = excluded.blob",
            run, party, body.tag, body.size, body.inline, body.blob,
        )  # fmt: skip
        if before is not None:
            self._mailbox.release(before.blob)

    def _remove(self, where: str, *values: Any) -> None:
        for (blob,) in self._db.read(f"SELECT blob FROM letters WHERE {where}", *values):  # noqa: S608 - fixed texts
            self._mailbox.release(blob)
        self._db.write(f"DELETE FROM letters WHERE {where}", *values)  # noqa: S608 - fixed texts
