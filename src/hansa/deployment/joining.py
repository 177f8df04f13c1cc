"""How a run comes about: its parties are asked, answer, are compared, and it begins with them or fails for want of them.

A window ends the asking, so that no party can hold up a run by silence; an owner who has been asked may take longer, where the run
cannot begin without that answer, and no longer than a day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, final

from msgspec.structs import replace

from hansa.deployment.api import Submit
from hansa.deployment.identity.names import HUB
from hansa.deployment.ledger import Ending, Ledger, request_of, shape_of
from hansa.deployment.packets import BUSY, MAX_PACKET, Answer, End, Offer, Start
from hansa.deployment.policy import asker
from hansa.deployment.quantity import Address
from hansa.deployment.store import Journal, MemberTable, Record, Seat
from hansa.deployment.worker.frames import Described
from hansa.errors import ConfigError
from hansa.message import encode

NAMED: Final = 8
"""Parties that did not accept and are named in the cause of a run's end."""
MOST_NAME: Final = 200
"""Characters of the name of a run, and of that of its data."""
APPROVAL: Final = 86400.0
"""Seconds that a run waits for owners who have been asked; a person answers, not a program."""
TELLABLE: Final = MAX_PACKET - (1 << 18)
"""Bytes of a word to a party at most: a packet, and room for certificates that are longer once they are renewed."""
ANSWERS: Final = 100
"""Answers of one machine in one attempt: it is busy, it asks its owner, it knows."""
_SAID: Final = {"accepted": "takes part", "refused": "does not take part", "pending": "asks its owner"}


@final
class Joining:
    """The runs whose parties are asked.

    Args:
        ledger: of all runs.
        journal: of the hub's own programs.
        members: whose certificates the parties are given.
        window: seconds that the parties of a run have to answer, where it does not say so itself.
        certificate: the hub's own certificate, PEM, as it is now.
        connected: whether a node is connected.
        begin: called with a run that has its parties; they have been told.
        end: called with a run that will not have them.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        members: MemberTable,
        window: float,
        certificate: Callable[[], bytes],
        connected: Callable[[str], bool],
        begin: Callable[[Record], None],
        end: Callable[[str, Ending], None],
    ) -> None:
        self._ledger = ledger
        self._table = ledger.table
        self._journal = journal
        self._members = members
        self._join = window
        self._certificate = certificate
        self._connected = connected
        self._begin = begin
        self._end = end
        self._heard: dict[tuple[str, str], int] = {}

    def require_tellable(
        self, name: str, owner: tuple[str, str], plan: Described, request: Submit, hosts: Mapping[str, str]
    ) -> None:
        """Go on only if what each machine would be told of a run fits into a packet: one that does not would close its lane for good.

        Raises:
            ConfigError: it does not, or a name is too long.
        """
        if max(len(name), len(request.data)) > MOST_NAME:
            raise ConfigError(f"the names of a run and of its data have at most {MOST_NAME} characters")
        offer = Offer(
            "0" * 16, 1, name, plan.plan, plan.terms.digest, asker(*owner), request.data, plan.by_role(hosts),
            dict(hosts), {}, 0.0,
        )  # fmt: skip
        roles: dict[str, set[str]] = {}
        for party, host in hosts.items():
            roles.setdefault(host, set()).add(plan.role_of(party))
        for mine in {frozenset(met) for host, met in roles.items() if host != HUB}:
            partners = [self._members.get(other) for other in plan.partners(mine, hosts)]
            shown = {member.name: member.certificate.decode() for member in partners if member is not None}
            size = len(encode(replace(offer, certificates=shown)))
            if size > TELLABLE:
                raise ConfigError(
                    f"what a party would be told of this run has {size} bytes, and {TELLABLE} are allowed: ask fewer parties, "
                    f"or make the plan shorter"
                )

    def leave(self, run: str) -> None:
        """A run has ended, in whatever state it was."""
        for key in [key for key in self._heard if key[0] == run]:
            del self._heard[key]

    def offer(self, record: Record) -> None:
        """Ask the machines of a run's parties."""
        plan, seats = record.described, self._table.seats(record.run)
        request = request_of(record)
        self._table.set(record.run, status="joining", started=self._ledger.clock())
        self._journal.rewind(record.run)
        self._ledger.tell(record.run, "status", "asks its parties")
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
            plan.by_role(hosts), hosts, {}, self._window(record),
        )  # fmt: skip
        partners: dict[frozenset[str], set[str]] = {}
        for machine in machines:
            if machine == HUB:
                self._table.answered(record.run, HUB, "accepted", "")
                continue
            # Each is told the keys of those with whom it may talk: of thousands, those are few.
            mine = frozenset(roles[machine])
            if mine not in partners:
                partners[mine] = plan.partners(mine, hosts) | {HUB}
            shown = {name: certificates[name] for name in partners[mine] - {machine} if name in certificates}
            self._ledger.control(machine, replace(offer, certificates=shown))
        self._await(record, [machine for machine in machines if machine != HUB and not self._connected(machine)])
        self._ledger.arm(record.run, self._window(record), self._decide)
        self._consider(record.run)

    def _await(self, record: Record, away: list[str]) -> None:
        """Say for whom a run waits who cannot have heard of it."""
        if away:
            names = ", ".join(away[:NAMED]) + (f" and {len(away) - NAMED} more" if len(away) > NAMED else "")
            which = f"{names}, which {'is' if len(away) == 1 else 'are'} away"
            self._ledger.tell(record.run, "status", f"waits up to {self._window(record):g} s for {which}")

    def recover(self, record: Record) -> None:
        """Go on asking, after the hub was down; the window went on."""
        now = self._ledger.clock()
        spent = now - (record.started or now)
        if spent < 0:  # the clock was set back, and the window begins anew
            self._table.set(record.run, started=now)
            spent = 0.0
        self._ledger.arm(record.run, max(0.0, self._window(record) - spent), self._decide)

    def answered(self, record: Record, node: str, word: Answer) -> str:
        """A node's answer; it may come too late, when the run is under way already. Why it is refused, or nothing."""
        if word.verdict not in ("accepted", "refused", "pending"):
            return f"{word.verdict!r} is no answer"
        self._heard[record.run, node] = said = self._heard.get((record.run, node), 0) + 1
        if said > ANSWERS:
            return "that was answered often enough"
        before = next((seat.answer for seat in self._table.seats(record.run) if seat.host == node), "")
        if record.status != "joining":
            if word.verdict == "accepted" and record.status == "running" and before != "accepted":
                self._leave_out(record, node)
            return ""
        if before in ("accepted", "refused"):
            return ""  # one answer is an answer
        try:
            address = str(Address.of(word.address)) if word.address else ""
        except ConfigError:
            address = ""  # a machine that cannot say where it is cannot be dialled
        self._table.answered(record.run, node, word.verdict, word.reason, address, word.shape)
        text = f"{node} {_SAID[word.verdict]}" + (f": {word.reason}" if word.reason else "")
        if word.verdict == "pending" and word.reason.startswith(BUSY):
            text = f"{node} is {word.reason}"
        self._ledger.tell(record.run, "answer", text, party=node)
        self._consider(record.run)
        return ""

    def lost(self, record: Record, node: str, cause: str) -> None:
        """A node has forgotten that it was asked."""
        self._table.answered(record.run, node, "refused", cause)
        self._ledger.tell(record.run, "answer", f"{node} {_SAID['refused']}: {cause}", party=node)
        self._consider(record.run)

    def _consider(self, run: str) -> None:
        """Begin, or give up, as soon as the answers allow it."""
        record, seats = self._ledger.known(run), self._table.seats(run)
        late = record.started is not None and self._ledger.clock() >= record.started + self._window(record)
        if late or all(seat.answer in ("accepted", "refused") for seat in seats):
            self._decide(run)
        elif self._hopeless(record, seats):
            self._give_up(record, seats)

    def _hopeless(self, record: Record, seats: list[Seat]) -> bool:
        """Whether so many have refused that no answer to come can save the run."""
        refused = [seat for seat in seats if seat.answer == "refused"]
        if not refused:
            return False
        plan = record.described
        owners = sum(plan.role_of(seat.party) == plan.many for seat in seats)
        lost = sum(plan.role_of(seat.party) == plan.many for seat in refused)
        return lost < len(refused) or owners - lost < (request_of(record).least or owners)

    def _decide(self, run: str) -> None:
        """The window is over, or all have answered."""
        record = self._table.get(run)
        if record is None or record.status != "joining":
            return
        plan, now = record.described, self._ledger.clock()
        self._compare(record)
        seats = self._table.seats(run)
        owners = [seat for seat in seats if plan.role_of(seat.party) == plan.many]
        single = [seat for seat in seats if seat not in owners]
        accepted = [seat for seat in owners if seat.answer == "accepted"]
        least = request_of(record).least or len(owners)
        lacking = [seat for seat in single if seat.answer != "accepted"]
        if not lacking and len(accepted) >= least:
            self._start(record, single, accepted)
            return
        pending = [seat for seat in seats if seat.answer == "pending"]
        hopeless = any(seat not in pending for seat in lacking)
        hopeless = hopeless or len(accepted) + sum(seat in pending for seat in owners) < least
        began = record.started or now
        if began > now:  # the clock was set back
            began = now
            self._table.set(run, started=now)
        if not hopeless and now < began + APPROVAL:
            self._ledger.arm(run, began + APPROVAL - now, self._decide)
            return
        self._fail(record, seats, [seat for seat in (*single, *owners) if seat.answer != "accepted"])

    def _give_up(self, record: Record, seats: list[Seat]) -> None:
        """End a run that was refused before all have answered; they are asked no more, and it is not for want of them."""
        for seat in seats:
            if not seat.answer:
                self._table.answered(record.run, seat.host, "", "the run ended before it answered")
        self._fail(record, seats, [seat for seat in seats if seat.answer == "refused"])

    def _fail(self, record: Record, seats: list[Seat], missing: list[Seat]) -> None:
        """End a run for want of these."""
        plan = record.described
        owners = [seat for seat in seats if plan.role_of(seat.party) == plan.many]
        accepted = sum(seat.answer == "accepted" for seat in owners)
        # Who refused comes first: of many, no more than these may be named.
        missing = sorted(missing, key=lambda seat: (plan.role_of(seat.party) == plan.many, seat.answer != "refused"))
        why = "; ".join(_why(seat) for seat in missing[:NAMED])
        why += f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        lacking = plan.role_of(missing[0].party) != plan.many
        self._end(
            record.run,
            Ending(
                "failed",
                f"{accepted} of {len(owners)} parties accepted and {request_of(record).least or len(owners)} are wanted: {why}",
                missing[0].party,
                "settle it with them, or place the server elsewhere"
                if lacking
                else "settle it with them, leave them out by naming the others with --parties, or submit with a lower --least",
            ),
        )

    def _compare(self, record: Record) -> None:
        """Leave out who has other features or classes than most: one model cannot be trained on both, or is trained wrongly."""
        accepted = [
            seat for seat in self._table.seats(record.run) if seat.answer == "accepted" and seat.shape is not None
        ]
        shapes = [seat.shape for seat in accepted if seat.shape is not None]
        if not shapes:
            return
        most = max(shapes, key=shapes.count)
        for seat, shape in zip(accepted, shapes, strict=True):
            if flaw := shape.differs(most):
                self._table.answered(record.run, seat.host, "refused", flaw)
                self._ledger.tell(record.run, "answer", f"{seat.host} is left out: {flaw}", party=seat.party)

    def _start(self, record: Record, single: list[Seat], owners: list[Seat]) -> None:
        """Begin with these, and tell all who were asked."""
        run, seats = record.run, [*single, *owners]
        self._table.set(run, status="running", started=self._ledger.clock())
        self._ledger.tell(run, "status", f"runs with {len(owners)} parties")
        hosts = {seat.party: seat.host for seat in seats}
        addresses = {seat.host: seat.address for seat in seats if seat.address}
        plan = record.described
        start = Start(run, record.attempt, plan.by_role(hosts), addresses, shape_of(owners))
        if len(encode(start)) > TELLABLE // 2:
            start = replace(start, addresses={})  # then all goes by way of the hub
        roles: dict[str, set[str]] = {}
        for party, host in hosts.items():
            roles.setdefault(host, set()).add(plan.role_of(party))
        partners: dict[frozenset[str], dict[str, str]] = {}
        for machine in dict.fromkeys(seat.host for seat in self._table.seats(run)):
            if machine == HUB:
                continue
            if machine in hosts.values():
                mine = frozenset(roles[machine])
                if mine not in partners:
                    others = plan.partners(mine, hosts) - {HUB}
                    partners[mine] = {other: self._ledger.epoch(other) for other in others}
                self._ledger.control(machine, replace(start, epochs=partners[mine]))
            else:
                self._leave_out(record, machine)
        self._begin(self._ledger.known(run))

    def _leave_out(self, record: Record, machine: str) -> None:
        self._ledger.control(machine, End(record.run, record.attempt, "left out", "the run began without this party"))

    def _window(self, record: Record) -> float:
        return request_of(record).seconds or self._join


def _why(seat: Seat) -> str:
    if seat.answer == "pending" and seat.reason.startswith(BUSY):
        return f"{seat.party} is {seat.reason}"
    said = {"refused": "refused", "pending": "its owner has not answered"}.get(seat.answer, "did not answer")
    return f"{seat.party} {said}" + (f" ({seat.reason})" if seat.reason else "")
