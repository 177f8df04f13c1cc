"""quality/mnist: how many rounds FedAvg needs on MNIST: the models, divisions and way of counting of the paper that introduced it.

100 parties with 600 images each, 10 of them a round, batches of 10. In the *IID* division the images are dealt at random; in
*shards* they are sorted by digit, cut into 200 shards of 300, and each party gets 2. The curve of test accuracy is made
monotone by taking the best value so far, and the round where it crosses the target is interpolated between whole rounds.

The suite measures the 2NN in both divisions, at the learning rates that were best in the grid of docs/results.md. A single
setting, the CNN's too, with a learning rate or a grid of them::

    python -m bench.quality.mnist 2nn iid --epochs 1 --rates 0.046 0.1 0.215 --rounds 200

Source: McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, section 3.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

from torch import nn

import hansa as hs
from bench.figure import Figure, Figures, Size, Unavailable
from hansa.data.federated import FederatedData

Split = Literal["iid", "shards"]

DATA: Final = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist" / "mnist.npz"
PARTIES, COHORT, BATCH = 100, 10, 10


def two_nn() -> nn.Sequential:
    """The paper's 2NN: 784-200-200-10 with ReLU; 199,210 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def cnn() -> nn.Sequential:
    """The paper's CNN: two 5x5 convolutions of 32 and 64 channels, each with 2x2 pooling, then 512 units; 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of the paper, and the test accuracy that its rounds are counted to."""

    make: Callable[[], nn.Module]
    target: float


MODELS: Final[Mapping[str, Model]] = {"2nn": Model(two_nn, 0.97), "cnn": Model(cnn, 0.99)}

QUOTED: Final[Mapping[tuple[str, Split, int], int]] = {
    ("2nn", "iid", 1): 87,
    ("2nn", "shards", 1): 664,
    ("cnn", "iid", 1): 34,
    ("cnn", "shards", 1): 350,
    ("cnn", "iid", 5): 20,
    ("cnn", "shards", 5): 229,
}
"""Rounds by (model, division, local epochs) as commonly quoted from the paper's tables; not verified here."""


@dataclass(frozen=True)
class Count:
    """Rounds to the target.

    Args:
        rounds: interpolated; None where the run ended before.
        ran: rounds that ran.
        best: the best test accuracy of the run.
        seconds: real time.
    """

    rate: float
    rounds: float | None
    ran: int
    best: float
    seconds: float

    def __str__(self) -> str:
        reached = f"not reached within {self.ran} rounds" if self.rounds is None else f"{self.rounds:.1f} rounds"
        return f"learning rate {self.rate:<7g} {reached}; best accuracy {self.best:.4f}, {self.seconds:.0f} s"


def division(split: Split, *, seed: int = 0, path: Path = DATA) -> FederatedData:
    """All 60,000 training images among 100 parties, and the 10,000 test images at the server."""
    how = hs.data.IID() if split == "iid" else hs.data.Shards(per_party=2)
    return hs.data.load(f"npz:{path}", shape=(1, 28, 28)).partition(how, parties=PARTIES, seed=seed, test=0)


def plan(model: str, *, rate: float, epochs: int, rounds: int, every: int = 1) -> hs.Plan:
    """FedAvg as in the paper; ends at the model's target accuracy."""
    return hs.Plan(
        protocol=hs.FedAvg(
            rounds=rounds,
            cohort=COHORT,
            evaluation=hs.Evaluation(every=every, parties=0),
            stop=hs.Stop(target=MODELS[model].target),
        ),
        learner=hs.learners.Torch(
            model=MODELS[model].make, optimizer=hs.SGD(rate), batch_size=BATCH, epochs=epochs, loss="cross_entropy"
        ),
        aggregation=hs.mean(),
        name=f"{model}, {epochs} local epochs",
    )


def crossing(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The round where the best value so far crosses ``target``, interpolated between the points; None if it never does.

    >>> crossing([(0, 0.1), (1, 0.5), (2, 0.4), (3, 0.9)], 0.7)
    2.5
    >>> crossing([(0, 0.1), (1, 0.5)], 0.7) is None
    True
    """
    before, best = 0, float("-inf")
    for round, value in curve:
        if value >= target:
            if best == float("-inf") or value == best:
                return float(round)
            return before + (round - before) * (target - best) / (value - best)
        before, best = round, max(best, value)
    return None


def count(
    data: FederatedData,
    model: str,
    *,
    rate: float,
    epochs: int = 1,
    rounds: int = 200,
    every: int = 1,
    seed: int = 0,
    workers: int = 2,
) -> Count:
    """Run until the target, and count."""
    start = perf_counter()
    settings = plan(model, rate=rate, epochs=epochs, rounds=rounds, every=every)
    run = hs.simulate(settings, data, seed=seed, workers=workers).raise_if_failed()
    curve = run.curve("test_accuracy")
    ran = max(record.round for record in run.history)
    best = max(value for _, value in curve)
    return Count(rate, crossing(curve, MODELS[model].target), ran, best, perf_counter() - start)


def best_of(counts: Sequence[Count]) -> Count:
    """The learning rate that needs the fewest rounds; where none reaches the target, the one that comes nearest."""
    return min(counts, key=lambda c: (c.rounds is None, c.rounds if c.rounds is not None else -c.best))


BEST: Final[Mapping[tuple[str, Split, int], float]] = {("2nn", "iid", 1): 0.215, ("2nn", "shards", 1): 0.215}
"""The learning rate of the grid that needed the fewest rounds."""


def measure(size: Size) -> Figures:
    """Rounds of the 2NN to 97 %; fewer is better. NaN where the target was not reached."""
    if not DATA.is_file():
        raise Unavailable("the data set mnist is not beside this checkout")
    figures: Figures = []
    for (model, split, epochs), rate in BEST.items():
        found = count(division(split), model, rate=rate, epochs=epochs, rounds=size.of(800, 2))
        figures.append(
            Figure(
                f"quality/mnist/{model}-{split}-E{epochs}",
                float("nan") if found.rounds is None else found.rounds,
                "rounds",
                "the paper's as commonly quoted",
                QUOTED[model, split, epochs],
            )
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounds of FedAvg to the paper's target accuracy on MNIST.")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("split", choices=["iid", "shards"])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1])
    parser.add_argument("--rounds", type=int, default=200, help="end after so many rounds")
    parser.add_argument("--every", type=int, default=1, help="evaluate every so many rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args()
    for seed in given.seeds:
        data = division(given.split, seed=seed)
        for rate in given.rates:
            found = count(
                data, given.model, rate=rate, epochs=given.epochs, rounds=given.rounds, every=given.every, seed=seed,
                workers=given.workers,
            )  # fmt: skip
            print(f"{given.model} {given.split} E={given.epochs} seed {seed}: {found}", flush=True)


if __name__ == "__main__":
    main()
