"""simulation/cores: the same rounds with two worker processes and with one, by the wall clock.

Each side runs several times in turn, each run with its own workers, whose start and first rounds do not count.
"""

from __future__ import annotations

import os
from statistics import median
from time import perf_counter

from bench.clock import Turns
from bench.figure import Disagreement, Figure, Figures, Size, Unavailable
from bench.work import COHORT, SHORT, Case, digits, one_thread, plan, simulated
from hansa.threads import limit_threads

TURNS = 3


def measure(size: Size) -> Figures:
    """The convolutional model's figure, then the others'."""
    one_thread()
    if (os.cpu_count() or 1) < 2 and not size.quick:
        raise Unavailable("simulation/cores needs two cores")
    return [
        _one(name, SHORT[name].sized(size), size) for name in (("cnn",) if size.quick else ("cnn", "logistic", "mlp"))
    ]


def _one(name: str, case: Case, size: Size) -> Figure:
    data, cohort = digits(size.of(1000, 20)), size.of(COHORT, 4)
    rates: dict[int, list[float]] = {1: [], 2: []}
    models = {}
    for _ in range(size.of(TURNS, 1)):
        for workers in rates:
            turns = Turns(case.block, case.warm, clock=perf_counter)
            with limit_threads(1):
                run = simulated(plan(case.model, case.rounds, cohort, case.engine), data, turns, workers=workers)
            rates[workers] += [cohort / seconds for seconds in turns.seconds]
            assert run.params is not None
            models[workers] = run.params.flat.tobytes()
    if models[1] != models[2]:
        raise Disagreement(f"{name}: the model depends on the number of workers")
    full = "simulation/cores" + ("" if name == "cnn" else f"/{name}")
    return Figure(full, median(rates[2]), "updates/s", "one worker", median(rates[1]))
