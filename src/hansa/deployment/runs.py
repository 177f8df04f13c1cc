"""The hub's runs: from the submission to a true end.

::

    queued -> joining -> running -> completed
                 \\          \\----> failed    (a cause, the party, what to do)
                  \\----------\\---> stopped   -> queued again, by `resume`

Here are the turns, the requests of people, and the ends; `joining.py` and `running.py` are the two states that hold machines.
Every change of state is a row and an event, in the transaction of what brought it about; so after a crash at any instant a run
is where its last event says, and goes on from there. Every state that holds machines has an end: joining has its window, running
has the plan's own deadlines and the hub's limit, and a machine whose programs nobody can do without has as long to come back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import final

from msgspec.structs import replace

from hansa.deployment import packets
from hansa.deployment.api import Participant, RunView, Submit
from hansa.deployment.host import Workers
from hansa.deployment.identity.names import HUB
from hansa.deployment.joining import APPROVAL, Joining
from hansa.deployment.ledger import Ending, Ledger, request_of
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.packets import Answer, End, Finished, Report, Trouble
from hansa.deployment.running import Running
from hansa.deployment.settings import HubSettings
from hansa.deployment.store import ACTIVE, TERMINAL, Database, Journal, Mailbox, MemberTable, Record
from hansa.deployment.worker.frames import Described, RoleTerms
from hansa.errors import ConfigError, NotAuthorized
from hansa.message import encode


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
        self.ledger = Ledger(database, mailbox, log, clock)
        self.table = self.ledger.table
        self.running = Running(self.ledger, mailbox, settings, connected, metrics, self._end)
        self.joining = Joining(
            self.ledger, journal, members, settings.limits.join, certificate, connected, self.running.begin, self._end
        )
        self._mailbox = mailbox
        self._journal = journal
        self._members = members
        self._workers = workers
        self._at_once = settings.limits.runs_at_once
        self._each = settings.limits.runs_each
        self._connected = connected
        self._metrics = metrics
        self._reading: Counter[tuple[str, str]] = Counter()
        self._turns: dict[tuple[str, str], asyncio.Lock] = {}
        self.over: Callable[[str], None] | None = None

    # What people ask.

    async def submit(self, owner: tuple[str, str], request: Submit) -> str:
        """A new run; its name.

        Raises:
            ConfigError: the plan or the request cannot be used, or this owner has runs enough; nothing was kept.
            NotAuthorized: it was revoked meanwhile.
        """
        self._require_room(owner)
        self._reading[owner] += 1
        try:
            # Each plan is read by a process: an owner has one of them, and waits for it behind itself alone.
            async with self._turns.setdefault(owner, asyncio.Lock()):
                plan = await self._workers.describe(request.plan)
        finally:
            self._reading[owner] -= 1
        member = self._members.get(owner[1])
        if member is not None and member.revoked is not None:
            raise NotAuthorized(f"{owner[0]} '{owner[1]}' was revoked while its plan was read")
        request = replace(request, data=request.data or plan.name)
        return self._add(owner, plan, request, f"submitted by {owner[0]} {owner[1]}")

    def _add(self, owner: tuple[str, str], plan: Described, request: Submit, told: str) -> str:
        parties = self._asked(request, plan.roles)
        _require_enough(plan, request, parties)
        self._require_room(owner)  # others of its may have come while the plan was read
        run = secrets.token_hex(8)
        name, hosts = request.name or plan.name or run, dict[str, str]()
        for role, kind in plan.roles.items():
            hosts.update(
                {party: party if kind.many else request.server for party in (parties if kind.many else [role])}
            )
        self.joining.require_tellable(name, owner, plan, request, hosts)
        self.table.add(run, name, owner, plan, encode(request), self.ledger.clock())
        for party, host in hosts.items():
            self.table.seat(run, party, host)
        self.ledger.tell(run, "status", f"{told}; waits for its turn")
        self._next()
        return run

    def stop(self, run: str, who: str) -> None:
        """End a run by request.

        Raises:
            ConfigError: it has ended already.
        """
        record = self.ledger.known(run)
        if record.status in TERMINAL:
            raise ConfigError(f"run {run} has {record.status} already")
        self._end(run, Ending("stopped", f"stopped by {who}", "", f"go on with: hansa resume {run}"))

    def resume(self, run: str, who: str) -> str:
        """Put a run that was stopped, or failed, into the queue again; it goes on from what its programs saved.

        One of which a machine has forgotten its part begins anew, as another run: others may hold what was saved later than what is
        known here, and have seen attempts that are not known here.

        Returns:
            The name of the run that goes on.

        Raises:
            ConfigError: it is under way, or is complete; or it would begin anew, and its request cannot be used any more; or its
                owner has runs enough.
        """
        record = self.ledger.known(run)
        if record.status not in ("stopped", "failed"):
            raise ConfigError(f"run {run} is {record.status}; only a run that was stopped or failed can be resumed")
        self._require_room(record.owner)
        if record.anew:
            again = self._add(record.owner, record.described, request_of(record), f"begun anew by {who}, of run {run}")
            self.table.set(run, remedy=f"it was begun anew as run {again}")
            return again
        self.table.unseat(run)
        self.table.set(
            run, status="queued", cause="", party="", remedy="", ended=None, attempt=record.attempt + 1,
            created=self.ledger.clock(),
        )  # fmt: skip
        self.ledger.tell(run, "status", f"resumed by {who}; waits for its turn")
        self._next()
        return run

    def require_over(self, run: str) -> Record:
        """A run, only if it has ended.

        Raises:
            ConfigError: it has not.
        """
        record = self.ledger.known(run)
        if record.status not in TERMINAL:
            raise ConfigError(
                f"run {run} is {record.status}, and only a run that has ended can be forgotten; end it with: hansa stop {run}"
            )
        return record

    def forget(self, run: str) -> None:
        """Forget all of a run that has ended but what nodes that are away have to hear of its end."""
        self._journal.forget(run)
        self._mailbox.end(run)
        self.ledger.forget(run)
        self._count()

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

    def _require_room(self, owner: tuple[str, str]) -> None:
        """Go on only if an owner may have one more run.

        Raises:
            ConfigError: it has as many as the hub's limit allows.
        """
        found = self.table.unfinished(owner) + self._reading[owner]
        if found >= self._each:
            raise ConfigError(
                f"{owner[0]} '{owner[1]}' has {found} runs that have not ended, and the hub's limit is {self._each}: wait until one "
                f"has ended, stop one (hansa stop RUN), or ask the hub's operator to raise [limits] runs_each"
            )

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
        if isinstance(word, Answer):
            return self.joining.answered(record, node, word)
        # Before a run begins, and of whoever was left out, nothing is known that it could do without.
        return self.running.heard(record, word) if self.running.seat_of(word.run, word.party) else ""

    def lost(self, node: str, cause: str) -> None:
        """A node has forgotten what it did for runs that are not complete; those under way go on without it, or end."""
        for record in self.table.all(("queued", *ACTIVE, "stopped", "failed")):
            if all(seat.host != node for seat in self.table.seats(record.run)):
                continue
            if record.status == "queued" and record.attempt == 1:
                continue  # nobody was asked yet
            self.table.set(record.run, anew=1)
            if record.status == "queued":
                remedy = f"begin it anew with: hansa resume {record.run}"
                self._end(record.run, Ending("failed", f"{cause}, which the run was to go on from", node, remedy))
            elif record.status == "joining":
                self.joining.lost(record, node, cause)
            elif record.status == "running":
                self.running.lost(record, node, cause)

    # Turns and ends.

    def recover(self, doubtful: Sequence[str] = ()) -> None:
        """Go on with everything that was under way when this hub last ended.

        Args:
            doubtful: the runs whose letters the machine lost with its power; they go on from what was saved, by a further attempt.
        """
        active = self.table.all(ACTIVE)
        for record in [record for record in active if record.run not in doubtful]:
            self.ledger.log.info("run goes on", run=record.run, status=record.status)
            if record.status == "joining":
                self.joining.recover(record)
            else:
                self.running.begin(record)
        for record in [record for record in active if record.run in doubtful]:
            cause = "the hub's machine lost its power, and with it letters under way"
            self._end(record.run, Ending("failed", cause, "", "it goes on by itself from what was saved"))
            try:
                self.resume(record.run, "the hub")
            except ConfigError as error:
                self.table.set(record.run, remedy=f"it does not go on by itself: {error}")
        self._next()

    def close(self) -> None:
        """Forget all timers."""
        self.ledger.close()
        self.running.close()

    def _next(self) -> None:
        """Let queued runs begin, as far as there is room: the next is of whoever has the fewest under way."""
        active = self.table.all(ACTIVE)
        queued = self.table.all(("queued",))
        while queued and len(active) < self._at_once:
            busy = [record.owner for record in active]
            record = min(queued, key=lambda waiting: (busy.count(waiting.owner), waiting.created))
            queued.remove(record)
            active.append(record)
            self.joining.offer(record)
        self._count()

    def _count(self) -> None:
        counts = self.table.counts()
        for status in (*ACTIVE, *TERMINAL, "queued"):
            self._metrics.runs.set(counts.get(status, 0), status)

    def _end(self, run: str, how: Ending) -> None:
        """A run's end, whatever it was."""
        record = self.ledger.known(run)
        self.ledger.disarm(run)
        self.running.leave(run)
        self.joining.leave(run)
        if how.status == "completed":
            self._journal.forget(run)
        else:
            self._journal.rewind(run)
        self.table.set(
            run, status=how.status, cause=how.cause, party=how.party, remedy=how.remedy, ended=self.ledger.clock()
        )
        place = ", ".join(filter(None, [how.party, "" if how.round is None else f"round {how.round}"]))
        told = f": {place + ': ' if place else ''}{how.cause}" if how.cause else ""
        self.ledger.tell(run, "status", how.status + told, how.party)
        if how.status == "failed":
            self._metrics.failures.add(how.cause[:40])
        self._mailbox.drop(run)
        if self.over is not None:
            self.over(run)
        self._mailbox.end(run)
        for machine in dict.fromkeys(seat.host for seat in self.table.seats(run)):
            if machine != HUB:
                self.ledger.withdraw(machine, run)
                # A cause may hold what many parties said; an end that is too long to be read would never be heard.
                self.ledger.control(machine, End(run, record.attempt, how.status, packets.sentence(how.cause)))
        self._next()


def _require_enough(plan: Described, request: Submit, parties: Sequence[str]) -> None:
    """Go on only if the plan's programs would begin with the parties that are asked, and with the least of them.

    Raises:
        ConfigError: they would refuse.
    """
    absent = [name for name in plan.terms.named or () if name not in parties]
    if absent:
        raise ConfigError(
            f"the plan's sampling names {absent[0]!r}, which is not asked: name it in --parties too, or leave it out of the plan"
        )
    asked, least = len(parties), request.least or len(parties)
    if plan.needed <= least:
        return
    what = f"[protocol] {plan.setting} = {plan.needed}" if plan.setting else "the plan's protocol"
    lower = (
        f"set {plan.setting} to {least} or less (--set protocol.{plan.setting}={least}), or " if plan.setting else ""
    )
    if plan.needed > asked:
        few = f"{asked} {'is' if asked == 1 else 'are'} asked"
        raise ConfigError(f"{what} needs {plan.needed} parties, and {few}: {lower}ask more parties")
    raise ConfigError(
        f"{what} needs {plan.needed} parties, and with --least {least} the run could begin with fewer: {lower}raise --least to {plan.needed}"
    )
