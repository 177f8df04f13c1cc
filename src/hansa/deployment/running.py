"""A run under way, as the hub sees it: its own programs, what is reported, what fails, who is absent, and when it is over.

A run is over when all programs that start by themselves have ended, when one fails that it has no point without, or when its
limit has passed. A machine with such a program may be away so long and no longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, final

from hansa.deployment.host import Host, Work
from hansa.deployment.identity.names import HUB
from hansa.deployment.ledger import Ending, Ledger, request_of, shape_of
from hansa.deployment.metrics import Metrics
from hansa.deployment.packets import Finished, Report, Trouble
from hansa.deployment.settings import HubSettings
from hansa.deployment.store import ACTIVE, Mailbox, Record, Seat
from hansa.deployment.worker.frames import Body, Failed
from hansa.errors import MessageError
from hansa.message import decode, encode
from hansa.protocol import Progress

LOST_AFTER: Final = 600.0
"""Seconds that a machine with a program that the run waits for may be away."""
MAX_PROGRESS: Final = 1 << 20
"""Bytes of what a program says of one round."""
METRICS: Final = 1000
"""Different metrics that the programs of one run may report: each is a column of its tables."""


def budget(rounds: int | None, parties: int) -> int:
    """Bytes that one party may say in one attempt at a run: of each round, half a kilobyte of each party and something of its own.

    Args:
        rounds: of the plan; None where it does not say.
        parties: how many take part.

    >>> budget(10, 4)
    4235264
    """
    return 4 * MAX_PROGRESS + (rounds or 10_000) * min(MAX_PROGRESS, 2048 + 512 * parties)


@final
class Running:
    """The runs that are under way, and the courier of the hub's own programs in them.

    Args:
        ledger: of all runs.
        mailbox: takes what the hub's programs send.
        settings: the hub's limits, and what data it binds.
        connected: whether a node is connected.
        metrics: where what happens is counted.
        end: called with a run that is over.
    """

    def __init__(
        self,
        ledger: Ledger,
        mailbox: Mailbox,
        settings: HubSettings,
        connected: Callable[[str], bool],
        metrics: Metrics,
        end: Callable[[str, Ending], None],
    ) -> None:
        self._ledger = ledger
        self._table = ledger.table
        self._mailbox = mailbox
        self._settings = settings
        self._connected = connected
        self._metrics = metrics
        self._end = end
        self._seats: dict[str, dict[str, Seat]] = {}
        self._began: dict[str, float] = {}
        self._heard: dict[tuple[str, str], tuple[int, int]] = {}
        self._metrics_of: dict[str, set[str]] = {}
        self._absent: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._clearing: set[asyncio.Future[list[None]]] = set()
        self.host: Host | None = None

    def begin(self, record: Record) -> None:
        """Everything that a running run needs in memory, and the hub's own programs."""
        plan = record.described
        seats = {seat.party: seat for seat in self._table.seats(record.run) if seat.answer == "accepted"}
        now = self._ledger.clock()
        self._seats[record.run] = seats
        self._began[record.run] = now
        for party, said in self._table.said(record.run, record.started or 0.0).items():
            self._heard[record.run, party] = said  # a restart gives nobody a second budget
        hosts = {party: seat.host for party, seat in seats.items()}
        bound = self._settings.data.get(request_of(record).data)
        work = Work(
            record.run, record.attempt, plan.plan, plan.by_role(hosts),
            frozenset(name for name, role in plan.roles.items() if role.starts), hosts,
            {} if bound is None else bound.plain(), shape_of(seats.values()),
        )  # fmt: skip
        assert self.host is not None
        self.host.begin(work)
        for machine in set(hosts.values()):
            if not self._connected(machine):
                self._miss(record.run, machine)
        spent = max(0.0, now - (record.started or now))  # a clock may be set back
        self._ledger.arm(record.run, max(1.0, self._settings.limits.run - spent), self._overdue)

    def leave(self, run: str) -> None:
        """A run has ended, in whatever state it was: stop the hub's programs, and wait for nobody."""
        assert self.host is not None
        clearing = self.host.end(run)
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)
        self._seats.pop(run, None)
        self._began.pop(run, None)
        self._metrics_of.pop(run, None)
        for key in [key for key in self._absent if key[0] == run]:
            self._absent.pop(key).cancel()
        for key in [key for key in self._heard if key[0] == run]:
            del self._heard[key]

    def close(self) -> None:
        """Wait for nobody any more."""
        for timer in self._absent.values():
            timer.cancel()

    def seat_of(self, run: str, party: str) -> str:
        """The machine that a party of a running run is on; empty for a stranger, or if the run is not running."""
        seats = self._seats.get(run)
        seat = seats.get(party) if seats is not None else None
        return seat.host if seat is not None else ""

    # Machines that come and go.

    def came(self, node: str) -> None:
        """A node is connected."""
        for key in [key for key in self._absent if key[1] == node]:
            self._absent.pop(key).cancel()

    def left(self, node: str) -> None:
        """A node is gone; a run that waits for a program on it waits so long and no longer."""
        for run in self._seats:
            self._miss(run, node)

    def _miss(self, run: str, node: str) -> None:
        if node != HUB and any(
            seat.host == node and self._starts(run, seat.party) for seat in self._seats[run].values()
        ):
            before = self._absent.pop((run, node), None)
            if before is not None:
                before.cancel()
            self._absent[run, node] = asyncio.get_running_loop().call_later(LOST_AFTER, self._gone, run, node)

    def _gone(self, run: str, node: str) -> None:
        self._absent.pop((run, node), None)
        record = self._table.get(run)
        if record is None or record.status != "running" or self._connected(node):
            return
        self._without(
            run, node, f"{node} has been away for {LOST_AFTER:g} s", f"bring it back, then: hansa resume {run}"
        )

    def lost(self, record: Record, node: str, cause: str) -> None:
        """A node has forgotten its part."""
        self._without(record.run, node, cause, f"begin it anew with: hansa resume {record.run}", all_of_it=True)

    def _without(self, run: str, node: str, cause: str, remedy: str, all_of_it: bool = False) -> None:
        """The programs on a node that start by themselves, or all of them, take no part any more."""
        for seat in self._table.seats(run):
            if self._ledger.known(run).status != "running":
                return
            starts = self._starts(run, seat.party)
            if seat.host != node or seat.answer != "accepted" or seat.finished or not (starts or all_of_it):
                continue
            if self._indispensable(run, seat.party):
                self._end(run, Ending("failed", f"{cause}, and the run cannot do without it", seat.party, remedy))
                return
            self._ledger.tell(run, "trouble", f"{cause}; the run goes on without it", party=seat.party)
            if starts:
                self._ended(run, seat.party, 2)

    # What programs on nodes say.

    def heard(self, record: Record, word: Report | Trouble | Finished) -> str:
        """The word of a party on a node; why it is refused, or nothing."""
        if not isinstance(word, Trouble) and not self._starts(word.run, word.party):
            return f"'{word.party}' does not start by itself, and says no such thing"
        if self._tires(record, word.party, len(encode(word))):
            return f"'{word.party}' has said more in this run than any program says"
        if isinstance(word, Report):
            return self._reported(record.run, word.party, word.progress)
        if isinstance(word, Trouble):
            self._troubled(word)
        else:
            self._ended(record.run, word.party, 1)
        return ""

    def refused(self, run: str, node: str, reason: str) -> None:
        """A node did not take a letter: its programs may say so as often as they may say anything."""
        seats = self._seats.get(run, {})
        if any(seat.host == node for seat in seats.values()) and not self._tires(
            self._ledger.known(run), node, len(reason)
        ):
            self._table.happened(self._ledger.clock(), run, "refused", reason, node)

    def _tires(self, record: Record, party: str, size: int) -> bool:
        """Whether a party has said more than is kept of one, in words or in bytes."""
        rounds, key = record.described.rounds, (record.run, party)
        words, total = self._heard.get(key, (0, 0))
        words, total = words + 1, total + size
        if words > 1000 + 4 * (rounds or 100_000) or total > budget(rounds, len(self._seats.get(record.run, ()))):
            return True
        self._heard[key] = words, total
        return False

    # The courier of the hub's own programs.

    def send(self, work: Work, sender: str, receiver: str, body: Body) -> None:
        """To a party on a node."""
        self._metrics.messages.add("out", body.tag)
        self._mailbox.put(work.hosts[receiver], work.run, sender, receiver, body)

    def report(self, work: Work, party: str, body: Body) -> None:
        """To the observer, which is the hub's own table."""
        record = self._table.get(work.run)
        if record is not None and work.run in self._seats:
            frame = self._mailbox.frame(body)
            # What it says of the others is what they told it.
            tires = self._tires(record, party, len(frame))
            flaw = "more than any program says" if tires else self._reported(work.run, party, frame)
            if flaw:
                self._ledger.log.error("report refused", run=work.run, party=party, reason=flaw)

    def finished(self, work: Work, party: str, result: Body) -> None:
        """The hub's own program has ended."""
        record = self._table.get(work.run)
        if record is not None and record.status == "running":
            self._table.keep_result(work.run, result)
            self._ended(work.run, party, 1)

    def trouble(self, work: Work, party: str, failed: Failed, fatal: bool) -> None:
        """The hub's own program failed."""
        record = self._table.get(work.run)
        if record is not None and record.status in ACTIVE:
            # Each program counts here as the party that it is, so a lost worker of the server ends the run by name.
            self._troubled(
                Trouble(work.run, work.attempt, party, failed.kind, failed.what, failed.round, failed.remedy, fatal)
            )

    # What follows.

    def _reported(self, run: str, party: str, frame: bytes) -> str:
        try:
            progress = decode(frame, Progress, MAX_PROGRESS)
        except MessageError as error:
            return str(error)
        if not 0 <= progress.round < 1 << 53:
            return f"there is no round {progress.round}"
        strangers = progress.parties.keys() - self._seats.get(run, {}).keys()
        if strangers and self.seat_of(run, party) != HUB:
            return f"'{min(strangers)[:100]}' takes no part in the run, and has no metrics in it"
        known = self._metrics_of.setdefault(run, set())
        names = known.union(progress.metrics, *progress.parties.values())
        if len(names) > METRICS:
            return f"the run would have more than {METRICS} different metrics"
        self._metrics_of[run] = names
        self._ledger.tell(run, "round", progress.note, party=party, round=progress.round, progress=frame)
        self._table.set(run, round=progress.round)
        self._metrics.rounds.add()
        now = self._ledger.clock()
        self._metrics.round_seconds.observe(max(0.0, now - self._began.get(run, now)))
        self._began[run] = now
        return ""

    def _troubled(self, word: Trouble) -> None:
        text = f"{word.kind}: {word.cause}" + (f"; {word.remedy}" if word.remedy else "")
        self._ledger.tell(word.run, "trouble", text, party=word.party, round=word.round)
        if not word.fatal:
            return
        if self._indispensable(word.run, word.party):
            self._end(word.run, Ending("failed", word.cause, word.party, word.remedy, word.round))
        elif self._starts(word.run, word.party):
            self._ended(word.run, word.party, 2)

    def _ended(self, run: str, party: str, how: int) -> None:
        """A party that started by itself has ended; the run is over when all have."""
        self._table.finished(run, party, how)
        starting = [
            seat for seat in self._table.seats(run) if self._starts(run, seat.party) and seat.answer == "accepted"
        ]
        if not all(seat.finished for seat in starting):
            return
        if any(seat.finished == 1 for seat in starting):
            self._end(run, Ending("completed"))
        else:
            self._end(run, Ending("failed", "every party's program failed", party, f"see: hansa logs {run}"))

    def _overdue(self, run: str) -> None:
        cause = f"it took longer than the hub's limit of {self._settings.limits.run:g} s"
        self._end(run, Ending("failed", cause, "", f"raise [limits] run in hub.toml, then: hansa resume {run}"))

    def _starts(self, run: str, party: str) -> bool:
        plan = self._ledger.known(run).described
        return plan.roles[plan.role_of(party)].starts

    def _indispensable(self, run: str, party: str) -> bool:
        """Whether the run has no point without this party: the one of its role, or the last that is left."""
        if not self._starts(run, party):
            return False
        seats = [seat for seat in self._table.seats(run) if seat.answer == "accepted" and seat.party != party]
        return not any(self._starts(run, seat.party) and seat.finished != 2 for seat in seats)
