"""The database file: versions, one process at a time, and what happens around a commit."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path

import pytest

from hansa.deployment.store import Database
from hansa.deployment.store import database as module
from hansa.errors import StoreError


def insert(database: Database, run: str) -> int:
    return database.write(
        "INSERT INTO letters (run, party, sender, tag, size, blob) VALUES (?, 'a', 'b', 't', 0, '')", run
    )


def runs(path: Path) -> list[str]:
    """What another process would find there now."""
    connection = sqlite3.connect(path)
    try:
        return [run for (run,) in connection.execute("SELECT run FROM letters ORDER BY number")]
    finally:
        connection.close()


def full(database: Database) -> None:
    """From now on the disk takes nothing more."""
    (pages,) = database.read("PRAGMA page_count")[0]
    database.read(f"PRAGMA max_page_count = {pages}")


def test_an_older_database_is_brought_up_and_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    database = Database(path)
    insert(database, "before")
    database.close()
    newest = len(module.MIGRATIONS)
    steps = ("CREATE TABLE extra (name TEXT);", "ALTER TABLE extra ADD COLUMN size INTEGER NOT NULL DEFAULT 7;")
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, *steps))
    database = Database(path)
    database.write("INSERT INTO extra (name) VALUES ('x')")
    assert database.read("SELECT name, size FROM extra") == [("x", 7)]
    assert database.read("PRAGMA user_version") == [(newest + 2,)]
    database.close()
    assert runs(path) == ["before"]
    Database(path).close()  # nothing is done twice


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    Database(path).close()
    good = module.MIGRATIONS
    monkeypatch.setattr(
        module, "MIGRATIONS", (*good, "CREATE TABLE extra (name TEXT); INSERT INTO nowhere VALUES (1);")
    )
    with pytest.raises(StoreError, match="cannot be used: no such table"):
        Database(path)
    monkeypatch.setattr(module, "MIGRATIONS", good)
    database = Database(path)
    assert database.read("SELECT name FROM sqlite_master WHERE name = 'extra'") == []
    assert database.read("PRAGMA user_version") == [(len(good),)]
    database.close()


def test_a_newer_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(module.MIGRATIONS) + 1}")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"newer Hansa.*upgrade Hansa"):
        Database(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS) + 1,)
    connection.close()


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    database = Database(path)
    with pytest.raises(StoreError, match="in use by another process"):
        Database(path)
    insert(database, "still works")
    database.commit()
    database.close()
    again = Database(path)
    assert again.read("SELECT run FROM letters") == [("still works",)]
    again.close()


def test_a_refused_open_leaves_the_lock_free(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is no database, " * 1000)
    with pytest.raises(StoreError, match="cannot be used"):
        Database(path)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    os.umask(before := os.umask(0))
    os.umask(0)
    try:
        database = Database(tmp_path / "a.db")
        insert(database, "r")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        database.close()
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}, modes


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none/a\.db cannot be opened"):
        Database(tmp_path / "none" / "a.db")


def test_writes_of_one_turn_are_one_commit_and_nothing_runs_before_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    seen: list[tuple[str, list[str]]] = []

    async def scenario() -> None:
        database = Database(path)
        insert(database, "one")
        database.after(lambda: seen.append(("first", runs(path))))
        insert(database, "two")
        database.after(lambda: seen.append(("second", runs(path))))
        assert not seen
        assert runs(path) == []
        assert database.read("SELECT count(*) FROM letters") == [(2,)]
        await asyncio.sleep(0)
        assert seen == [("first", ["one", "two"]), ("second", ["one", "two"])]
        database.after(lambda: seen.append(("at once", [])))
        assert seen[-1][0] == "at once"
        database.close()

    asyncio.run(scenario())


def test_an_action_may_write_and_its_write_is_a_commit_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    order: list[str] = []

    async def scenario() -> None:
        database = Database(path)
        insert(database, "one")

        def write_more() -> None:
            insert(database, "two")
            database.after(lambda: order.append(f"second {runs(path)}"))
            order.append(f"first {runs(path)}")

        database.after(write_more)
        for _ in range(3):
            await asyncio.sleep(0)
        database.close()

    asyncio.run(scenario())
    assert order == ["first ['one']", "second ['one', 'two']"]


def test_what_was_not_committed_is_not_there_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    database = Database(path)
    insert(database, "kept")
    database.commit()
    insert(database, "lost")
    database._connection.close()  # as the kernel would
    os.close(database._lock)
    again = Database(path)
    assert again.read("SELECT run FROM letters") == [("kept",)]
    again.close()


def test_a_failed_write_runs_nothing_and_ends_all_writing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    told: list[StoreError] = []
    ran: list[str] = []

    async def scenario() -> None:
        database = Database(path)
        database.failed = told.append
        insert(database, "kept")
        database.commit()
        full(database)
        with pytest.raises(StoreError, match="full; make room on the disk"):
            for number in range(10_000):
                insert(database, f"{number:0500d}")
                database.after(lambda: ran.append("after a write of the failed turn"))
        # What memory holds is ahead of the disk now: no later write may be kept on top of it.
        database.after(lambda: ran.append("after the failure"))
        with pytest.raises(StoreError, match="full"):
            insert(database, "later")
        with pytest.raises(StoreError, match="full"):
            database.commit()
        await asyncio.sleep(0)
        database.close()

    asyncio.run(scenario())
    assert not ran
    assert len(told) == 1
    assert runs(path) == ["kept"]


def test_a_failed_commit_runs_nothing_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    told: list[StoreError] = []
    ran: list[str] = []

    class Failing:
        def __init__(self, connection: sqlite3.Connection) -> None:
            self.connection = connection

        def execute(self, statement: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
            if statement == "COMMIT":
                raise sqlite3.OperationalError("database or disk is full")
            return self.connection.execute(statement, values)

        def close(self) -> None:
            self.connection.close()

    async def scenario() -> None:
        database = Database(path)
        database.failed = told.append
        monkeypatch.setattr(database, "_connection", Failing(database._connection))
        insert(database, "lost")
        database.after(lambda: ran.append("it"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(StoreError):
            insert(database, "later")
        database.close()

    asyncio.run(scenario())
    assert not ran
    assert [str(error).partition("; ")[0] for error in told] == [f"{path}: database or disk is full"]
    assert runs(path) == []


def test_outside_a_loop_the_caller_commits(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    database = Database(path)
    with database.at_once():
        insert(database, "one")
        assert runs(path) == []
    assert runs(path) == ["one"]
    database.close()


def test_what_follows_a_commit_and_fails_ends_all_writing_and_is_told(tmp_path: Path) -> None:
    """The actions behind it are not called any more, so somebody waits for them: who begins anew says it all again."""
    with contextlib.closing(Database(tmp_path / "hub.db")) as database:
        told: list[StoreError] = []
        database.failed = told.append

        def fails() -> None:
            raise StoreError("a file cannot be removed")

        insert(database, "one")
        database.after(fails)
        with pytest.raises(StoreError, match="cannot be removed"):
            database.commit()
        assert [str(error) for error in told] == ["a file cannot be removed"]
        with pytest.raises(StoreError):
            insert(database, "two")
    assert runs(tmp_path / "hub.db") == ["one"]
