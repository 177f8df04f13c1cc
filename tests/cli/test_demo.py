"""The demo is a federation of processes, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc")

DEMO = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever is started in the background of a shell ignores it, and so do its children
os.execv(sys.executable, [sys.executable, "-m", "hansa", "demo"])
"""


def children(process: int) -> list[int]:
    """All that a process started, and what that started."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [process]
    while waiting:
        started = parents.get(waiting.pop(), [])
        found += started
        waiting += started
    return found


def ends(process: int, within: float = 20.0) -> bool:
    """Whether a process, of whomever, ends."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within)[0])
    finally:
        os.close(descriptor)


def test_the_demo_beats_training_alone_and_is_the_simulation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hansa", "demo", "--json"], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == list(range(61))
    ended = events[-1]
    tested = {name: row["accuracy"] for name, row in ended["test"].items()}
    assert tested["federated"] > tested["local only"] + 0.2
    assert tested["central"] - 0.05 < tested["federated"]
    assert ended["apart_from_simulation"] < 1e-4
    assert set(ended["left"]) == {f"hospital-{letter}" for letter in "abcd"}
    for flows in ended["left"].values():
        assert {flow["to"] for flow in flows} == {"server"}
        assert sum(flow["messages"] for flow in flows if "update" in flow["what"]) == 60
    assert "</html>" in (tmp_path / "runs" / "demo-1" / "report.html").read_text()


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a killed parent's children notice it by themselves, later"
)
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_nothing_outlives_the_demo(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-c", DEMO], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}
    )  # fmt: skip
    assert demo.stdout is not None
    try:
        with demo.stdout:
            assert any("all hospitals are connected" in line for line in demo.stdout)
            started = children(demo.pid)
            assert len(started) >= 5
            demo.send_signal(number)
        assert demo.wait(30) == (-9 if number is signal.SIGKILL else 128 + number)
    finally:
        demo.kill()
        demo.wait()
    assert all(ends(process) for process in started)
    if number is not signal.SIGKILL:
        assert not list(tmp_path.glob("hansa-demo-*"))
