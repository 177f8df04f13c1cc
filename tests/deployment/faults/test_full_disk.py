"""A disk without room: the process says so and ends, or waits; when there is room again everything goes on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hansa as hs
from hansa.deployment import api, host
from hansa.deployment.audit import AuditLog
from hansa.deployment.quantity import Address
from hansa.deployment.store import Database
from hansa.deployment.worker.spool import Draft, Spool
from hansa.errors import StoreError
from tests.deployment.faults import homes as homes_of
from tests.deployment.faults import village
from tests.deployment.faults.homes import Homes
from tests.deployment.faults.realm import free_port, realm
from tests.deployment.faults.village import Village

PLAN = homes_of.plan(hs.FedAvg(rounds=30, cohort=3, quorum=1.0))


@contextlib.contextmanager
def small_disk(home: Path, size: str) -> Iterator[None]:
    """``home`` on a file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("a file system of limited size needs root")
    kept = home.with_name(home.name + "-kept")
    home.rename(kept)
    home.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(home)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        shutil.copytree(kept, home, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def fill(home: Path) -> Path:
    """Leave no byte on the disk of ``home``."""
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        while True:
            file.write(bytes(4096))
    return filler


@pytest.mark.slow
@pytest.mark.parametrize("who", ["hub", "ada"])
def test_a_full_disk_ends_the_process_with_a_sentence_and_room_lets_it_go_on(tmp_path: Path, who: str) -> None:
    folder = tmp_path / "league"
    folder.mkdir()
    homes = homes_of.make(folder, Address("127.0.0.1", free_port()))
    plain = village.play(homes, tmp_path / "plain", PLAN).models[0]

    async def scene() -> None:
        async with realm(homes, homes.address.port) as league:
            await league.up()
            machine = league.machines[who]
            machine.held = True
            answer = await league.asked(api.Submit(PLAN, data="table"), api.Submitted)
            filler = None
            async for event in league.events(answer.run):
                if event.kind == "round":
                    filler = fill(homes.of(who))
                    break
            assert filler is not None
            await machine.until(lambda: len(machine.ended) == 1)
            assert machine.ended == [1]
            said = [line for line in machine.said if line.startswith("hansa: ")]
            assert len(said) == 1, machine.said[-10:]
            assert "full" in said[0] or "No space left" in said[0]
            assert "make room" in said[0] or "free space" in said[0]
            filler.unlink()
            machine.again()
            view = await league.ended(answer.run)
            assert (view.status, view.cause, view.round) == ("completed", "", 30)
            await league.stop()
            assert league.model(answer.run) == plain

    with small_disk(homes.of(who), "12m"):
        asyncio.run(scene())


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    folder = tmp_path / "league"
    folder.mkdir()
    return homes_of.make(folder, features=64)


def test_a_worker_without_room_is_tried_again_and_the_run_goes_on(
    homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "INLINE", 256)
    monkeypatch.setattr(host, "FIRST_WAIT", 0.0)
    plan = homes_of.plan(hs.FedAvg(rounds=2, cohort=3))
    plain = village.play(homes, tmp_path / "plain", plan)
    finish, left = Draft.finish, [0]

    def full(self: Draft, durable: bool = False) -> str:
        left[0] += 1
        if left[0] in (3, 4, 5, 9):
            raise StoreError("the spool cannot be written: No space left on device")
        return finish(self, durable)

    monkeypatch.setattr(Draft, "finish", full)
    outcome = village.play(homes, tmp_path / "full", plan)
    assert left[0] > 9
    assert (outcome.record.status, outcome.models) == ("completed", plain.models)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_what_the_audit_log_cannot_record_does_not_leave(
    homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The node breaks before anything of that step is kept, and sends it in its next life."""
    plan = homes_of.plan(hs.FedAvg(rounds=2, cohort=3))
    plain = village.play(homes, tmp_path / "plain", plan)
    sent, count = AuditLog.sent, [0]

    def full(self: AuditLog, **fields: object) -> object:
        count[0] += 1
        if count[0] == number:
            raise StoreError("audit.log: No space left on device; free space")
        return sent(self, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(AuditLog, "sent", full)

    async def run() -> None:
        town = Village(homes, tmp_path / "town")
        (tmp_path / "town").mkdir()
        try:
            async with asyncio.timeout(village.PATIENCE):
                await town.begin()
                name = await town.submitted(plan)
                broken = {asyncio.ensure_future(life.machine.broken()): life for life in list(town.lives.values())}
                done, _ = await asyncio.wait(broken, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    assert "audit.log" in str(task.result())
                    # As its service manager would: the process ends, and begins again from its disk.
                    town.crash(broken[task])
                record = await town.ended(name)
            assert record.status == "completed"
            assert town.model(name) == plain.models[0]
            for task in broken:
                task.cancel()
        finally:
            await town.close()

    asyncio.run(run())


FULL = "the disk is full .*; make room on the disk, then start again"


@pytest.mark.parametrize("pages", [0, 2, 8, 16])
def test_a_process_that_finds_its_disk_full_says_so_and_what_to_do(tmp_path: Path, pages: int) -> None:
    """SQLite finds out in one place or another, and calls it by different names."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with small_disk(home, "1m"):
        filler = fill(home)
        os.truncate(filler, filler.stat().st_size - 4096 * pages)
        with pytest.raises(
            StoreError, match=f"{FULL}|cannot be opened: No space left on device; make room on the disk"
        ):
            Database(home / "node.db")
        filler.unlink()
        Database(home / "node.db").close()


@pytest.mark.parametrize("full", [True, False])
def test_an_error_that_says_nothing_is_put_down_to_a_full_disk_only_where_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    path = tmp_path / "a.db"
    Database(path).close()
    (tmp_path / "a.db-wal").mkdir()
    if full:
        found = os.statvfs(tmp_path)
        none = type("Found", (), {"f_bavail": 3, "f_frsize": found.f_frsize, "f_files": 0, "f_favail": 0})
        monkeypatch.setattr(os, "statvfs", lambda _: none)
    with pytest.raises(StoreError, match=FULL if full else r"a\.db cannot be used: (?!.*full)"):
        Database(path)


def test_a_file_that_is_no_database_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: pytest.fail("it is not asked"))
    (tmp_path / "a.db").write_bytes(b"no database at all, however long it is" * 100)
    with pytest.raises(StoreError, match=r"file is not a database$"):
        Database(tmp_path / "a.db")


def test_a_spool_and_an_audit_log_without_room_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = "No space left on device; make room on the disk, then start again"
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=said):
        patch.setattr(Path, "mkdir", full)
        Spool(tmp_path / "spool")
    with pytest.raises(StoreError, match=said):
        AuditLog(tmp_path / "audit.log", lambda: 0.0, opener=full)  # type: ignore[arg-type]


def test_a_database_that_failed_keeps_nothing_of_that_turn_and_writes_no_more(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")
    database.write("INSERT INTO members VALUES ('a', 'node', '1', x'00', 0, NULL, NULL)")
    heard: list[StoreError] = []
    database.failed = heard.append
    database.after(lambda: heard.append(StoreError("said too early")))
    database.abandon(StoreError("elsewhere"))
    assert [str(error) for error in heard] == ["elsewhere"]
    with pytest.raises(StoreError, match="elsewhere"):
        database.write("DELETE FROM members")
    with pytest.raises(StoreError, match="elsewhere"):
        database.commit()
    database.close()
    again = Database(tmp_path / "a.db")
    assert again.read("SELECT * FROM members") == []
    again.close()
