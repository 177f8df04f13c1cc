"""A run's folder survives whatever happens to the process that writes it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hansa.errors import ConfigError, ResumeError
from hansa.monitoring import RoundRecord, RunEnd, RunFolder, RunInfo
from hansa.monitoring.folder import environment
from hansa.params import Params

INFO = RunInfo("digits", 'name = "digits"\n', "abc", 5, 3, 650, settings={"workers": 1})
END = RunEnd("completed", "", 1.5, {"TrainTask": {"messages": 3, "bytes": 99}})


def record(number: int, loss: float = 0.5) -> RoundRecord:
    parties = {f"client-{i}": {"accuracy": number / 7 + i, "examples": 4.0} for i in range(3)}
    return RoundRecord(number, {"test_loss": loss, "test_accuracy": 1 / (number + 3)}, parties, "", 2.0 * number, 0.1)


def begun(path: Path, rounds: int = 0) -> tuple[RunFolder, list[RoundRecord]]:
    folder = RunFolder(path)
    folder.begin(INFO)
    records = [record(number) for number in range(rounds)]
    for one in records:
        folder.round(one)
    return folder, records


def status(path: Path) -> str:
    return str(json.loads((path / "status.json").read_text())["status"])


def lines(path: Path) -> list[str]:
    return (path / "metrics.jsonl").read_text().splitlines()


def test_the_status_is_true_before_and_after(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path / "run", 2)
    assert status(folder.path) == "running"
    folder.end(RunEnd("failed", "client-1, round 1: it broke", 1.0, {}, {"client-1": "ValueError: x"}))
    told = json.loads((folder.path / "status.json").read_text())
    assert (told["status"], told["cause"]) == ("failed", "client-1, round 1: it broke")
    assert told["failures"] == {"client-1": "ValueError: x"}
    assert (folder.path / "report.html").exists()


def test_a_round_is_on_disk_when_it_has_ended(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path, 3)
    assert [json.loads(line)["round"] for line in lines(tmp_path)] == [0, 1, 2]
    assert json.loads(lines(tmp_path)[2])["metrics"]["test_accuracy"] == 1 / 5
    folder.round(record(3))
    assert len(lines(tmp_path)) == 4


def test_tables_have_every_column_that_any_round_has(tmp_path: Path) -> None:
    folder, records = begun(tmp_path, 1)
    folder.round(
        RoundRecord(1, {"train_loss": 0.25}, {'a "b", c': {"accuracy": 1.0}}, "client-2: late\nand wrong", 0, 0.1)
    )
    folder.end(END)
    with (tmp_path / "metrics.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert rows[0]["test_loss"] == repr(records[0].metrics["test_loss"]) and rows[0]["train_loss"] == ""
    assert rows[1]["train_loss"] == "0.25" and rows[1]["note"] == "client-2: late\nand wrong"
    with (tmp_path / "parties.csv").open(newline="") as table:
        assert [row["party"] for row in csv.DictReader(table)] == ["client-0", "client-1", "client-2", 'a "b", c']


def test_the_model_keeps_its_tensors(tmp_path: Path) -> None:
    params = Params.of({"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)})
    RunFolder(tmp_path).write_model(params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]] and tensors["bias"].tolist() == [1, 1]


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder(folder.path)
    RunFolder(folder.path, resume=True)


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run")


def test_the_environment_tells_nothing_of_who_and_where() -> None:
    told = json.dumps(environment())
    for secret in (os.getcwd(), os.path.expanduser("~"), *filter(lambda v: len(v) > 6, os.environ.values())):
        assert secret not in told


values = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=6), st.binary(max_size=50))
def test_a_checkpoint_gives_back_what_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[dict[str, float]], frame: bytes
) -> None:
    path = tmp_path_factory.mktemp("run")
    folder, _ = begun(path)
    history = [RoundRecord(i, metrics, {"p": metrics}, "", 0.5, 0.1) for i, metrics in enumerate(rounds)]
    for one in history:
        folder.round(one)
    folder.write_checkpoint(frame, history)
    again, records = RunFolder(path, resume=True).checkpoint()
    assert again == frame
    for before, after in zip(history, records, strict=True):
        expected = {name: value if math.isfinite(value) else None for name, value in before.metrics.items()}
        assert {name: value if math.isfinite(value) else None for name, value in after.metrics.items()} == expected


def test_what_came_after_the_checkpoint_is_done_again(tmp_path: Path) -> None:
    folder, records = begun(tmp_path, 3)
    folder.write_checkpoint(b"frame", records)
    whole = lines(tmp_path)
    folder.round(record(3))
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"round": 4, "metr')  # killed in the middle of a line
    resumed = RunFolder(tmp_path, resume=True)
    assert resumed.checkpoint() == (b"frame", records)
    assert len(lines(tmp_path)) == 5, "nothing is cut before the run really goes on"
    resumed.begin(INFO)
    assert lines(tmp_path) == whole
    resumed.round(record(3))
    resumed.write_checkpoint(b"later", [*records, record(3)])
    assert RunFolder(tmp_path, resume=True).checkpoint() == (b"later", [*records, record(3)])


def test_a_history_that_nobody_announced_is_written(tmp_path: Path) -> None:
    folder, _ = begun(tmp_path)
    folder.write_checkpoint(b"frame", [record(0), record(1)])
    assert RunFolder(tmp_path, resume=True).checkpoint() == (b"frame", [record(0), record(1)])


def test_a_checkpoint_does_not_grow_with_its_history(tmp_path: Path) -> None:
    folder, records = begun(tmp_path, 1)
    folder.write_checkpoint(b"frame", records)
    size = (tmp_path / "checkpoint.bin").stat().st_size
    for number in range(1, 200):
        folder.round(record(number))
        records.append(record(number))
    folder.write_checkpoint(b"frame", records)
    assert (tmp_path / "checkpoint.bin").stat().st_size == size


def test_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="holds no checkpoint"):
        RunFolder(tmp_path / "new", resume=True).checkpoint()


@pytest.mark.parametrize("place", range(0, 60, 7))
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, place: int) -> None:
    folder, records = begun(tmp_path, 2)
    folder.write_checkpoint(bytes(40), records)
    path = tmp_path / "checkpoint.bin"
    raw = bytearray(path.read_bytes())
    for damage in (bytes([*raw[:place], raw[place] ^ 1, *raw[place + 1 :]]), bytes(raw[:place]), bytes(raw) + b"x"):
        path.write_bytes(damage)
        with pytest.raises(ResumeError, match="is damaged"):
            RunFolder(tmp_path, resume=True).checkpoint()


@pytest.mark.parametrize("damage", ["gone", "short", "changed"])
def test_metrics_that_are_not_the_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    folder, records = begun(tmp_path, 2)
    folder.write_checkpoint(b"frame", records)
    path = tmp_path / "metrics.jsonl"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "short" else path.read_bytes().replace(b"0.5", b"0.6"))
    with pytest.raises(ResumeError, match=r"metrics.jsonl in .* is not what it was"):
        RunFolder(tmp_path, resume=True).checkpoint()


KILLED = """
import sys
from pathlib import Path
from hansa.monitoring import RunFolder
from tests.monitoring.test_folder import INFO, record
folder = RunFolder(Path(sys.argv[1]))
folder.begin(INFO)
history = []
print("begun", flush=True)
while True:
    history.append(record(len(history)))
    folder.round(history[-1])
    folder.write_checkpoint(len(history).to_bytes(4, "big") * 50_000, history)
    print(len(history), flush=True)
"""


@pytest.mark.parametrize("after", [1, 2, 5, 9, 14])
def test_killed_at_any_instant_the_last_checkpoint_is_whole(tmp_path: Path, after: int) -> None:
    root = Path(__file__).parents[2]
    path = tmp_path / "run"
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=root, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])},
    )  # fmt: skip
    assert writer.stdout is not None
    for line in writer.stdout:
        if line.strip() == str(after):
            break
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    frame, records = RunFolder(path, resume=True).checkpoint()
    count = int.from_bytes(frame[:4], "big")
    assert count >= after and frame == frame[:4] * 50_000
    assert records == [record(number) for number in range(count)]
    assert status(path) == "running"


def test_message_statistics_have_one_order(tmp_path: Path) -> None:
    counts = {"messages": 1, "bytes": 2}
    for name, kinds in (("a", ("TrainTask", "Contribution")), ("b", ("Contribution", "TrainTask"))):
        folder, _ = begun(tmp_path / name)
        folder.end(RunEnd("completed", "", 1.0, dict.fromkeys(kinds, counts)))
    assert (tmp_path / "a/messages.json").read_bytes() == (tmp_path / "b/messages.json").read_bytes()
