"""A tracker that fails ends the run in its own name, not in that of the party that happened to report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hansa as hs
from hansa.monitoring import RoundRecord, RunEnd, RunInfo


class FullDisk:
    """Writes two rounds and then finds no room."""

    def __init__(self) -> None:
        self.ended: RunEnd | None = None

    def begin(self, info: RunInfo) -> None:
        assert info.rounds == 4

    def round(self, record: RoundRecord) -> None:
        if record.round == 2:
            raise OSError(28, "No space left on device")

    def end(self, end: RunEnd) -> None:
        self.ended = end


@pytest.mark.parametrize("folder", [True, False])
def test_a_tracker_that_raises_is_named_and_told_the_end(folder: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    data = hs.data.arrays(x, (x[:, 0] > 0).astype(np.int64)).partition(hs.data.IID(), parties=4, seed=0)
    plan = hs.Plan(protocol=hs.FedAvg(rounds=4, cohort=2), learner=hs.learners.Softmax())
    where = tmp_path / "run" if folder else None
    whole = hs.simulate(plan, data, seed=1)
    tracker = FullDisk()
    run = hs.simulate(plan, data, seed=1, trackers=[tracker], folder=where)
    assert run.status == "failed"
    assert run.cause.startswith("round 2: the tracker FullDisk raised OSError: [Errno 28] No space left on device")
    assert not run.failures
    assert tracker.ended is not None
    assert tracker.ended.status == "failed"
    if where is not None:
        resumed = hs.simulate(plan, data, seed=1, folder=where, resume=True)
        assert resumed.params is not None
        assert whole.params is not None
        assert np.array_equal(resumed.params.flat, whole.params.flat)
