"""What people ask of a hub, and what it answers: one request, one answer, but for following a run and fetching its files."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from hansa.deployment.packets import Count, Name, RunName
from hansa.message import Message


class Submit(Message, frozen=True):
    """Run a plan.

    Args:
        plan: as TOML.
        name: for people; the plan's own if empty.
        data: the name by which the nodes bind their data; the plan's own if empty.
        parties: the nodes that are asked; all, if empty.
        least: how many must accept; 0 for all of them.
        server: where the role that owns no data is placed: "hub", or a node.
        seconds: how long the nodes have to accept; 0 for the hub's own limit.
    """

    tag = "hansa.api.submit/1"
    discloses = "a plan, and who is to take part"

    plan: str
    name: Annotated[str, msgspec.Meta(max_length=200)] = ""
    data: Annotated[str, msgspec.Meta(max_length=200)] = ""
    parties: Annotated[tuple[Name, ...], msgspec.Meta(max_length=10_000)] = ()
    least: int = 0
    server: Name = "hub"
    seconds: float = 0.0


class Submitted(Message, frozen=True):
    """The run that a plan became.

    Args:
        run: 16 hexadecimal digits.
    """

    tag = "hansa.api.submitted/1"
    discloses = "the name of a run"

    run: str


class Before(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run, as the place where a page of runs begins: with the next older one, though this one may be gone.

    Args:
        created: POSIX seconds on the hub's clock.
        run: its name.
    """

    created: float
    run: RunName


class ListRuns(Message, frozen=True):
    """The runs that the asker may see, the newest first.

    Args:
        before: where the page begins; with the newest, if not given.
        most: how many are wanted at most.
        begins: only runs whose names begin so.
    """

    tag = "hansa.api.list-runs/1"
    discloses = "nothing but who asks"

    before: Before | None = None
    most: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    begins: Name = ""


class Participant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A party of a run.

    Args:
        party, host: which one, and on which machine.
        answer: "accepted", "refused", "pending", or empty: none yet.
        reason: of a refusal.
        connected: whether its machine is.
    """

    party: str
    host: str
    answer: str
    reason: str
    connected: bool


class RunView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run, for those who may see it.

    Args:
        run, name: which one, and what people call it.
        owner: the name of whoever submitted it.
        status: "queued", "joining", "running", "completed", "failed" or "stopped".
        cause, party, remedy: why it ended, about whom, and what to do; empty where there is nothing to say.
        round, rounds: the last that was reported, and how many the plan wants.
        created, started, ended: POSIX seconds on the hub's clock.
        digest: of the plan, 64 hexadecimal digits.
        participants: the parties that were asked.
    """

    run: str
    name: str
    owner: str
    status: str
    cause: str
    party: str
    remedy: str
    round: int | None
    rounds: int | None
    created: float
    started: float | None
    ended: float | None
    digest: str
    participants: tuple[Participant, ...]


class RunList(Message, frozen=True):
    """A page of the runs that the asker may see.

    Args:
        runs: the newest first; fewer than were asked for, where a packet holds no more.
        more: how many there are besides, all of them older.
    """

    tag = "hansa.api.run-list/1"
    discloses = "the names, owners and states of runs"

    runs: tuple[RunView, ...]
    more: Count = 0


class StopRun(Message, frozen=True):
    """End a run.

    Args:
        run: which one.
    """

    tag = "hansa.api.stop-run/1"
    discloses = "nothing but who asks"

    run: str


class ResumeRun(Message, frozen=True):
    """Go on with a run that was stopped or failed, from its last saved round; the answer names it.

    It is another run, and begins at the beginning, where a machine was restored from a backup and has forgotten its part.

    Args:
        run: which one.
    """

    tag = "hansa.api.resume-run/1"
    discloses = "nothing but who asks"

    run: str


class ForgetRun(Message, frozen=True):
    """Forget a run that has ended: its result, what its programs saved, its events and its files.

    Args:
        run: which one.
    """

    tag = "hansa.api.forget-run/1"
    discloses = "nothing but who asks"

    run: str


class Done(Message, frozen=True):
    """It was done."""

    tag = "hansa.api.done/1"
    discloses = "nothing but who asks"


class ReadEvents(Message, frozen=True):
    """A run's events.

    Args:
        run: which one.
        after: the number after which they are wanted; 0 for all.
        follow: whether also those to come are wanted, until the run has ended.
    """

    tag = "hansa.api.read-events/1"
    discloses = "nothing but who asks"

    run: str
    after: Count = 0
    follow: bool = False


class Event(Message, frozen=True):
    """Something that happened in a run.

    Args:
        number: rises with each event of the hub.
        time: POSIX seconds on the hub's clock.
        run: the run.
        kind: "status", "answer", "round", "trouble", "refused" or "note".
        party, round: where it concerns one.
        text: a sentence.
        progress: the frame of a :class:`~hansa.protocol.Progress`, of a round.
    """

    tag = "hansa.api.event/1"
    discloses = "what happened in a run, and its averaged metrics"

    number: int
    time: float
    run: str
    kind: str
    party: str
    round: int | None
    text: str
    progress: bytes | None = None


class Fetch(Message, frozen=True):
    """The files of a run: the model, the metrics and the report.

    Args:
        run: which one.
    """

    tag = "hansa.api.fetch/1"
    discloses = "nothing but who asks"

    run: str


class FilePart(Message, frozen=True):
    """Some bytes of a file; its parts come in order, file after file.

    Args:
        name: of the file.
        data: the bytes, 2^20 at most.
        last: whether the file ends here.
    """

    tag = "hansa.api.file-part/1"
    discloses = "the final model and the metrics of a run"

    name: str
    data: bytes
    last: bool


class Invite(Message, frozen=True):
    """A token by which somebody may join, once.

    Args:
        name: the name that the holder will have.
        kind: "node", "submitter", "operator" or "observer".
        seconds: until it is void; 0 for the hub's own setting.
    """

    tag = "hansa.api.invite/1"
    discloses = "nothing but who asks"

    name: str
    kind: str = "node"
    seconds: float = 0.0


class Invited(Message, frozen=True):
    """A token to hand over by a channel that others do not read.

    Args:
        token: the invitation.
        expires: POSIX seconds on the hub's clock.
    """

    tag = "hansa.api.invited/1"
    discloses = "a secret by which one party may join, to the operator"

    token: str
    expires: float


class Revoke(Message, frozen=True):
    """Neither a member's certificates nor its unused invitations count any more.

    Args:
        name: of the member.
    """

    tag = "hansa.api.revoke/1"
    discloses = "nothing but who asks"

    name: str


class ListMembers(Message, frozen=True):
    """Who belongs to the federation."""

    tag = "hansa.api.list-members/1"
    discloses = "nothing but who asks"


class MemberView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member.

    Args:
        name, kind: who it is.
        state: "connected" or "away" of a node, "member" of a person, or "revoked".
        fingerprint: of its sealing keys, for comparing by telephone.
        since, expires, seen: POSIX seconds: member since, end of its newest certificate, last connected.
    """

    name: str
    kind: str
    state: str
    fingerprint: str
    since: float
    expires: float
    seen: float | None


class MemberList(Message, frozen=True):
    """Who belongs to the federation.

    Args:
        members: by name.
    """

    tag = "hansa.api.member-list/1"
    discloses = "who belongs to the federation, and who is connected"

    members: tuple[MemberView, ...]


class Enrol(Message, frozen=True):
    """Become a member by an invitation.

    Args:
        request: an enrolment request.
    """

    tag = "hansa.api.enrol/1"
    discloses = "public keys"

    request: bytes


class Renew(Message, frozen=True):
    """A new certificate for the same member and sealing keys.

    Args:
        request: an enrolment request.
    """

    tag = "hansa.api.renew/1"
    discloses = "public keys"

    request: bytes


class Certified(Message, frozen=True):
    """A certificate.

    Args:
        certificate: PEM.
    """

    tag = "hansa.api.certified/1"
    discloses = "a certificate"

    certificate: bytes


class Greet(Message, frozen=True):
    """Who is there?

    Args:
        software, protocol: the version of the program, for people, and of the protocol.
    """

    tag = "hansa.api.greet/1"
    discloses = "the version of the software"

    software: str
    protocol: int


class Greeting(Message, frozen=True):
    """The hub's versions and clock, and as whom it knows the asker.

    Args:
        federation: its name.
        software: the version of the program, for people.
        protocol, oldest: the newest and the oldest version of the protocol that it speaks.
        time: POSIX seconds on its clock.
        name, kind: the asker's.
    """

    tag = "hansa.api.greeting/1"
    discloses = "the version of the software and the hub's clock"

    federation: str
    software: str
    protocol: int
    oldest: int
    time: float
    name: str
    kind: str


class Problem(Message, frozen=True):
    """Why a request was refused.

    Args:
        kind: the class of the error, as the table of errors names it.
        what: its sentence.
    """

    tag = "hansa.api.problem/1"
    discloses = "why a request was refused"

    kind: str
    what: str


REQUESTS: Final[tuple[type[Message], ...]] = (
    Submit, ListRuns, StopRun, ResumeRun, ForgetRun, ReadEvents, Invite, Revoke, ListMembers, Enrol, Renew, Greet,
)  # fmt: skip
ANSWERS: Final[tuple[type[Message], ...]] = (
    Submitted, RunList, Done, Event, FilePart, Invited, MemberList, Certified, Greeting, Problem,
)  # fmt: skip
