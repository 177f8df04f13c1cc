"""The database file, its migrations, and group commit.

Everything that a hub or a node must remember is in one SQLite file in WAL mode with ``synchronous=FULL``: what was committed
outlives a killed process and a lost supply of power. The statements stay within what PostgreSQL has too, and only this file
knows which of them it is.

Changes of one turn of the event loop are committed together: writing to the disk is what costs, and a hub with a thousand nodes
takes many letters in a turn. Whatever must not happen before a change is durable (an acknowledgement, a message that leaves)
is given to :meth:`Database.after`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

from hansa.deployment.disk import MAKE_ROOM, crowded, is_full, reason
from hansa.errors import StoreError

MIGRATIONS: Final[Sequence[str]] = (
    """
    CREATE TABLE power (boot TEXT NOT NULL);
    CREATE TABLE epochs (peer TEXT NOT NULL, epoch TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (peer, epoch));
    INSERT INTO epochs VALUES ('', lower(hex(randomblob(16))), 1);
    CREATE TABLE copies (taken REAL NOT NULL, restored REAL NOT NULL);
    CREATE TABLE blobs (name TEXT PRIMARY KEY, refs INTEGER NOT NULL, size INTEGER NOT NULL);
    CREATE TABLE brought (name TEXT PRIMARY KEY, peer TEXT NOT NULL);
    CREATE TABLE lanes (
        peer TEXT NOT NULL, run TEXT NOT NULL, sent INTEGER NOT NULL DEFAULT 0, received INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (peer, run));
    CREATE TABLE floors (peer TEXT PRIMARY KEY, sent INTEGER NOT NULL);
    CREATE TABLE outbox (
        peer TEXT NOT NULL, run TEXT NOT NULL, seq INTEGER NOT NULL, sender TEXT NOT NULL, receiver TEXT NOT NULL,
        sealed INTEGER NOT NULL, tag TEXT NOT NULL, size INTEGER NOT NULL, inline BLOB, blob TEXT NOT NULL,
        PRIMARY KEY (peer, run, seq));
    CREATE TABLE sequences (
        run TEXT NOT NULL, sender TEXT NOT NULL, receiver TEXT NOT NULL, last INTEGER NOT NULL,
        PRIMARY KEY (run, sender, receiver));
    CREATE TABLE programs (
        run TEXT NOT NULL, party TEXT NOT NULL, role TEXT NOT NULL, live INTEGER NOT NULL DEFAULT 0,
        ended INTEGER NOT NULL DEFAULT 0, sent INTEGER NOT NULL DEFAULT 0, since REAL NOT NULL DEFAULT 0,
        time REAL NOT NULL DEFAULT 0, PRIMARY KEY (run, party));
    CREATE TABLE states (
        run TEXT NOT NULL, party TEXT NOT NULL, tag TEXT NOT NULL, size INTEGER NOT NULL, inline BLOB,
        blob TEXT NOT NULL, PRIMARY KEY (run, party));
    CREATE TABLE letters (
        number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, party TEXT NOT NULL, sender TEXT NOT NULL,
        tag TEXT NOT NULL, size INTEGER NOT NULL, inline BLOB, blob TEXT NOT NULL, taken INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX letters_of ON letters (run, party);
    CREATE TABLE steps (
        number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, party TEXT NOT NULL, kind TEXT NOT NULL,
        time REAL NOT NULL, letter INTEGER NOT NULL);
    CREATE INDEX steps_of ON steps (run, party);
    CREATE TABLE runs (
        run TEXT PRIMARY KEY, name TEXT NOT NULL, owner_kind TEXT NOT NULL, owner TEXT NOT NULL, described BLOB NOT NULL, request BLOB NOT NULL,
        status TEXT NOT NULL, cause TEXT NOT NULL DEFAULT '', party TEXT NOT NULL DEFAULT '',
        remedy TEXT NOT NULL DEFAULT '', round INTEGER, created REAL NOT NULL, started REAL, ended REAL,
        attempt INTEGER NOT NULL DEFAULT 1, anew INTEGER NOT NULL DEFAULT 0, tag TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0,
        inline BLOB, blob TEXT NOT NULL DEFAULT '');
    CREATE INDEX runs_ended ON runs (ended);
    CREATE TABLE forgotten (run TEXT PRIMARY KEY, told BLOB NOT NULL);
    CREATE INDEX runs_listed ON runs (created, run, owner_kind, owner);
    CREATE TABLE hosts (
        run TEXT NOT NULL, host TEXT NOT NULL, party TEXT NOT NULL, answer TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '', shape BLOB,
        finished INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (run, party));
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
        party TEXT NOT NULL, round INTEGER, text TEXT NOT NULL, data BLOB);
    CREATE INDEX events_of ON events (run, number);
    CREATE TABLE results (
        run TEXT NOT NULL, party TEXT NOT NULL, tag TEXT NOT NULL, size INTEGER NOT NULL, inline BLOB,
        blob TEXT NOT NULL, PRIMARY KEY (run, party));
    CREATE TABLE works (
        run TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', offer BLOB NOT NULL,
        described BLOB, shape BLOB, start BLOB, began REAL, ended REAL, since REAL NOT NULL);
    CREATE TABLE lapsed (run TEXT PRIMARY KEY);
    CREATE TABLE recalls (run TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (run, name));
    CREATE TABLE members (
        name TEXT PRIMARY KEY, kind TEXT NOT NULL, serial TEXT NOT NULL, certificate BLOB NOT NULL, since REAL NOT NULL,
        seen REAL, revoked REAL);
    CREATE TABLE invitations (
        serial TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, expires REAL NOT NULL,
        used TEXT NOT NULL DEFAULT '', certificate BLOB, revoked REAL);
    CREATE TABLE serials (serial TEXT PRIMARY KEY, name TEXT NOT NULL, revoked REAL);
    CREATE TABLE founders (name TEXT PRIMARY KEY, sealing TEXT NOT NULL);
    """,
)
"""Each entry brings a database of the version before it to its own version, which is its place from 1."""


@final
class Database:
    """One open database file; nobody else may open it meanwhile.

    Args:
        path: the file; made if absent.

    Raises:
        StoreError: another process has it open, it is damaged, newer than this program, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[Callable[[], None]] = []
        self._open = False
        self._due = False
        self._failure: StoreError | None = None
        self.failed: Callable[[StoreError], None] | None = None
        try:
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StoreError(
                f"{path} is in use by another process; stop that one first, or give this one another --home"
            ) from None
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {reason(error)}") from None
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._migrate()
            except BaseException:
                self._connection.close()
                raise
        except (sqlite3.Error, OSError, StoreError) as error:
            os.close(self._lock)
            why = f"the disk is full ({error}); {MAKE_ROOM}" if _is_full(path, error) else str(error)
            raise StoreError(f"{path} cannot be used: {why}") from None

    def _migrate(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"it was written by a newer Hansa (schema {version}, this one knows {len(MIGRATIONS)}); upgrade Hansa"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")

    def read(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query; it sees this turn's changes.

        Raises:
            StoreError: the file cannot be read any more.
        """
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be read: {error}") from None

    def write(self, statement: str, *values: Any) -> int:
        """Change something in this turn's transaction; the number that the database gave a new row.

        Raises:
            StoreError: the disk is full or broken, now or earlier: after a failure nothing is written any more.
        """
        if self._failure is not None:
            raise self._failure
        try:
            if not self._open:
                self._connection.execute("BEGIN IMMEDIATE")
                self._open = True
                self._schedule()
            return self._connection.execute(statement, values).lastrowid or 0
        except sqlite3.Error as error:
            raise self._lost(self._full(error)) from None

    def abandon(self, error: StoreError) -> None:
        """Something beside this file could not be written that this turn's changes rely on: nothing of the turn is kept.

        The process must then end, as after a failure of the file itself.
        """
        if self._failure is None and self._open:
            self._lost(error)

    def after(self, action: Callable[[], None]) -> None:
        """Call ``action`` when everything written so far is durable: at once if it is, never if that failed."""
        if self._failure is not None:
            return
        if self._open:
            self._waiting.append(action)
        else:
            action()

    def commit(self) -> None:
        """Make everything written so far durable, now.

        Raises:
            StoreError: the disk is full or broken; nothing of this turn was kept.
        """
        self._due = False
        if self._failure is not None:
            raise self._failure
        if not self._open:
            return
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._lost(self._full(error)) from None
        self._open = False
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            try:
                action()
            except StoreError as error:  # what was to follow is lost with it: only a new start says it all again
                raise self._lost(error) from None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Commit at the end of the block instead of at the end of the turn; nothing is kept of a block that fails."""
        try:
            yield
        except BaseException as error:
            self.abandon(StoreError(f"{self.path}: nothing is kept of what failed: {error}"))
            raise
        self.commit()

    def close(self) -> None:
        """Commit and close."""
        with contextlib.suppress(StoreError):
            self.commit()
        self._connection.close()
        os.close(self._lock)

    def _schedule(self) -> None:
        if not self._due:
            with contextlib.suppress(RuntimeError):  # outside an event loop the caller commits
                asyncio.get_running_loop().call_soon(self._turn)
                self._due = True

    def _turn(self) -> None:
        if self._failure is not None:
            return  # whoever wrote was told
        try:
            self.commit()
        except StoreError:
            if self.failed is None:
                raise

    def _full(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self.path}: {error}; {MAKE_ROOM}: nothing accepted is lost")

    def _lost(self, failure: StoreError) -> StoreError:
        """What memory holds may now be ahead of the disk, so the process must end and begin again from the disk."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")
        self._open = False
        self._waiting.clear()
        self._failure = failure
        if self.failed is not None:
            self.failed(failure)
        return failure


def _is_full(path: Path, error: Exception) -> bool:
    """Whether a file cannot be used because the disk is full, which SQLite calls an input or output error in some places."""
    if isinstance(error, OSError):
        return is_full(error)
    if not isinstance(error, sqlite3.Error):
        return False
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or (
        code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and crowded(path.parent)
    )
