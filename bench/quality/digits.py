"""quality/digits: FedAvg against the same model trained on all the data in one place; scikit-learn's digits.

1,797 images of 8 x 8, a random quarter held out as the test set; the rest dealt at random to 20 parties, all of which take part in
every round. Softmax regression and a hidden layer of 64, batches of 10, one epoch a round, 30 rounds or 30 central epochs. Both
sides choose their learning rate from the same grid on the same held-out fifth of the training images, never on the test set; means
over three seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from torch import nn

import hansa as hs
from bench.figure import Figure, Figures, Size
from hansa.data import FederatedData
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.learners import Torch
from hansa.rng import Key
from hansa.simulation.baselines import pooled
from hansa.threads import limit_threads

Whole = npt.NDArray[np.int64]

PARTIES, ROUNDS, BATCH = 20, 30, 10
RATES: Final = (0.1, 0.3, 1.0, 3.0)
SEEDS: Final = (0, 1, 2)


def softmax() -> nn.Module:
    """650 parameters."""
    return nn.Linear(64, 10)


def mlp() -> nn.Module:
    """4,810 parameters: one hidden layer of 64."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


MODELS: Final[dict[str, Callable[[], nn.Module]]] = {"softmax": softmax, "mlp": mlp}


@dataclass(frozen=True)
class Digits:
    """The data twice: to choose a learning rate with, and to report."""

    choosing: FederatedData
    reporting: FederatedData


def digits() -> Digits:
    """A quarter of the images is the test set; a fifth of what is left, the rows to choose a learning rate with."""
    source = hs.data.load("sklearn:digits")
    x, y = source.x, source.y
    order = Key.root(0).child("digits").permutation(len(y))
    train, test = np.split(order, [len(y) - len(y) // 4])
    fit, hold = np.split(train, [len(train) - len(train) // 5])

    def divided(rows: Whole, tests: Whole) -> FederatedData:
        data = hs.data.arrays(x[rows], y[rows], test=(x[tests], y[tests]), classes=source.classes)
        return data.partition(hs.data.IID(), parties=PARTIES, seed=0, test=0.0)

    return Digits(divided(fit, hold), divided(train, test))


def learner(model: Callable[[], nn.Module], rate: float) -> Torch:
    """One epoch of SGD in batches of 10."""
    return Torch(model=model, optimizer=hs.SGD(rate), batch_size=BATCH, epochs=1, engine="sequential")


def federated(model: Callable[[], nn.Module], rate: float, data: FederatedData, seed: int) -> float:
    """The test accuracy of FedAvg with everybody in every round."""
    plan = hs.Plan(
        protocol=hs.FedAvg(rounds=ROUNDS, cohort=PARTIES, evaluation=hs.Evaluation(every=ROUNDS, parties=0)),
        learner=learner(model, rate),
        aggregation=hs.mean(),
    )
    return hs.simulate(plan, data, seed=seed).raise_if_failed().metrics["test_accuracy"]


def central(model: Callable[[], nn.Module], rate: float, data: FederatedData, seed: int) -> float:
    """The test accuracy of as many epochs over all parties' images in one place, from the same initial model."""
    own, rows = learner(model, rate), pooled(data)
    key = Key.root(seed)
    with limit_threads(1):
        params = own.init(key.child("server/init"), Examples(*data.central_test.base))
        for epoch in range(ROUNDS):
            params = params + own.fit(params, rows, LocalWork(round=epoch + 1), key.child("fit", epoch)).delta.array
        return own.evaluate(params, data.central_test)["accuracy"]


Train = Callable[[Callable[[], nn.Module], float, FederatedData, int], float]


def tuned(
    train: Train, model: Callable[[], nn.Module], data: Digits, seeds: Sequence[int] = SEEDS
) -> tuple[float, float]:
    """The learning rate that is best on the rows to choose with, and the mean test accuracy at that rate."""
    rate = max(RATES, key=lambda rate: sum(train(model, rate, data.choosing, seed) for seed in seeds))
    return rate, float(np.mean([train(model, rate, data.reporting, seed) for seed in seeds]))


def measure(size: Size) -> Figures:
    """Federated beside central, each at its own best learning rate."""
    seeds = SEEDS[: size.of(len(SEEDS), 1)]
    data = digits()
    figures: Figures = []
    for name, model in MODELS.items():
        if size.quick and name != "softmax":
            continue
        rate, accuracy = tuned(federated, model, data, seeds)
        other, reference = tuned(central, model, data, seeds)
        words = f"central training (rates {rate:g} and {other:g})"
        figures.append(Figure(f"quality/digits/{name}", accuracy, "accuracy", words, reference))
    return figures
