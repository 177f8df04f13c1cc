"""Snapshots of a whole simulated federation, from which it goes on to the identical end.

A coroutine cannot be written down, but a deterministic one can be brought back: a snapshot holds each party's last saved state,
what it received since and how much it sent, and what is under way. Restoring runs each program again from its saved state, feeds
it the same results and swallows what it had sent already; then the queues are laid as they were. This is rollback recovery by
message logging (Elnozahy, Alvisi, Wang and Johnson, "A survey of rollback-recovery protocols", ACM Computing Surveys 2002,
section 3), with the simulator's determinism in place of the log's ordering protocol.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, final

import msgspec

from hansa.errors import DeadlineExpired, MessageError, ResumeError
from hansa.message import Message, decode, encode
from hansa.params import Params
from hansa.simulation.batching import Batch, Job
from hansa.simulation.log import Traffic
from hansa.simulation.world import AGAIN, COMPUTED, DELIVER, TIMER, WOKEN, Actor, World
from hansa.tensor import Tensor
from hansa.update import Update


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One result that a program was given: a letter, a computed value, a lapse of time or an expired wait."""

    time: float
    kind: str
    sender: str = ""
    letter: int = -1


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one party's program stands."""

    name: str
    since: float
    sent: int
    history: list[Step]
    inbox: list[tuple[str, int]]
    timer: float | None
    outcome: int


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that is due: ``code`` and time as in the scheduler; a letter, or a party whose own event it is."""

    time: float
    sequence: int
    code: int
    party: str
    sender: str = ""
    letter: int = -1
    restart: float | None = None


class Snapshot(Message, frozen=True):
    """A federation between two events."""

    tag = "hansa.snapshot/1"
    discloses = "everything: it stays on the simulating machine"

    digest: str
    clock: float
    sequence: int
    starter: str
    unread: list[tuple[str, int]]
    letters: list[bytes]
    states: dict[str, int]
    standing: list[Standing]
    ready: list[Event]
    later: list[Event]
    finished: dict[str, int]
    down: list[str]
    traffic: dict[str, tuple[int, int]]


class Computed(Message, frozen=True):
    """A learner's result, kept."""

    tag = "hansa.computed/1"
    discloses = "nothing: it stays on the simulating machine"

    delta: Tensor | None
    weight: float
    scalars: dict[str, float]


class Ended(Message, frozen=True):
    """The result of a party's finished program, kept."""

    tag = "hansa.ended/1"
    discloses = "nothing: it stays on the simulating machine"

    params: Params | None


@final
class _Letters:
    """Frames by number; a message that many parties share is written once and, read back, shared again."""

    def __init__(self, frames: Iterable[bytes] = ()) -> None:
        self.frames = list(frames)
        self._places: dict[int, int] = {}
        self._kept: list[Message] = []
        self._read: dict[int, Message] = {}
        self._models: dict[bytes, Params] = {}

    def put(self, message: Message) -> int:
        place = self._places.get(id(message))
        if place is None:
            place = self._places[id(message)] = len(self.frames)
            self.frames.append(encode(message))
            self._kept.append(message)
        return place

    def get(self, place: int, kinds: Iterable[type[Message]]) -> Message:
        if place not in self._read:
            self._read[place] = self._shared(decode(self.frames[place], kinds))
        return self._read[place]

    def _shared(self, message: Message) -> Message:
        """The message with equal models as one object again: by it the simulator knows which parties train together."""
        models = {name: v for name, v in msgspec.structs.asdict(message).items() if isinstance(v, Params)}
        if not models:
            return message
        same = {n: self._models.setdefault(blake2b(v.flat.tobytes()).digest(), v) for n, v in models.items()}
        return msgspec.structs.replace(message, **same)


def take(world: World, starter: str, digest: str) -> bytes:
    """The snapshot's frame, taken while the party ``starter`` saves.

    Args:
        world: the federation.
        starter: the party whose program is in the middle of its save; on restoring it begins from there.
        digest: the plan's digest, held against the plan on restoring.
    """
    letters = _Letters()
    waiting = {id(job): place for place, job in enumerate(j for jobs in world.batching.waiting.values() for j in jobs)}
    actors = [actor for name, actor in world.actors.items() if name != starter]
    actors.sort(key=lambda actor: waiting.get(id(actor.job), -1))
    standing = [_standing(world, actor, letters) for actor in actors]
    ready = [_event(world.clock, 0, *entry, letters) for entry in world.ready]
    later = [
        _event(time, seq, code, target, load, letters)
        for time, seq, code, target, load in sorted(world.heap, key=lambda e: e[:2])
    ]
    snapshot = Snapshot(
        digest=digest,
        clock=world.clock,
        sequence=world.sequence,
        starter=starter,
        unread=[(sender, letters.put(message)) for sender, message in world.actors[starter].inbox],
        letters=letters.frames,
        states={name: letters.put(state) for name, state in world.states.items()},
        standing=standing,
        ready=[event for event in ready if event is not None],
        later=[event for event in later if event is not None],
        finished={
            name: letters.put(Ended(result if isinstance(result, Params) else None))
            for name, result in world.results.items()
        },
        down=sorted(world.network.down) if world.network is not None else [],
        traffic={name: (t.messages, t.nbytes) for name, t in world.log.traffic().items()},
    )
    return encode(snapshot)


def restore(world: World, frame: bytes, digest: str) -> None:
    """Bring a fresh ``world`` to where a snapshot was taken; ``world.run()`` then goes on from there.

    Raises:
        ResumeError: the snapshot is of another plan, or is damaged.
    """
    try:
        snapshot = decode(frame, Snapshot)
    except MessageError as error:
        raise ResumeError(f"the checkpoint is damaged: {error}; start the run anew") from None
    if snapshot.digest != digest:
        raise ResumeError("the checkpoint belongs to another plan, seed or data; resume with those it was made with")
    letters = _Letters(snapshot.letters)
    for name, place in snapshot.states.items():
        kind = world.roles[world.find(name)[0]].saves
        assert kind is not None
        world.states[name] = letters.get(place, [kind])
    for name, place in snapshot.finished.items():
        ended = letters.get(place, [Ended])
        assert isinstance(ended, Ended)
        world.results[name] = ended.params
        world.unfinished.discard(name)
    for standing in snapshot.standing:
        _bring_back(world, standing, letters)
    world.log.before = {name: Traffic(*counts) for name, counts in snapshot.traffic.items()}
    world.clock = snapshot.clock
    world.sequence = snapshot.sequence
    world.ready.clear()
    world.heap.clear()
    if world.network is not None:
        world.network.down.update(snapshot.down)
    for event in snapshot.ready:
        _, _, *entry = _scheduled(world, event, letters)
        world.ready.append((entry[0], entry[1], entry[2]))
    for event in snapshot.later:
        heapq.heappush(world.heap, _scheduled(world, event, letters))
    world.restored = snapshot.starter
    kinds = world.roles[world.find(snapshot.starter)[0]].receives
    world.unread = [(sender, letters.get(place, kinds)) for sender, place in snapshot.unread]


def _standing(world: World, actor: Actor, letters: _Letters) -> Standing:
    outcome = -1
    if actor.job is not None and actor.job.batch is not None:
        world.batching.run(actor.job.batch)
        outcome = _keep(actor.job.outcome, letters)
    return Standing(
        actor.name,
        actor.since,
        actor.sent,
        [_step(time, what, letters) for time, what in actor.history or []],
        [(sender, letters.put(message)) for sender, message in actor.inbox],
        actor.timer,
        outcome,
    )


def _step(time: float, what: object, letters: _Letters) -> Step:
    if what is None:
        return Step(time, "woken")
    if isinstance(what, DeadlineExpired):
        return Step(time, "expired")
    if isinstance(what, tuple) and isinstance(what[1], Message):
        return Step(time, "letter", what[0], letters.put(what[1]))
    return Step(time, "computed", letter=_keep(what, letters))


def _keep(outcome: object, letters: _Letters) -> int:
    """Store a computed value; what is neither an update nor metrics is computed again."""
    if isinstance(outcome, Update):
        return letters.put(Computed(outcome.delta, outcome.weight, dict(outcome.scalars)))
    if isinstance(outcome, dict) and all(isinstance(v, float | int) for v in outcome.values()):
        return letters.put(Computed(None, 0.0, {k: float(v) for k, v in outcome.items()}))
    return -1


def _kept(place: int, letters: _Letters) -> Any:
    stored = letters.get(place, [Computed])
    assert isinstance(stored, Computed)
    return stored.scalars if stored.delta is None else Update(stored.delta, stored.weight, stored.scalars)


def _event(time: float, sequence: int, code: int, target: Any, load: Any, letters: _Letters) -> Event | None:
    if code in (DELIVER, AGAIN):
        return Event(time, sequence, code, target, load[0], letters.put(load[1]))
    if isinstance(target, str):
        return Event(time, sequence, code, target, restart=load)
    current = (
        (code == COMPUTED and target.job is load)
        or (code == TIMER and target.timer == load)
        or (code == WOKEN and target.coroutine is load)
    )
    return Event(time, sequence, code, target.name) if current else None


def _scheduled(world: World, event: Event, letters: _Letters) -> tuple[float, int, int, Any, Any]:
    target: Any = event.party
    load: Any = event.restart
    if event.code in (DELIVER, AGAIN):
        kinds = world.roles[world.find(event.party)[0]].receives
        load = (event.sender, letters.get(event.letter, kinds))
    elif event.code in (COMPUTED, TIMER, WOKEN):
        target = world.actors[event.party]
        load = {COMPUTED: target.job, TIMER: target.timer, WOKEN: target.coroutine}[event.code]
    return event.time, event.sequence, event.code, target, load


def _bring_back(world: World, standing: Standing, letters: _Letters) -> None:
    """Run one party's program to where it stood, hearing what it heard and saying nothing twice."""
    actor = world.create(standing.name, *world.find(standing.name))
    actor.since = standing.since
    past = []
    for step in standing.history:
        message = letters.get(step.letter, actor.role.receives) if step.kind == "letter" else None
        past.append((step.time, _given(step, message, letters)))
    world.bring_back(actor, past, standing.sent)
    kinds = actor.role.receives
    actor.inbox.extend((sender, letters.get(place, kinds)) for sender, place in standing.inbox)
    actor.timer = standing.timer
    if standing.outcome >= 0 and actor.job is not None:
        _done(world, actor.job, _kept(standing.outcome, letters))


def _given(step: Step, message: Message | None, letters: _Letters) -> object:
    if step.kind == "letter":
        return (step.sender, message)
    if step.kind == "expired":
        return DeadlineExpired("the wait ended")
    if step.kind == "computed":
        return _kept(step.letter, letters) if step.letter >= 0 else None
    return None


def _done(world: World, job: Job, outcome: Any) -> None:
    world.batching.withdraw(job)
    batch = Batch("kept", None, [job])
    batch.done = True
    job.outcome = outcome
