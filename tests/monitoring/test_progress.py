"""What a run shows: plain lines, a bar on a terminal, JSON that every reader takes."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from hansa.monitoring import RoundRecord, RunEnd, RunInfo, Tracker
from hansa.monitoring.progress import JsonLines, Lines, Live, progress, shown

INFO = RunInfo("digits", "", "abc", 50, 1000, 650)
ROUND = RoundRecord(12, {"train_loss": 0.31, "test_accuracy": 0.9123}, {}, "", 3.0, 0.021)
END = RunEnd("failed", "server, round 13: too few", 2.0, {})


def follow(tracker: Tracker, *records: RoundRecord) -> None:
    tracker.begin(INFO)
    for record in records:
        tracker.round(record)
    tracker.end(END)


def test_lines() -> None:
    out = io.StringIO()
    follow(Lines(out), ROUND, RoundRecord(13, {}, {}, "client-3: withdrew", 0.0, 0.1))
    begin, first, second, end = out.getvalue().splitlines()
    assert begin == "digits: 1,000 parties, 650 parameters"
    assert first == "round 12/50  test_accuracy 0.9123  train_loss 0.3100  0.02 s"
    assert second.endswith("(client-3: withdrew)")
    assert end == "failed in 2.0 s; server, round 13: too few"
    assert "\x1b" not in out.getvalue()


def test_a_resumed_run_says_where_it_goes_on() -> None:
    out = io.StringIO()
    Lines(out).begin(RunInfo("", "", "abc", None, 3, 10, first_round=7))
    assert out.getvalue() == "run: 3 parties, 10 parameters, from round 7\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_lines_are_strict(value: float) -> None:
    out = io.StringIO()
    follow(JsonLines(out), RoundRecord(1, {"test_loss": value}, {"a": {"loss": value}}, "", 0.0, 0.1))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    events = [json.loads(line, parse_constant=refuse) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["begin", "round", "end"]
    assert events[1]["metrics"] == {"test_loss": None} and events[1]["parties"] == {"a": {"loss": None}}


def test_a_terminal_gets_a_bar_with_the_newest_metrics() -> None:
    out = io.StringIO()
    note = RoundRecord(13, {"test_accuracy": 0.95}, {}, "client-3: [red]markup[/red]", 0.0, 0.1)
    follow(Live(Console(file=out, force_terminal=True, width=160)), ROUND, note)
    text = out.getvalue()
    assert "13/50" in text and "test_accuracy 0.9500" in text
    assert "[red]markup[/red]" in text, "what a party says is never read as markup"


def test_the_stream_decides() -> None:
    assert isinstance(progress(stream=io.StringIO()), Lines)
    assert isinstance(progress(as_json=True), JsonLines)


def test_what_is_shown_first() -> None:
    assert shown({"train_steps": 1.0, "contributors": 3.0, "train_loss": 0.5, "test_accuracy": 0.25}) == (
        "test_accuracy 0.2500  train_loss 0.5000  train_steps 1.0000"
    )
    assert shown({}) == ""
