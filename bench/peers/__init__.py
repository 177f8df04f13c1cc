"""peers/pfl and peers/flower: the same work in other frameworks, each installed into an environment of its own.

Hansa runs before and after each of the peer's runs, in this process. pfl-research runs in one process with one thread and is
timed by its processor time like Hansa; Flower's simulation uses every core through Ray and is timed by the wall clock, and so is
Hansa beside it, on one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from bench.clock import Turns
from bench.figure import Figure, Figures, Size, Unavailable
from bench.work import COHORT, SHORT, digits, one_thread, plan, scratch, simulated

HERE = Path(__file__).resolve().parent
# torch is pinned: an unpinned one may bring builds of several gigabytes.
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """Another framework.

    Args:
        name: the suite's last word and the environment's folder.
        requirements: what pip installs, tried in order until one set can be installed.
        script: what runs there.
        clock: how Hansa is timed beside it.
        timeout: seconds that one run may take.
    """

    name: str
    requirements: Sequence[Sequence[str]]
    script: str
    clock: Callable[[], float]
    timeout: float = 900.0


PFL = Peer("pfl", [["pfl==0.6.0", TORCH]], "pfl_run.py", process_time)
# The newest release may ask for packages that an index does not have yet; then the newest installable one is taken.
FLOWER = Peer(
    "flower", [["flwr[simulation]==1.42.0", TORCH], ["flwr[simulation]", TORCH]], "flower_run.py", perf_counter
)


def pfl(size: Size) -> Iterator[Figure]:
    """The three models in pfl-research."""
    for case in SHORT:
        if case == "logistic" or not size.quick:
            yield _beside(
                PFL, case, size, "peers/pfl" + ("" if case == "logistic" else f"/{case}"), ("MODEL", "ROUNDS")
            )


def flower(size: Size) -> Figures:
    """The logistic model in Flower's simulation."""
    return [_beside(FLOWER, "logistic", size, "peers/flower", ("ROUNDS",))]


def _beside(peer: Peer, name: str, size: Size, figure: str, arguments: Sequence[str]) -> Figure:
    python = environment(peer)
    one_thread()
    case, data, cohort = SHORT[name].sized(size), digits(size.of(1000, 20)), size.of(COHORT, 4)
    rates: list[float] = []

    def ours() -> None:
        turns = Turns(case.block, case.warm, clock=peer.clock)
        simulated(plan(case.model, case.rounds, cohort, case.engine), data, turns)
        rates.extend(cohort / seconds for seconds in turns.seconds)

    theirs: list[float] = []
    version = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        x, y = data.example.base
        rows = np.stack([np.asarray(data.shard(i).train.rows) for i in range(len(data))])
        np.savez(path, x=x, y=y, rows=rows, cohort=cohort)
        given = {"MODEL": name, "ROUNDS": str(size.of(15 if peer is PFL else 8, 3))}
        ours()
        for _ in range(size.of(3 if peer is PFL else 2, 1)):
            found = _run(peer, python, [*(given[word] for word in arguments), str(path)])
            theirs.append(float(found["rate"]))
            version = str(found["version"])
            ours()
    return Figure(figure, median(rates), "updates/s", f"{peer.name} {version}", median(theirs))


def _run(peer: Peer, python: Path, arguments: Sequence[str]) -> dict[str, Any]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [str(python), str(HERE / peer.script), *arguments]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=peer.timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{peer.name} did not end within {peer.timeout:g} s") from None
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"version"'):
            found: dict[str, Any] = json.loads(line)
            return found
    raise Unavailable(f"{peer.name} gave no figure (exit code {done.returncode}): {_last(done.stderr)}")


def environment(peer: Peer) -> Path:
    """The Python of the peer's own environment, made at the first call and again when what it needs has changed.

    Raises:
        Unavailable: it cannot be installed here.
    """
    folder = scratch() / peer.name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / ".made"
    wanted = sha256(repr(peer.requirements).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return python
    print(f"installing {peer.name} into {folder}; a few minutes, once", file=sys.stderr, flush=True)
    why = ""
    try:
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        for requirements in peer.requirements:
            command = [str(python), "-m", "pip", "install", "--quiet", *requirements]
            done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
            if done.returncode == 0:
                stamp.write_text(wanted, encoding="ascii")
                return python
            why = _last(done.stderr)
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error)
    raise Unavailable(f"{peer.name} cannot be installed: {why}")


def _last(text: str) -> str:
    """The last line that says something of an error, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no reason given"])[-1][:300]
