"""The commands do what their help says, for people and for programs."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hansa.cli import main
from hansa.monitoring import RoundRecord, Tracker

GOOD = Path(__file__).with_name("good.toml")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ran(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Run a command; its standard output."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capfd.readouterr()
    assert (stopped.value.code or 0) == code, err
    return out


def test_simulate_writes_a_folder(capfd: pytest.CaptureFixture[str]) -> None:
    out = ran(capfd, "simulate", str(GOOD), "--out", "run")
    assert "completed after 3 rounds" in out
    folder = Path("run")
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["cause"], status["parties"]) == ("completed", "", 5)
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [0, 1, 2, 3]
    with (folder / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [float(row["test_loss"]) for row in rows] == [r["metrics"]["test_loss"] for r in rounds]
    model = load_file(folder / "model.safetensors")
    assert sum(tensor.size for tensor in model.values()) == status["parameters"] == 15
    assert all(np.isfinite(tensor).all() for tensor in model.values())
    assert json.loads((folder / "messages.json").read_text())["TrainTask"]["messages"] == 12
    assert tomllib.loads((folder / "plan.toml").read_text())["protocol"]["rounds"] == 3
    assert "python" in json.loads((folder / "environment.json").read_text())
    with (folder / "parties.csv").open() as table:
        assert {row["party"] for row in csv.DictReader(table)} == {f"client-{i}" for i in range(5)}
    assert "</html>" in (folder / "report.html").read_text()


def test_json_is_json_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    events = [json.loads(line) for line in ran(capfd, "simulate", str(GOOD), "--json").splitlines()]
    assert [event["event"] for event in events] == ["begin", "round", "round", "round", "round", "end"]
    assert events[-1]["status"] == "completed"
    listed = json.loads(ran(capfd, "list", "protocols", "--json"))
    assert {"fedavg", "fedprox", "scaffold", "fedbuff", "dpsgd"} <= {row["name"] for row in listed}
    told = json.loads(ran(capfd, "explain", str(GOOD), "--json"))
    assert {d["message"] for d in told["disclosures"] if d["receiver"] == "server"} >= {"Contribution", "Scores"}


def test_the_seed_and_changes_reach_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    def last(*arguments: str) -> dict[str, Any]:
        lines = ran(capfd, "simulate", str(GOOD), "--json", *arguments).splitlines()
        metrics: dict[str, Any] = json.loads(lines[-2])["metrics"]
        return metrics

    assert last() == last()
    assert last("--seed", "5") != last()
    assert last("--set", "learner.optimizer={name='sgd', learning_rate=1.0}") != last()
    assert last("--workers", "2") == last()


def test_an_interrupted_run_goes_on_to_the_same_end(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran(capfd, "simulate", str(GOOD), "--out", "whole")

    class Impatient:
        def begin(self, info: object) -> None: ...

        def round(self, record: RoundRecord) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

        def end(self, end: object) -> None: ...

    def impatient(as_json: bool) -> Tracker:
        return Impatient()

    with monkeypatch.context() as patched:
        patched.setattr("hansa.cli.runs.progress", impatient)
        out = ran(capfd, "simulate", str(GOOD), "--out", "cut", code=130)
    assert f"hansa simulate {GOOD} --resume cut\n" in out
    assert json.loads(Path("cut/status.json").read_text())["status"] == "interrupted"
    ran(capfd, "simulate", str(GOOD), "--resume", "cut")
    assert Path("cut/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()

    def metrics(folder: str) -> list[Any]:
        records = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        return [(record["round"], record["metrics"], record["parties"]) for record in records]

    assert metrics("cut") == metrics("whole")
    assert json.loads(Path("cut/messages.json").read_text()) == json.loads(Path("whole/messages.json").read_text())


def test_a_failed_run_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--set", "simulation.faults={drop=1.0}", "--set", "protocol.deadline=5.0", "--out", "run"]
    out = ran(capfd, "simulate", str(GOOD), *arguments, code=1)
    assert "failed" in out and "the quorum is" in out
    status = json.loads(Path("run/status.json").read_text())
    assert status["status"] == "failed" and "server, round 1" in status["cause"]


def test_a_run_is_never_written_over(capfd: pytest.CaptureFixture[str]) -> None:
    ran(capfd, "simulate", str(GOOD), "--out", "run")
    ran(capfd, "simulate", str(GOOD), "--out", "run", code=2)
    ran(capfd, "simulate", str(GOOD))
    ran(capfd, "simulate", str(GOOD))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["good-1", "good-2"]


def test_init_writes_a_plan_that_runs(capfd: pytest.CaptureFixture[str]) -> None:
    ran(capfd, "init")
    ran(capfd, "explain", "plan.toml")
    ran(capfd, "simulate", "plan.toml", "--set", "protocol.rounds=1", "--set", "simulation.baselines=false")


def test_explain_says_who_sees_what(capfd: pytest.CaptureFixture[str]) -> None:
    text = ran(capfd, "explain", str(GOOD))
    for sentence in ("one party's model update", "the collector sees every party's update", "guarantee: none"):
        assert sentence in text
    gossip = ran(capfd, "list", "topologies")
    assert "ring" in gossip


def test_explain_says_how_long_a_round_lasts_and_what_it_carries(capfd: pytest.CaptureFixture[str]) -> None:
    text = ran(capfd, "explain", str(GOOD))
    assert "600 s after its beginning" in text
    assert "wants 4 contributions and needs 2; with fewer it ends the run" in text
    assert "at least 0.2 kB of Contribution" in text, "four times fifteen float32"
    assert "quorum = 0.5" in text, "defaults hold though nobody wrote them"
    told = json.loads(ran(capfd, "explain", str(GOOD), "--json"))
    assert told["settings"]["deadline"] == 600.0 and told["model_bytes"] == 60


def test_explain_without_a_server_or_without_data(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = GOOD.read_text()
    (tmp_path / "gossip.toml").write_text(text.replace('"fedavg"', '"dpsgd"').replace("cohort = 4\n", ""))
    told = ran(capfd, "explain", "gossip.toml")
    assert "from other peers" in told and "\nserver receives" not in told
    assert "aggregates nowhere" in told and "every receiver sees what it is sent" in told
    (tmp_path / "blind.toml").write_text(text[: text.index("[data]")])
    told = ran(capfd, "explain", "blind.toml")
    assert "1 x the model each" in told and "sizes are not known" in told


def test_list_without_a_group_lists_all(capfd: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(ran(capfd, "list", "--json"))
    assert set(listed) >= {"protocols", "learners", "stages", "partitioners", "sources"}
    assert all(row["about"] and row["from"] == "hansa" for rows in listed.values() for row in rows)
    text = ran(capfd, "list")
    assert "protocols\n" in text and "  fedavg" in text and ":class:" not in text and "``" not in text


def test_the_report_of_a_killed_run(capfd: pytest.CaptureFixture[str]) -> None:
    ran(capfd, "simulate", str(GOOD), "--out", "run")
    before = Path("run/report.html").read_text()
    for name in ("report.html", "metrics.csv", "messages.json"):
        Path("run", name).unlink()
    status = json.loads(Path("run/status.json").read_text())
    Path("run/status.json").write_text(json.dumps({**status, "status": "running"}))
    assert json.loads(ran(capfd, "report", "run", "--json")) == {"report": "run/report.html"}
    assert Path("run/report.html").read_text() != before
    ran(capfd, "report", "nowhere", code=2)


def test_a_failed_run_tells_how_to_go_on_with_its_changes(capfd: pytest.CaptureFixture[str]) -> None:
    fatal = "simulation.faults={crashes=[{party='server', at=700.0}], drop=0.9}"
    settings = ["--set", "protocol.missed_quorum=skip", "--set", "protocol.rounds=5", "--set", fatal]
    out = ran(capfd, "simulate", str(GOOD), "--seed", "3", "--out", "a run", *settings, code=1)
    assert f"hansa simulate {GOOD} --resume 'a run' --seed 3 --set protocol.missed_quorum=skip" in out


def test_compare_shows_what_differs(capfd: pytest.CaptureFixture[str]) -> None:
    ran(capfd, "simulate", str(GOOD), "--out", "a")
    ran(capfd, "simulate", str(GOOD), "--out", "b", "--set", "protocol.cohort=3")
    text = ran(capfd, "compare", "a", "b")
    assert "cohort" in text and "test_accuracy" in text
    assert "batch_size" not in text
    json.loads(ran(capfd, "compare", "a", "b", "--json"))


def test_the_simulated_demo_beats_training_alone(capfd: pytest.CaptureFixture[str]) -> None:
    events = [json.loads(line) for line in ran(capfd, "demo", "--simulate", "--json").splitlines()]
    final = events[-2]["metrics"]["test_accuracy"]
    alone = events[-1]["baselines"]["local only"]["accuracy"]
    central = events[-1]["baselines"]["central"]["accuracy"]
    assert alone + 0.1 < final <= central + 0.02


def test_version_and_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert ran(capfd, "--version").startswith("hansa 0.")
    text = ran(capfd, "--help")
    for command in ("demo", "init", "simulate", "explain", "list", "compare"):
        assert command in text


@pytest.mark.parametrize(
    ("protocol", "sentence"),
    [("fedsgd", "single full-batch step discloses"), ("fednova", "how far its steps reach")],
)
def test_explain_leaves_nothing_out_that_a_protocol_adds(
    protocol: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("plan.toml").write_text(GOOD.read_text().replace('"fedavg"', f'"{protocol}"'))
    text = ran(capfd, "explain", "plan.toml")
    assert sentence in text
    assert "Semi-honest parties" in text
    assert "Progress from server (" in text
