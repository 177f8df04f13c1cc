"""The same plan, seed, faults and devices give the same log, byte for byte, whatever the number of workers."""

from __future__ import annotations

import importlib.util
import multiprocessing
from typing import Any

import pytest

import hansa as hs
from hansa.simulation import FaultPlan
from tests.simulation.cases import CASES, FLEET, TROUBLE, Case, every_case, federation, model, told

forks = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork")


def run(case: Case, learner: Any = None, seed: int = 3, **changes: Any) -> hs.Run:
    made = hs.simulate(case.plan(learner), federation(), seed=seed, digest=True, **{**case.changes, **changes})
    return made.raise_if_failed()


@forks
@every_case
def test_workers_do_not_show(case: Case) -> None:
    alone = run(case)
    assert len(alone.history) >= case.rounds
    for workers in (2, 3) if case.name in ("fedavg", "faults") else (3,):
        other = run(case, workers=workers)
        assert other.log.digest() == alone.log.digest(), workers
        assert model(other) == model(alone)
        assert told(other) == told(alone)
        assert other.stale == alone.stale


@every_case
def test_once_more_is_the_same(case: Case) -> None:
    first, second = run(case), run(case)
    assert first.log.digest() == second.log.digest()
    assert told(first) == told(second)
    assert first.log.entries == second.log.entries


@every_case
def test_another_seed_is_another_run(case: Case) -> None:
    assert run(case, seed=3).log.digest() != run(case, seed=4).log.digest()


def test_faults_and_devices_show() -> None:
    case = next(c for c in CASES if c.name == "faults")
    digests = {
        run(case).log.digest(),
        run(case, faults=FaultPlan()).log.digest(),
        run(case, faults=FaultPlan(drop=0.1)).log.digest(),
        run(case, devices=hs.simulation.Devices()).log.digest(),
        run(case, devices=hs.simulation.Devices(), faults=FaultPlan()).log.digest(),
    }
    assert len(digests) == 5
    assert case.changes == {"devices": FLEET, "faults": TROUBLE}


@forks
@pytest.mark.parametrize("name", ["fedavg", "faults"])
@pytest.mark.parametrize("engine", ["sequential", "auto"])
def test_workers_do_not_show_with_torch(name: str, engine: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    from torch import nn

    learner = hs.learners.Torch(
        model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        loss="cross_entropy",
        optimizer=hs.SGD(0.1),
        batch_size=5,
        epochs=2,
        engine=engine,  # type: ignore[arg-type]
    )
    case = next(c for c in CASES if c.name == name)
    alone, other = run(case, learner), run(case, learner, workers=2)
    assert alone.log.digest() == other.log.digest()
    assert model(alone) == model(other)
