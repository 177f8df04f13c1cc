"""The scheduler: runs the roles of a protocol on a virtual clock, in one thread, in one order.

Every party is a coroutine that is created when its first message arrives and dropped when its program ends. What happens now
runs first in, first out; what is due later waits in a heap by (time, sequence), and of two events that were due at one instant
the second runs when all that followed at once from the first has run. Nothing here reads the real clock or draws an unkeyed
number, so the same (plan, seed, faults) give the same log.
"""

from __future__ import annotations

import gc
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Final, Generic, TypeVar, final

from hansa.errors import DeadlineExpired, Deadlock, HansaError, PartyFailed, RunError, WorkerLost
from hansa.examples import Shard
from hansa.message import Message, wire_size
from hansa.party import Party
from hansa.protocol import OBSERVER, Role
from hansa.rng import Key
from hansa.simulation.batching import Batching, Job
from hansa.simulation.log import MessageLog
from hansa.simulation.network import Network

R = TypeVar("R")


@final
class _Done(Generic[R]):
    """An effect whose result is there already."""

    __slots__ = ("value",)

    def __init__(self, value: R) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, R]:
        return self.value
        yield


@final
class _Parked:
    """An effect whose result the scheduler sends in later."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield)


@final
class _Failed:
    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __await__(self) -> Generator[Any, Any, Any]:
        raise self.error
        yield


_GC_THRESHOLD: Final = 100_000

_NOTHING: Final = _Done(None)
_PARKED: Final = _Parked()

DELIVER, COMPUTED, WOKEN, TIMER, CRASH, RESTART, AGAIN = range(7)
"""What a queued event is: a letter, a result that is due, the end of a sleep, the end of a wait, a crash, a restart, an
invitation that the program before this one left unread."""


@dataclass(frozen=True)
class Failure:
    """A party's program raised: which, when, and its own traceback."""

    party: str
    time: float
    error: Exception
    traceback: str


@final
class Actor(Party):
    """A party in simulation. Its effects change the world's queues and park the coroutine."""

    __slots__ = (
        "coroutine", "data", "deadline", "history", "inbox", "job", "kind", "name", "past", "role", "roster", "saved", "sender",
        "sent", "since", "timer", "world",
    )  # fmt: skip

    def __init__(self, world: World, name: str, role: Role, data: Shard, saved: Message | None) -> None:
        self.world = world
        self.name = name
        self.role = role
        self.data = data
        self.roster = world.rosters
        self.saved = saved
        self.inbox: deque[tuple[str, Message]] = deque()
        self.kind: type[Message] | tuple[type[Message], ...] | None = None
        self.sender: str | None = None
        self.deadline: float | None = None
        self.timer: float | None = None
        self.job: Job | None = None
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        # What this program received since it began or last saved, and how much it sent: enough to bring it back to where it
        # is. A party that starts alone needs none: snapshots are taken as it saves.
        self.history: list[tuple[float, object]] | None = [] if world.several or not role.starts else None
        self.sent = 0
        self.since = world.clock
        # While this program is brought back: what its effects gave the first time.
        self.past: deque[tuple[float, object]] | None = None

    def send(self, to: str, message: Message) -> Awaitable[None]:
        self.sent += 1
        self.world.post(self.name, to, message)
        return _NOTHING

    def recv(self, kind: Any, *, within: float | None, sender: str | None = None) -> Awaitable[Any]:
        if self.past:
            return self._again()
        inbox = self.inbox
        for place, (who, message) in enumerate(inbox):
            if isinstance(message, kind) and (sender is None or sender == who):
                del inbox[place]
                if self.history is not None:
                    self.history.append((self.world.clock, (who, message)))
                return _Done((who, message))
        self.kind = kind
        self.sender = sender
        if within is None:
            self.deadline = None
            return _PARKED
        if within <= 0:
            error = self.expired()
            self.kind = None
            if self.history is not None:
                self.history.append((self.world.clock, error))
            return _Failed(error)
        self.deadline = self.world.clock + within
        if self.timer is None or self.timer > self.deadline:
            self.timer = self.deadline
            self.world.later(self.deadline, TIMER, self, self.deadline)
        return _PARKED

    def compute(self, function: Callable[..., R], *arguments: object) -> Awaitable[R]:
        if self.past:
            if self.past[0][1] is None:
                try:
                    result: object = function(*arguments)
                except Exception as error:
                    result = error
                self.past[0] = (self.past[0][0], result)
            return self._again()
        self.world.submit(self, function, arguments)
        return _PARKED

    def save(self, state: Message) -> Awaitable[None]:
        self.saved = state
        if self.history is not None:
            self.history.clear()
        self.sent = 0
        self.since = self.world.clock
        # A timer of an earlier wait is forgotten, so that what comes next does not depend on what came before.
        self.timer = None
        self.world.saved(self, state)
        return _NOTHING

    def now(self) -> float:
        return self.world.clock

    def sleep(self, seconds: float) -> Awaitable[None]:
        if self.past:
            return self._again()
        self.world.later(self.world.clock + max(0.0, seconds), WOKEN, self, self.coroutine)
        return _PARKED

    def rng(self, label: str, *indices: int) -> Key:
        return self.world.key.child(f"{self.name}/{label}", *indices)

    def _again(self) -> Awaitable[Any]:
        assert self.past is not None
        time, what = self.past.popleft()
        self.world.clock = time
        if self.history is not None:
            self.history.append((time, what))
        return _Failed(what) if isinstance(what, Exception) else _Done(what)

    def expired(self) -> DeadlineExpired:
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        names = " or ".join(k.__name__ for k in kinds if k is not None) or "a message"
        whence = f" from {self.sender}" if self.sender else ""
        return DeadlineExpired(f"no {names}{whence} by {self.world.clock:g} s", party=self.name)


@final
class World:
    """All parties, the clock and the queues of one simulated federation.

    Args:
        roles: the protocol's programs.
        rosters: the names of the parties by role; a role with ``many=False`` has the one name that is the role's own.
        shard: the data of a party, by role and place in its roster.
        key: the root of the run's public randomness.
        batching: runs pure work.
        network: delays, losses and crashes; None delivers everything at once.
        log: takes note of every message.
        observe: called with what is sent to the observer.
        on_save: called after a party that starts by itself has saved; may raise to stop the run.
        on_failure: called with each failure of a party that was invited; returns normally to go on without it.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        rosters: Mapping[str, Sequence[str]],
        shard: Callable[[str, int], Shard],
        key: Key,
        batching: Batching,
        network: Network | None,
        log: MessageLog,
        observe: Callable[[str, Message], None],
        on_save: Callable[[str], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        self.roles = roles
        self.rosters = rosters
        # The parties that own data are looked for most.
        self._rosters = sorted(rosters.items(), key=lambda item: not roles[item[0]].many)
        self.shard = shard
        self.key = key
        self.batching = batching
        self.network = network
        self.log = log
        self.observe = observe
        self.on_save = on_save
        self.on_failure = on_failure
        self.clock = 0.0
        self.sequence = 0
        self.actors: dict[str, Actor] = {}
        self.states: dict[str, Message] = {}
        self.results: dict[str, Any] = {}
        self.ready: deque[tuple[int, Any, Any]] = deque()
        self.heap: list[tuple[float, int, int, Any, Any]] = []
        self.unfinished = {name for role, r in roles.items() if r.starts for name in rosters[role]}
        self.several = len(self.unfinished) > 1
        self.stale = 0
        # While a program is brought back: how many of its sends are still to be swallowed; the party to begin with afterwards,
        # and what it had received but not read.
        self.muted = 0
        self.restored: str | None = None
        self.unread: list[tuple[str, Message]] = []
        self._accepts = {name: frozenset(role.receives) for name, role in roles.items()}
        self._sized: tuple[Message | None, int] = (None, 0)

    def run(self) -> dict[str, Any]:
        """Run until every starting party has ended; their results by name.

        Raises:
            Deadlock: parties wait and nothing is under way.
            PartyFailed: a starting party's program raised something that is not a HansaError.
        """
        if self.restored is None:
            if self.network is not None:
                for time, party, restart in self.network.crashes():
                    self.later(time, CRASH, party, restart)
            starting = [name for role, r in self.roles.items() if r.starts for name in self.rosters[role]]
        else:
            starting = [self.restored] if self.restored in self.unfinished else []
        for name in starting:
            actor = self.create(name, *self.find(name))
            actor.inbox.extend(self.unread)
            self._start(actor)
        # Reference counts free a party as its program ends; the collector would only walk all that wait, again and again.
        thresholds = gc.get_threshold()
        gc.set_threshold(_GC_THRESHOLD)
        try:
            self._loop()
        finally:
            gc.set_threshold(*thresholds)
        return self.results

    def _loop(self) -> None:
        ready, heap, deliver, computed = self.ready, self.heap, self._deliver, self._computed
        while self.unfinished:
            if ready:
                code, target, payload = ready.popleft()
            elif heap:
                self.clock, _, code, target, payload = heappop(heap)
            else:
                raise self._deadlock()
            if code == DELIVER:
                deliver(target, payload)
            elif code == COMPUTED:
                computed(target, payload)
            elif code == TIMER:
                self._timer(target, payload)
            elif code == WOKEN:
                if target.coroutine is payload:
                    if target.history is not None:
                        target.history.append((self.clock, None))
                    self._resume(target, None)
            elif code == CRASH:
                self._crash(target, payload)
            elif code == AGAIN:
                deliver(target, payload, again=True)
            else:
                self._restart(target)

    def post(self, sender: str, to: str, message: Message) -> None:
        """Put a message under way."""
        if self.muted > 0:
            self.muted -= 1
            return
        known, size = self._sized
        if known is not message:
            size = wire_size(message)
            self._sized = (message, size)
        self.log.note(self.clock, sender, to, message, size)
        if to == OBSERVER:
            self.observe(sender, message)
        elif self.network is None:
            self.ready.append((DELIVER, to, (sender, message)))
        else:
            self.sequence += 1
            for arrival in self.network.arrivals(self.clock, self.sequence, sender, to, size, type(message)):
                self.later(arrival, DELIVER, to, (sender, message))

    def later(self, time: float, code: int, target: Any, payload: Any) -> None:
        """Queue an event for a virtual time."""
        if time <= self.clock:
            self.ready.append((code, target, payload))
        else:
            self.sequence += 1
            heappush(self.heap, (time, self.sequence, code, target, payload))

    def submit(self, actor: Actor, function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
        """Hand pure work over; its result is due after the party's own device would have it."""
        job = actor.job = self.batching.submit(function, arguments)
        seconds = 0.0 if self.network is None else self.network.compute_seconds(actor.name, arguments)
        if seconds > 0:
            self.later(self.clock + seconds, COMPUTED, actor, job)
        else:
            self.ready.append((COMPUTED, actor, job))

    def saved(self, actor: Actor, state: Message) -> None:
        """A party reached a durable point."""
        self.states[actor.name] = state
        if actor.role.starts:
            self.on_save(actor.name)

    def bring_back(self, actor: Actor, past: Sequence[tuple[float, object]], sent: int) -> None:
        """Run a party's program again to where it stood: it is given ``past`` and its first ``sent`` messages are swallowed."""
        actor.past = deque(past)
        self.clock = actor.since
        self.muted = sent
        self._start(actor)
        self.muted = 0
        actor.sent = sent

    def _deliver(self, to: str, letter: tuple[str, Message], again: bool = False) -> None:
        if self.network is not None and to in self.network.down:
            self.network.dropped += 1
            return
        if self.log.received and not again:
            self.log.delivered(to, letter)
        actor = self.actors.get(to)
        message = letter[1]
        if actor is not None:
            kind = actor.kind
            if kind is not None and isinstance(message, kind) and (actor.sender is None or actor.sender == letter[0]):
                actor.kind = None
                if actor.history is not None:
                    actor.history.append((self.clock, letter))
                self._resume(actor, letter)
            elif type(message) in actor.role.receives:
                actor.inbox.append(letter)
            else:
                raise self._unexpected(letter, to)
            return
        try:
            role_name, place = self.find(to)
        except RunError:
            what = f"sent {type(message).__name__} to {to!r}, but no party has that name"
            raise RunError(what, party=letter[0], remedy="send to names of the roster") from None
        if type(message) not in self._accepts[role_name]:
            raise self._unexpected(letter, to)
        if type(message) not in self.roles[role_name].invitations:
            self.stale += 1
            return
        actor = self.create(to, role_name, place)
        actor.inbox.append(letter)
        self._start(actor)

    def _unexpected(self, letter: tuple[str, Message], to: str) -> RunError:
        sender, message = letter
        return RunError(
            f"{sender} sent {type(message).__name__}, which this role does not accept",
            party=to,
            remedy="add the class to Role.receives or do not send it",
        )

    def find(self, name: str) -> tuple[str, int]:
        """The role of the party called ``name`` and its place in the roster."""
        for role, names in self._rosters:
            try:
                return role, names.index(name)
            except ValueError:
                continue
        raise RunError(f"no party is named {name!r}", remedy="send to names of the roster")

    def create(self, name: str, role_name: str, place: int) -> Actor:
        """A party that is about to start."""
        shard = self.shard(role_name, place)
        actor = self.actors[name] = Actor(self, name, self.roles[role_name], shard, self.states.get(name))
        return actor

    def _start(self, actor: Actor) -> None:
        actor.coroutine = actor.role.program(actor)
        self._resume(actor, None)

    def _resume(self, actor: Actor, value: object) -> None:
        coroutine = actor.coroutine
        assert coroutine is not None
        try:
            coroutine.send(value)
        except StopIteration as stop:
            self._finished(actor, stop.value)
        except Exception as error:
            self._failed(actor, error)

    def _throw(self, actor: Actor, error: Exception) -> None:
        coroutine = actor.coroutine
        assert coroutine is not None
        try:
            coroutine.throw(error)
        except StopIteration as stop:
            self._finished(actor, stop.value)
        except Exception as raised:
            self._failed(actor, raised)

    def _finished(self, actor: Actor, result: object) -> None:
        if actor.role.starts:
            self.results[actor.name] = result
            self.unfinished.discard(actor.name)
        del self.actors[actor.name]
        for letter in actor.inbox:
            if type(letter[1]) in actor.role.invitations:
                self.ready.append((AGAIN, actor.name, letter))
            else:
                self.stale += 1

    def _failed(self, actor: Actor, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))
        if actor.role.starts and not self._dispensable(actor.name):
            if isinstance(error, HansaError):
                raise error
            raise PartyFailed(f"{type(error).__name__}: {error}", party=actor.name, traceback=text) from error
        self.on_failure(Failure(actor.name, self.clock, error, text))
        self._finished(actor, None)

    def _computed(self, actor: Actor, job: Job) -> None:
        if actor.job is not job:  # the party crashed meanwhile
            return
        actor.job = None
        try:
            result = self.batching.result(job)
        except WorkerLost:
            raise
        except Exception as error:
            if actor.history is not None:
                actor.history.append((self.clock, error))
            self._throw(actor, error)
            return
        if actor.history is not None:
            actor.history.append((self.clock, result))
        self._resume(actor, result)

    def _timer(self, actor: Actor, due: float) -> None:
        if actor.timer != due:
            return
        actor.timer = None
        if actor.kind is None or actor.deadline is None:
            return
        if actor.deadline > self.clock:
            actor.timer = actor.deadline
            self.later(actor.deadline, TIMER, actor, actor.deadline)
            return
        error = actor.expired()
        actor.kind = None
        if actor.history is not None:
            actor.history.append((self.clock, error))
        self._throw(actor, error)

    def _crash(self, name: str, restart: float | None) -> None:
        if self.network is not None and name in self.network.down:
            return  # a process that is already down cannot die again
        actor = self.actors.pop(name, None)
        if actor is not None:
            actor.job = None
            actor.timer = None
            if actor.coroutine is not None:
                actor.coroutine.close()
                actor.coroutine = None
        assert self.network is not None
        self.network.down.add(name)
        if restart is not None:
            self.later(self.clock + restart, RESTART, name, None)
        elif name in self.unfinished:
            error = PartyFailed("crashed and does not come back", party=name)
            if not self._dispensable(name):
                raise error
            self.on_failure(Failure(name, self.clock, error, ""))
            self.results[name] = None
            self.unfinished.discard(name)

    def _dispensable(self, name: str) -> bool:
        """Whether the run has a point without this party: it is one of several peers, and not the last."""
        others = len(self.unfinished) > 1 or any(result is not None for result in self.results.values())
        return self.roles[self.find(name)[0]].many and others

    def _restart(self, name: str) -> None:
        assert self.network is not None
        self.network.down.discard(name)
        if name in self.unfinished:
            self._start(self.create(name, *self.find(name)))

    def _deadlock(self) -> Deadlock:
        waits = []
        for actor in self.actors.values():
            kinds = actor.kind if isinstance(actor.kind, tuple) else (actor.kind,)
            names = " or ".join(k.__name__ for k in kinds if k is not None) or "nothing"
            waits.append(f"{actor.name} for {names}" + (f" from {actor.sender}" if actor.sender else ""))
        shown = "; ".join(waits[:10]) + ("; ..." if len(waits) > 10 else "")
        return Deadlock(f"every party waits and no message is under way: {shown}", remedy="give the wait a deadline")
