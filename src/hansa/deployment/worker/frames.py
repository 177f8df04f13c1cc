"""What a party's own process and its workers say to each other.

A worker runs the programs of one party in one run. It decides nothing about durability: it tells, in order, what each effect
gave its program and what the program wants sent, and the process that owns it writes that down before anything leaves the
machine. From what was written down a new worker brings the program back to where it stood (rollback recovery by message logging:
Elnozahy, Alvisi, Wang and Johnson, ACM Computing Surveys 2002, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import msgspec

from hansa.deployment.shape import DataShape
from hansa.deployment.terms import Terms
from hansa.message import Message
from hansa.params import Params


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The frame of a role's message: here, or in a file of the spool.

    Args:
        tag: the tag of the message, as its frame says it.
        size: bytes of the frame.
        inline: the frame, where it is small.
        blob: the name of the spooled file that holds it, otherwise.
    """

    tag: str
    size: int
    inline: bytes | None = None
    blob: str = ""


class Letter(Message, frozen=True):
    """A message for this party's program; ``number`` is the owner's own count of them."""

    tag = "hansa.worker.letter/1"
    discloses = "nothing: it stays on the party's machine"

    number: int
    sender: str
    body: Body


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one effect gave the program: a letter taken (``letter`` is its number), the end of a sleep or of a vain wait, or the
    return of a computation, whose value is computed again.
    """

    kind: Literal["took", "woke", "expired", "computed"]
    time: float
    letter: int = 0


class Describe(Message, frozen=True):
    """Asks what a plan is, before any party is set up: reading it imports what it names, which an owner does not."""

    tag = "hansa.worker.describe/1"
    discloses = "nothing: it stays on the party's machine"

    plan: str


class Measure(Message, frozen=True):
    """Asks what shape a party's data have; ``data`` as in :class:`Setup`."""

    tag = "hansa.worker.measure/1"
    discloses = "nothing: it stays on the party's machine"

    data: dict[str, Any]


class Measured(Message, frozen=True):
    """The shape of a party's data."""

    tag = "hansa.worker.measured/1"
    discloses = "nothing: it stays on the party's machine"

    shape: DataShape


class RoleTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A role, as far as an owner must know it. See :class:`hansa.protocol.Role`."""

    many: bool
    starts: bool
    peers: bool


class Described(Message, frozen=True):
    """What a plan is.

    Args:
        plan: in the form that all machines give it.
        name: the plan's own, for people.
        terms: what it asks of a party.
        roles: its protocol's.
        rounds: how many at most, where the protocol says it.
        classes: for each class of message that a role receives, what it discloses.
        needed: how many parties that own data its protocol needs. See :meth:`hansa.protocol.Protocol.needed_parties`.
        setting: of the protocol, which says so; empty where none does.
    """

    tag = "hansa.worker.described/1"
    discloses = "nothing: it stays on the party's machine"

    plan: str
    name: str
    terms: Terms
    roles: dict[str, RoleTerms]
    rounds: int | None
    classes: dict[str, str]
    needed: int = 1
    setting: str = ""

    @property
    def many(self) -> str:
        """The role of the parties that own the data."""
        return next(name for name, role in self.roles.items() if role.many)

    def roles_at(self, machine: str, hosts: Mapping[str, str]) -> frozenset[str]:
        """The roles of the parties on a machine; ``hosts`` is by party."""
        return frozenset(self.role_of(party) for party, host in hosts.items() if host == machine)

    def partners(self, roles: frozenset[str], hosts: Mapping[str, str]) -> set[str]:
        """The machines with whose parties those of ``roles`` may exchange messages."""
        met = {role for role in self.roles if (self.roles[role].peers and role in roles) or roles - {role}}
        return {host for party, host in hosts.items() if self.role_of(party) in met}

    def role_of(self, party: str) -> str:
        """The role that a party of this name has."""
        return party if party in self.roles and not self.roles[party].many else self.many

    def by_role(self, parties: Collection[str]) -> dict[str, tuple[str, ...]]:
        """The parties of each role, in the order in which they are given."""
        return {role: tuple(party for party in parties if self.role_of(party) == role) for role in self.roles}


class Setup(Message, frozen=True):
    """All that a worker needs to run one party's programs, from the beginning or from where they stood.

    Args:
        run: the run.
        party: the party whose programs these are, as the roster names it.
        role: its role.
        plan: the plan as TOML.
        rosters: the names of all parties by role.
        data: the party's own data, as its node binds it; empty where it has none. See :class:`hansa.deployment.binding.Binding`.
        shape: of the parties' data, for a party that has none and must make the model.
        spool: the folder of the spooled files.
        inline: frames above this many bytes go through the spool.
        threads: threads of the numerical libraries.
        memory: bytes of address space at most; 0 for no limit.
        saved: what the party saved last.
        live: whether a program was under way: it began, and did not end.
        since: what its clock read when that program began or last saved.
        steps: what its effects gave it since then.
        sent: how many messages it sent since then; they were kept, and are not sent again.
        letters: what it has received and not finished with, in order, those of ``steps`` among them.
        time: where its clock goes on from: what the owner last knew of it. It is never set back behind ``steps``.
    """

    tag = "hansa.worker.setup/1"
    discloses = "nothing: it stays on the party's machine"

    run: str
    party: str
    role: str
    plan: str
    rosters: dict[str, tuple[str, ...]]
    data: dict[str, Any]
    spool: str
    inline: int
    shape: DataShape | None = None
    threads: int = 1
    memory: int = 0
    saved: Body | None = None
    live: bool = False
    since: float = 0.0
    steps: list[Step] = []
    sent: int = 0
    letters: list[Letter] = []
    time: float = 0.0


class Ready(Message, frozen=True):
    """The worker has read its setup, loaded its data and brought its program back."""

    tag = "hansa.worker.ready/1"
    discloses = "nothing: it stays on the party's machine"

    examples: int
    parameters: int = 0


class Began(Message, frozen=True):
    """A program began, by itself or because it was invited; its steps are counted from here."""

    tag = "hansa.worker.began/1"
    discloses = "nothing: it stays on the party's machine"

    time: float
    invited: bool = False


class Stepped(Message, frozen=True):
    """An effect gave the program something."""

    tag = "hansa.worker.stepped/1"
    discloses = "nothing: it stays on the party's machine"

    step: Step


class Sent(Message, frozen=True):
    """The program sends a message: to a party of the roster, or to the observer."""

    tag = "hansa.worker.sent/1"
    discloses = "nothing: it stays on the party's machine"

    to: str
    body: Body
    time: float


class Saved(Message, frozen=True):
    """A program that starts by itself reached a durable point: what it took and sent before is no longer needed.

    A program that was invited cannot go on from the middle, for its invitation is a letter that it took; what it saves comes
    with its end, and until then it is brought back from its beginning.
    """

    tag = "hansa.worker.saved/1"
    discloses = "nothing: it stays on the party's machine"

    body: Body
    time: float


class Dropped(Message, frozen=True):
    """A letter that nobody will read, and why: it came too late, or is not what this role accepts."""

    tag = "hansa.worker.dropped/1"
    discloses = "nothing: it stays on the party's machine"

    number: int
    sender: str
    reason: str
    hostile: bool = False


class Ended(Message, frozen=True):
    """A program returned. The letters that it took are done with.

    Args:
        result: for a party that starts by itself, the body of a :class:`Result`.
        saved: for an invited one, what it saved last, if it did: the party's next program begins with it.
        time: on the party's clock.
    """

    tag = "hansa.worker.ended/1"
    discloses = "nothing: it stays on the party's machine"

    time: float
    result: Body | None = None
    saved: Body | None = None


class Result(Message, frozen=True):
    """What a party that started by itself ended with."""

    tag = "hansa.worker.result/1"
    discloses = "the final model, to those who may fetch it"

    params: Params | None


class Failed(Message, frozen=True):
    """A program raised; the traceback stays with its party.

    Args:
        kind: the class of the error.
        what: its own sentence.
        party, round, remedy: of a :class:`~hansa.errors.RunError`, as it says them.
        traceback: for the party's own log.
        saved: as :class:`Ended` has it.
        time: on the party's clock.
    """

    tag = "hansa.worker.failed/1"
    discloses = "nothing: it stays on the party's machine"

    kind: str
    what: str
    traceback: str
    time: float
    party: str = ""
    round: int | None = None
    remedy: str = ""
    saved: Body | None = None


class Unusable(Message, frozen=True):
    """The worker cannot run, or go on: its plan or its data do not load here, the disk is full, or the program does not do
    again what it did. It does nothing more; another worker may go on from what was written down.

    Args:
        reason: one sentence.
        passing: what is lacking may be there later, as room on a disk: another worker is worth trying then.
    """

    tag = "hansa.worker.unusable/1"
    discloses = "nothing: it stays on the party's machine"

    reason: str
    passing: bool = False


TO_WORKER: tuple[type[Message], ...] = (Describe, Measure, Setup, Letter)
FROM_WORKER: tuple[type[Message], ...] = (
    Described, Measured, Ready, Began, Stepped, Sent, Saved, Dropped, Ended, Failed, Unusable,
)  # fmt: skip


@final
@dataclass(frozen=True)
class Lost:
    """The worker is gone, after all that it said: it died, or said something that is no word of a worker."""

    reason: str


Heard: TypeAlias = Callable[[Message | Lost], None]
"""An owner's ear: called with each word of a worker, in order. What it has returned from is written down."""
