"""What a party says of a run is bounded in bytes, and what is kept of it is read in pages: nobody fills the hub's disk or memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment import api, running
from hansa.deployment.packets import Refused, Report, Trouble
from hansa.deployment.store import Database, Mailbox, RunTable
from hansa.deployment.store import runs as table
from hansa.deployment.worker.spool import Spool
from hansa.message import encode
from hansa.protocol import Progress
from tests.deployment.federation import PLAN, Federation, drive, federation

FEDAVG = PLAN.format(name="fedavg")
LONG = FEDAVG.replace("rounds = 3", "rounds = 400")
PEERS = LONG.replace('"fedavg"', '"dpsgd"').replace("cohort = 4\n", "")
MOST = running.budget(400, 4)
TIRED = "has said more in this run than any program says"


async def under_way(fed: Federation, plan: str = PEERS, **fields: Any) -> str:
    """A run in which node-3 says nothing by itself any more."""
    run = await fed.submit(plan, **fields)
    await fed.until(lambda: fed.hub.runs.running.seat_of(run, "node-3"), "it runs")
    await fed.stop_node("node-3")
    return run


def report(run: str, size: int, round: int = 1) -> Report:
    return Report(run, "node-3", encode(Progress(round, {"loss": 1.0}, {}, "x" * size)))


def trouble(run: str, size: int) -> Trouble:
    return Trouble(run, 1, "node-3", "Sulk", "x" * min(size, 4000))


def kept(fed: Federation, run: str) -> int:
    """Bytes that are kept of what node-3 says."""
    statement = "SELECT SUM(LENGTH(text) + COALESCE(LENGTH(data), 0)) FROM events WHERE run = ? AND party = 'node-3'"
    return int(fed.hub.database.read(statement, run)[0][0] or 0)


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("size", [1_000_000, 300_000])
def test_a_party_says_so_many_bytes_in_an_attempt_and_no_more(tmp_path: Path, size: int, crash: bool) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await under_way(fed)
            said = [fed.hub.runs.heard("node-3", report(run, size)) for _ in range(MOST // size + 5)]
            assert said[0] == "" and all(TIRED in one for one in said[-5:])
            # What is kept of a report is its frame and its note.
            assert MOST - 2 * size < said.count("") * size <= kept(fed, run) <= 2 * MOST
            assert fed.hub.runs.heard("node-0", Report(run, "node-0", encode(Progress(1, {"loss": 1.0})))) == ""
            if crash:
                fed.hub.database.commit()
                before = said.count("")
                await fed.stop_hub(crash=True)
                await fed.start_hub()
                again = [fed.hub.runs.heard("node-3", report(run, size)) for _ in range(before)]
                assert all(TIRED in one for one in again)
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert not fed.hub.runs.running._heard
            # A further attempt is a new budget.
            await fed.start_node("node-3")
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            await fed.until(lambda: fed.hub.runs.running.seat_of(run, "node-3"), "it runs again")
            assert fed.hub.runs.heard("node-3", report(run, size)) == ""
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_all_that_it_says_counts_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await under_way(fed)
            while fed.hub.runs.heard("node-3", report(run, 500_000)) == "":
                pass
            said = [fed.hub.runs.heard("node-3", trouble(run, 4000)) for _ in range(200)]
            assert TIRED in said[-1]
            events = fed.hub.database.read("SELECT COUNT(*) FROM events WHERE run = ?", run)[0][0]
            for _ in range(50):
                fed.hub.refused("node-3", Refused(run, 1, "y" * 4000))
            assert fed.hub.database.read("SELECT COUNT(*) FROM events WHERE run = ?", run)[0][0] == events
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_who_takes_no_part_in_a_run_refuses_nothing_in_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG.replace("cohort = 4", "cohort = 3"), parties=("node-0", "node-1", "node-2"))
            await fed.until(lambda: fed.hub.runs.running.seat_of(run, "node-0"), "it runs")
            fed.hub.refused("node-3", Refused(run, 1, "not mine"))
            fed.hub.refused("node-0", Refused(run, 1, "not now"))
            assert [(event.party, event.text) for event in await fed.events(run, "refused")] == [("node-0", "not now")]
            await fed.caller.ask(api.StopRun(run), api.Done)
            for _ in range(5):
                fed.hub.refused("node-0", Refused(run, 1, "too late"))
            assert len(await fed.events(run, "refused")) == 1 and not fed.hub.runs.running._heard

    drive(scenario())


def test_metrics_are_of_the_runs_own_parties_and_not_without_number(tmp_path: Path) -> None:
    """Each is a column, and each party a row, of tables that whoever fetches the run has the hub write."""

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await under_way(fed)

            def said(metrics: dict[str, float], parties: dict[str, dict[str, float]]) -> str:
                return fed.hub.runs.heard("node-3", Report(run, "node-3", encode(Progress(1, metrics, parties))))

            assert "'eve' takes no part in the run" in said({}, {"node-0": {}, "eve": {"loss": 1.0}})
            assert said({}, {"node-0": {"loss": 1.0}, "node-3": {"loss": 2.0}}) == ""
            many = {f"metric {number}": 1.0 for number in range(running.METRICS - 100)}
            assert said(many, {}) == "" and said(many, {"node-0": many}) == ""
            more = {f"other {number}": 1.0 for number in range(100)}
            assert "different metrics" in said({}, {"node-0": more})
            assert "different metrics" in said(more, {})
            assert said(many, {}) == ""
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


@pytest.mark.parametrize(("rounds", "parties"), [(3, 2), (1000, 10), (100, 10_000), (None, 100)])
def test_an_honest_program_has_enough(rounds: int | None, parties: int) -> None:
    metrics = {f"test_metric_{number}": 1 / 3 for number in range(12)}
    names = [f"hospital-{number}.of-a-long-name"[:63] for number in range(parties)]
    frame = encode(Progress(10**6, metrics, dict.fromkeys(names, metrics), "a note of some length"))
    reports = rounds or 10_000
    assert reports * min(len(frame), running.MAX_PROGRESS) <= running.budget(rounds, parties)


def filled(folder: Path, sizes: list[int]) -> tuple[Database, RunTable]:
    database = Database(folder / "hub.db")
    runs = RunTable(database, Mailbox(database, Spool(folder / "spool")))
    for number, size in enumerate(sizes):
        runs.happened(0.0, "r", "round" if number % 2 else "note", "", "", number, b"x" * size)
        runs.happened(0.0, "another", "round", "", "", 0, b"y" * size)
    return database, runs


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [10] * 2500,
        [table.PAGE],
        [table.PAGE * 3] * 3,
        [600_000] * 5,
        [10, table.PAGE, 10, 10, table.PAGE - 5, 10],
    ],
)
@pytest.mark.parametrize("kind", ["", "round"])
def test_pages_hold_all_in_order_and_none_is_large(tmp_path: Path, sizes: list[int], kind: str) -> None:
    database, runs = filled(tmp_path, sizes)
    with contextlib.closing(database):
        found, after = [], 0
        while page := runs.events("r", after, kind=kind):
            held = [len(event.progress or b"") for event in page]
            assert len(page) == 1 or sum(held) <= table.PAGE
            assert len(page) <= 1000
            found += held
            after = page[-1].number
        assert found == [size for number, size in enumerate(sizes) if not kind or number % 2]


@pytest.mark.parametrize("reads", ["watch", "fetch"])
def test_whoever_follows_or_fetches_a_run_takes_a_page_of_it_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed") as fed:
            run = await under_way(fed)
            for number in range(12):
                assert fed.hub.runs.heard("node-3", report(run, 200_000, number)) == ""
            await fed.caller.ask(api.StopRun(run), api.Done)
            truly: Callable[..., list[api.Event]] = RunTable.events
            pages: list[int] = []

            def events(*given: Any, **named: Any) -> list[api.Event]:
                page = truly(*given, **named)
                pages.append(sum(len(event.progress or b"") + len(event.text) for event in page))
                return page

            monkeypatch.setattr(RunTable, "events", events)
            if reads == "watch":
                notes = [event.text for event in await fed.events(run, "round") if event.party == "node-3"]
            else:
                await fed.caller.fetch(run, tmp_path)
                lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
                notes = [note for line in lines if len(note := json.loads(line)["note"]) > 1000]
            assert [len(note) for note in notes] == [200_000] * 12
            assert max(pages) <= table.PAGE and len(pages) >= 5

    drive(scenario())
