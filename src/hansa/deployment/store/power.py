"""What a loss of power takes, and how a machine knows that there was one.

A killed process loses nothing: the operating system writes what it was given. When the machine itself stops, the database
still stands, as SQLite waits for the disk at each commit; and so does each frame that a run can be taken up from, which is what
a program saved or ended with. The frames of letters under way are not waited for, because that would double what a round has to
wait for. Their files may then be empty, or hold what stood there before, well formed and wrong. So none of them is read
after the machine was started anew; the runs that had some go on from what was saved.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, final

from hansa.deployment.store.database import Database
from hansa.deployment.worker.spool import Spool
from hansa.errors import StoreError

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_SETTLED: Final = "settled"
"""In the place of a boot's name: all frames were waited for."""


def this_boot() -> str:
    """What names the time since this machine was started; empty where the system does not say, which counts as another."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@final
class Power:
    """Whether the frames of a home can be relied on.

    *Guarantees*: a frame that was not waited for is relied on only in the boot in which it was written, or after :meth:`settle`.

    Args:
        database, spool: of the home.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        self._db = database
        self._spool = spool

    def doubtful(self) -> list[str]:
        """The runs with letters in frames that may be wrong; called once, at the start.

        This boot is written down in the transaction in which those runs are set back: a process that is killed between the two, or
        fails there, finds them doubtful again.
        """
        before = [boot for (boot,) in self._db.read("SELECT boot FROM power")]
        boot = this_boot()
        self._db.write("DELETE FROM power")
        self._db.write("INSERT INTO power VALUES (?)", boot or "unknown")
        if not before or before in ([_SETTLED], [boot]):
            return []
        rows = self._db.read(
            "SELECT run FROM letters WHERE blob != '' UNION SELECT run FROM outbox WHERE blob != '' ORDER BY run"
        )
        return [run for (run,) in rows]

    def settle(self) -> None:
        """Wait until all frames are on the disk: a machine that is switched off after this has lost nothing."""
        with contextlib.suppress(StoreError):  # what is not settled is doubtful after a loss of power, as ever
            for (name,) in self._db.read("SELECT name FROM blobs"):
                self._spool.sync(name)
            self._db.write("UPDATE power SET boot = ?", _SETTLED)
            self._db.commit()
