"""Four hospitals train a model for heart disease together, and it is compared with what each reaches alone.

python examples/heart_disease.py FOLDER

FOLDER holds processed.cleveland.data, processed.hungarian.data, processed.switzerland.data and processed.va.data of the UCI heart
disease data (https://archive.ics.uci.edu/dataset/45/heart+disease). Without a folder the hospitals are made up.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

import hansa as hs

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
Part = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def read(folder: Path) -> dict[str, Part]:
    """Ten features of each hospital's complete rows, and 1 for a diagnosis; three columns that most hospitals lack are left out."""
    parts = {}
    for name in HOSPITALS:
        with (folder / f"processed.{name}.data").open(newline="") as file:
            rows = [row[:10] + row[13:] for row in csv.reader(file) if row]
        table = np.array([row for row in rows if "?" not in row], dtype=np.float32)
        parts[name] = table[:, :10], (table[:, 10] > 0).astype(np.int64)
    return parts


def made_up() -> dict[str, Part]:
    """Hospitals of unequal size that agree on what matters and differ in whom they see."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=10)
    parts = {}
    for name, count in zip(HOSPITALS, (303, 261, 46, 130), strict=True):
        x = rng.normal(loc=rng.normal(scale=0.3, size=10), size=(count, 10))
        y = (x @ weights + rng.logistic(size=count) > 0).astype(np.int64)
        parts[name] = x.astype(np.float32), y
    return parts


def main(folder: str | None = None) -> None:
    hospitals: Mapping[str, Part] = read(Path(folder)) if folder else made_up()
    data = hs.data.from_parties(hospitals, seed=0, test=0.34, classes=("healthy", "ill"), standardize="party")
    plan = hs.Plan(
        protocol=hs.FedAvg(rounds=15, cohort=len(hospitals)),
        learner=hs.learners.Softmax(optimizer=hs.SGD(0.03), batch_size=4, epochs=5),
        aggregation=hs.mean(),
        name="four hospitals",
    )
    run = hs.simulate(plan, data, seed=42, baselines=True).raise_if_failed()
    print(run.summary())
    for name, metrics in run.history[-1].parties.items():
        print(f"  {name:<12} accuracy {metrics['accuracy']:.3f} on {metrics['examples']:.0f} patients")


if __name__ == "__main__":
    main(*sys.argv[1:2])
