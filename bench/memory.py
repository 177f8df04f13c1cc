"""What processes hold and use, as Linux tells in ``/proc``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench.figure import Unavailable

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_EVERY: Final = 0.02


def require_proc() -> None:
    """Raise where there is no such file system.

    Raises:
        Unavailable: on another system than Linux.
    """
    if not Path("/proc/self/status").exists():
        raise Unavailable("memory is read from /proc, which this system does not have")


def held(pid: int) -> tuple[int, int]:
    """Bytes of anonymous memory, which nothing but swapping can take away, and of all resident memory; 0 for one that is gone."""
    try:
        lines = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        )
        return int(lines["RssAnon"].split()[0]) << 10, int(lines["VmRSS"].split()[0]) << 10
    except (OSError, KeyError):
        return 0, 0


def used(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def children(pid: int) -> list[int]:
    """The processes that a process has started, those that wait to be needed among them."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text(encoding="ascii").split()
    ]


class Peak:
    """The most that a set of processes holds together, looked at every 20 ms, while the context lasts."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.anonymous = self.resident = 0
        self._pids = [*pids]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_EVERY):
            found = [held(pid) for pid in self._pids]
            self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in found))
            self.resident = max(self.resident, sum(resident for _, resident in found))
