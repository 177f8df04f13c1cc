"""A learner of any size that learns nothing, so that a round costs what the system costs.

Its workers find it by an entry point as they find anybody's: :func:`package` writes the few lines that an installed package has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hansa.errors import ConfigError
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Array, Tensor
from hansa.update import Update


@dataclass(frozen=True)
class Resting:
    """A model of ``parameters`` float32 and the same small change of it each time."""

    parameters: int = 250

    def __post_init__(self) -> None:
        if self.parameters < 1:
            raise ConfigError(f"resting: parameters must be at least 1, not {self.parameters}")

    def init(self, rng: Key, example: Examples) -> Params:
        """Ones."""
        return Params.of({"weight": np.ones(self.parameters, np.float32)})

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """The change."""
        return Update(Tensor(_change(self.parameters)), float(len(data)), {"loss": 0.0, "steps": 1.0})

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """Nothing is good and nothing is bad."""
        return {"loss": 0.0}


@cache
def _change(size: int) -> Array:
    return np.full(size, 2.0**-10, np.float32)


def package(folder: Path) -> None:
    """Make ``folder`` a place from which Python sees a package that declares the learner ``resting``."""
    about = folder / "hansa_bench-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hansa-bench\nVersion: 0\n", encoding="ascii")
    points = "[hansa.learners]\nresting = bench.resting:Resting\n"
    (about / "entry_points.txt").write_text(points, encoding="ascii")
