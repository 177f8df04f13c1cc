"""What a watcher is shown of a run, as lines."""

from __future__ import annotations

from io import StringIO
from json import loads

import pytest

pytest.importorskip("grpc")

from hansa.cli.following import Following
from hansa.cli.home import table, terminal
from hansa.deployment.api import Event, Participant, RunView
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


WHY = "node.toml line 8: [policy] most_rounds = 3 does not allow 50 rounds"
CAUSE = f"1 of 3 parties accepted and 3 are wanted: lund refused ({WHY})"
TOLD = [
    ("status", "", "submitted by submitter ada; waits for its turn"),
    ("status", "", "asks its parties"),
    ("answer", "kiel", "kiel takes part"),
    ("answer", "lund", f"lund does not take part: {WHY}"),
    ("status", "lund", f"failed: lund: {CAUSE}"),
]


def refused(
    events: list[tuple[str, str, str]], capfd: pytest.CaptureFixture[str], json: bool = False, cause: str = CAUSE
) -> str:
    """What is written of a run with these events that has failed at last."""
    seats = (Participant("kiel", "kiel", "accepted", "", True), Participant("lund", "lund", "refused", WHY, True))
    view = RunView("1234", "hearts", "ada", "failed", cause, "lund", "", None, 2, 1.0, 1.0, 4.0, "", seats)
    following = Following(view, json=json)
    for number, (kind, party, text) in enumerate(events):
        following.event(Event(number, 2.0, "1234", kind, party, None, text))
    following.end(view)
    said = capfd.readouterr()
    return said.out if json else said.err


@pytest.mark.parametrize("live", [False, True])
def test_the_cause_of_a_refused_run_is_said_once_and_at_the_end(
    live: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if live:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "400")
    said = refused(TOLD, capfd)
    assert said.count(WHY) == 1 and said.count("are wanted") == 1 and said.count("failed") == 1
    assert f"lund does not take part: {WHY}" in said
    last = said.splitlines()[-1].removeprefix("\x1b[?25h")  # which shows the cursor again
    assert last == "failed in 3.0 s; lund: 1 of 3 parties accepted and 3 are wanted: lund refused"


def test_whoever_may_not_see_the_answers_is_told_the_reason_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    lines = refused([one for one in TOLD if one[0] == "status"], capfd).splitlines()
    assert lines[-1] == f"failed in 3.0 s; lund: {CAUSE}"
    assert refused([], capfd).splitlines()[-1] == f"failed in 3.0 s; lund: {CAUSE}"


def test_an_earlier_end_of_a_run_that_was_resumed_is_part_of_its_story(capfd: pytest.CaptureFixture[str]) -> None:
    again = [
        ("status", "", "resumed by submitter ada; waits for its turn"),
        ("status", "", "failed: server, round 3: it broke"),
    ]
    lines = refused(TOLD + again, capfd, cause="it broke").splitlines()
    assert lines[-3:] == [f"failed: lund: {CAUSE}", again[0][2], "failed in 3.0 s; server, round 3: it broke"]


def test_programs_are_told_every_event_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    texts = [loads(line)["text"] for line in refused(TOLD, capfd, json=True).splitlines()]
    assert texts == [text for _, _, text in TOLD]


@pytest.mark.parametrize("width", [0, 30, 60, 100])
def test_a_table_is_cut_to_the_terminal_in_its_last_column(width: int) -> None:
    rows = [("1234", "hearts", CAUSE), ("5678", "scans", "")]
    lines = table(rows, ("run", "name", "cause"), width).splitlines()
    assert [line[:12].rstrip() for line in lines] == ["run   name", "1234  hearts", "5678  scans"] and len(lines) == 3
    if not width:
        assert lines[1].endswith(CAUSE)
    else:
        assert len(lines[1]) == max(width, len("1234  hearts  ") + 24) and lines[1].endswith("...")
        assert CAUSE.startswith(lines[1][14:-3])
    assert table([("1", "x" * 30)], ("a", "b"), 33) == f"a  b\n1  {'x' * 30}"  # what fits is whole


def test_a_table_is_whole_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.__stdout__", StringIO())
    assert terminal() == 0
    monkeypatch.setenv("COLUMNS", "77")
    assert terminal() == 77
