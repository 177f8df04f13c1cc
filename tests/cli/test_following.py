"""What a watcher is shown of a run, as lines."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc")

from hansa.cli.following import Following
from hansa.deployment.api import Event, RunView
from hansa.message import encode
from hansa.protocol import Progress


def seen(created: float, times: list[float], capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What is written of rounds at these times of a run that says it was made at ``created``."""
    view = RunView("1234", "hearts", "ada", "completed", "", "", "", 2, 2, created, created, max(times), "", ())
    following = Following(view, json=False)
    for number, time in enumerate(times):
        frame = encode(Progress(number, {"train_loss": 0.5}, {}, ""))
        following.event(Event(number, time, "1234", "round", "server", number, "", frame))
    following.end(view)
    return capfd.readouterr().err.splitlines()


def test_a_round_lasts_since_the_one_before(capfd: pytest.CaptureFixture[str]) -> None:
    lines = seen(100.0, [101.0, 103.5], capfd)
    assert "1.00 s" in lines[-3] and "2.50 s" in lines[-2] and "completed in 3.5 s" in lines[-1]


def test_no_round_of_a_resumed_run_lasts_less_than_no_time(capfd: pytest.CaptureFixture[str]) -> None:
    lines = seen(102.0, [101.0, 103.5], capfd)
    assert " -" not in "\n".join(lines)
    assert "0.00 s" in lines[-3] and "2.50 s" in lines[-2] and "completed in 2.5 s" in lines[-1]
