"""A run that was killed and resumed ends as one that was not, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa.errors import ConfigError, ResumeError
from hansa.monitoring.records import RoundRecord
from hansa.simulation import FaultPlan
from tests.simulation.cases import CASES, Case, Follower, every_case, federation, model, told


def run(case: Case, folder: Path | None, resume: bool = False, **changes: Any) -> hs.Run:
    return hs.simulate(case.plan(), federation(), seed=3, folder=folder, resume=resume, **{**case.changes, **changes})


def killed(case: Case, folder: Path, after: int, **changes: Any) -> hs.Run:
    def at(record: RoundRecord) -> None:
        if record.round == after:
            raise KeyboardInterrupt

    return run(case, folder, trackers=[Follower(at)], **changes)


@every_case
def test_killed_at_any_round_and_resumed_it_ends_the_same(case: Case, tmp_path: Path) -> None:
    whole = run(case, None).raise_if_failed()
    for after in range(2, case.rounds + 1) if case.name in ("fedavg", "faults", "fedbuff") else (3, case.rounds):
        folder = tmp_path / str(after)
        first = killed(case, folder, after)
        assert first.status == "interrupted" and first.error is None
        assert str(folder) in first.cause
        second = run(case, folder, resume=True).raise_if_failed()
        assert model(second) == model(whole), after
        assert told(second) == told(whole), after
        assert second.time == whole.time


def test_killed_again_and_again(tmp_path: Path) -> None:
    for case in CASES[:4]:
        whole = run(case, None)
        folder = tmp_path / case.name
        killed(case, folder, 2)
        for after in range(3, case.rounds + 1):
            assert killed(case, folder, after, resume=True).status == "interrupted"
        assert model(run(case, folder, resume=True)) == model(whole)


def test_workers_may_change_on_the_way(tmp_path: Path) -> None:
    for case in (CASES[0], CASES[3]):
        killed(case, tmp_path / case.name, 3, workers=2)
        assert model(run(case, tmp_path / case.name, resume=True)) == model(run(case, None))


def test_checkpoints_can_be_rare(tmp_path: Path) -> None:
    case = CASES[1]
    killed(case, tmp_path / "a", 5, checkpoint_every=2)
    assert model(run(case, tmp_path / "a", resume=True, checkpoint_every=2)) == model(run(case, None))
    killed(case, tmp_path / "b", 5, checkpoint_every=0)
    with pytest.raises(ResumeError, match="no checkpoint"):
        run(case, tmp_path / "b", resume=True)


def test_a_completed_run_resumed_is_the_same_run(tmp_path: Path) -> None:
    case = CASES[0]
    whole = run(case, tmp_path / "run")
    again = run(case, tmp_path / "run", resume=True)
    assert (again.status, model(again), told(again)) == ("completed", model(whole), told(whole))


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.name)
def test_a_checkpoint_of_something_else_is_refused(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed(case, folder, 3)
    with pytest.raises(ResumeError):
        hs.simulate(case.plan(), federation(), seed=4, folder=folder, resume=True, **case.changes)
    with pytest.raises(ResumeError):
        run(case, folder, resume=True, faults=FaultPlan(drop=0.123))
    with pytest.raises(ResumeError):
        other = hs.Plan(protocol=case.plan().protocol, learner=hs.learners.Softmax(batch_size=6))
        hs.simulate(other, federation(), seed=3, folder=folder, resume=True, **case.changes)
    with pytest.raises(ResumeError):
        more = hs.data.load("sklearn:iris").partition(hs.data.IID(), parties=12)
        hs.simulate(case.plan(), more, seed=3, folder=folder, resume=True, **case.changes)
    assert run(case, folder, resume=True).status == "completed"


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    case = CASES[3]
    folder = tmp_path / "run"
    killed(case, folder, 3)
    (file,) = [path for path in folder.iterdir() if "checkpoint" in path.name]
    whole = file.read_bytes()
    places = sorted({0, 1, 7, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 1})
    for damaged in (b"", b"x", *(whole[:place] for place in places), whole + b"x", bytes(len(whole))):
        file.write_bytes(damaged)
        with pytest.raises(ResumeError):
            run(case, folder, resume=True)
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        file.write_bytes(bytes(changed))
        with pytest.raises(ResumeError):
            run(case, folder, resume=True)
    file.write_bytes(whole)
    assert model(run(case, folder, resume=True)) == model(run(case, None))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError):
        run(CASES[0], tmp_path / "nothing", resume=True)
    with pytest.raises(ResumeError, match="folder"):
        run(CASES[0], None, resume=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(CASES[0], tmp_path / "run")
    with pytest.raises(ConfigError, match="run"):
        run(CASES[0], tmp_path / "run")


SCRIPT = """
import sys, time
from pathlib import Path
from tests.simulation.cases import CASES, Follower
from tests.simulation.test_resume import run

case = next(case for case in CASES if case.name == sys.argv[1])
Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
run(case, Path(sys.argv[2]), trackers=[Follower(lambda record: (print(record.round, flush=True), time.sleep(0.05)))])
"""


@pytest.mark.slow
@every_case
def test_killed_by_the_system_and_resumed_it_ends_the_same(case: Case, tmp_path: Path) -> None:
    whole = run(case, None)
    root = Path(__file__).resolve().parents[2]
    for after in (2, 4):
        folder = tmp_path / str(after)
        command = [sys.executable, "-c", SCRIPT, case.name, str(folder)]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= after:
                    time.sleep(0.01)
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        second = run(case, folder, resume=True).raise_if_failed()
        assert (model(second), told(second)) == (model(whole), told(whole))
