"""What is forgotten, and when: runs that have ended, of a hub or of a node, by request or after the time that its file says.

A run is forgotten in one transaction, together with a note that it was. What lies outside of the database follows from the note:
its folder goes, the audit log says so, and then the note goes too. Whoever is killed in between finds the note at the next start.
So a run is there as a whole or not at all, and the log names every one that is gone, and none that is not; one whose note was still
there when a process was killed may be named twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, final

import msgspec

from hansa.deployment.audit import AuditLog
from hansa.deployment.logs import Log
from hansa.deployment.store import Database
from hansa.errors import StoreError

DAY: Final = 86400.0
SOON: Final = 1.0
"""Seconds until the next look, where one look did not see all."""
MOST: Final = 100
"""Runs that are forgotten at one look: nobody else is served meanwhile."""
_RUN: Final = re.compile(r"[0-9a-f]{16}")

Due = Callable[[float, int], list[tuple[str, Mapping[str, str]]]]
"""The runs that had ended at a time, or before it, some at most; each with what the log is to say of it."""


@final
class Retention:
    """The end of runs that are over.

    *Guarantees*: a run is forgotten as a whole or not at all, whenever the process is killed; the audit log says so afterwards, and
    at least once.

    Args:
        database: of the home.
        audit, log: where it is noted.
        keep: seconds for which a run is kept after its end; 0 for ever.
        due: which are to be forgotten.
        erase: forgets all that the database has of a run; its transaction is the caller's.
        there: whether a run is kept.
        clock: POSIX seconds.
        folder: where runs have folders of files, each under its name; None where they have none.
    """

    def __init__(
        self,
        database: Database,
        audit: AuditLog,
        log: Log,
        keep: float,
        due: Due,
        erase: Callable[[str], None],
        there: Callable[[str], bool],
        clock: Callable[[], float],
        folder: Path | None = None,
    ) -> None:
        self._db = database
        self._audit = audit
        self._log = log
        self._keep = keep
        self._due = due
        self._erase = erase
        self._there = there
        self._clock = clock
        self._folder = folder
        self._alarm: asyncio.TimerHandle | None = None

    def forget(self, run: str, told: Mapping[str, str]) -> None:
        """Forget a run of which nothing is under way; ``told`` is what the audit log says of it.

        Raises:
            StoreError: the disk failed; the run is there as it was.
        """
        with self._db.at_once():
            self._db.write("INSERT INTO forgotten VALUES (?, ?)", run, msgspec.json.encode(told))
            self._erase(run)
            self._db.after(lambda: self._finish(run, told))

    def look(self) -> None:
        """Finish what was begun, and forget what is due; and so again every day, until :meth:`close`."""
        self.close()
        wait = DAY
        with contextlib.suppress(StoreError):  # whoever keeps the database was told, and ends the process
            for run, told in self._db.read("SELECT run, told FROM forgotten"):
                self._finish(run, msgspec.json.decode(told, type=dict[str, str]))
            self._sweep()
            found = self._due(self._clock() - self._keep, MOST) if self._keep else []
            for run, words in found:
                self.forget(run, words)
            wait = SOON if len(found) == MOST else DAY
        self._alarm = asyncio.get_running_loop().call_later(wait, self.look)

    def close(self) -> None:
        """Forget no more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _finish(self, run: str, told: Mapping[str, str]) -> None:
        """What follows when the database has forgotten a run."""
        try:
            self._remove(run)
        except OSError as error:
            self._log.warning("files of a forgotten run stay for now", run=run, reason=str(error))
            return
        self._audit.append("forgot", run=run, **told)
        self._log.info("run forgotten", run=run, **told)
        self._db.write("DELETE FROM forgotten WHERE run = ?", run)

    def _remove(self, run: str) -> None:
        if self._folder is not None and _RUN.fullmatch(run) and (self._folder / run).is_dir():
            shutil.rmtree(self._folder / run)

    def _sweep(self) -> None:
        """Folders of runs that there are not: one was written while its run was forgotten."""
        try:
            found = [] if self._folder is None else [path.name for path in self._folder.iterdir()]
        except OSError:
            return  # there is none yet
        for name in found:
            if _RUN.fullmatch(name) and not self._there(name):
                with contextlib.suppress(OSError):  # the next look tries again
                    self._remove(name)
