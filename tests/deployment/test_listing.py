"""Pages of runs: whole, of those that one may see, and never more than a packet holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hansa.deployment import api, dial, people
from hansa.deployment.listing import ROOM, fitting, page
from hansa.deployment.packets import MAX_PACKET
from hansa.deployment.worker.duty import describe
from hansa.deployment.worker.frames import Described
from hansa.errors import ConfigError, HansaError
from hansa.message import Message, encode
from tests.deployment.federation import PLAN, Federation, drive, federation

M = TypeVar("M", bound=Message)
ADA, BOB = ("submitter", "ada"), ("submitter", "bob")


def name(number: int) -> str:
    return f"{number:016x}"


def add(
    fed: Federation, number: int, owner: tuple[str, str] = ADA, hosts: tuple[str, ...] = (), at: float = 0.0
) -> str:
    """A run that has ended, without running it."""
    described = describe(PLAN.format(name="fedavg"))
    assert isinstance(described, Described)
    table, run = fed.hub.runs.table, name(number)
    table.add(run, f"trial {number}", owner, described, b"", at or 1000.0 + number)
    table.set(run, status="failed", cause="no quorum", ended=2000.0)
    for host in hosts:
        table.seat(run, host, host)
    return run


async def gathered(caller: Any, **fields: Any) -> list[str]:
    """All pages."""
    found: list[str] = []
    before = None
    while True:
        answer = await caller.ask(api.ListRuns(before, **fields), api.RunList)
        found += [view.run for view in answer.runs]
        if not answer.more:
            return found
        assert answer.runs, "a page without runs, and more to come"
        before = api.Before(answer.runs[-1].created, answer.runs[-1].run)


def test_more_runs_than_a_packet_holds_come_in_pages(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            hosts = tuple(f"hospital-of-the-university-of-the-town-{number}" for number in range(100))
            runs = [add(fed, number, hosts=hosts) for number in range(400)]
            whole = api.RunList(tuple(fed.hub.runs.view(fed.hub.runs.ledger.known(run)) for run in runs))
            assert len(encode(whole)) > MAX_PACKET, "the test is of no use: one packet holds them all"
            first = await fed.caller.ask(api.ListRuns(most=1000), api.RunList)
            assert 0 < len(first.runs) < 400 and len(first.runs) + first.more == 400
            assert await gathered(fed.caller, most=1000) == runs[::-1]
            assert await gathered(fed.caller, most=150) == runs[::-1]

    drive(scenario())


def test_runs_of_one_instant_come_once_each_and_a_page_begins_after_a_run_that_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            runs = [add(fed, number, at=5.0) for number in range(9)]
            assert await gathered(fed.caller, most=2) == runs[::-1]
            first = await fed.caller.ask(api.ListRuns(most=3), api.RunList)
            last = first.runs[-1]
            fed.hub.database.write("DELETE FROM runs WHERE run = ?", last.run)
            answer = await fed.caller.ask(api.ListRuns(api.Before(last.created, last.run)), api.RunList)
            assert ([view.run for view in answer.runs], answer.more) == (runs[5::-1], 0)

    drive(scenario())


def test_a_run_of_which_much_was_said_fits_too_and_one_of_little_is_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            hosts = tuple(f"node-{number:05}" + "x" * 53 for number in range(10_000))
            run = add(fed, 1, hosts=hosts)
            table = fed.hub.runs.table
            fed.hub.database.write("UPDATE hosts SET reason = ? WHERE run = ?", "\U0001f3e5" * 4000, run)
            table.set(run, cause="\u00e4" * 5_000_000)
            (view,) = (await fed.caller.ask(api.ListRuns(), api.RunList)).runs
            assert len(view.participants) == 10_000 and all(seat.reason for seat in view.participants)
            assert len(view.cause) <= 4000
            assert len(encode(api.RunList((view,)))) <= MAX_PACKET
            small = fed.hub.runs.view(fed.hub.runs.ledger.known(add(fed, 2, hosts=("node-0",))))
            assert fitting(small) is small and ROOM < MAX_PACKET

    drive(scenario())


def test_a_page_holds_and_counts_what_its_reader_may_see_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(tmp_path, start=[]) as fed,
            fed.person("ada", "submitter") as ada,
            fed.person("eve", "submitter") as eve,
        ):
            for number in range(60):
                add(fed, number, (ADA, BOB, ("operator", "ada"))[number % 3], ("node-1",) if number % 2 else ())
            mine = [name(number) for number in range(57, -1, -3)]
            first = await ada.ask(api.ListRuns(most=4), api.RunList)
            assert ([view.run for view in first.runs], first.more) == (mine[:4], 16)
            assert await gathered(ada, most=7) == mine
            assert await eve.ask(api.ListRuns(), api.RunList) == api.RunList(())
            # Nor do guesses at a name tell of another's run.
            theirs = await ada.ask(api.ListRuns(begins=name(1)), api.RunList)
            assert (theirs.runs, theirs.more) == ((), 0)
            runs = fed.hub.runs
            seated = page(runs, "node", "node-1", api.ListRuns(most=1000))
            assert [view.run for view in seated.runs] == [name(number) for number in range(59, -1, -2)]
            for kind, who in (("node", "node-2"), ("submitter", "node-1"), ("invited", "ada"), ("hub", "hub")):
                assert page(runs, kind, who, api.ListRuns()) == api.RunList(())

    drive(scenario())


@pytest.mark.parametrize(
    "word",
    [
        api.ListRuns(most=0),
        api.ListRuns(most=-1),
        api.ListRuns(most=10**9),
        api.ListRuns(begins="0" * 65),
        api.ListRuns(api.Before(1.0, "../../etc/passwd")),
        api.ListRuns(api.Before(1.0, "")),
    ],
)
def test_what_is_no_page_is_refused(tmp_path: Path, word: api.ListRuns) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            with pytest.raises(HansaError):
                await fed.caller.ask(word, api.RunList)

    drive(scenario())


def test_odd_places_and_beginnings_find_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            run = add(fed, 1)
            for begins in ("%", "_", "0%", "*", "' OR 1=1 --", "\x00", " ", run + "0"):
                assert not (await fed.caller.ask(api.ListRuns(begins=begins), api.RunList)).runs, begins
            for created in (float("nan"), float("-inf"), 0.0):
                found = await fed.caller.ask(api.ListRuns(api.Before(created, run)), api.RunList)
                assert not found.runs, created

    drive(scenario())


def test_people_gather_pages_and_find_one_run_by_the_beginning_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            runs = [add(fed, number) for number in range(449)]
            here, words = asyncio.get_running_loop(), list[Message]()

            class There:
                """The operator, from another thread's loop."""

                async def ask(self, word: Message, answer: type[M]) -> M:
                    words.append(word)
                    return await asyncio.wrap_future(
                        asyncio.run_coroutine_threadsafe(fed.caller.ask(word, answer), here)
                    )

            @contextlib.asynccontextmanager
            async def calling(_: object) -> AsyncIterator[There]:
                yield There()

            async def unneeded(*_: object) -> None:
                return None

            monkeypatch.setattr(dial, "calling", calling)
            monkeypatch.setattr(people, "_renewed", unneeded)
            mine: Any = None
            for most in (1, 20, 200, 201, 448, 449, 10_000):
                found, more = await asyncio.to_thread(people.list_runs, mine, most)
                assert [view.run for view in found] == runs[::-1][:most]
                assert more == max(0, 449 - most)
            found, more = await asyncio.to_thread(people.list_runs, mine)
            assert ([view.run for view in found], more) == (runs[::-1], 0)

            words.clear()
            assert (await asyncio.to_thread(people.find_run, mine, name(0x1A0))).run == name(0x1A0)
            assert (await asyncio.to_thread(people.find_run, mine, name(0x1C0)[:15])).run == name(0x1C0)
            for nobody in ("", "f", "../x", "x" * 100_000):
                with pytest.raises(ConfigError, match="no run that you may see"):
                    await asyncio.to_thread(people.find_run, mine, nobody)
            with pytest.raises(ConfigError, match=r"begins 16 runs: 000000000000004f, .*4b$"):
                await asyncio.to_thread(people.find_run, mine, name(0x40)[:15])
            assert all(isinstance(word, api.ListRuns) and word.most == 5 for word in words), "it fetches a few, not all"

    drive(scenario())
