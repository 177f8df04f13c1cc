"""The hub's runs: from the submission to a true end.

::

    queued -> joining -> running -> completed
                 \\          \\----> failed    (a cause, the party, what to do)
                  \\----------\\---> stopped   -> queued again, by `resume`

Every change of state is a row and an event, in the transaction of what brought it about; so after a crash at any instant a run
is where its last event says, and goes on from there. Every state that holds machines has an end: joining has its window, running
has the plan's own deadlines and the hub's limit, and a machine whose programs nobody can do without has as long to come back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Final, final

from msgspec.structs import replace

from hansa.deployment import packets
from hansa.deployment.api import Event, Participant, RunView, Submit
from hansa.deployment.host import Host, Work, Workers
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.packets import BUSY, Answer, End, Finished, Offer, Report, Start, Trouble
from hansa.deployment.policy import asker
from hansa.deployment.quantity import Address
from hansa.deployment.settings import HubSettings
from hansa.deployment.shape import DataShape
from hansa.deployment.store import ACTIVE, TERMINAL, Database, Journal, Mailbox, MemberTable, Record, RunTable, Seat
from hansa.deployment.worker.frames import Body, Described, Failed, RoleTerms
from hansa.errors import ConfigError, MessageError
from hansa.message import decode, encode
from hansa.protocol import Progress

HUB: Final = "hub"
APPROVAL: Final = 86400.0
"""Seconds that a run waits for owners who have been asked; a person answers, not a program."""
LOST_AFTER: Final = 600.0
"""Seconds that a machine with a program that the run waits for may be away."""
MAX_PROGRESS: Final = 1 << 20
"""Bytes of what a program says of one round."""


@final
class Runs:
    """All runs of one hub.

    Args:
        database, mailbox, journal, members: where everything is kept.
        workers: who reads plans.
        settings: the hub's limits.
        certificate: the hub's own certificate, PEM, as it is now.
        connected: whether a node is connected.
        log, metrics: where what happens is noted.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        database: Database,
        mailbox: Mailbox,
        journal: Journal,
        members: MemberTable,
        workers: Workers,
        settings: HubSettings,
        certificate: Callable[[], bytes],
        connected: Callable[[str], bool],
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.table = RunTable(database, mailbox)
        self._db = database
        self._mailbox = mailbox
        self._journal = journal
        self._members = members
        self._workers = workers
        self._settings = settings
        self._certificate = certificate
        self._connected = connected
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._absent: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._seats: dict[str, dict[str, Seat]] = {}
        self._began: dict[str, float] = {}
        self._heard: dict[tuple[str, str], int] = {}
        self._clearing: set[asyncio.Future[list[None]]] = set()
        self.host: Host | None = None
        self.over: Callable[[str], None] | None = None

    # What people ask.

    async def submit(self, owner: tuple[str, str], request: Submit) -> str:
        """A new run; its name.

        Raises:
            ConfigError: the plan or the request cannot be used; nothing was kept.
        """
        plan = await self._workers.describe(request.plan)
        request = replace(request, data=request.data or plan.name)
        parties = self._asked(request, plan.roles)
        run = secrets.token_hex(8)
        self.table.add(run, request.name or plan.name or run, owner, plan, encode(request), self._clock())
        for role, kind in plan.roles.items():
            for party in parties if kind.many else [role]:
                self.table.seat(run, party, party if kind.many else request.server)
        self._tell(run, "status", f"submitted by {owner[0]} {owner[1]}; waits for its turn")
        self._next()
        return run

    def stop(self, run: str, who: str) -> None:
        """End a run by request.

        Raises:
            ConfigError: it has ended already.
        """
        record = self._known(run)
        if record.status in TERMINAL:
            raise ConfigError(f"run {run} has {record.status} already")
        self._close(run, "stopped", f"stopped by {who}", "", f"go on with: hansa resume {run}")

    def resume(self, run: str, who: str) -> None:
        """Put a run that was stopped, or failed, into the queue again; it goes on from what its programs saved.

        Raises:
            ConfigError: it is under way, or is complete.
        """
        record = self._known(run)
        if record.status not in ("stopped", "failed"):
            raise ConfigError(f"run {run} is {record.status}; only a run that was stopped or failed can be resumed")
        self.table.unseat(run)
        self.table.set(
            run, status="queued", cause="", party="", remedy="", ended=None, attempt=record.attempt + 1,
            created=self._clock(),
        )  # fmt: skip
        self._tell(run, "status", f"resumed by {who}; waits for its turn")
        self._next()

    def view(self, record: Record) -> RunView:
        """A run, for those who may see it."""
        plan = record.described
        seats = tuple(
            Participant(seat.party, seat.host, seat.answer, seat.reason, seat.host == HUB or self._connected(seat.host))
            for seat in self.table.seats(record.run)
        )
        return RunView(
            record.run, record.name, record.owner[1], record.status, record.cause, record.party, record.remedy,
            record.round, plan.rounds, record.created, record.started, record.ended, plan.terms.digest, seats,
        )  # fmt: skip

    def news(self, run: str) -> asyncio.Event:
        """Set when something happens in a run; whoever waits on it reads the table."""
        return self._news.setdefault(run, asyncio.Event())

    # What nodes say.

    def heard(self, node: str, word: Answer | Report | Trouble | Finished) -> str:
        """A node's word about a run; why it is refused, or nothing."""
        record = self.table.get(word.run)
        mine = {seat.party for seat in self.table.seats(word.run) if seat.host == node}
        if record is None or not mine:
            return "there is no such run, or you take no part in it"
        if not isinstance(word, Answer) and word.party not in mine:
            return f"'{word.party}' is not yours to speak for"
        if record.status not in ACTIVE or (not isinstance(word, Report) and word.attempt != record.attempt):
            return ""  # it crossed the end of the run
        if isinstance(word, Report | Finished) and not self._starts(word.run, word.party):
            return f"'{word.party}' does not start by itself, and says no such thing"
        if not isinstance(word, Answer) and self._tires(record, word.party):
            return f"'{word.party}' has said more in this run than any program says"
        if isinstance(word, Answer):
            self._answered(record, node, word)
        elif isinstance(word, Report):
            return self._reported(record, word.party, word.progress)
        elif isinstance(word, Trouble):
            self._troubled(record, word)
        else:
            self._ended(record, word.party, 1)
        return ""

    def seat_of(self, run: str, party: str) -> str:
        """The machine that a party of a running run is on; empty for a stranger, or if the run is not running."""
        seats = self._seats.get(run)
        seat = seats.get(party) if seats is not None else None
        return seat.host if seat is not None else ""

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

    # The courier of the hub's own programs.

    def send(self, work: Work, sender: str, receiver: str, body: Body) -> None:
        """To a party on a node."""
        self._metrics.messages.add("out", body.tag)
        self._mailbox.put(work.hosts[receiver], work.run, sender, receiver, body)

    def report(self, work: Work, party: str, body: Body) -> None:
        """To the observer, which is the hub's own table."""
        record = self.table.get(work.run)
        if record is not None and body.inline is not None:
            flaw = self._reported(record, party, body.inline)
            if flaw:
                self._log.error("report refused", run=work.run, party=party, reason=flaw)

    def finished(self, work: Work, party: str, result: Body) -> None:
        """The hub's own program has ended."""
        record = self.table.get(work.run)
        if record is not None and record.status == "running":
            self.table.keep_result(work.run, result)
            self._ended(record, party, 1)

    def trouble(self, work: Work, party: str, failed: Failed, fatal: bool) -> None:
        """The hub's own program failed."""
        record = self.table.get(work.run)
        if record is not None and record.status in ACTIVE:
            # Each program counts here as the party that it is, so a lost worker of the server ends the run by name.
            word = Trouble(work.run, work.attempt, party, failed.kind, failed.what, failed.round, failed.remedy, fatal)
            self._troubled(record, word)

    # Life and death.

    def recover(self) -> None:
        """Go on with everything that was under way when this hub last ended."""
        for record in self.table.all(ACTIVE):
            self._log.info("run goes on", run=record.run, status=record.status)
            if record.status == "joining":
                spent = self._clock() - (record.started or self._clock())
                self._arm(record.run, max(0.0, self._window(record) - spent), self._decide)
            else:
                self._run(record)
        self._next()

    def close(self) -> None:
        """Forget all timers."""
        for timer in (*self._timers.values(), *self._absent.values()):
            timer.cancel()

    def _next(self) -> None:
        """Let queued runs begin, as far as there is room: the next is of whoever has the fewest under way."""
        active = self.table.all(ACTIVE)
        queued = self.table.all(("queued",))
        while queued and len(active) < self._settings.limits.runs_at_once:
            busy = [record.owner for record in active]
            record = min(queued, key=lambda waiting: (busy.count(waiting.owner), waiting.created))
            queued.remove(record)
            active.append(record)
            self._offer(record)
        for status in (*ACTIVE, *TERMINAL, "queued"):
            self._metrics.runs.set(self.table.counts().get(status, 0), status)

    def _offer(self, record: Record) -> None:
        plan, seats = record.described, self.table.seats(record.run)
        request = _request(record)
        now = self._clock()
        self.table.set(record.run, status="joining", started=now)
        self._journal.rewind(record.run)
        self._tell(record.run, "status", "asks its parties")
        hosts = {seat.party: seat.host for seat in seats}
        machines = dict.fromkeys(hosts.values())
        roles: dict[str, set[str]] = {}
        for party, host in hosts.items():
            roles.setdefault(host, set()).add(plan.role_of(party))
        known = {name: member for name in machines if (member := self._members.get(name)) is not None}
        certificates = {name: member.certificate.decode() for name, member in known.items()}
        certificates[HUB] = self._certificate().decode()
        offer = Offer(
            record.run, record.attempt, record.name, plan.plan, plan.terms.digest, asker(*record.owner), request.data,
            _roles(plan, hosts), hosts, {}, self._window(record),
        )  # fmt: skip
        partners: dict[frozenset[str], set[str]] = {}
        for machine in machines:
            if machine == HUB:
                self.table.answered(record.run, HUB, "accepted", "")
                continue
            # Each is told the keys of those with whom it may talk: of thousands, those are few.
            mine = frozenset(roles[machine])
            if mine not in partners:
                partners[mine] = plan.partners(mine, hosts) | {HUB}
            shown = {name: certificates[name] for name in partners[mine] - {machine} if name in certificates}
            self._control(machine, replace(offer, certificates=shown))
        self._arm(record.run, self._window(record), self._decide)
        self._consider(record.run)

    def _answered(self, record: Record, node: str, word: Answer) -> None:
        if word.verdict not in ("accepted", "refused", "pending"):
            return
        before = next((seat.answer for seat in self.table.seats(record.run) if seat.host == node), "")
        if before in ("accepted", "refused") and record.status == "joining":
            return  # one answer is an answer
        if record.status != "joining":
            seated = any(seat.host == node for seat in self._seats.get(record.run, {}).values())
            if word.verdict == "accepted" and record.status == "running" and not seated:
                self._control(node, End(record.run, record.attempt, "left out", "the run began without this party"))
            return
        try:
            address = str(Address.of(word.address)) if word.address else ""
        except ConfigError:
            address = ""  # a machine that cannot say where it is cannot be dialled
        self.table.answered(record.run, node, word.verdict, word.reason, address, word.shape)
        text = f"{node} {_SAID[word.verdict]}" + (f": {word.reason}" if word.reason else "")
        if word.verdict == "pending" and word.reason.startswith(BUSY):
            text = f"{node} is {word.reason}"
        self._tell(record.run, "answer", text, party=node)
        self._consider(record.run)

    def _consider(self, run: str) -> None:
        """Begin, or give up, as soon as the answers allow it."""
        record = self._known(run)
        answers = [seat.answer for seat in self.table.seats(run)]
        late = record.started is not None and self._clock() >= record.started + self._window(record)
        if late or all(answer in ("accepted", "refused") for answer in answers):
            self._decide(run)

    def _decide(self, run: str) -> None:
        """The window is over, or all have answered."""
        record = self.table.get(run)
        if record is None or record.status != "joining":
            return
        request, plan, now = _request(record), record.described, self._clock()
        self._compare(record)
        seats = self.table.seats(run)
        owners = [seat for seat in seats if plan.role_of(seat.party) == plan.many]
        single = [seat for seat in seats if seat not in owners]
        accepted = [seat for seat in owners if seat.answer == "accepted"]
        least = request.least or len(owners)
        lacking = [seat for seat in single if seat.answer != "accepted"]
        if lacking or len(accepted) < least:
            pending = [seat for seat in seats if seat.answer == "pending"]
            hopeless = any(seat not in pending for seat in lacking)
            hopeless = hopeless or len(accepted) + sum(seat in pending for seat in owners) < least
            if not hopeless and now < (record.started or now) + APPROVAL:
                self._arm(run, (record.started or now) + APPROVAL - now, self._decide)
                return
            why = "; ".join(_why(seat) for seat in (*single, *owners) if seat.answer != "accepted")
            self._close(
                run, "failed", f"{len(accepted)} of {len(owners)} parties accepted and {least} are wanted: {why}",
                next((seat.party for seat in (*lacking, *owners) if seat.answer != "accepted"), ""),
                "settle it with them, or submit with a lower --least",
            )  # fmt: skip
            return
        self.table.set(run, status="running", started=now)
        self._tell(run, "status", f"runs with {len(accepted)} parties")
        hosts = {seat.party: seat.host for seat in (*single, *accepted)}
        addresses = {seat.host: seat.address for seat in (*single, *accepted) if seat.address}
        start = Start(run, record.attempt, _roles(plan, hosts), addresses, _shape(accepted))
        for machine in dict.fromkeys(seat.host for seat in seats):
            if machine == HUB:
                continue
            if machine in hosts.values():
                self._control(machine, start)
            else:
                self._control(machine, End(run, record.attempt, "left out", "the run began without this party"))
        self._run(self._known(run))

    def _compare(self, record: Record) -> None:
        """Leave out who has other features or classes than most: one model cannot be trained on both, or is trained wrongly."""
        accepted = [
            seat for seat in self.table.seats(record.run) if seat.answer == "accepted" and seat.shape is not None
        ]
        shapes = [seat.shape for seat in accepted if seat.shape is not None]
        if not shapes:
            return
        most = max(shapes, key=shapes.count)
        for seat, shape in zip(accepted, shapes, strict=True):
            if flaw := shape.differs(most):
                self.table.answered(record.run, seat.host, "refused", flaw)
                self._tell(record.run, "answer", f"{seat.host} is left out: {flaw}", party=seat.party)

    def _run(self, record: Record) -> None:
        """Everything that a running run needs in memory, and the hub's own programs."""
        plan = record.described
        seats = {seat.party: seat for seat in self.table.seats(record.run) if seat.answer == "accepted"}
        self._seats[record.run] = seats
        self._began[record.run] = self._clock()
        hosts = {party: seat.host for party, seat in seats.items()}
        bound = self._settings.data.get(_request(record).data)
        work = Work(
            record.run, record.attempt, plan.plan, _roles(plan, hosts),
            frozenset(name for name, role in plan.roles.items() if role.starts), hosts,
            {} if bound is None else bound.plain(), _shape(seats.values()),
        )  # fmt: skip
        assert self.host is not None
        self.host.begin(work)
        for machine in set(hosts.values()):
            if not self._connected(machine):
                self._miss(record.run, machine)
        spent = self._clock() - (record.started or self._clock())
        self._arm(record.run, max(1.0, self._settings.limits.run - spent), self._overdue)

    def _tires(self, record: Record, party: str) -> bool:
        """Whether a party on a node has said more than is kept of one."""
        key = record.run, party
        self._heard[key] = said = self._heard.get(key, 0) + 1
        return said > 1000 + 4 * (record.described.rounds or 100_000)

    def _reported(self, record: Record, party: str, frame: bytes) -> str:
        try:
            progress = decode(frame, Progress, MAX_PROGRESS)
        except MessageError as error:
            return str(error)
        if not 0 <= progress.round < 1 << 53:
            return f"there is no round {progress.round}"
        self._tell(record.run, "round", progress.note, party=party, round=progress.round, progress=frame)
        self.table.set(record.run, round=progress.round)
        self._metrics.rounds.add()
        now = self._clock()
        self._metrics.round_seconds.observe(max(0.0, now - self._began.get(record.run, now)))
        self._began[record.run] = now
        return ""

    def _troubled(self, record: Record, word: Trouble) -> None:
        text = f"{word.kind}: {word.cause}" + (f"; {word.remedy}" if word.remedy else "")
        self._tell(record.run, "trouble", text, party=word.party, round=word.round)
        if not word.fatal:
            return
        if self._indispensable(record.run, word.party):
            self._close(record.run, "failed", word.cause, word.party, word.remedy, round=word.round)
        elif self._starts(record.run, word.party):
            self._ended(record, word.party, 2)

    def _ended(self, record: Record, party: str, how: int) -> None:
        """A party that started by itself has ended; the run is over when all have."""
        run = record.run
        self.table.finished(run, party, how)
        starting = [
            seat for seat in self.table.seats(run) if self._starts(run, seat.party) and seat.answer == "accepted"
        ]
        if not all(seat.finished for seat in starting):
            return
        if any(seat.finished == 1 for seat in starting):
            self._close(run, "completed", "", "", "")
        else:
            self._close(run, "failed", "every party's program failed", party, f"see: hansa logs {run}")

    def _gone(self, run: str, node: str) -> None:
        self._absent.pop((run, node), None)
        record = self.table.get(run)
        if record is None or record.status != "running" or self._connected(node):
            return
        cause = f"{node} has been away for {LOST_AFTER:g} s"
        for seat in self.table.seats(run):
            if seat.host == node and seat.answer == "accepted" and not seat.finished and self._starts(run, seat.party):
                if self._indispensable(run, seat.party):
                    remedy = f"bring it back, then: hansa resume {run}"
                    self._close(run, "failed", f"{cause}, and the run cannot do without it", seat.party, remedy)
                    return
                self._tell(run, "trouble", f"{cause}; the run goes on without it", party=seat.party)
                self._ended(record, seat.party, 2)

    def _overdue(self, run: str) -> None:
        limit = self._settings.limits.run
        self._close(
            run, "failed", f"it took longer than the hub's limit of {limit:g} s", "",
            f"raise [limits] run in hub.toml, then: hansa resume {run}",
        )  # fmt: skip

    def _close(self, run: str, status: str, cause: str, party: str, remedy: str, round: int | None = None) -> None:
        """The run's end, whatever it was."""
        record = self._known(run)
        assert self.host is not None
        clearing = self.host.end(run)
        self._clearing.add(clearing)
        clearing.add_done_callback(self._clearing.discard)
        if status == "completed":
            self._journal.forget(run)
        else:
            self._journal.rewind(run)
        self.table.set(run, status=status, cause=cause, party=party, remedy=remedy, ended=self._clock())
        place = ", ".join(filter(None, [party, "" if round is None else f"round {round}"]))
        self._tell(run, "status", f"{status}" + (f": {place + ': ' if place else ''}{cause}" if cause else ""), party)
        if status == "failed":
            self._metrics.failures.add(cause[:40])
        timer = self._timers.pop(run, None)
        if timer is not None:
            timer.cancel()
        self._seats.pop(run, None)
        for key in [key for key in self._absent if key[0] == run]:
            self._absent.pop(key).cancel()
        for key in [key for key in self._heard if key[0] == run]:
            del self._heard[key]
        self._mailbox.drop(run)
        if self.over is not None:
            self.over(run)
        for machine in dict.fromkeys(seat.host for seat in self.table.seats(run)):
            if machine != HUB:
                self._control(machine, End(run, record.attempt, status, cause))
        self._next()

    # Small things.

    def _tell(
        self, run: str, kind: str, text: str, party: str = "", round: int | None = None, progress: bytes | None = None
    ) -> Event:
        event = self.table.happened(self._clock(), run, kind, text, party, round, progress)
        news = self._news.pop(run, None)
        if news is not None:
            self._db.after(news.set)
        self._log.info(kind, run=run, party=party or None, round=round, text=text or None)
        return event

    def _control(self, machine: str, word: Offer | Start | End) -> None:
        self._mailbox.put(machine, "", "", "", packets.control(word))

    def _arm(self, run: str, seconds: float, action: Callable[[str], None]) -> None:
        before = self._timers.pop(run, None)
        if before is not None:
            before.cancel()
        self._timers[run] = asyncio.get_running_loop().call_later(seconds, action, run)

    def _window(self, record: Record) -> float:
        return _request(record).seconds or self._settings.limits.join

    def _known(self, run: str) -> Record:
        record = self.table.get(run)
        assert record is not None
        return record

    def _starts(self, run: str, party: str) -> bool:
        plan = self._known(run).described
        return plan.roles[plan.role_of(party)].starts

    def _indispensable(self, run: str, party: str) -> bool:
        """Whether the run has no point without this party: the one of its role, or the last that is left."""
        if not self._starts(run, party):
            return False
        seats = [seat for seat in self.table.seats(run) if seat.answer == "accepted" and seat.party != party]
        return not any(self._starts(run, seat.party) and seat.finished != 2 for seat in seats)

    def _asked(self, request: Submit, roles: Mapping[str, RoleTerms]) -> list[str]:
        """The nodes that are asked.

        Raises:
            ConfigError: one of them is no node, or there are none.
        """
        nodes = [member.name for member in self._members.all() if member.kind == "node" and member.revoked is None]
        strangers = [name for name in (*request.parties, request.server) if name not in nodes and name != HUB]
        if strangers:
            raise ConfigError(f"no node of this federation is called {strangers[0]!r}; see: hansa members")
        parties = list(dict.fromkeys(request.parties)) or nodes
        if not parties:
            raise ConfigError("this federation has no nodes yet; invite one with: hansa invite NAME")
        if HUB in parties:
            raise ConfigError("the hub owns no data; name nodes as parties")
        taken = [name for name, role in roles.items() if not role.many and name in parties]
        if taken:
            raise ConfigError(f"the node {taken[0]!r} has the name of a role of this protocol, and cannot take part")
        if not 0 <= request.least <= len(parties):
            raise ConfigError(f"least is at most the {len(parties)} parties asked, not {request.least}")
        if not 0 <= request.seconds <= APPROVAL:
            raise ConfigError(f"the parties have at most {APPROVAL:g} seconds to join, not {request.seconds}")
        return parties


_SAID: Final = {"accepted": "takes part", "refused": "does not take part", "pending": "asks its owner"}


def _request(record: Record) -> Submit:
    return decode(record.request, Submit)


def _roles(plan: Described, parties: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The parties by role, in the order of the seats."""
    return {role: tuple(party for party in parties if plan.role_of(party) == role) for role in plan.roles}


def _shape(seats: Iterable[Seat]) -> DataShape | None:
    """The shape of the parties' data, which is the same for all."""
    return next((seat.shape for seat in seats if seat.shape is not None), None)


def _why(seat: Seat) -> str:
    if seat.answer == "pending" and seat.reason.startswith(BUSY):
        return f"{seat.party} is {seat.reason}"
    said = {"refused": "refused", "pending": "its owner has not answered"}.get(seat.answer, "did not answer")
    return f"{seat.party} {said}" + (f" ({seat.reason})" if seat.reason else "")
