"""Copies of a database: taken while its machine runs or not, and made the beginning of another past when one is restored.

A restored database has forgotten what its machine said and heard since the copy. So nothing that is counted between machines, or that
programs saved to go on from, survives: members do, runs with their events, and the results of runs that have ended.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from hansa.deployment.identity.certificates import date
from hansa.deployment.identity.files import write_private
from hansa.deployment.store.database import MIGRATIONS, Database
from hansa.deployment.store.mailbox import Mailbox
from hansa.deployment.store.members import MemberTable
from hansa.deployment.store.runs import ACTIVE, Record, RunTable
from hansa.deployment.store.works import UNDER_WAY
from hansa.deployment.worker.spool import Spool
from hansa.errors import StoreError

_FORGOTTEN: Final = (
    "lanes",
    "floors",
    "outbox",
    "sequences",
    "programs",
    "states",
    "letters",
    "steps",
    "recalls",
    "brought",
)
_WORKS: Final = ", ".join(f"'{state}'" for state in UNDER_WAY)
_WAITING: Final = ", ".join(f"'{status}'" for status in ("queued", *ACTIVE))
_NEEDED: Final = f"""
    SELECT blob, size FROM runs WHERE blob != '' AND status NOT IN ({_WAITING}) UNION ALL
    SELECT blob, size FROM results WHERE blob != '' AND run NOT IN (SELECT run FROM works WHERE state IN ({_WORKS}))
"""  # noqa: S608 - fixed texts


@final
@dataclass(frozen=True)
class Left:
    """What a database holds that was made to begin anew.

    Args:
        members, runs, results: how many.
        failed: the runs that were under way at this hub.
        works: runs that were under way at this node.
        invitations: how many were open, and are void.
    """

    members: int
    runs: int
    results: int
    failed: list[Record]
    works: list[str]
    invitations: int


def snapshot(source: Path, target: Path) -> None:
    """Write a database as it is at one instant to ``target``, whoever has it open.

    Raises:
        StoreError: it is damaged, newer than this program, or cannot be read; or the disk is full.
    """
    write_private(target, b"")  # SQLite fills an empty file, and leaves its mode
    try:
        with contextlib.closing(
            sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True, timeout=60)
        ) as opened:
            _version(opened, source)
            opened.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        raise StoreError(f"{source} cannot be copied: {error}") from None


def needed(copy: Path) -> dict[str, int]:
    """The files of the spool that are of use with a copy, and their sizes."""
    with contextlib.closing(sqlite3.connect(copy)) as opened:
        return {str(blob): int(size) for blob, size in opened.execute(_NEEDED)}


def require_ours(copy: Path) -> None:
    """Go on only if a file is a whole database of Hansa's, with nothing in it that a program of Hansa's does not make.

    Raises:
        StoreError: it is not.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(copy)) as opened,
            contextlib.closing(sqlite3.connect(":memory:")) as made,
        ):
            opened.execute("PRAGMA trusted_schema = OFF")
            for script in MIGRATIONS[: _version(opened, copy)]:
                made.executescript(script)
            if _schema(opened) != _schema(made):
                raise StoreError(f"{copy.name} holds other tables than Hansa makes, or lacks some")
            ((found, *_),) = opened.execute("PRAGMA quick_check(1)")
            if found != "ok":
                raise StoreError(f"{copy.name} is damaged: {found}")
    except sqlite3.Error as error:
        raise StoreError(f"{copy.name} is no database, or a damaged one: {error}") from None


def begin_anew(database: Database, spool: Spool, taken: float, now: float) -> Left:
    """Make a copy a database of its own: with another epoch, and nothing under way.

    Args:
        database, spool: the copy.
        taken, now: when it was taken, and when it is restored; POSIX seconds.

    Raises:
        StoreError: a result lacks its file.
    """
    for name in _FORGOTTEN:
        database.write(f"DELETE FROM {name}")  # noqa: S608 - our own names
    database.write("UPDATE epochs SET epoch = ? WHERE peer = ''", secrets.token_hex(16))
    members = MemberTable(database)
    members.restored(taken, now)
    table = RunTable(database, Mailbox(database, spool))
    failed, cause = table.all(("queued", *ACTIVE)), f"restored from a backup of {date(taken)}"
    for record in failed:
        remedy = f"begin it anew with: hansa resume {record.run}"
        table.set(record.run, status="failed", cause=cause, party="", remedy=remedy, ended=now)
        table.set(record.run, tag="", size=0, inline=None, blob="")
        table.happened(now, record.run, "status", f"failed: {cause}")
    # Those that had ended too may have been resumed since, and ended in another way.
    database.write("UPDATE runs SET anew = 1 WHERE status != 'completed'")
    works = [str(run) for (run,) in database.read(f"SELECT run FROM works WHERE state IN ({_WORKS})")]  # noqa: S608
    for run in works:
        database.write("DELETE FROM results WHERE run = ?", run)
        database.write("UPDATE works SET state = 'ended', reason = ? WHERE run = ?", cause, run)
    database.write("DELETE FROM blobs")
    database.write(f"INSERT INTO blobs SELECT blob, COUNT(*), MAX(size) FROM ({_NEEDED}) GROUP BY blob")  # noqa: S608
    for name, size in database.read("SELECT name, size FROM blobs"):
        path = spool.path(name)
        if not path.is_file() or path.stat().st_size != size:
            raise StoreError(f"a result of {size} bytes is not in the spool, or not whole: {name}")
    count = {
        what: int(database.read(f"SELECT COUNT(*) FROM {where}")[0][0])  # noqa: S608 - our own texts
        for what, where in (
            ("members", "members"),
            ("runs", "runs"),
            ("models", "runs WHERE tag != ''"),
            ("own", "results"),
        )
    }
    return Left(
        count["members"], count["runs"], count["models"] + count["own"], failed, works, members.void(now)
    )  # fmt: skip


def _version(opened: sqlite3.Connection, path: Path) -> int:
    ((version,),) = opened.execute("PRAGMA user_version")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path.name} was written by a newer Hansa (schema {version}, this one knows {len(MIGRATIONS)}); upgrade Hansa"
        )
    return int(version)


def _schema(opened: sqlite3.Connection) -> list[tuple[str, ...]]:
    return sorted(opened.execute("SELECT type, name, COALESCE(sql, '') FROM sqlite_master"))
