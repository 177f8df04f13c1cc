"""What the hub's runs have in common, whatever their state: rows and events, those who wait for news, words to machines, alarms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from hansa.deployment import packets
from hansa.deployment.api import Submit
from hansa.deployment.logs import Log
from hansa.deployment.packets import End, Offer, Start
from hansa.deployment.shape import DataShape
from hansa.deployment.store import Database, Mailbox, Record, RunTable, Seat
from hansa.message import decode


@final
@dataclass(frozen=True)
class Ending:
    """How a run ends: "completed", "failed" or "stopped", and of what; ``cause`` is about ``party`` in ``round``, where it says so."""

    status: str
    cause: str = ""
    party: str = ""
    remedy: str = ""
    round: int | None = None


@final
class Ledger:
    """The runs of one hub, and whoever is to hear of them.

    Args:
        database, mailbox: where everything is kept.
        log: where what happens is noted.
        clock: POSIX seconds.
    """

    def __init__(self, database: Database, mailbox: Mailbox, log: Log, clock: Callable[[], float]) -> None:
        self.table = RunTable(database, mailbox)
        self.log = log
        self.clock = clock
        self._db = database
        self._mailbox = mailbox
        self._news: dict[str, asyncio.Event] = {}
        self._alarms: dict[str, asyncio.TimerHandle] = {}

    def known(self, run: str) -> Record:
        """A run that there is."""
        record = self.table.get(run)
        assert record is not None
        return record

    def news(self, run: str) -> asyncio.Event:
        """Set when something happens in a run; whoever waits on it reads the table."""
        return self._news.setdefault(run, asyncio.Event())

    def tell(
        self, run: str, kind: str, text: str, party: str = "", round: int | None = None, progress: bytes | None = None
    ) -> None:
        """Something has happened."""
        self.table.happened(self.clock(), run, kind, text, party, round, progress)
        news = self._news.pop(run, None)
        if news is not None:
            self._db.after(news.set)
        self.log.info(kind, run=run, party=party or None, round=round, text=text or None)

    def control(self, machine: str, word: Offer | Start | End) -> None:
        """Say something to a node."""
        self._mailbox.put(machine, "", "", "", packets.control(word))

    def withdraw(self, machine: str, run: str) -> None:
        """What a node that is away was to hear of a run that is over now: all but its end, as it may know of the rest."""

        def stale(frame: bytes) -> bool:
            word = decode(frame, (Offer, Start), packets.MAX_PACKET)
            return isinstance(word, Offer | Start) and word.run == run

        self._mailbox.withdraw(machine, (Offer.tag, Start.tag), stale)

    def forget(self, run: str) -> None:
        """A run that is over is gone: whoever waits for news of it hears of that."""
        self.disarm(run)
        self.table.forget(run)
        news = self._news.pop(run, None)
        if news is not None:
            self._db.after(news.set)

    def epoch(self, machine: str) -> str:
        """The epoch of a node, as it was met last; empty if it never was."""
        return self._mailbox.known(machine)

    def arm(self, run: str, seconds: float, action: Callable[[str], None]) -> None:
        """Do something with a run in ``seconds``, in place of what was to be done before."""
        self.disarm(run)
        self._alarms[run] = asyncio.get_running_loop().call_later(seconds, action, run)

    def disarm(self, run: str) -> None:
        """Do nothing with it."""
        alarm = self._alarms.pop(run, None)
        if alarm is not None:
            alarm.cancel()

    def close(self) -> None:
        """Forget all alarms."""
        for alarm in self._alarms.values():
            alarm.cancel()


def request_of(record: Record) -> Submit:
    """What a run was submitted with."""
    return decode(record.request, Submit)


def shape_of(seats: Iterable[Seat]) -> DataShape | None:
    """The shape of the parties' data, which is the same for all."""
    return next((seat.shape for seat in seats if seat.shape is not None), None)
