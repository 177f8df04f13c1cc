"""One party alone: what it takes, what it drops, what it tells, and how it is brought back."""

from __future__ import annotations

import asyncio
import mmap
import weakref
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.deployment.worker.duty import EMPTY
from hansa.deployment.worker.frames import (
    Began,
    Body,
    Dropped,
    Ended,
    Failed,
    Letter,
    Ready,
    Saved,
    Sent,
    Setup,
    Step,
    Stepped,
    Unusable,
)
from hansa.deployment.worker.journal import Journal
from hansa.deployment.worker.letters import read, stored
from hansa.deployment.worker.party import Resident, Surroundings
from hansa.deployment.worker.spool import Spool
from hansa.errors import ConfigError, DataError, DeadlineExpired, NonFinite
from hansa.message import Message, decode, encode
from hansa.params import Params
from hansa.party import Named, Party
from hansa.protocol import OBSERVER, Role
from hansa.rng import Key
from hansa.tensor import Tensor

Program = Callable[[Party], Coroutine[Any, Any, Any]]
LONGEST = 5.0


class Ask(Message, frozen=True):
    tag = "test.ask/1"
    discloses = "nothing"
    number: int = 0


class Part(Message, frozen=True):
    tag = "test.part/1"
    discloses = "nothing"
    number: int = 0
    values: Tensor | None = None


class Other(Message, frozen=True):
    tag = "test.other/1"
    discloses = "nothing"


class State(Message, frozen=True):
    tag = "test.state/1"
    discloses = "nothing"
    number: int = 0
    times: list[float] = []


class Alone:
    """A party with nobody around it: letters go in, words come out."""

    def __init__(
        self, folder: Path, program: Program, starts: bool = True, inline: int = 1 << 16, journal: Journal | None = None,
        most: int | None = None, ticks: Iterator[float] | None = None, first: Setup | None = None,
    ) -> None:  # fmt: skip
        self.role = Role(
            program, (Ask, Part), starts=starts, invitations=() if starts else (Ask,), saves=State, many=not starts
        )
        self.first = first or Setup(
            "run", "me", "role", "", {"role": ("me", "you"), "other": ("them",)}, {}, str(folder), inline
        )
        self.journal = journal or Journal()
        self.words: list[Message] = []
        self.most = most
        self.spool = Spool(folder)
        self.numbers = max((letter.number for letter in self.journal.letters), default=0)
        around = Surroundings(self.heard, self.drained, self.worked, ticks.__next__ if ticks else lambda: 0.0)
        rosters = {name: Named(names) for name, names in self.first.rosters.items()}
        self.party = Resident(self.journal.setup(self.first), self.role, EMPTY, rosters, Key.root(0), around)

    def heard(self, word: Message) -> None:
        # As if it had been killed: nothing more is written down.
        if self.most is None or len(self.words) < self.most:
            self.words.append(word)
            self.journal.heard(word)

    async def drained(self) -> None:
        await asyncio.sleep(0)

    async def worked(self, function: Callable[..., Any], *arguments: object) -> Any:
        await asyncio.sleep(0)
        return function(*arguments)

    def give(self, message: Message | bytes, sender: str = "you") -> None:
        self.numbers += 1
        if isinstance(message, bytes):
            body = Body("?", len(message), message)
        else:
            body = stored(message, self.first.inline, self.spool)
        letter = Letter(self.numbers, sender, body)
        self.journal.received(letter)
        self.party.deliver(letter)

    async def until(self, kind: type[Message], times: int = 1) -> None:
        """Let it run until it has said ``kind`` so often, or said all that it may."""
        running = asyncio.ensure_future(self.party.run())
        try:
            async with asyncio.timeout(LONGEST):
                while len(self.of(kind)) < times and (self.most is None or len(self.words) < self.most):
                    assert not running.done() or running.exception() is None
                    await asyncio.sleep(0)
        finally:
            running.cancel()
            await asyncio.wait([running])

    def of(self, kind: type[Message]) -> list[Any]:
        return [word for word in self.words if isinstance(word, kind)]

    @property
    def kinds(self) -> str:
        """The words in short."""
        return " ".join(
            word.step.kind if isinstance(word, Stepped) else type(word).__name__.lower() for word in self.words
        )

    @property
    def failure(self) -> Failed:
        (failed,) = self.of(Failed)
        assert isinstance(failed, Failed)
        return failed


def run(alone: Alone, kind: type[Message] = Ended, times: int = 1) -> Alone:
    asyncio.run(alone.until(kind, times))
    return alone


async def nothing(me: Party) -> None:
    return None


def test_a_program_that_starts_alone_tells_its_result(tmp_path: Path) -> None:
    async def program(me: Party) -> Params:
        return Params.of({"w": np.arange(3.0)})

    alone = run(Alone(tmp_path, program))
    assert alone.kinds == "ready began ended"
    assert alone.journal.over
    (ended,) = alone.of(Ended)
    assert ended.result.tag == "hansa.worker.result/1"


def test_the_oldest_that_fits_is_taken_and_others_stay(tmp_path: Path) -> None:
    heard: list[tuple[str, Message]] = []

    async def program(me: Party) -> None:
        heard.append(await me.recv(Part, within=1.0, sender="them"))
        heard.append(await me.recv((Ask, Part), within=1.0))
        heard.append(await me.recv(Part, within=1.0))

    alone = Alone(tmp_path, program)
    for message, sender in ((Part(1), "you"), (Ask(2), "you"), (Part(3), "them"), (Part(4), "them")):
        alone.give(message, sender)
    run(alone)
    assert heard == [("them", Part(3)), ("you", Part(1)), ("them", Part(4))]
    assert [dropped.number for dropped in alone.of(Dropped)] == [2]
    assert alone.journal.letters == []


@pytest.mark.parametrize(
    ("message", "sender", "sentence"),
    [
        (encode(Other()), "you", "'test.other/1' is not accepted"),
        (b"", "you", "shorter than its header"),
        (b"GET / HTTP/1.1\r\nHost: hansa\r\n\r\n", "you", "not a Hansa frame"),
        (encode(Part(1))[:-1], "you", "length is not what its header says"),
        (encode(Part(1)) + b"x", "you", "length is not what its header says"),
        (encode(Part(1)).replace(b"\x01\xa6", b"\xc3\xa6"), "you", "test.part/1"),
        (Part(1), "stranger", "no party of this run"),
        (Part(1), OBSERVER, "no party of this run"),
    ],
)
def test_a_hostile_letter_never_reaches_the_program(
    message: Message | bytes, sender: str, sentence: str, tmp_path: Path
) -> None:
    heard: list[Message] = []

    async def program(me: Party) -> None:
        heard.append((await me.recv((Ask, Part), within=1.0))[1])

    alone = Alone(tmp_path, program)
    alone.give(message, sender)
    alone.give(Part(7))
    run(alone)
    (dropped,) = alone.of(Dropped)
    assert dropped.hostile and sentence in dropped.reason and dropped.number == 1
    assert heard == [Part(7)]


def test_who_is_not_invited_has_nobody_to_read_it(tmp_path: Path) -> None:
    alone = Alone(tmp_path, nothing, starts=False)
    alone.give(Part(1))
    (dropped,) = alone.of(Dropped)
    assert not dropped.hostile and "too late" in dropped.reason


def test_invitations_run_one_after_another_and_what_is_unread_is_dropped(tmp_path: Path) -> None:
    done: list[int] = []

    async def program(me: Party) -> None:
        _, ask = await me.recv(Ask, within=None)
        done.append(ask.number)
        if ask.number == 2:
            raise ValueError("a bug")

    alone = Alone(tmp_path, program, starts=False)
    for message in (Ask(1), Part(1), Ask(2), Part(2), Ask(3)):
        alone.give(message)
    run(alone, Ended, 2)
    assert done == [1, 2, 3]
    assert alone.kinds == "ready began took dropped dropped ended began took failed began took ended"
    assert [dropped.number for dropped in alone.of(Dropped)] == [2, 4]
    assert alone.failure.kind == "ValueError" and "a bug" in alone.failure.traceback
    assert not alone.journal.over and alone.journal.letters == []


def test_what_is_saved_is_there_for_the_next_program(tmp_path: Path) -> None:
    seen: list[Message | None] = []

    async def program(me: Party) -> None:
        _, ask = await me.recv(Ask, within=None)
        seen.append(me.saved)
        await me.save(State(ask.number))
        if ask.number == 1:
            raise ValueError

    alone = Alone(tmp_path, program, starts=False)
    for number in (1, 2, 3):
        alone.give(Ask(number))
    run(alone, Ended, 2)
    assert seen == [None, State(1), State(2)]
    assert alone.of(Saved) == []
    again = Alone(tmp_path, program, starts=False, journal=alone.journal)
    again.give(Ask(4))
    run(again)
    assert seen[-1] == State(3)


def test_a_wait_that_nothing_can_end_is_refused(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        await me.recv((Ask, Part), within=None)

    failure = run(Alone(tmp_path, program), Failed).failure
    assert failure.what == "waits without end for a Ask or Part that is not there"
    assert failure.remedy == "give the wait a deadline"


def test_a_vain_wait_ends_with_one_sentence(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        await me.recv(Part, within=0.0, sender="them")

    failure = run(Alone(tmp_path, program), Failed).failure
    assert (failure.kind, failure.what) == ("DeadlineExpired", "no Part from them by 0 s")


def test_a_bounded_wait_ends_by_itself(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        with pytest.raises(DeadlineExpired):
            await me.recv(Part, within=0.01)
        await me.sleep(0.005)

    alone = run(Alone(tmp_path, program))
    assert alone.kinds == "ready began expired woke ended"
    assert [word.step.time for word in alone.of(Stepped)] == [0.01, 0.015]


def test_a_failure_keeps_its_place_and_remedy(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        raise NonFinite("holds NaN", party="them", round=3, remedy="lower it")

    failure = run(Alone(tmp_path, program), Failed).failure
    assert (failure.kind, failure.what, failure.party, failure.round, failure.remedy) == (
        "NonFinite", "holds NaN", "them", 3, "lower it",
    )  # fmt: skip


def test_a_server_without_data_is_told_what_to_bind(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        raise DataError("Softmax needs at least one feature; the examples have none")

    assert "no data is bound here" in run(Alone(tmp_path, program), Failed).failure.remedy


def test_a_server_whose_plan_is_wrong_is_not_told_to_bind_data(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        raise ConfigError("FedAvg: a cohort of 3 cannot be drawn from 2 parties; lower cohort to 2 or less")

    assert run(Alone(tmp_path, program), Failed).failure.remedy == ""


@pytest.mark.parametrize(
    ("effect", "sentence"),
    [
        (lambda me: me.send("stranger", Part(1)), "no party has that name"),
        (lambda me: me.save(Other()), "does not declare"),
        (lambda me: me.send("you", object()), "object"),
        (lambda me: me.compute(lambda: 1 // 0), "division"),
    ],
)
def test_an_effect_that_cannot_be_fails_its_program(
    effect: Callable[[Party], Any], sentence: str, tmp_path: Path
) -> None:
    async def program(me: Party) -> None:
        await effect(me)

    assert sentence in run(Alone(tmp_path, program), Failed).failure.traceback


def test_one_message_to_many_is_stored_once(tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        large = Part(1, Tensor(np.ones(1000)))
        for to in ("you", "them", "you"):
            await me.send(to, large)
        await me.send(OBSERVER, Part(2))

    alone = run(Alone(tmp_path, program, inline=100))
    first, second, third, small = (sent.body for sent in alone.of(Sent))
    assert first == second == third and first.inline is None and small.inline == encode(Part(2))
    assert len(list(tmp_path.iterdir())) == 1
    message, _ = read(first, [Part], alone.spool)
    assert message == Part(1, Tensor(np.ones(1000)))


def test_a_large_letter_is_read_in_place(tmp_path: Path) -> None:
    owned: list[Any] = []

    async def program(me: Party) -> None:
        _, part = await me.recv(Part, within=1.0)
        assert part.values is not None
        owned.append(part.values.array)
        await me.recv(Part, within=1.0)
        # Its pages were given back, and come again when they are looked at.
        owned.append(float(part.values.array.sum()))

    alone = Alone(tmp_path, program, inline=100)
    alone.give(Part(1, Tensor(np.ones(100_000))))
    alone.give(Part(2))
    run(alone)
    assert not owned[0].flags.owndata and not owned[0].flags.writeable
    assert owned[1] == 100_000.0


class Prompt(Alone):
    """Whose words are taken at once, so that a program goes on within the turn of the loop that woke it."""

    async def drained(self) -> None:
        pass


@pytest.mark.parametrize("early", [True, False])
def test_the_pages_of_a_letter_are_given_back_when_its_program_lets_go_of_it(early: bool, tmp_path: Path) -> None:
    alive: list[bool] = []

    async def program(me: Party) -> None:
        _, part = await me.recv(Part, within=1.0)
        assert part.values is not None
        under: Any = part.values.array
        while isinstance(under, np.ndarray):
            under = under.base
        assert isinstance(under, memoryview) and isinstance(under.obj, mmap.mmap)
        pages = weakref.ref(under.obj)
        alive.append(pages() is not None)
        del part, under
        alive.append(pages() is not None)

    async def play(alone: Alone) -> None:
        if early:
            alone.give(Part(1, Tensor(np.ones(1000))))
        else:
            asyncio.get_running_loop().call_later(0.01, alone.give, Part(1, Tensor(np.ones(1000))))
        await alone.until(Ended)

    asyncio.run(play(Prompt(tmp_path, program, inline=100)))
    assert alive == [True, False]


def test_the_clock_stands_still_between_effects(tmp_path: Path) -> None:
    times: list[float] = []

    async def program(me: Party) -> None:
        for _ in range(3):
            times.extend([me.now(), me.now()])
            await me.compute(int)

    run(Alone(tmp_path, program, ticks=map(float, count(100))))
    assert times[0::2] == times[1::2]
    assert times == sorted(times) and len(set(times)) == 3
    assert times[0] < 10, "the party's clock begins at 0, whatever the machine's reads"


# What follows brings programs back.


def standing(**changes: Any) -> Journal:
    return Journal(live=True, **changes)


@pytest.mark.parametrize(
    ("journal", "sentence"),
    [
        (standing(steps=[Step("woke", 1.0)]), "where it had 'woke' it now asks for computed"),
        (standing(steps=[Step("computed", 1.0)] * 2), "sends a message that it had not sent"),
        (standing(steps=[Step("computed", 1.0)], sent=3), "done with 0 steps and 2 messages left"),
        (standing(sent=1), "asks for computed where it had sent 1 more"),
        (standing(steps=[Step("computed", 1.0), Step("took", 1.0, 1)], sent=1), "1 steps and 0 messages left"),
    ],
)
def test_a_program_that_does_something_else_is_stopped(journal: Journal, sentence: str, tmp_path: Path) -> None:
    async def program(me: Party) -> None:
        try:
            await me.compute(int)
            await me.send("you", Part(1))
        except Exception:
            raise AssertionError("the program noticed") from None

    alone = run(Alone(tmp_path, program, journal=journal), Unusable)
    (unusable,) = alone.of(Unusable)
    assert sentence in unusable.reason and unusable.reason.startswith("me: ")
    assert alone.words[-1] is unusable


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (Body("test.part/1", 9, None, "../../etc/passwd"), "32 hexadecimal"),
        (Body("test.part/1", 9, None, "0" * 32), "no frame"),
        (Body("test.part/1", 9, None, ""), "32 hexadecimal"),
    ],
)
def test_a_letter_that_the_owner_lost_stops_the_worker(body: Body, sentence: str, tmp_path: Path) -> None:
    alone = Alone(tmp_path, nothing, starts=False)
    alone.party.deliver(Letter(1, "you", body))
    alone.give(Ask(1))
    (word,) = alone.words
    assert isinstance(word, Unusable) and sentence in word.reason


def test_a_file_of_another_size_is_not_read(tmp_path: Path) -> None:
    alone = Alone(tmp_path, nothing, starts=False, inline=10)
    body = stored(Ask(1), 10, alone.spool)
    alone.party.deliver(Letter(1, "you", msgspec.structs.replace(body, size=1 << 40)))
    (word,) = alone.words
    assert isinstance(word, Unusable) and "instead of 1099511627776" in word.reason


def test_a_spool_that_takes_nothing_loses_nothing(tmp_path: Path) -> None:
    """A full disk is no failure of the program: it stops, and goes on from there when there is room."""

    async def program(me: Party) -> None:
        await me.recv(Part, within=1.0)
        try:
            await me.send("you", Part(1, Tensor(np.ones(1000))))
        except Exception:
            raise AssertionError("the program noticed") from None

    folder = tmp_path / "spool"
    alone = Alone(folder, program, inline=100)
    alone.give(Part(1))
    folder.rmdir()
    run(alone, Unusable)
    assert alone.kinds == "ready began took unusable"
    again = run(Alone(folder, program, journal=alone.journal, first=alone.first))
    assert again.kinds == "ready sent ended"


OPERATIONS = st.lists(
    st.sampled_from(["send", "take", "wait", "compute", "fails", "sleep", "save", "spread"]), max_size=8
)


def script(operations: list[str], starts: bool) -> Program:
    """A program that does these things; what it sends depends on all that it was given and on its clock."""

    async def program(me: Party) -> Params:
        start = me.saved.number if starts and isinstance(me.saved, State) else 0
        times = list(me.saved.times) if isinstance(me.saved, State) else []
        seen = sum(times)
        if not starts:
            _, ask = await me.recv(Ask, within=None)
            seen += ask.number
        for place, operation in enumerate(operations):
            if place < start:
                continue
            times.append(me.now())
            seen = seen * 3.0 + me.now()
            if operation == "send":
                await me.send("them", Part(place, Tensor(np.array([seen]))))
            elif operation == "spread":
                large = Part(place, Tensor(np.full(50, seen)))
                for to in ("you", "them", OBSERVER):
                    await me.send(to, large)
            elif operation in ("take", "wait"):
                try:
                    _, part = await me.recv(Part, within=0.0, sender="you" if operation == "take" else "them")
                    seen += part.number
                except DeadlineExpired as error:
                    seen += len(str(error))
            elif operation == "compute":
                seen += await me.compute(lambda value: value + 1.0, seen)
            elif operation == "fails":
                with pytest.raises(ZeroDivisionError):
                    await me.compute(lambda: 1 // 0)
            elif operation == "sleep":
                await me.sleep(0.0)
            else:
                await me.save(State(place + 1, times))
        return Params.of({"seen": np.array([seen])}, dtype="float64")

    return program


def frames(alone: Alone) -> list[tuple[str, bytes]]:
    found = []
    for sent in alone.of(Sent):
        body = sent.body
        found.append((sent.to, body.inline or alone.spool.path(body.blob).read_bytes()))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, starts=st.booleans())
def test_any_program_killed_at_any_word_goes_on_alike(operations: list[str], starts: bool, tmp_path: Path) -> None:
    """The law of the journal. The clock ticks at each look, so a time that is not the recorded one changes what is sent."""
    program = script(operations, starts)
    given_letters: list[Message] = [Ask(5), Part(1), Part(2), Part(3), Ask(6)]

    def filled(most: int | None) -> Alone:
        alone = Alone(tmp_path, program, starts, inline=200, most=most, ticks=map(float, count()))
        for message in given_letters:
            alone.give(message)
        return alone

    times = 1 if starts else 2
    whole = run(filled(None), Ended, times)
    for words in range(len(whole.words)):
        before = run(filled(words), Ended, times)
        assert [type(word) for word in before.words] == [type(word) for word in whole.words[:words]]
        ticks = map(float, count(0))
        after = Alone(tmp_path, program, starts, journal=before.journal, ticks=ticks, first=before.first)
        run(after, Ended, times - len(before.of(Ended)))
        together = [to for to, _ in frames(before) + frames(after)]
        assert together == [to for to, _ in frames(whole)]
        # Until the kill the clock was the same; what was sent before it was never sent again.
        assert frames(before) == frames(whole)[: len(frames(before))]
        steps = [word.step.kind for word in before.of(Stepped) + after.of(Stepped)]
        assert steps == [word.step.kind for word in whole.of(Stepped)]
        assert after.journal.letters == whole.journal.letters == []


def test_a_replay_reads_the_recorded_times(tmp_path: Path) -> None:
    """Brought back after all but its end, a program must end with what it had seen, to the last tick."""
    program = script(["compute", "wait", "sleep", "compute", "fails"], starts=True)
    whole = run(Alone(tmp_path, program, ticks=map(float, count())))
    most = len(whole.words) - 1
    before = run(Alone(tmp_path, program, most=most, ticks=map(float, count())))
    after = run(Alone(tmp_path, program, journal=before.journal, ticks=map(float, count(1000))))
    assert after.of(Ended)[0].result == whole.of(Ended)[0].result
    assert after.kinds == "ready ended"
    assert not after.of(Began) and len(after.of(Ready)) == 1


def test_a_clock_goes_on_from_where_the_owner_knew_it_to_be(tmp_path: Path) -> None:
    times: list[float] = []

    async def program(me: Party) -> None:
        times.append(me.now())
        await me.compute(int)
        times.append(me.now())
        await me.compute(int)
        times.append(me.now())

    journal = Journal(live=True, since=2.0, steps=[Step("computed", 5.0)], time=5.0)
    first = Setup("run", "me", "role", "", {"role": ("me",)}, {}, str(tmp_path), 100)
    alone = Alone(tmp_path, program, journal=journal, first=first)
    run(alone)
    assert times == [2.0, 5.0, 5.0]
    assert journal.setup(first, time=9.0).time == 9.0
    assert decode(encode(journal.setup(first, time=1.0)), Setup).time == alone.journal.time == 5.0
