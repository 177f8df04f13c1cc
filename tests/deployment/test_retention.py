"""Runs that are over are forgotten: by those who may, by the clock, as a whole or not at all, and never one under way."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment import api, packets, report, retention, service
from hansa.deployment.audit import records
from hansa.deployment.packets import Offer
from hansa.deployment.settings import HubLimits, HubSettings, NodeLimits
from hansa.deployment.store import Database
from hansa.deployment.worker.frames import Body
from hansa.errors import ConfigError, HansaError, NotAuthorized, StoreError
from tests.deployment.federation import PLAN, Federation, drive, federation
from tests.deployment.test_hub import running

FEDAVG = PLAN.format(name="fedavg")
SHORT = HubSettings(limits=HubLimits(keep=3600.0))
FOR_EVER = HubSettings(limits=HubLimits(keep=0.0))


def traces(database: Database, run: str) -> set[str]:
    """The tables in which a run is to be found."""
    found = set()
    for (table,) in database.read("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
        columns = [row[1] for row in database.read(f"PRAGMA table_info({table})")]
        if any(run in str(row) for row in database.read(f"SELECT * FROM {table}")) and "run" in columns:
            found.add(table)
    return found


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def forgotten(fed: Federation) -> list[dict[str, Any]]:
    """What the hub's audit log says of runs that were forgotten."""
    return [dict(record.fields) for record in records(fed.folder / "hub" / "audit.log") if record.kind == "forgot"]


async def ended(fed: Federation, **fields: Any) -> str:
    """A run that has completed, with a result that lies in the spool, and with a folder."""
    run = await fed.submit(FEDAVG, **fields)
    await fed.end(run)
    hub, content = fed.hub, b"a large model"
    hub.runs.table.keep_result(run, Body("t", len(content), None, hub.spool.write([content])))
    (fed.folder / "hub" / "runs" / run).mkdir(parents=True)
    (fed.folder / "hub" / "runs" / run / "metrics.jsonl").write_text("{}")
    hub.database.commit()
    return run


def whole(fed: Federation, run: str) -> bool:
    """Whether all of a run that :func:`ended` made is there."""
    record = fed.hub.runs.table.get(run)
    return (
        record is not None
        and record.result is not None
        and {"runs", "hosts", "events"} <= traces(fed.hub.database, run)
        and bytes(fed.hub.spool.map(record.result.blob)) == b"a large model"
        and files(fed.folder / "hub" / "runs") == {run}
    )


def gone(fed: Federation, run: str) -> bool:
    """Whether nothing of it is."""
    left = traces(fed.hub.database, run) | files(fed.folder / "hub" / "runs")
    return not left and not {name for name in files(fed.hub.spool.folder) if not name.endswith(".free")}


def test_nothing_is_left_of_a_run_that_is_forgotten_and_the_log_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed, fed.person("ada", "submitter") as ada:
            run = await ended(fed, by=ada)
            assert whole(fed, run) and fed.hub.mailbox.spooled() > 0
            await ada.ask(api.ForgetRun(run), api.Done)
            assert fed.hub.mailbox.spooled() == 0
            assert gone(fed, run), traces(fed.hub.database, run)
            (said,) = forgotten(fed)
            assert (said["run"], said["owner"], said["status"]) == (run, "submitter ada", "completed")
            assert said["by"] == "submitter ada"
            assert not (await ada.ask(api.ListRuns(), api.RunList)).runs
            for word in (api.ForgetRun(run), api.StopRun(run), api.ResumeRun(run)):
                with pytest.raises(NotAuthorized, match="there is no such run"):
                    await ada.ask(word, api.Done)
            assert len(forgotten(fed)) == 1

    drive(scenario())


def test_what_a_stopped_run_had_saved_goes_with_it_and_the_others_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            kept = await ended(fed)
            run = await running(fed)
            await fed.caller.ask(api.StopRun(run), api.Done)
            fed.hub.database.commit()
            assert "states" in traces(fed.hub.database, run), "the test is of no use: nothing was saved"
            await fed.caller.ask(api.ForgetRun(run), api.Done)
            await fed.until(lambda: not traces(fed.hub.database, run), "its ends are heard, and nothing is left")
            assert whole(fed, kept)
            assert (await fed.view(kept)).status == "completed"

    drive(scenario())


def test_a_run_under_way_is_refused_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = HubSettings(limits=HubLimits(runs_at_once=2))
        async with federation(tmp_path, start=["node-0", "node-1"], hub=settings) as fed:
            going = await fed.submit(
                FEDAVG.replace("rounds = 3", "rounds = 400").replace("cohort = 4", "cohort = 2"),
                parties=("node-0", "node-1"),
            )
            await fed.until(lambda: fed.hub.runs.ledger.known(going).round, "it runs")
            joining = await fed.submit(FEDAVG, parties=("node-0", "node-1", "node-2", "node-3"), seconds=9e3)
            queued = await fed.submit(FEDAVG, parties=("node-0", "node-1", "node-2", "node-3"))
            for run, status in ((going, "running"), (joining, "joining"), (queued, "queued")):
                with pytest.raises(ConfigError, match=f"run {run} is {status}, .*hansa stop {run}"):
                    await fed.caller.ask(api.ForgetRun(run), api.Done)
                assert (await fed.view(run)).status == status
            assert not forgotten(fed)
            fed.hub.retention.look()
            assert len((await fed.caller.ask(api.ListRuns(), api.RunList)).runs) == 3

    drive(scenario())


def test_somebody_elses_run_and_names_that_are_paths_are_refused_in_the_same_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(tmp_path) as fed,
            fed.person("ada", "submitter") as ada,
            fed.person("eve", "submitter") as eve,
            fed.person("oda", "observer") as oda,
        ):
            run = await ended(fed, by=ada)
            before = files(fed.folder / "hub")
            names = (
                run,
                "",
                ".",
                "..",
                "../authority",
                f"../runs/{run}",
                f"{run}/",
                f"{run}\x00",
                f"{run}' OR 1=1 --",
                "%",
                "0" * 16,
            )
            for caller in (eve, oda):
                said = set()
                for name in names:
                    with pytest.raises(NotAuthorized) as caught:
                        await caller.ask(api.ForgetRun(name), api.Done)
                    said.add(str(caught.value))
                assert len(said) == 1
            for name in names[1:]:
                for caller in (ada, fed.caller):
                    with pytest.raises(NotAuthorized, match="no such run"):
                        await caller.ask(api.ForgetRun(name), api.Done)
            assert whole(fed, run) and files(fed.folder / "hub") == before
            assert not forgotten(fed)
            await fed.caller.ask(api.ForgetRun(run), api.Done)
            assert gone(fed, run)
            assert [said["by"] for said in forgotten(fed)] == ["operator operator"]

    drive(scenario())


class Killed(Exception):
    """The process dies here."""


@pytest.mark.parametrize("step", ["journal", "mailbox", "ledger", "commit"])
def test_who_is_killed_before_all_is_forgotten_has_forgotten_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await ended(fed)
            hub = fed.hub

            def killed(*_: object) -> None:
                raise Killed

            target, name = {
                "journal": (hub.runs._journal, "forget"), "mailbox": (hub.mailbox, "end"),
                "ledger": (hub.runs.ledger.table, "forget"), "commit": (hub.database, "commit"),
            }[step]  # fmt: skip
            with monkeypatch.context() as patched:
                patched.setattr(target, name, killed)
                with pytest.raises(Killed):
                    hub.forget(run, "operator operator")
            await fed.stop_hub(crash=True)
            await fed.start_hub()
            assert whole(fed, run)
            assert not forgotten(fed)
            await fed.caller.ask(api.ForgetRun(run), api.Done)
            assert gone(fed, run) and len(forgotten(fed)) == 1

    drive(scenario())


@pytest.mark.parametrize("step", ["_finish", "_remove", "_audit.append", "_note"])
def test_who_is_killed_afterwards_finishes_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await ended(fed)
            hub = fed.hub

            def killed(*_: object, **__: object) -> None:
                raise StoreError("killed")

            def forgets_its_note(statement: str, *values: object) -> int:
                if statement.startswith("DELETE FROM forgotten"):
                    raise StoreError("killed")
                return write(statement, *values)

            write = hub.database.write
            with monkeypatch.context() as patched:
                if step == "_audit.append":
                    patched.setattr(hub.audit, "append", killed)
                elif step == "_note":
                    patched.setattr(hub.database, "write", forgets_its_note)
                else:
                    patched.setattr(hub.retention, step, killed)
                with pytest.raises(StoreError):
                    hub.forget(run, "operator operator")
            assert hub.runs.table.get(run) is None
            assert len(forgotten(fed)) == (step == "_note")
            await fed.stop_hub(crash=True)
            await fed.start_hub()
            fed.hub.database.commit()
            assert gone(fed, run), traces(fed.hub.database, run)
            assert {said["run"] for said in forgotten(fed)} == {run}
            before = len(forgotten(fed))
            await fed.stop_hub()
            await fed.start_hub()
            assert len(forgotten(fed)) == before, "it is said once more at each start"

    drive(scenario())


def test_a_folder_that_cannot_be_removed_is_tried_again_and_not_said_to_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await ended(fed)

            def held(*_: object) -> None:
                raise PermissionError("somebody holds it")

            with monkeypatch.context() as patched:
                patched.setattr(shutil, "rmtree", held)
                await fed.caller.ask(api.ForgetRun(run), api.Done)
            assert fed.hub.runs.table.get(run) is None and not forgotten(fed)
            fed.hub.retention.look()
            fed.hub.database.commit()
            assert gone(fed, run) and len(forgotten(fed)) == 1

    drive(scenario())


def test_the_clock_forgets_what_ended_long_ago(tmp_path: Path) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, hub=SHORT, clock=lambda: now[0]) as fed:
            first = await ended(fed)
            going = await running(fed)
            now[0] += 3500.0
            fed.hub.retention.look()
            assert whole(fed, first)
            now[0] += 101.0
            await fed.until(lambda: (fed.hub.runs.ledger.known(going).round or 0) > 3, "the other goes on")
            fed.hub.retention.look()
            assert fed.hub.runs.table.get(first) is None
            assert (await fed.view(going)).status == "running"
            (said,) = forgotten(fed)
            assert said["run"] == first and said["by"].startswith("the hub, as [limits] keep is")
            await fed.caller.ask(api.StopRun(going), api.Done)
            await fed.stop_hub()
            now[0] += 3601.0
            await fed.start_hub()
            assert fed.hub.runs.table.get(going) is None, "what is due at the start is forgotten there"

    drive(scenario())


def test_it_looks_again_every_day_and_sooner_where_it_did_not_see_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, hub=SHORT, clock=lambda: now[0]) as fed:
            run = await ended(fed)
            hub = fed.hub

            def due_in() -> float:
                assert hub.retention._alarm is not None
                return hub.retention._alarm.when() - asyncio.get_running_loop().time()

            assert retention.DAY - 60 < due_in() <= retention.DAY
            for number in range(25):
                hub.database.write(
                    "INSERT INTO runs (run, name, owner_kind, owner, described, request, status, created, ended)"
                    " SELECT ?, name, owner_kind, owner, described, request, 'failed', created, ended FROM runs WHERE run = ?",
                    f"{number:016x}", run,
                )  # fmt: skip
            now[0] += 3601.0
            monkeypatch.setattr(retention, "MOST", 10)
            hub.retention.look()
            assert len(hub.runs.table.all()) == 16 and due_in() <= retention.SOON
            monkeypatch.setattr(retention, "SOON", 0.0)
            hub.retention.look()
            await fed.until(lambda: not hub.runs.table.all(), "the timer forgets the rest")
            assert due_in() > retention.DAY - 60
            assert len(forgotten(fed)) == 26
        assert hub.retention._alarm is None

    drive(scenario())


def test_for_ever_is_for_ever(tmp_path: Path) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, hub=FOR_EVER, clock=lambda: now[0]) as fed:
            run = await ended(fed)
            for later in (3601.0, 70_000.0):
                now[0] += later
                fed.hub.retention.look()
            assert whole(fed, run)

    drive(scenario())


def test_a_run_that_was_resumed_is_as_old_as_its_last_end(tmp_path: Path) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, hub=SHORT, clock=lambda: now[0]) as fed:
            run = await running(fed)
            await fed.caller.ask(api.StopRun(run), api.Done)
            now[0] += 3599.0
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            now[0] += 10.0
            fed.hub.retention.look()
            assert fed.hub.runs.table.get(run) is not None
            await fed.caller.ask(api.StopRun(run), api.Done)
            now[0] += 3599.0
            fed.hub.retention.look()
            assert fed.hub.runs.table.get(run) is not None
            now[0] += 2.0
            fed.hub.retention.look()
            assert fed.hub.runs.table.get(run) is None

    drive(scenario())


def test_a_run_that_is_forgotten_while_it_is_fetched_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(FEDAVG)
            await fed.end(run)
            begun, go_on, written = threading.Event(), threading.Event(), report.write_run

            def slow(*given: Any) -> Path:
                begun.set()
                go_on.wait(20)
                return written(*given)

            monkeypatch.setattr(service, "write_run", slow)
            fetching = asyncio.create_task(fed.caller.fetch(run, tmp_path / "got"))
            await fed.until(begun.is_set, "it is written")
            await fed.caller.ask(api.ForgetRun(run), api.Done)
            go_on.set()
            with pytest.raises(HansaError, match="was forgotten while"):
                await fetching
            await fed.until(lambda: not traces(fed.hub.database, run), "nothing is left")
            assert not files(fed.folder / "hub" / "runs")

    drive(scenario())


def test_folders_of_no_run_go_and_what_is_none_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await ended(fed)
            runs = fed.folder / "hub" / "runs"
            (runs / ("0" * 16)).mkdir()
            (runs / "my notes").mkdir()
            (runs / ("1" * 16)).write_text("no folder")
            (runs / ("2" * 16)).symlink_to(fed.folder / "hub" / "authority")
            fed.hub.retention.look()
            assert files(runs) == {run, "my notes", "1" * 16, "2" * 16}
            assert files(fed.folder / "hub" / "authority")

    drive(scenario())


# What machines that are away have to hear.


def waiting(fed: Federation, peer: str) -> list[str]:
    """The tags of what waits for a machine on the lane of control."""
    rows = fed.hub.database.read("SELECT tag FROM outbox WHERE peer = ? AND run = '' ORDER BY seq", peer)
    return [tag for (tag,) in rows]


def test_offers_of_a_run_that_is_over_are_taken_back_and_the_lane_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            over = [await fed.submit(FEDAVG, seconds=9e3) for _ in range(2)]
            await fed.until(
                lambda: all(fed.hub.runs.ledger.known(run).status == "joining" for run in over), "they are offered"
            )
            still = await fed.submit(FEDAVG, seconds=9e3)
            assert waiting(fed, "node-3").count(packets.Offer.tag) == 3
            for run in over:
                await fed.caller.ask(api.StopRun(run), api.Done)
            assert waiting(fed, "node-3") == [packets.Offer.tag, packets.End.tag, packets.End.tag]
            await fed.caller.ask(api.ForgetRun(over[0]), api.Done)
            assert len(waiting(fed, "node-3")) == 3, "whoever may have taken part has to hear of the end"
            await fed.start_node("node-3")
            view = await fed.end(still)
            assert view.status == "completed", view.cause
            assert len([seat for seat in view.participants if seat.answer == "accepted"]) == 5
            await fed.until(lambda: not waiting(fed, "node-3"), "it has heard all")
            assert fed.nodes["node-3"].works.state(over[0]) == "", "it was never asked"
            await fed.run(FEDAVG)

    drive(scenario())


def test_who_had_taken_an_offer_that_is_taken_back_hears_of_the_end_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            run = await fed.submit(FEDAVG, seconds=9e3)
            node = await fed.start_node("node-3")
            await fed.end(run)
            await fed.until(lambda: not waiting(fed, "node-3"), "it has heard all")
            # It has the next offer on its disk, and the hub does not know that.
            acknowledged = fed.hub.mailbox.acknowledged
            fed.hub.mailbox.acknowledged = lambda *_: False  # type: ignore[method-assign]
            await fed.stop_node("node-0")
            run = await fed.submit(FEDAVG, seconds=9e3)
            await fed.until(lambda: node.works.state(run) == "accepted", "it has taken it")
            await fed.cut("node-3")
            assert packets.Offer.tag in waiting(fed, "node-3")
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert packets.Offer.tag not in waiting(fed, "node-3")
            fed.hub.mailbox.acknowledged = acknowledged  # type: ignore[method-assign]
            await fed.dial("node-3")
            await fed.until(lambda: node.works.state(run) == "ended", "it hears of the end")
            await fed.start_node("node-0")
            await fed.run(FEDAVG)

    drive(scenario())


# A node's own.

SHORT_NODE = NodeLimits(runs_at_once=8, keep=3600.0)


def of_node(fed: Federation, name: str) -> list[str]:
    """The runs of which a node's audit log says that they were forgotten."""
    return [record.fields["run"] for record in records(fed.folder / name / "audit.log") if record.kind == "forgot"]


def test_a_node_forgets_its_results_in_time_and_at_its_start(tmp_path: Path) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, limits=SHORT_NODE, clock=lambda: now[0]) as fed:
            node = fed.nodes["node-2"]
            run = await fed.submit(FEDAVG, server="node-2")
            await fed.end(run)
            await fed.until(lambda: node.works.state(run) == "ended", "it hears of the end")
            content = b"a large model"
            body = Body("t", len(content), None, node.spool.write([content]))
            node.mailbox.hold(body)
            node.works.keep_result(run, "server", body)
            going = await running(fed)
            node.retention.look()  # from now on it counts
            now[0] += 3599.0
            node.retention.look()
            assert node.works.results(run) and not of_node(fed, "node-2")
            now[0] += 2.0
            await fed.stop_node("node-2")
            node = await fed.start_node("node-2")
            assert traces(node.database, run) == {"lapsed"}
            assert not files(node.spool.folder) and of_node(fed, "node-2") == [run]
            assert node.works.state(going) == "started", "what is under way stays"
            before = fed.hub.runs.ledger.known(going).round or 0
            await fed.until(lambda: (fed.hub.runs.ledger.known(going).round or 0) > before + 1, "and goes on")
            assert traces(fed.nodes["node-1"].database, run), "each by its own file"
            await fed.caller.ask(api.StopRun(going), api.Done)

    drive(scenario())


def test_a_run_that_a_node_has_forgotten_is_not_gone_on_with_there(tmp_path: Path) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, limits=SHORT_NODE, clock=lambda: now[0]) as fed:
            run = await running(fed, server="node-2")
            node = fed.nodes["node-2"]
            offer = node.works.offer(run)
            await fed.caller.ask(api.StopRun(run), api.Done)
            await fed.until(lambda: node.works.state(run) == "ended", "it hears of the end")
            assert "states" in traces(node.database, run), "the test is of no use: nothing was saved"
            node.retention.look()
            now[0] += 3601.0
            node.retention.look()
            assert "states" not in traces(node.database, run)
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            view = await fed.end(run)
            assert view.status == "failed", "a server that has forgotten all would begin where the others do not"
            assert "was forgotten" in next(seat.reason for seat in view.participants if seat.host == "node-2")
            # Nor may a hub that replays what was said in it have it considered anew, by whatever attempt.
            for attempt in (1, 2, 9):
                again = {name: getattr(offer, name) for name in offer.__struct_fields__} | {"attempt": attempt}
                node.participation.offered(Offer(**again))
                assert node.works.state(run) == "" and run not in node.begun
            node.retention.look()
            assert of_node(fed, "node-2") == [run]

    drive(scenario())


def test_a_node_that_is_killed_while_it_forgets_has_all_or_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]

    async def scenario() -> None:
        async with federation(tmp_path, limits=SHORT_NODE, clock=lambda: now[0]) as fed:
            run = await running(fed)
            await fed.caller.ask(api.StopRun(run), api.Done)
            node = fed.nodes["node-1"]
            await fed.until(lambda: node.works.state(run) == "ended", "it hears of the end")
            node.retention.look()
            node.database.commit()
            now[0] += 3601.0

            def killed(*_: object, **__: object) -> None:
                raise StoreError("killed")

            before = traces(node.database, run)
            for name in ("forget", "append"):
                with monkeypatch.context() as patched:
                    patched.setattr(node.works if name == "forget" else node.audit, name, killed)
                    node.retention.look()
                if name == "forget":
                    assert traces(node.database, run) == before, "half of it is gone"
                else:
                    assert traces(node.database, run) == {"lapsed", "forgotten"}
                assert not of_node(fed, "node-1")
                await fed.stop_node("node-1", crash=True)
                now[0] -= 3601.0 if name == "forget" else 0.0
                node = await fed.start_node("node-1")
                now[0] += 3601.0 if name == "forget" else 0.0
            assert traces(node.database, run) == {"lapsed"} and of_node(fed, "node-1") == [run]

    drive(scenario())
