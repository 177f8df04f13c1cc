"""Runs that the laws of the simulator are held against: one for each way in which work can be under way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.data import FederatedData
from hansa.monitoring.records import RoundRecord
from hansa.simulation import Crash, Device, Devices, FaultPlan

PARTIES = 12


def federation() -> FederatedData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 3))).argmax(axis=1)
    return hs.data.arrays(x, y).partition(hs.data.QuantitySkew(), parties=PARTIES, seed=0, test=0.25)


FLEET = Devices(
    kinds=((1, Device(examples_per_second=10.0, latency=0.1)), (1, Device(examples_per_second=1.0, up=1000.0)))
)
TROUBLE = FaultPlan(
    drop=0.1,
    duplicate=0.2,
    delay=(0.0, 20.0),
    crashes=(Crash("client-3", 20.0, 40.0), Crash("client-5", 30.0), Crash("server", 50.0, 5.0)),
)


@dataclass(frozen=True)
class Case:
    """A protocol and how it is simulated."""

    name: str
    where: str
    settings: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    rounds: int = 5

    def plan(self, learner: Any = None) -> hs.Plan:
        module, _, name = self.where.partition(":")
        try:
            protocol = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            pytest.skip(f"{module} is not there")
        return hs.Plan(
            protocol=protocol(rounds=self.rounds, **self.settings),
            learner=learner or hs.learners.Softmax(optimizer=hs.SGD(0.3), batch_size=5),
            aggregation=hs.clip(5.0) | hs.mean(),
        )


FEDAVG, FEDBUFF = "hansa.horizontal.fedavg:FedAvg", "hansa.horizontal.fedbuff:FedBuff"

CASES = [
    Case("fedavg", FEDAVG, {"cohort": 6, "evaluation": hs.Evaluation(parties=4, parties_every=2)}),
    Case("stragglers", FEDAVG, {"cohort": 4, "over_selection": 2.0}, {"devices": FLEET}),
    Case("unread", FEDAVG, {"cohort": 4, "over_selection": 2.0}),
    Case(
        "faults",
        FEDAVG,
        {"cohort": 6, "deadline": 30.0, "quorum": 0.1, "missed_quorum": "skip"},
        {"devices": FLEET, "faults": TROUBLE},
    ),
    Case("scaffold", "hansa.horizontal.scaffold:Scaffold", {"cohort": 6}, {"devices": FLEET}),
    Case("fedbuff", FEDBUFF, {"concurrency": 8, "buffer": 3}, {"devices": FLEET}),
    Case("fedbuff at once", FEDBUFF, {"concurrency": 8, "buffer": 3}),
    Case("dpsgd", "hansa.decentralized.dpsgd:DPSGD", {"evaluate_every": 2}),
    Case(
        "dpsgd with losses",
        "hansa.decentralized.dpsgd:DPSGD",
        {"evaluate_every": 2, "deadline": 25.0},
        {"devices": FLEET, "faults": FaultPlan(drop=0.1, crashes=(Crash("client-4", 15.0, 20.0),))},
    ),
    Case("dpsgd on devices", "hansa.decentralized.dpsgd:DPSGD", {"evaluate_every": 2}, {"devices": FLEET}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))


def told(run: hs.Run) -> list[Any]:
    """The history but for real seconds."""
    return [(r.round, dict(r.metrics), {k: dict(v) for k, v in r.parties.items()}, r.note, r.time) for r in run.history]


def model(run: hs.Run) -> bytes:
    assert run.params is not None, run.cause
    return run.params.flat.tobytes()


@dataclass
class Follower:
    """A tracker that calls ``at`` after each round."""

    at: Callable[[RoundRecord], None]

    def begin(self, info: Any) -> None:
        pass

    def round(self, record: RoundRecord) -> None:
        self.at(record)

    def end(self, end: Any) -> None:
        pass
