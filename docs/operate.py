"""Runs what docs/operate.md says, on one machine as if it were four, and puts what the commands said into the page.

A block of kind ``console`` holds commands behind the name of a machine and ``$``, and what they say; the others say in their first
line which file of which machine they are. Each machine is a home folder of its own; the hub's address is one of loopback. After a
change: ``python docs/operate.py``, and let the difference be reviewed. ``tests/docs/test_operate.py`` compares.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).resolve().parent / "operate.md"
HUB: Final = {"hub.example.org:7400": "127.0.0.1", "0.0.0.0:7400": "0.0.0.0"}  # noqa: S104 - what the page says
"""Addresses of the page, and where they are here."""
PATIENCE: Final = 60.0
"""Seconds for one command."""

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT: Final = re.compile(r"(hub|hospital-a|hospital-b|ada)\$ (.*)")
_FILE: Final = re.compile(r"# (hub|hospital-a|hospital-b|ada): (the end of )?~/(\S+)")
_STAYS: Final = ("hansa hub", "hansa node")


@dataclass
class Machines:
    """Four home folders and the processes that stay.

    Args:
        root: of the folders.
        port: where the hub listens here.
    """

    root: Path
    port: int
    staying: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)

    def run(self, machine: str, command: str, expected: list[str]) -> list[str]:
        """What a command says; one that stays is waited for until it has said as much as the page expects."""
        if command == "^C":
            return self._end(machine)
        command = self.named(command)
        for address, host in HUB.items():
            command = command.replace(address, f"{host}:{self.port}")
        process = self._start(machine, command)
        said: str | list[str]
        if command.startswith(_STAYS):
            self.staying[machine] = process
            said = self._lines(process, len(expected))
        else:
            token = self.tokens.get(machine, "") if command == "hansa join -" else ""
            said = process.communicate(token, timeout=PATIENCE)[0].splitlines()
            # A node looks at a plan and at its data before it asks its owner, who looks again.
            began = time.monotonic()
            while command == "hansa pending" and said[0].startswith("no run") and time.monotonic() < began + PATIENCE:
                said = self._start(machine, command).communicate(timeout=PATIENCE)[0].splitlines()
        if command.startswith("hansa invite"):
            self.tokens[shlex.split(command)[2]] = said[0] + "\n"
        lines = [self.plain(line) for line in said]
        if command.startswith("hansa submit"):
            told, real = (next((m[0] for m in map(_RUN.search, text) if m), "") for text in (expected, lines))
            self.runs[told or real] = real
        pasted = [f"{self.tokens[machine][:60]}..."] if command == "hansa join -" else []
        return [line if len(line) < 500 else line[:60] + "..." for line in (*pasted, *lines)]

    def write(self, machine: str, name: str, text: str, more: bool) -> None:
        """A file of a machine; ``more`` appends."""
        path = self.root / machine / name
        with path.open("a" if more else "w", encoding="utf-8") as file:
            file.write(text)

    def named(self, command: str) -> str:
        """A command with the runs of this time in place of those of the page."""
        for known, real in self.runs.items():
            command = re.sub(rf"\b{known[:6]}(?:{known[6:]})?\b", real[:6], command)
        return command

    def plain(self, line: str) -> str:
        """A line as on four machines."""
        for machine in ("hub", "hospital-a", "hospital-b", "ada"):
            line = line.replace(str(self.root / machine), "/home/me")
        for address, host in HUB.items():
            line = line.replace(f"{host}:{self.port}", address)
        return line.rstrip()

    def close(self) -> None:
        """End what stays."""
        for machine in list(self.staying):
            self._end(machine)

    def _start(self, machine: str, command: str) -> subprocess.Popen[str]:
        home = self.root / machine
        home.mkdir(mode=0o700, exist_ok=True)
        kept = {name: os.environ[name] for name in ("LANG", "OMP_NUM_THREADS") if name in os.environ}
        return subprocess.Popen(  # noqa: S603 - the commands of our own page
            ["/bin/sh", "-c", f"exec {command}"], cwd=home, text=True,
            env={"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "COLUMNS": "120", **kept},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _end(self, machine: str) -> list[str]:
        process = self.staying.pop(machine)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        return []

    @staticmethod
    def _lines(process: subprocess.Popen[str], count: int) -> list[str]:
        """The first lines that people are told; not those of the log."""
        assert process.stdout is not None
        found: list[str] = []
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while len(found) < count and time.monotonic() < deadline:
                ready.select(1.0)
                line = process.stdout.readline()
                if not line:
                    break
                if not _LOG.match(line):
                    found.append(line)
        return found


_RUN: Final = re.compile(r"\b[0-9a-f]{16}\b")
_LOG: Final = re.compile(r"\d{4}-\d\d-\d\dT\S+ (debug|info|warning|error) ")


def parts(text: str) -> list[tuple[str, str, list[str]]]:
    """The commands of a block of kind ``console``: machine, command, and what it says."""
    found: list[tuple[str, str, list[str]]] = []
    for line in text.splitlines():
        prompt = _PROMPT.fullmatch(line)
        if prompt:
            found.append((prompt[1], prompt[2], []))
        else:
            found[-1][2].append(line)
    return found


def played(text: str, machines: Machines) -> str:
    """The page with what its commands say now."""

    def block(match: re.Match[str]) -> str:
        kind, body = match[1], match[2]
        file = _FILE.match(body)
        if kind == "console":
            said: list[str] = []
            for machine, command, expected in parts(body):
                said += [f"{machine}$ {machines.named(command)}", *machines.run(machine, command, expected)]
            return f"```{kind}\n" + "\n".join(said) + "\n```"
        if file:
            machines.write(file[1], file[3], body, bool(file[2]))
        return match[0]

    return _BLOCK.sub(block, text)


@contextlib.contextmanager
def four(root: Path) -> Iterator[Machines]:
    """Machines under ``root``, while the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    machines = Machines(root, port)
    try:
        yield machines
    finally:
        machines.close()


def main() -> None:
    """Write the page anew."""
    with tempfile.TemporaryDirectory(prefix="hansa-operate-") as folder, four(Path(folder)) as machines:
        PAGE.write_text(played(PAGE.read_text(encoding="utf-8"), machines), encoding="utf-8")


if __name__ == "__main__":
    main()
