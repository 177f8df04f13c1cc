"""simulation/population: a round of 1,000 parties drawn from 1,000,000 beside one drawn from 10,000; and what it needs in memory.

The logistic model. The peak memory is that of a process of its own that makes the data and runs, the whole of Python and
PyTorch in it: ``python -m bench.population 1000000``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

from bench.clock import Turns
from bench.figure import Figure, Figures, Size, Unavailable
from bench.work import digits, logistic, one_thread, plan, simulated

LARGE, SMALL, DRAWN = 1_000_000, 10_000, 1_000


def measure(size: Size) -> Figures:
    """The time of a round, then the memory."""
    one_thread()
    large, small, drawn = size.of(LARGE, 2000), size.of(SMALL, 200), size.of(DRAWN, 20)
    seconds: dict[int, list[float]] = {large: [], small: []}
    data = {parties: digits(parties) for parties in seconds}
    for _ in range(size.of(4, 1)):
        for parties, found in seconds.items():
            turns = Turns(size.of(5, 1), size.of(5, 1))
            simulated(plan(logistic, size.of(5 + 5 * 4, 3), drawn), data[parties], turns)
            found += turns.seconds
    against = f"a round of {drawn:,} from {small:,} parties"
    return [
        Figure(
            "simulation/population", median(seconds[large]) * 1e3, "ms/round", against, median(seconds[small]) * 1e3
        ),
        Figure("simulation/population/memory", _peak(large, drawn), "GiB", f"{small:,} parties", _peak(small, drawn)),
    ]


def _peak(parties: int, drawn: int) -> float:
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "bench.population", str(parties), str(drawn)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the run of {parties:,} parties failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)


def _peak_here(parties: int, drawn: int) -> float:
    """GiB, from a run of a few rounds in this process."""
    one_thread()
    simulated(plan(logistic, 3, drawn), digits(parties))
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there is at least the peak of the process that started this one
        found = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return float(found.split()[1]) / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


if __name__ == "__main__":
    print(_peak_here(int(sys.argv[1]), int(sys.argv[2])))
