"""simulation/logistic, /cnn, /mlp: client updates a second through the whole system, on one core.

The whole system is :func:`hansa.simulate` with one worker: coroutines, messages, their sizes in the log, refusal checks,
aggregation, saves, observer. The reference is the tight loop of :mod:`bench.loop` on the same data, in turns with it.
"""

from __future__ import annotations

from statistics import median
from time import process_time

from bench.clock import Turns
from bench.figure import Figure, Figures, Size
from bench.loop import TightLoop, agree
from bench.work import CASES, COHORT, digits, one_thread, plan, simulated


def measure(name: str, size: Size) -> Figures:
    """One model's figure."""
    one_thread()
    case, data, cohort = CASES[name].sized(size), digits(size.of(1000, 20)), size.of(COHORT, 4)
    agree(case.model, data, cohort)
    loop = TightLoop(case.model, data)
    loop.round(count=cohort)
    seconds: list[float] = []

    def reference() -> None:
        began = process_time()
        for _ in range(case.reference):
            loop.round(count=cohort)
        seconds.append((process_time() - began) / case.reference)

    turns = Turns(case.block, case.warm, reference)
    simulated(plan(case.model, case.rounds, cohort), data, turns)
    return [
        Figure(
            f"simulation/{name}",
            cohort / turns.a_round,
            "updates/s",
            "the tight PyTorch loop",
            cohort / median(seconds),
        )
    ]
