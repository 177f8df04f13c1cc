"""simulation/scheduler: what the system itself costs for each client that is invited, when training costs nothing.

The learner returns the same rows of zeros every time. All else is a real round: the invitation, the party's coroutine, its
data, its compute effect, its contribution, its norm, the mean, the model's step. The reference is the sum itself and no system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import process_time

import numpy as np

import hansa as hs
from bench.clock import Turns
from bench.figure import Figure, Figures, Size
from bench.work import COHORT, EXAMPLES, NO_EVALUATION, digits, one_thread, simulated
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Dense, Tensor
from hansa.update import Update

SIZE = 650


@dataclass(frozen=True)
class Idle:
    """A learner that learns nothing."""

    def init(self, rng: Key, example: Examples) -> Params:
        """Zeros."""
        return Params.of({"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)})

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """No change."""
        return self.fit_many(params, [data], [work], [rng])[0]

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """Nothing is good and nothing is bad."""
        return {"loss": 0.0}

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """No change, for each."""
        rows = Dense(_ZEROS[: len(datas)])
        return [Update(Tensor(None, rows, place), float(len(data)), _SCALARS) for place, data in enumerate(datas)]

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """The same for each."""
        return [self.evaluate(params, data) for data in datas]

    def chunk(self, params: Params) -> int:
        """The cohort at once."""
        return len(_ZEROS)


_ZEROS = np.zeros((COHORT, SIZE), np.float32)
_SCALARS = {"loss": 0.0, "steps": 2.0}


def measure(size: Size) -> Figures:
    """Microseconds for an invited client."""
    one_thread()
    cohort, block, warm = size.of(COHORT, 4), size.of(50, 2), size.of(50, 1)
    data, model = digits(size.of(1000, 20)), np.zeros(SIZE, np.float32)
    seconds: list[float] = []

    def loop() -> None:
        nonlocal model
        began = process_time()
        for _ in range(block):
            total = np.zeros(SIZE, np.float32)
            for row in _ZEROS[:cohort]:
                total += row * np.float32(EXAMPLES)
            model = model + total / np.float32(EXAMPLES * cohort)
        seconds.append((process_time() - began) / block)

    turns = Turns(block, warm, loop)
    rounds = warm + block * size.of(15, 2)
    protocol = hs.FedAvg(rounds=rounds, cohort=cohort, evaluation=NO_EVALUATION)
    simulated(hs.Plan(protocol=protocol, learner=Idle(), aggregation=hs.mean()), data, turns)
    micro = 1e6 / cohort
    reference = "the same sum in a bare loop"
    return [Figure("simulation/scheduler", turns.a_round * micro, "µs/client", reference, median(seconds) * micro)]
