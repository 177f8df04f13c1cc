"""Every suite at a tiny size; what is printed; and that a suite that cannot measure says so and spoils no other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import __main__ as command
from bench import loop, peers, work
from bench.clock import Turns, alternate
from bench.figure import Disagreement, Figure, Size, Unavailable, as_json, as_text
from hansa.horizontal.fedavg import FedAvg
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo

FIELDS = ["name", "value", "unit", "reference", "reference_value", "ratio"]
INSTALLED = [name for name in command.SUITES if not name.startswith(("peers/", "quality/"))]


def record(number: int) -> RoundRecord:
    return RoundRecord(number, {}, {}, "", 0.0, 0.0)


@pytest.mark.parametrize("suite", INSTALLED)
def test_every_suite_prints_well_formed_figures(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--json", suite]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["name"] == suite
    for line in lines:
        assert list(line) == FIELDS
        assert line["name"] == suite or line["name"].startswith(suite + "/")
        assert line["value"] > 0
        assert line["reference_value"] > 0
        assert math.isclose(line["ratio"], line["value"] / line["reference_value"])


@pytest.mark.parametrize(("name", "parameters"), [("logistic", 650), ("cnn", 98_950), ("mlp", 1_606_390)])
def test_the_models_have_the_sizes_that_the_figures_are_given_for(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in work.CASES[name].model().parameters()) == parameters


@pytest.mark.parametrize("name", [*work.CASES])
def test_hansa_and_the_loop_end_with_the_same_model(name: str) -> None:
    assert loop.agree(work.CASES[name].model, work.digits(10), cohort=3, rounds=2) <= loop.TOLERANCE


def test_a_loop_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "RATE", work.RATE * 1.01)
    with pytest.raises(Disagreement, match="differs by"):
        loop.agree(work.logistic, work.digits(10), cohort=3, rounds=2)


def test_the_loop_drawing_for_itself_trains() -> None:
    data = work.digits(10)
    tight = loop.TightLoop(work.logistic, data, np.zeros(650, np.float32))
    x, y = data.example.base
    for _ in range(60):
        tight.round(count=10)
    weight, bias = tight.model[:640].view(10, 64), tight.model[640:]
    right = (torch.from_numpy(x) @ weight.T + bias).argmax(1).numpy() == y
    assert right.mean() > 0.6


def test_the_work_is_what_the_documents_say() -> None:
    contract, data = work.plan(work.logistic, 3), work.digits()
    protocol = contract.protocol
    assert isinstance(protocol, FedAvg)
    assert (len(data), set(data.sizes.tolist()), protocol.cohort) == (1000, {18}, 100)
    assert len(data.central_test) == 0


@pytest.mark.parametrize(
    ("names", "suites"),
    [
        ([], [*command.SUITES]),
        (["peers"], ["peers/pfl", "peers/flower"]),
        (["peers/", "aggregation"], ["peers/pfl", "peers/flower", "aggregation/mean"]),
        (["simulation/cnn", "simulation/cnn"], ["simulation/cnn"]),
    ],
)
def test_suites_are_selected_by_name_and_by_prefix(names: list[str], suites: list[str]) -> None:
    assert command.selected(names) == suites


@pytest.mark.parametrize("name", ["simulation/cn", "simul", "", "/", "mean"])
def test_an_unknown_suite_is_refused(name: str) -> None:
    with pytest.raises(SystemExit, match="no suite"):
        command.selected([name])


def test_a_suite_that_cannot_measure_says_so_in_a_line_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(size: Size) -> list[Figure]:
        raise Unavailable("nothing here")

    monkeypatch.setitem(command.SUITES, "peers/pfl", broken)
    monkeypatch.setitem(command.SUITES, "peers/flower", lambda size: [Figure("peers/flower", 4.0, "s", "x", 2.0)])
    assert command.main(["peers", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "peers/pfl: nothing here\n"
    assert json.loads(printed.out)["ratio"] == 2.0


def test_a_figure_without_a_reference_has_no_ratio() -> None:
    assert math.isnan(Figure("a", 1.0, "s", "nothing", 0.0).ratio)


@pytest.mark.parametrize("value", [1e-7, 0.25, 3.0, 999.95, 1e9])
def test_lines_for_people_hold_name_value_and_reference(value: float) -> None:
    line = as_text(Figure("a/b", value, "s", "a loop", 2.0))
    assert line.startswith("a/b ")
    assert line.endswith("x of a loop: 2.0")
    assert json.loads(as_json(Figure("a/b", value, "s", "a loop", 2.0)))["value"] == value


def test_blocks_are_timed_without_what_runs_between_them_and_without_the_first_rounds() -> None:
    now = [0.0]

    def between() -> None:
        now[0] += 1000.0

    turns = Turns(rounds=2, warm=1, between=between, clock=lambda: now[0])
    turns.begin(RunInfo("", "", "", 5, 1, 1))
    for number, seconds in enumerate([7.0, 50.0, 1.0, 3.0, 2.0, 8.0, 9.0]):
        now[0] += seconds
        turns.round(record(number))
    turns.end(RunEnd("completed", "", 0.0, {}))
    assert turns.seconds == [2.0, 5.0]
    assert turns.a_round == 3.5
    assert turns.first == 57.0


def test_sides_run_in_turns_and_their_first_calls_do_not_count() -> None:
    now, calls = [0.0], []

    def side(name: str, seconds: list[float]) -> None:
        calls.append(name)
        now[0] += seconds.pop(0)

    slow, fast = [90.0, 3.0, 5.0, 4.0], [80.0, 1.0, 1.0, 7.0]
    found = alternate({"slow": lambda: side("slow", slow), "fast": lambda: side("fast", fast)}, 3, lambda: now[0])
    assert found == {"slow": 4.0, "fast": 1.0}
    assert calls == ["slow", "fast"] * 4


def fake(folder: Path, body: str) -> peers.Peer:
    script = folder / "peer.py"
    script.write_text("import sys\n" + body, encoding="utf-8")
    return replace(peers.PFL, script=str(script), timeout=30.0)


def test_a_peer_is_given_the_same_parties_and_its_last_line_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "environment", lambda peer: Path(sys.executable))
    body = """
import numpy as np
given = np.load(sys.argv[3])
assert given["rows"].shape == (20, 18) and given["x"].shape == (1797, 64) and given["cohort"] == 4, given
print("noise")
print('{"version": "9", "rate": %d}' % int(sys.argv[2]))
"""
    monkeypatch.setattr(peers, "PFL", fake(tmp_path, body))
    (figure,) = peers.pfl(Size(quick=True))
    assert (figure.name, figure.reference, figure.reference_value) == ("peers/pfl", "pfl 9", 3.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('their own trouble')", "their own trouble"),
        ("print('no figure')", "gave no figure"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
)
def test_a_peer_that_fails_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setattr(peers, "environment", lambda peer: Path(sys.executable))
    monkeypatch.setattr(peers, "PFL", replace(fake(tmp_path, body), timeout=1.0 if "sleep" in body else 30.0))
    with pytest.raises(Unavailable, match=message):
        list(peers.pfl(Size(quick=True)))


def test_a_peer_that_cannot_be_installed_is_unavailable_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANSA_BENCH_DIR", str(tmp_path))
    made = []

    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        made.append(command[-1])
        return subprocess.CompletedProcess(command, 1, "", "a warning\nERROR: no such thing\n\n")

    monkeypatch.setattr("bench.peers.subprocess.run", refuse)
    monkeypatch.setattr(
        "bench.peers.venv.EnvBuilder", lambda **options: type("Builder", (), {"create": lambda s, f: None})()
    )
    peer = replace(peers.PFL, requirements=[["one"], ["two"]])
    with pytest.raises(Unavailable, match="pfl cannot be installed: ERROR: no such thing") as caught:
        peers.environment(peer)
    assert made == ["one", "two"]
    assert "\n" not in str(caught.value)


def test_an_environment_is_made_once_and_again_when_its_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANSA_BENCH_DIR", str(tmp_path))
    installed = []

    def create(self: object, folder: Path) -> None:
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    def install(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        installed.append(command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("bench.peers.venv.EnvBuilder", lambda **options: type("Builder", (), {"create": create})())
    monkeypatch.setattr("bench.peers.subprocess.run", install)
    for version in ("one", "one", "two"):
        peers.environment(replace(peers.PFL, requirements=[[version]]))
    assert installed == ["one", "two"]
