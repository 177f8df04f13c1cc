"""A machine that lost its power: what stood in the frames of letters is not believed, and runs go on from what was saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hansa.deployment import host
from hansa.deployment.api import ResumeRun, Submitted
from hansa.deployment.ledger import request_of
from hansa.deployment.store import Database, Power, power
from hansa.deployment.worker.spool import Spool
from hansa.errors import StoreError
from hansa.message import encode
from hansa.params import Params
from tests.deployment.federation import PLAN, Federation, drive, federation

LONG = PLAN.format(name="fedavg").replace("rounds = 3", "rounds = 12")


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The boot that the system names: the last of the list."""
    names = ["first"]
    monkeypatch.setattr(power, "this_boot", lambda: names[-1])
    # So that the small models of these tests lie in frames.
    monkeypatch.setattr(host, "INLINE", 64)
    return names


def spoil(home: Path, database: Database, like: bytes | None = None) -> int:
    """Do to a home what a loss of power may: frames that nobody waited for hold zeros, or ``like``; how many there were."""
    waited = {
        blob
        for table in ("states", "results", "runs")
        for (blob,) in database.read(f"SELECT blob FROM {table} WHERE blob != ''")
    }
    spoiled = [path for path in (home / "spool").iterdir() if path.name not in waited]
    for path in spoiled:
        size = path.stat().st_size
        path.write_bytes((like or b"")[:size].ljust(size, b"\x00"))
    return len(spoiled)


async def in_the_middle(fed: Federation) -> str:
    """A run in its third round or later, with frames under way at the hub."""
    run = await fed.submit(LONG)
    await fed.until(lambda: (record := fed.hub.runs.table.get(run)) and (record.round or 0) >= 3, "it is under way")
    await _on_its_way(fed, fed.hub.database)
    return run


async def _on_its_way(fed: Federation, database: Database) -> None:
    """Wait until a letter in a frame is under way, and durable: the next turn may have seen its end."""
    where = "SELECT 1 FROM letters WHERE blob != '' UNION SELECT 1 FROM outbox WHERE blob != ''"
    await fed.until(lambda: database.read(where), "a letter is under way")
    database.commit()


def undisturbed(tmp_path: Path) -> Params:
    async def scenario() -> Params:
        async with federation(tmp_path / "undisturbed") as fed:
            return await fed.run(LONG)

    return drive(scenario())


@pytest.mark.parametrize("stale", [False, True], ids=["zeros", "stale"])
def test_a_hub_that_lost_its_power_believes_no_frame_of_a_letter(tmp_path: Path, boots: list[str], stale: bool) -> None:
    expected = undisturbed(tmp_path)

    async def scenario() -> None:
        async with federation(tmp_path / "disturbed") as fed:
            home = fed.folder / "hub"
            # What a frame that is written over may still hold: an update of an earlier round, well formed and wrong.
            first = None
            if stale:
                await fed.run(LONG)
                first = next((path.read_bytes() for path in (home / "spool").iterdir()), None)
            run = await in_the_middle(fed)
            await fed.stop_hub(crash=True)
            boots.append("second")
            with contextlib.closing(Database(home / "hub.db")) as database:
                assert spoil(home, database, first) > 0
            await fed.start_hub()
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            record = fed.hub.runs.table.get(run)
            assert record is not None
            assert record.attempt == 2
            assert any("lost its power" in event.text for event in await fed.events(run))
            assert fed.model(run).flat.tobytes() == expected.flat.tobytes()

    drive(scenario(), 60)


def test_a_hub_that_was_only_killed_goes_on_where_it_was(tmp_path: Path, boots: list[str]) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await in_the_middle(fed)
            await fed.stop_hub(crash=True)
            await fed.start_hub()
            view = await fed.end(run)
            assert view.status == "completed"
            record = fed.hub.runs.table.get(run)
            assert record is not None
            assert record.attempt == 1

    drive(scenario())
    assert boots == ["first"]


async def node_in_doubt(fed: Federation, plan: str, name: str, **fields: Any) -> str:
    """A run whose node has lost its power with letters in frames, and is back."""
    run = await fed.submit(plan, **fields)
    node = fed.nodes[name]
    await fed.until(lambda: (record := fed.hub.runs.table.get(run)) and (record.round or 0) >= 2, "it is under way")
    await _on_its_way(fed, node.database)
    await fed.stop_node(name, crash=True)
    with contextlib.closing(Database(fed.folder / name / "node.db")) as database:
        spoil(fed.folder / name, database)
    await fed.start_node(name)
    return run


def test_a_node_that_lost_its_power_awaits_the_next_round(tmp_path: Path, boots: list[str]) -> None:
    plan = LONG.replace("rounds = 12", "rounds = 8\ndeadline = 1.0")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            boots.append("second")  # of all machines that start from now on
            run = await node_in_doubt(fed, plan, "node-1")
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            assert "set-back" in (fed.folder / "node-1" / "audit.log").read_text()
            # It took part again: what it sent after that is on record.
            text = (fed.folder / "node-1" / "audit.log").read_text()
            assert '"sent"' in text[text.index("set-back") :]

    drive(scenario())


def test_a_peer_that_lost_its_power_says_that_it_is_out(tmp_path: Path, boots: list[str]) -> None:
    plan = PLAN.format(name="dpsgd").replace("cohort = 4", "deadline = 0.3").replace("rounds = 3", "rounds = 10")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            boots.append("second")
            run = await node_in_doubt(fed, plan, "node-2")
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            (trouble,) = [event for event in await fed.events(run, "trouble") if event.party == "node-2"]
            assert "lost its power" in trouble.text
            assert fed.nodes["node-2"].works.state(run) == "ended"

    drive(scenario())


def test_a_server_on_a_node_that_lost_its_power_ends_the_run_by_name(tmp_path: Path, boots: list[str]) -> None:
    async def scenario() -> Params:
        async with federation(tmp_path / "disturbed") as fed:
            boots.append("second")
            run = await node_in_doubt(fed, LONG, "node-3", server="node-3")
            view = await fed.end(run)
            assert view.status == "failed"
            assert "lost its power" in view.cause
            await fed.caller.ask(ResumeRun(run), Submitted)
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            return fed.model(run)

    assert drive(scenario()).flat.tobytes() == undisturbed(tmp_path / "again").flat.tobytes()


class Home:
    """A database and a spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = Spool(folder / "spool")
        self.open()

    def open(self) -> None:
        self.database = Database(self.folder / "x.db")
        self.power = Power(self.database, self.spool)

    def letter(self, run: str) -> str:
        name = self.spool.write([b"frame"])
        self.database.write(
            "INSERT INTO letters (run, party, sender, tag, size, blob) VALUES (?, 'a', 'b', 't', 5, ?)", run, name
        )
        self.database.write("INSERT INTO blobs VALUES (?, 1, 5)", name)
        self.database.commit()
        return name

    def again(self) -> list[str]:
        """What is doubted when a process opens it next."""
        self.database.close()
        self.open()
        return self.power.doubtful()


@pytest.fixture
def home(tmp_path: Path, boots: list[str]) -> Iterator[Home]:
    made = Home(tmp_path)
    assert made.power.doubtful() == []
    yield made
    made.database.close()


def test_the_same_boot_doubts_nothing(home: Home) -> None:
    home.letter("a")
    assert home.again() == []


def test_another_boot_doubts_each_run_with_frames_once(home: Home, boots: list[str]) -> None:
    home.letter("b")
    home.letter("b")
    home.letter("a")
    boots.append("second")
    assert home.again() == ["a", "b"]
    assert home.again() == []


def test_a_system_that_does_not_say_is_doubted(home: Home, boots: list[str]) -> None:
    home.letter("a")
    boots.append("")
    for _ in range(2):
        assert home.again() == ["a"]


def test_what_was_settled_is_not_doubted(home: Home, boots: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = home.letter("a")
    synced: list[int] = []
    sync = os.fsync

    def noted(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    home.power.settle()
    assert synced[:2] == [home.spool.path(name).stat().st_ino, home.spool.folder.stat().st_ino]
    boots.append("second")
    assert home.again() == []
    home.letter("b")
    boots.append("third")
    assert home.again() == ["a", "b"]


def test_a_frame_that_cannot_be_settled_stays_in_doubt(home: Home, boots: list[str]) -> None:
    home.spool.path(home.letter("a")).unlink()
    home.power.settle()
    boots.append("second")
    assert home.again() == ["a"]


def test_a_durable_frame_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(file: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    def noted_rename(path: Path, to: Path) -> Path:
        calls.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    name = spool.write([b"frame"], durable=True)
    assert calls == [str(tmp_path / f"{name}.part"), "rename", str(tmp_path)]
    calls.clear()
    spool.write([b"frame"])
    assert calls == ["rename"]


def test_a_spool_may_lie_on_another_disk(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir(mode=0o700)
    (tmp_path / "spool").symlink_to("large")
    spool = Spool(tmp_path / "spool")
    name = spool.write([b"frame"], durable=True)
    spool.sync(name)
    assert bytes(spool.map(name)) == b"frame"


def test_a_disk_that_fails_meanwhile_is_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    spool = Spool(tmp_path)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        spool.write([b"frame"], durable=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_program_goes_on_from_is_waited_for(
    tmp_path: Path, boots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: dict[str, bool] = {}
    write = Spool.write

    def noted(spool: Spool, parts: Any, size: int = 0, waits: bool = False) -> str:
        name = write(spool, parts, size, waits)
        durable[name] = waits
        return name

    monkeypatch.setattr(Spool, "write", noted)

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(PLAN.format(name="scaffold"))
            states: set[str] = set()
            databases = [fed.hub.database, *(node.database for node in fed.nodes.values())]

            def saved() -> bool:
                for database in databases:
                    states.update(blob for (blob,) in database.read("SELECT blob FROM states WHERE blob != ''"))
                record = fed.hub.runs.table.get(run)
                return record is not None and record.status == "completed"

            await fed.until(saved, "it is over")
            ((result,),) = fed.hub.database.read("SELECT blob FROM runs")
            assert durable[result]
            assert len(states) >= 4
            assert all(durable[name] for name in states)
            assert not all(durable.values())

    drive(scenario())


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_start_after_a_loss_of_power_that_does_not_come_to_its_end_is_none(
    tmp_path: Path, boots: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The boot is written down with what follows from it: otherwise the next start would believe the frames."""

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            home = fed.folder / "hub"
            await in_the_middle(fed)
            await fed.stop_hub(crash=True)
            boots.append("second")
            with contextlib.closing(Database(home / "hub.db")) as database:
                assert spoil(home, database) > 0
                box = Power(database, Spool(home / "spool"))
                doubtful = box.doubtful()
                assert doubtful
                if how == "killed":
                    database._connection.execute("ROLLBACK")
                    database._open = False
                    database._connection.execute("PRAGMA query_only=ON")
                else:
                    with pytest.raises(KeyError), database.at_once():
                        raise KeyError("nobody foresaw it")
                    box.settle()
            with contextlib.closing(Database(home / "hub.db")) as database:
                assert Power(database, Spool(home / "spool")).doubtful() == doubtful

    drive(scenario())


def test_a_run_that_cannot_go_on_after_a_loss_of_power_says_so_and_the_hub_starts(
    tmp_path: Path, boots: list[str]
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await in_the_middle(fed)
            fed.hub.runs.table.set(run, anew=1)  # a party was restored from a backup, and the run went on without it
            fed.hub.members.revoke("node-3", 1.0)
            request = replace(request_of(fed.hub.runs.ledger.known(run)), parties=tuple(fed.names))
            fed.hub.runs.table.set(run, request=encode(request))
            fed.hub.database.commit()
            await fed.stop_hub(crash=True)
            boots.append("second")
            await fed.start_hub()
            view = await fed.view(run)
            assert (view.status, view.cause) == (
                "failed",
                "the hub's machine lost its power, and with it letters under way",
            )
            assert "does not go on by itself" in view.remedy and "node-3" in view.remedy

    drive(scenario())
