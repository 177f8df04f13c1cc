"""The work that all figures of local training share.

1000 clients with 18 of scikit-learn's digits each, batches of 10, one epoch (so 10 + 8 examples), SGD at 0.05, 100 clients a
round, plain averaging, no evaluation. Three models: 650, 98,950 and 1,606,390 parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import hansa as hs
from bench.figure import Size
from hansa.data import FederatedData
from hansa.learners.torch import Torch
from hansa.learners.torch.engines import EngineName
from hansa.monitoring.records import Tracker

CLIENTS, EXAMPLES, BATCH, RATE, COHORT = 1000, 18, 10, 0.05, 100
NO_EVALUATION = hs.Evaluation(every=0, parties=0)


def logistic() -> nn.Module:
    """650 parameters."""
    return nn.Linear(64, 10)


def cnn() -> nn.Module:
    """98,950 parameters: two convolutions of 16 and 32 channels, a pool, a dense layer of 180."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 180),
        nn.ReLU(),
        nn.Linear(180, 10),
    )


def mlp() -> nn.Module:
    """1,606,390 parameters: two hidden layers of 1230."""
    return nn.Sequential(nn.Linear(64, 1230), nn.ReLU(), nn.Linear(1230, 1230), nn.ReLU(), nn.Linear(1230, 10))


@dataclass(frozen=True)
class Case:
    """A model, and how many rounds are worth timing.

    Args:
        name: the suite's last word.
        model: makes the module.
        block: rounds of Hansa in a block.
        reference: rounds of the reference in a block.
        blocks: how many of each.
        warm: rounds before the first block.
        engine: of Hansa's learner.
    """

    name: str
    model: Callable[[], nn.Module]
    block: int
    reference: int
    blocks: int
    warm: int
    engine: EngineName | Literal["auto"] = "auto"

    def sized(self, size: Size) -> Case:
        """This case, or a tiny one."""
        return Case(self.name, self.model, 1, 1, 2, 1) if size.quick else self

    @property
    def rounds(self) -> int:
        """Rounds of Hansa in total."""
        return self.warm + self.block * self.blocks


# The convolutional model's rounds are so many that compiling it pays, as it does in a real run.
CASES = {
    "logistic": Case("logistic", logistic, block=50, reference=10, blocks=15, warm=50),
    "cnn": Case("cnn", cnn, block=13, reference=4, blocks=15, warm=5),
    "mlp": Case("mlp", mlp, block=3, reference=2, blocks=9, warm=2),
}


# Where a case runs several times in one suite; too short to earn compiling by itself, which a real run of that model does.
SHORT = {
    "logistic": replace(CASES["logistic"], block=50, blocks=6, warm=50),
    "cnn": replace(CASES["cnn"], block=8, blocks=5, warm=8, engine="compiled"),
    "mlp": replace(CASES["mlp"], block=3, blocks=3, warm=3),
}


def digits(parties: int = CLIENTS) -> FederatedData:
    """The parties' data: all training rows, nothing held out."""
    return hs.data.load("sklearn:digits").partition(hs.data.IID(examples=EXAMPLES), parties=parties, seed=0, test=0.0)


def plan(
    model: Callable[[], nn.Module], rounds: int, cohort: int = COHORT, engine: EngineName | Literal["auto"] = "auto"
) -> hs.Plan:
    """FedAvg over the work above."""
    return hs.Plan(
        protocol=hs.FedAvg(rounds=rounds, cohort=cohort, evaluation=NO_EVALUATION),
        learner=Torch(model=model, optimizer=hs.SGD(RATE), batch_size=BATCH, epochs=1, engine=engine),
        aggregation=hs.mean(),
    )


def simulated(plan: hs.Plan, data: FederatedData, *trackers: Tracker, **settings: Any) -> hs.Run:
    """The run through the whole system; raises if it did not complete."""
    return hs.simulate(plan, data, seed=0, trackers=trackers, **settings).raise_if_failed()


def one_thread() -> None:
    """Hold this process's PyTorch to one thread; BLAS is held by the runs themselves."""
    torch.set_num_threads(1)


def scratch() -> Path:
    """The folder of what a suite installs: ``.bench`` in the checkout, or what ``HANSA_BENCH_DIR`` says."""
    return Path(os.environ.get("HANSA_BENCH_DIR") or Path(__file__).resolve().parent.parent / ".bench")
