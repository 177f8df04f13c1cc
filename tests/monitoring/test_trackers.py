"""What the trackers wrote is read back from their own files; without their libraries they name the extra."""

from __future__ import annotations

import importlib
import io
import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hansa.errors import ConfigError, MissingExtra
from hansa.monitoring.mlflow import MLflow
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo, Status, Tracker
from hansa.monitoring.tensorboard import TensorBoard
from hansa.monitoring.wandb import WandB

PLAN = 'name = "digits"\nseed = 7\n\n[protocol]\nname = "fedavg"\n\n[[aggregation]]\nname = "clip"\nbound = 10.0\n'
TRAFFIC = {"TrainTask": {"messages": 4, "bytes": 400}}
BASELINES = {"central": {"accuracy": 0.9}}


def follow(tracker: Tracker, status: Status = "completed", cause: str = "", first: int = 0) -> None:
    tracker.begin(RunInfo("digits", PLAN, "abc", 3, 10, 650, first))
    for n in range(first, 3):
        metrics = {"test_accuracy": 0.25 * n, "test_loss": math.nan if n == 2 else 1.0, "odd <name> é": 1.0}
        tracker.round(RoundRecord(n, metrics, {"a": {"accuracy": 1.0}}, "a: late" if n == 1 else "", 2.0 * n, 0.5))
    tracker.end(RunEnd(status, cause, 1.5, TRAFFIC, {}, BASELINES))


@pytest.mark.parametrize(
    ("library", "extra", "make"),
    [
        ("tensorboard", "tensorboard", TensorBoard),
        ("mlflow", "mlflow", lambda folder: MLflow("e", folder.as_uri())),
        ("wandb", "wandb", lambda folder: WandB("p", folder=folder)),
    ],
)
def test_a_missing_library_is_named_by_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str, make: Callable[[Path], Tracker]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"hansa\[{extra}\]") as raised:
        make(tmp_path)
    assert raised.value.extra == extra
    assert list(tmp_path.iterdir()) == []


# TensorBoard


def events(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_has_every_value_at_its_round(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    follow(TensorBoard(tmp_path / "deep" / "er", clock=lambda: 5.0), "failed", "server: it broke")
    read = events(tmp_path / "deep" / "er")
    found = [(event.wall_time, event.step, event.value) for event in read.Scalars("test_accuracy")]
    assert found == [(5.0, 0, 0.0), (5.0, 1, 0.25), (5.0, 2, 0.5)]
    assert [event.value for event in read.Scalars("time/virtual_seconds")] == [0.0, 2.0, 4.0]
    assert [math.isnan(event.value) for event in read.Scalars("test_loss")] == [False, False, True]
    assert read.Scalars("traffic/TrainTask/bytes")[0].value == 400
    assert read.Scalars("baseline/central/accuracy")[0].value == pytest.approx(0.9)
    texts = {
        tag: [event.tensor_proto.string_val[0].decode() for event in read.Tensors(tag)]
        for tag in read.Tags()["tensors"]
    }
    assert PLAN in texts["plan"][0]
    assert texts["end"] == ["failed: server: it broke"] and texts["notes"] == ["a: late"]


def test_tensorboard_forgets_the_rounds_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    ticking = iter(range(1000))
    for number, first in enumerate((0, 1)):
        tracker = TensorBoard(tmp_path, clock=lambda: float(next(ticking)))
        tracker.begin(RunInfo("digits", PLAN, "abc", 3, 10, 650, first))
        for n in range(first + 1 if first else 0, 4):
            tracker.round(RoundRecord(n, {"x": 10.0 * number + n}, {}, "", 0.0, 0.0))
        tracker.end(RunEnd("completed", "", 1.0, {}))
        # Event files are read in the order of their names, which begin with the second they were made in.
        for path in list(tmp_path.glob("events*")):
            path.rename(
                path.with_name(path.name.replace("events.", f"events.out.{number}.", 1))
            ) if "out.0" not in path.name else None
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("x")] == [(0, 0), (1, 1), (2, 12), (3, 13)]


# MLflow


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # so that the test's end takes it back
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "tracked").as_uri()


def mlflow_runs(uri: str, experiment: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client: Any = MlflowClient(tracking_uri=uri)
    return client, list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


@pytest.mark.parametrize(
    ("status", "theirs"),
    [("completed", "FINISHED"), ("stopped", "FINISHED"), ("interrupted", "KILLED"), ("failed", "FAILED")],
)
def test_mlflow_has_every_value_and_the_true_end(mlflow_uri: str, status: Status, theirs: str) -> None:
    follow(MLflow("my experiment", mlflow_uri, clock=lambda: 5.0), status, "because")
    client, (run,) = mlflow_runs(mlflow_uri, "my experiment")
    history = client.get_metric_history(run.info.run_id, "test_accuracy")
    assert sorted((m.step, m.value, m.timestamp) for m in history) == [(0, 0.0, 5000), (1, 0.25, 5000), (2, 0.5, 5000)]
    assert (run.info.status, run.info.run_name) == (theirs, "digits")
    assert (
        run.data.params.items() >= {"protocol.name": "fedavg", "aggregation.0.bound": "10.0", "parties": "10"}.items()
    )
    assert run.data.metrics["traffic/TrainTask/bytes"] == 400
    assert run.data.metrics["odd _name_ _"] == 1.0
    assert math.isnan(run.data.metrics["test_loss"])
    assert (run.data.tags["hansa.cause"], run.data.tags["hansa.digest"]) == ("because", "abc")
    path = Path(client.download_artifacts(run.info.run_id, "plan.toml"))
    assert path.read_text() == PLAN


def test_mlflow_goes_on_in_an_experiment_that_is_there_and_leaves_the_global_state(mlflow_uri: str) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    for _ in range(2):
        follow(MLflow("again", mlflow_uri))
    assert len(mlflow_runs(mlflow_uri, "again")[1]) == 2
    assert mlflow.active_run() is None and mlflow.get_tracking_uri() == before


def test_mlflow_keeps_to_a_folder_here_unless_told_otherwise(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(MLflow("here"))
    assert (tmp_path / "mlruns").is_dir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    follow(MLflow("there"))
    assert len(mlflow_runs(mlflow_uri, "there")[1]) == 1


def test_mlflow_takes_a_plan_of_any_size(mlflow_uri: str) -> None:
    tracker = MLflow("large", mlflow_uri)
    plan = "".join(f"k{n} = {'[' + '1, ' * 400 + ']'}\n" for n in range(250))
    tracker.begin(RunInfo("", plan, "abc", None, 1, 1))
    tracker.round(RoundRecord(0, {f"m{n}": float(n) for n in range(250)}, {}, "", 0.0, 0.0))
    tracker.end(RunEnd("completed", "", 1.0, {}))
    (run,) = mlflow_runs(mlflow_uri, "large")[1]
    assert len(run.data.params) == 252 and run.data.metrics["m249"] == 249.0


def test_mlflow_that_cannot_be_reached_is_one_sentence(mlflow_uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for uri in ("gopher://nowhere", (tmp_path / "file").as_uri()):
        with pytest.raises(ConfigError, match=f"experiment 'e' at {uri}") as raised:
            MLflow("e", uri)
        assert "\n" not in str(raised.value)


# Weights & Biases


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of an offline run: protocol buffers in a log of LevelDB's format."""
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    importlib.import_module("wandb").teardown()  # a run's end does not wait for its file to be written; this does
    (path,) = folder.rglob("*.wandb")
    file = io.BytesIO(path.read_bytes())
    file.seek(7)
    whole = b""
    while True:
        left = 32768 - file.tell() % 32768
        if left < 7:
            file.seek(left, io.SEEK_CUR)
        head = file.read(7)
        if len(head) < 7:
            return
        _, length, kind = struct.unpack("<IHB", head)
        whole += file.read(length)
        if kind in {1, 4}:  # whole, or the last part
            record = proto.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.fixture
def quiet_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("wandb")
    for variable in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tracked"


def items(entries: Any) -> dict[str, str]:
    return {entry.key or "/".join(entry.nested_key): entry.value_json for entry in entries}


def test_wandb_offline_has_every_value_and_the_true_end(quiet_wandb: Path) -> None:
    follow(WandB("project", folder=quiet_wandb), "failed", "because")
    records: dict[str, Any] = {}
    history: list[dict[str, str]] = []
    summary: dict[str, str] = {}
    for record in wandb_records(quiet_wandb):
        kind = record.WhichOneof("record_type")
        records[kind] = record
        if kind == "history":
            history.append(items(record.history.item))
        elif kind == "summary":
            summary |= items(record.summary.update)
    assert [(row["_step"], float(row["test_accuracy"])) for row in history] == [("0", 0.0), ("1", 0.25), ("2", 0.5)]
    assert [str(float(row["test_loss"])) for row in history] == ["1.0", "1.0", "nan"]
    assert (summary["status"], summary["cause"], summary["traffic/TrainTask/bytes"]) == ('"failed"', '"because"', "400")
    assert records["run"].run.project == "project" and records["run"].run.display_name == "digits"
    assert records["exit"].exit.exit_code == 1
    config = items(records["run"].run.config.update)
    assert '"fedavg"' in config["plan"] and config["parties"] == "10"


def test_wandb_takes_no_code_and_names_no_machine(quiet_wandb: Path) -> None:
    follow(WandB("project", folder=quiet_wandb))
    records = {record.WhichOneof("record_type"): record for record in wandb_records(quiet_wandb)}
    kinds = set(records)
    assert records["run"].run.host == "-"
    assert kinds & {"run", "history", "exit"} and not kinds & {"output", "output_raw", "stats"}
    kept = {path.name for path in quiet_wandb.rglob("files/*")}
    assert not {
        name for name in kept if name.endswith((".py", ".patch", "metadata.json", "output.log", "requirements.txt"))
    }


def test_wandb_follows_two_runs_at_once(quiet_wandb: Path) -> None:
    first, second = WandB("project", folder=quiet_wandb / "a"), WandB("project", folder=quiet_wandb / "b")
    for tracker in (first, second):
        tracker.begin(RunInfo("", PLAN, "abc", 1, 1, 1))
    for value, tracker in enumerate((first, second)):
        tracker.round(RoundRecord(0, {"x": float(value)}, {}, "", 0.0, 0.0))
    for tracker in (first, second):
        tracker.end(RunEnd("completed", "", 1.0, {}))
    for value, name in enumerate("ab"):
        rows = [
            items(r.history.item) for r in wandb_records(quiet_wandb / name) if r.WhichOneof("record_type") == "history"
        ]
        assert [float(row["x"]) for row in rows] == [value]


def test_wandb_refuses_an_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'offline', 'online' or 'disabled'"):
        WandB("p", mode="of-line", folder=tmp_path)  # type: ignore[arg-type]
