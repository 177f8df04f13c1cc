"""A party of a deployed run: the effects of :class:`~hansa.party.Party` over asyncio, and the programs one after another.

Whatever a program is given is told before the program goes on, and so is whatever it sends. From what was told a
:class:`Resident` elsewhere brings the program back: it runs it again, gives it the same, and swallows what it had sent.
"""

from __future__ import annotations

import asyncio
import mmap
import time
import traceback
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

from hansa.deployment.worker.frames import (
    Began,
    Body,
    Dropped,
    Ended,
    Failed,
    Letter,
    Ready,
    Result,
    Saved,
    Sent,
    Setup,
    Step,
    Stepped,
    Unusable,
)
from hansa.deployment.worker.letters import Opened, opened, read, stored
from hansa.deployment.worker.past import Diverged, Past
from hansa.deployment.worker.spool import Spool
from hansa.errors import ConfigError, DataError, DeadlineExpired, MessageError, RunError, StoreError
from hansa.examples import Shard
from hansa.message import Message, wire_size
from hansa.params import Params
from hansa.party import Party
from hansa.protocol import OBSERVER, Role
from hansa.rng import Key

R = TypeVar("R")

MOST_TEXT: Final = 1 << 14
"""Characters of a traceback, or of an error's sentence, that are passed on: the last of the one, the first of the other."""

MOST_NAME: Final = 256


@dataclass(frozen=True)
class Surroundings:
    """What a party's programs run in.

    Args:
        say: tells the owner something; what was said first arrives first.
        drained: waits until the owner has taken what was said, more or less.
        work: runs a pure function with its arguments.
        monotonic: seconds that pass.
    """

    say: Callable[[Message], None]
    drained: Callable[[], Awaitable[None]]
    work: Callable[..., Awaitable[Any]]
    monotonic: Callable[[], float] = time.monotonic


@dataclass(slots=True, eq=False)
class _Wait:
    """What a program waits for.

    The letter lies here and not in ``over``: the loop holds that future for as long as the program runs on, and so would hold the letter.
    """

    kind: type[Message] | tuple[type[Message], ...]
    sender: str | None
    over: asyncio.Future[None]
    letter: Opened | None = None

    def fits(self, letter: Opened) -> bool:
        return isinstance(letter.message, self.kind) and self.sender in (None, letter.sender)


@final
class Resident(Party):
    """One party of a run in this process; see the module's text.

    Args:
        setup: who it is and where it stood.
        role: its role in the plan's protocol.
        shard: its data.
        rosters: the names of all parties by role.
        key: the root of the run's public randomness.
        around: the pipe, the worker thread and the clock.

    Raises:
        HansaError: what it had saved cannot be read.
    """

    __slots__ = (
        "_around", "_base", "_idle", "_inbox", "_invited", "_kept", "_key", "_last_sent", "_lasting", "_now", "_opened", "_origin",
        "_past", "_ready", "_role", "_setup", "_spool", "_stuck", "_wait", "data", "name", "roster", "saved",
    )  # fmt: skip

    def __init__(
        self,
        setup: Setup,
        role: Role,
        shard: Shard,
        rosters: Mapping[str, Sequence[str]],
        key: Key,
        around: Surroundings,
    ) -> None:
        self.name = setup.party
        self.data = shard
        self.roster = rosters
        self._spool = Spool(setup.spool)
        kinds = () if role.saves is None else (role.saves,)
        self.saved = None if setup.saved is None else read(setup.saved, kinds, self._spool)[0]
        self._setup = setup
        self._role = role
        self._key = key
        self._around = around
        self._base = max(setup.time, setup.since, setup.steps[-1].time if setup.steps else 0.0)
        self._origin = around.monotonic()
        self._now = setup.since if setup.live else self._base
        self._past = Past(setup if setup.live else None)
        self._inbox: deque[Opened] = deque()
        self._wait: _Wait | None = None
        self._invited = asyncio.Event()
        # No program runs and none is about to: a letter that is no invitation has nobody to read it.
        self._idle = not (setup.live or role.starts)
        self._ready = False
        self._stuck = False
        # A program that has let go of a letter gives its pages back at once: nothing here holds them.
        self._opened: list[weakref.ref[mmap.mmap]] = []
        self._lasting: mmap.mmap | None = None
        self._kept: Message | None = None
        self._last_sent: tuple[Message, Body] | None = None
        for letter in setup.letters:
            self.deliver(letter)

    async def run(self) -> None:
        """Run the party's programs until cancelled, or, where it starts by itself, until its program has ended."""
        if self._stuck:
            await asyncio.get_running_loop().create_future()
        if self._setup.live:
            await self._program()
        elif self._role.starts:
            await self._begin()
        else:
            self._caught_up()
        while not self._role.starts:
            await self._invited.wait()
            await self._begin()

    def deliver(self, letter: Letter) -> None:
        """Take a letter in: for the program that waits for it, for one that will, or to drop it with a word."""
        if self._stuck:
            return
        try:
            found = opened(letter, self._role, self.roster, self._spool)
        except MessageError as error:
            self._drop(letter.number, letter.sender, str(error), hostile=True)
            return
        except StoreError as error:
            self._give_up(str(error))
            return
        if self._wait is not None and self._wait.fits(found):
            waiting, self._wait = self._wait, None
            waiting.letter = found
            waiting.over.set_result(None)
        elif not self._idle:
            self._inbox.append(found)
        elif isinstance(found.message, self._role.invitations):
            self._inbox.append(found)
            self._idle = False
            self._invited.set()
        else:
            self._drop(found.number, found.sender, "no program here waits for it: it came too late, or twice")

    async def send(self, to: str, message: Message) -> None:
        if await self._checked(self._past.swallow):
            return
        self._caught_up()
        if to != OBSERVER and not any(to in roster for roster in self.roster.values()):
            what = f"sent {type(message).__name__} to {to!r}, but no party has that name"
            raise RunError(what, party=self.name, remedy="send to names of the roster")
        if self._last_sent is None or self._last_sent[0] is not message:
            self._last_sent = (message, await self._stored(message))
        self._say(Sent(to, self._last_sent[1], self._now))
        await self._around.drained()

    async def recv(self, kind: Any, *, within: float | None, sender: str | None = None) -> Any:
        for letter in self._opened:
            if (pages := letter()) is not None:
                pages.madvise(mmap.MADV_DONTNEED)  # a letter that was read once is seldom read again
        if self._lasting is not None:
            self._lasting.madvise(mmap.MADV_DONTNEED)  # and what was saved, once a round
        self._opened.clear()
        step = await self._step("took", "expired")
        if step is not None:
            if step.kind == "expired":
                raise self._expired(kind, sender)
            return await self._took_again(step.letter)
        wait = _Wait(kind, sender, asyncio.get_running_loop().create_future())
        found = next((letter for letter in self._inbox if wait.fits(letter)), None)
        if found is not None:
            self._inbox.remove(found)
        elif within is None:
            names = _names(kind)
            remedy = "give the wait a deadline"
            raise RunError(f"waits without end for a {names} that is not there", party=self.name, remedy=remedy)
        else:
            found = await self._arrives(wait, self._now + within)
        deadline = self._now if within is None else self._now + within
        self._now = self._clock()
        if found is None:
            # The loop's timer may be a hair early, and then the program would wait once more for nothing.
            self._now = max(self._now, deadline)
            await self._stepped(Step("expired", self._now))
            raise self._expired(kind, sender)
        if found.pages is not None:
            self._opened.append(weakref.ref(found.pages))
        await self._stepped(Step("took", self._now, found.number))
        return found.sender, found.message

    async def compute(self, function: Callable[..., R], *arguments: object) -> R:
        again = await self._step("computed") is not None
        result: Any = None
        failure: Exception | None = None
        try:
            result = await self._around.work(function, *arguments)
        except Exception as error:
            failure = error
        if not again:
            self._now = self._clock()
            await self._stepped(Step("computed", self._now))
        if failure is not None:
            raise failure
        value: R = result
        return value

    async def save(self, state: Message) -> None:
        if self._role.saves is None or type(state) is not self._role.saves:
            raise RunError(
                f"saves a {type(state).__name__}, which its role does not declare",
                party=self.name,
                remedy="set Role.saves to the class of the state",
            )
        self.saved = state
        if not self._role.starts:
            self._kept = state
            return
        await self._checked(self._past.over)
        self._caught_up()
        body = await self._stored(state, durable=True)
        if body.inline is None:
            # A program that goes on from what it saved holds no copy of it: it reads the file.
            try:
                self.saved, pages = read(body, (self._role.saves,), self._spool)
            except StoreError as error:
                await self._parked(str(error))
            else:
                self._lasting = pages
        self._say(Saved(body, self._now))
        await self._around.drained()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if await self._step("woke") is None:
            due = self._now + max(0.0, seconds)
            await asyncio.sleep(due - self._clock())
            self._now = max(due, self._clock())
            await self._stepped(Step("woke", self._now))

    def rng(self, label: str, *indices: int) -> Key:
        return self._key.child(f"{self.name}/{label}", *indices)

    async def _begin(self) -> None:
        self._caught_up()
        self._now = self._clock()
        self._past = Past()
        self._say(Began(self._now, not self._role.starts))
        await self._program()

    async def _program(self) -> None:
        """Run the role's program once, from ``saved``, and tell how it ended."""
        result: object = None
        failure: Exception | None = None
        try:
            result = await self._role.program(self)
        except Exception as error:
            failure = error
        await self._checked(self._past.over)
        self._caught_up()
        saved = None if self._kept is None else await self._stored(self._kept, durable=True)
        ended: Ended | Failed
        if failure is not None:
            ended = self._failed(failure, saved)
        elif self._role.starts:
            last = Result(result if isinstance(result, Params) else None)
            ended = Ended(self._now, await self._stored(last, durable=True))
        else:
            ended = Ended(self._now, None, saved)
        self._kept = self._last_sent = None
        self._opened.clear()
        # Nothing is awaited from here on, so that no letter falls between this program and the next. What is dropped is told
        # before the end: who goes on after it finds no letter that this program left unread.
        for letter in self._inbox:
            if not isinstance(letter.message, self._role.invitations):
                self._drop(letter.number, letter.sender, "the program ended without asking for it")
        self._inbox = deque(letter for letter in self._inbox if isinstance(letter.message, self._role.invitations))
        self._say(ended)
        self._idle = not self._inbox
        if self._idle:
            self._invited.clear()
        else:
            self._invited.set()
        await self._around.drained()

    def _failed(self, error: Exception, saved: Body | None) -> Failed:
        known = error if isinstance(error, RunError) else None
        remedy = "" if known is None else known.remedy
        # A setting that is wrong says itself what to do, and no data would help.
        misset = isinstance(error, ConfigError) and not isinstance(error, DataError)
        if self._role.starts and self.saved is None and not self._setup.data and not remedy and not misset:
            remedy = "no data is bound here; where the learner has to see examples to make its model, bind some as the test set"
        return Failed(
            kind=type(error).__name__,
            what=(str(error) if known is None else known.what)[:MOST_TEXT],
            traceback="".join(traceback.format_exception(error))[-MOST_TEXT:],
            time=self._now,
            party=self.name if known is None else known.party or self.name,
            round=None if known is None else known.round,
            remedy=remedy,
            saved=saved,
        )

    async def _arrives(self, wait: _Wait, deadline: float) -> Opened | None:
        """The letter that ``wait`` is for, or None at the deadline."""
        left = deadline - self._clock()
        if left <= 0:
            return None
        self._wait = wait
        lapse = asyncio.get_running_loop().call_later(left, _lapsed, wait.over)
        try:
            await wait.over
            return wait.letter
        finally:
            lapse.cancel()
            self._wait = None

    async def _took_again(self, number: int) -> tuple[str, Message]:
        found = next((letter for letter in self._inbox if letter.number == number), None)
        if found is None:
            parked: tuple[str, Message] = await self._parked(f"letter {number}, which it took, is not there")
            return parked
        self._inbox.remove(found)
        if found.pages is not None:
            self._opened.append(weakref.ref(found.pages))
        return found.sender, found.message

    async def _step(self, *kinds: str) -> Step | None:
        """What the next effect gave when it ran first; None where it runs first now."""
        step = await self._checked(lambda: self._past.step(*kinds))
        if step is None:
            self._caught_up()
        else:
            self._now = step.time
        return step

    async def _checked(self, ask: Callable[[], R]) -> R:
        """What the past says; a program that does not do again what it did is stopped where it stands."""
        try:
            answer = ask()
        except Diverged as error:
            answer = await self._parked(
                f"brought back from what was written down, its program did not do again what it did: {error}"
            )
        if self._stuck:
            await asyncio.get_running_loop().create_future()
        return answer

    async def _parked(self, reason: str, passing: bool = False) -> Any:
        self._give_up(reason, passing)
        return await asyncio.get_running_loop().create_future()

    def _give_up(self, reason: str, passing: bool = False) -> None:
        self._say(Unusable(f"{self.name}: {reason}"[:MOST_TEXT], passing))
        self._stuck = True

    async def _stored(self, message: Message, durable: bool = False) -> Body:
        inline = self._setup.inline
        try:
            if wire_size(message) <= inline:
                return stored(message, inline, self._spool)
            body: Body = await self._around.work(stored, message, inline, self._spool, durable)
            return body
        except StoreError as error:
            parked: Body = await self._parked(str(error), passing=True)
            return parked

    async def _stepped(self, step: Step) -> None:
        self._say(Stepped(step))
        await self._around.drained()

    def _caught_up(self) -> None:
        if not self._ready:
            self._ready = True
            self._say(Ready(len(self.data.train)))

    def _drop(self, number: int, sender: str, reason: str, hostile: bool = False) -> None:
        self._say(Dropped(number, sender[:MOST_NAME], reason[:MOST_TEXT], hostile))

    def _say(self, message: Message) -> None:
        if not self._stuck:
            self._around.say(message)

    def _clock(self) -> float:
        return self._base + self._around.monotonic() - self._origin

    def _expired(self, kind: Any, sender: str | None) -> DeadlineExpired:
        whence = f" from {sender}" if sender else ""
        return DeadlineExpired(f"no {_names(kind)}{whence} by {self._now:g} s", party=self.name)


def _names(kind: type[Message] | tuple[type[Message], ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(one.__name__ for one in kinds)


def _lapsed(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
