"""quality/heart: every row of FLamby's Fed-Heart-Disease table, at its hyperparameters, beside the published accuracies.

Four hospitals of the UCI heart disease data; a linear layer with a sigmoid, binary cross entropy, batches of 4, 100 local
updates a round, 15 rounds; means over the seeds 42 to 46, each from FLamby's own initial model of that seed. *Pooled* accuracy is
over all hospitals' test rows standardised by the moments of all training rows, a hospital's accuracy over its own test rows
standardised by its own training rows; this is FLamby's way, and the two are not to be mixed.

Two rows need a word. FLamby's SCAFFOLD weighs hospitals by their examples, so that is what is compared with it; with the
paper's equal weights (``scaffold-uniform``) another objective is reached. FLamby's program for Cyclic never hands a model on:
each hospital trains a copy of its own, and the first hospital's is evaluated. ``cyclic-as-programmed`` computes that and is
compared with the published row; ``cyclic`` is the algorithm.

Published: owkin/FLamby v0.1.0, ``flamby/results/results_benchmark_fed_heart_disease``; Ogier du Terrail et al., "FLamby: Datasets
and Benchmarks for Cross-Silo Federated Learning in Realistic Healthcare Settings", NeurIPS 2022 (datasets and benchmarks).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import train_test_split
from torch import nn

import hansa as hs
from bench.figure import Figure, Figures, Size, Unavailable
from hansa.data import FederatedData, from_function
from hansa.examples import Examples, Shard
from hansa.horizontal import Cyclic, FedAdagrad, FedAdam, FedProx, FedYogi, Scaffold
from hansa.learner import LocalWork
from hansa.learners import Torch
from hansa.learners.optimizers import Optimizer
from hansa.protocol import Protocol
from hansa.rng import Key
from hansa.threads import limit_threads

Table = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

FOLDER: Final = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "heart-disease-4-hospitals"
HOSPITALS: Final = ("cleveland", "hungarian", "switzerland", "va")
SEEDS: Final = (42, 43, 44, 45, 46)
MISSING_COLUMNS: Final = (10, 11, 12)
CATEGORICAL: Final = (2, 6)
ROUNDS, STEPS, BATCH, EPOCHS = 15, 100, 4, 50


@dataclass(frozen=True)
class Hospitals:
    """The four hospitals as a federation, and all their training rows in one place.

    Args:
        parties: each hospital's rows, standardised by its own training rows; the central test set is the pooled one.
        pooled: all training rows, standardised by their moments together.
    """

    parties: FederatedData
    pooled: Examples


@dataclass(frozen=True)
class Accuracy:
    """An accuracy over all hospitals' test rows, and over each hospital's own."""

    pooled: float
    hospitals: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        train: the accuracy that a seed gives.
        published: FLamby's, mean of the same five seeds; None for rows that FLamby has not.
    """

    train: Callable[[Hospitals, int], Accuracy]
    published: Accuracy | None = None


def read(folder: Path = FOLDER) -> list[Table]:
    """The complete rows of each hospital, shape (n, 11): ten features and the diagnosis (0 for none)."""
    tables = []
    for name in HOSPITALS:
        with (folder / f"processed.{name}.data").open(newline="") as file:
            rows = [[v for i, v in enumerate(row) if i not in MISSING_COLUMNS] for row in csv.reader(file) if row]
        tables.append(np.array([[float(v) for v in row] for row in rows if "?" not in row]))
    return tables


def encoded(tables: Sequence[Table]) -> list[tuple[Table, Floats]]:
    """Thirteen features, first the numbers, then the categories of all hospitals but the first as indicators; and 1 for a
    diagnosis."""
    everything = np.concatenate(tables)
    columns: list[tuple[int, float | None]] = [
        (c, None) for c in range(everything.shape[1] - 1) if c not in CATEGORICAL
    ]
    for column in CATEGORICAL:
        columns += [(column, float(value)) for value in np.unique(everything[:, column])[1:]]
    return [
        (
            np.stack([t[:, c] if value is None else (t[:, c] == value).astype(float) for c, value in columns], axis=1),
            (t[:, -1] > 0).astype(np.float32),
        )
        for t in tables
    ]


def hospitals(folder: Path = FOLDER, *, holdout: float = 0.0) -> Hospitals:
    """FLamby's data.

    Args:
        folder: where ``processed.cleveland.data`` and the others are.
        holdout: instead of on the test rows, test on this share of each hospital's training rows, and train on the rest; for
            choosing hyperparameters without the test rows.
    """
    parts = []
    for x, y in encoded(read(folder)):
        train, test = _divided(np.arange(len(y)), y, 0.34)
        if holdout:
            train, test = _divided(train, y, holdout)
        parts.append((x[train], y[train], x[test], y[test]))
    all_x, all_y = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    mean, deviation = _moments(all_x)
    tests = np.concatenate([part[2] for part in parts]), np.concatenate([part[3] for part in parts])
    shards = [_own(*part) for part in parts]
    parties = from_function(
        lambda i: shards[i],
        parties=HOSPITALS,
        sizes=[len(shard.train) for shard in shards],
        central_test=(((tests[0] - mean) / deviation).astype(np.float32), tests[1]),
    )
    return Hospitals(parties, Examples(((all_x - mean) / deviation).astype(np.float32), all_y))


def _divided(rows: npt.NDArray[np.int64], y: Floats, share: float) -> tuple[Any, Any]:
    """Training and test rows; stratified where each class has two rows, as FLamby has it."""
    try:
        train, test = train_test_split(rows, test_size=share, random_state=43, stratify=y[rows])
    except ValueError:
        train, test = train_test_split(rows, test_size=share, random_state=43)
    return train, test


def _own(x: Table, y: Floats, test_x: Table, test_y: Floats) -> Shard:
    mean, deviation = _moments(x)
    return Shard(
        Examples(((x - mean) / deviation).astype(np.float32), y),
        Examples(((test_x - mean) / deviation).astype(np.float32), test_y),
    )


def _moments(x: Table) -> tuple[Table, Table]:
    """Mean and deviation (over n - 1) of each column; 1 for the deviation of a constant."""
    deviation = x.std(0, ddof=1)
    return x.mean(0), np.where(deviation == 0, 1.0, deviation)


def initial(seed: int) -> nn.Linear:
    """13 features to a logit, with the 14 values that FLamby starts from: the first that torch draws after this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(13, 1)


def learner(seed: int, optimizer: Optimizer, **settings: Any) -> Torch:
    """FLamby's model and loss."""
    return Torch(
        model=initial(seed),
        loss="bce_with_logits",
        optimizer=optimizer,
        batch_size=BATCH,
        engine="sequential",
        **settings,
    )


def federated(protocol: Protocol, rate: float) -> Callable[[Hospitals, int], Accuracy]:
    """Train with ``protocol``, 100 local updates of SGD at ``rate`` a round."""

    def train(data: Hospitals, seed: int) -> Accuracy:
        plan = hs.Plan(protocol=protocol, learner=learner(seed, hs.SGD(rate), steps=STEPS), aggregation=hs.mean())
        last = hs.simulate(plan, data.parties, seed=seed).raise_if_failed().history[-1]
        return Accuracy(
            last.metrics["test_accuracy"], tuple(last.parties[name]["accuracy"] for name in data.parties.names)
        )

    return train


def one_place(party: int | None) -> Callable[[Hospitals, int], Accuracy]:
    """Train without a federation: 50 epochs of Adam on one hospital's rows, or on all of them."""

    def train(data: Hospitals, seed: int) -> Accuracy:
        rows = data.pooled if party is None else data.parties.shard(party).train
        return _alone(data, learner(seed, hs.Adam(1e-3), epochs=EPOCHS), rows, seed)

    return train


def cyclic_as_programmed(data: Hospitals, seed: int) -> Accuracy:
    """What FLamby's program for its Cyclic row computes: the first hospital's own model, trained on each of its turns."""
    rng = np.random.default_rng(seed)
    turns = np.concatenate([rng.permutation(len(HOSPITALS)) for _ in range(-(-ROUNDS // len(HOSPITALS)))])[:ROUNDS]
    own = learner(seed, hs.SGD(1e-2), steps=int((turns == 0).sum()) * STEPS)
    return _alone(data, own, data.parties.shard(0).train, seed)


def _alone(data: Hospitals, learner: Torch, rows: Examples, seed: int) -> Accuracy:
    key = Key.root(seed)
    tests = [data.parties.central_test, *(data.parties.shard(i).test for i in range(len(data.parties)))]
    with limit_threads(1):
        params = learner.init(key.child("server/init"), rows)
        params = params + learner.fit(params, rows, LocalWork(), key.child("fit")).delta.array
        pooled, *own = (metrics["accuracy"] for metrics in learner.evaluate_many(params, tests))
    return Accuracy(pooled, tuple(own))


def rows() -> Mapping[str, Row]:
    """FLamby's table, and what else its two peculiar rows have to be seen with."""
    last = hs.Evaluation(every=ROUNDS)
    shape: dict[str, Any] = {"rounds": ROUNDS, "cohort": len(HOSPITALS), "evaluation": last}
    adaptive: dict[str, Any] = {**shape, "tau": 1e-8, "beta_1": 0.9}
    fedavg = Accuracy(0.7480, (0.7308, 0.7191, 0.6500, 0.6400))
    adagrad = Accuracy(0.7787, (0.7596, 0.7528, 0.7375, 0.6756))
    return {
        "pooled": Row(one_place(None), Accuracy(0.7953, (0.7827, 0.7640, 0.7500, 0.6444))),
        "fedavg": Row(federated(hs.FedAvg(**shape), 1e-3), fedavg),
        "fedprox": Row(federated(FedProx(mu=0.01, **shape), 1e-3), fedavg),
        "scaffold": Row(
            federated(Scaffold(weights="examples", **shape), 1e-3),
            replace(fedavg, hospitals=(0.7269, *fedavg.hospitals[1:])),
        ),
        "scaffold-uniform": Row(federated(Scaffold(**shape), 1e-3)),
        "cyclic": Row(federated(Cyclic(rounds=ROUNDS, order="shuffled", evaluation=last), 1e-2)),
        "cyclic-as-programmed": Row(cyclic_as_programmed, Accuracy(0.7850, (0.7577, 0.7618, 0.7125, 0.6400))),
        "fedadagrad": Row(federated(FedAdagrad(server_learning_rate=0.316228, **adaptive), 3.162e-3), adagrad),
        "fedadam": Row(
            federated(FedAdam(server_learning_rate=1e-2, beta_2=0.999, **adaptive), 1e-2),
            Accuracy(0.7787, (0.7519, 0.7461, 0.7375, 0.6667)),
        ),
        "fedyogi": Row(federated(FedYogi(server_learning_rate=1e-2, beta_2=0.999, **adaptive), 3.162e-3), adagrad),
        **{
            f"local-{i}": Row(one_place(i), Accuracy(value, ()))
            for i, value in enumerate((0.7843, 0.7268, 0.4827, 0.6110))
        },
    }


def mean_of(train: Callable[[Hospitals, int], Accuracy], data: Hospitals, seeds: Sequence[int] = SEEDS) -> Accuracy:
    """The mean accuracies over ``seeds``."""
    found = [train(data, seed) for seed in seeds]
    own = np.mean([accuracy.hospitals for accuracy in found], axis=0)
    return Accuracy(float(np.mean([accuracy.pooled for accuracy in found])), tuple(own.tolist()))


RATES: Final = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def tunable() -> Mapping[str, Protocol]:
    """The algorithms whose published learning rate of 1e-3 leaves them far from done after 15 rounds."""
    shape: dict[str, Any] = {"rounds": ROUNDS, "cohort": len(HOSPITALS), "evaluation": hs.Evaluation(every=ROUNDS)}
    return {
        "fedavg": hs.FedAvg(**shape),
        "fedprox": FedProx(mu=0.01, **shape),
        "scaffold": Scaffold(weights="examples", **shape),
    }


def best_rate(protocol: Protocol, held_out: Hospitals, seeds: Sequence[int] = SEEDS) -> float:
    """The learning rate of the grid with the best pooled accuracy on held-out training rows; no test row is looked at."""
    return max(RATES, key=lambda rate: mean_of(federated(protocol, rate), held_out, seeds).pooled)


def measure(size: Size) -> Figures:
    """All rows of the table, and the tuned ones; a row that FLamby has not is compared with the published pooled model."""
    if not FOLDER.is_dir():
        raise Unavailable(f"the data set is not at {FOLDER.name} beside this checkout")
    seeds = SEEDS[: size.of(len(SEEDS), 1)]
    data, held_out = hospitals(), hospitals(holdout=0.25)
    central = Accuracy(0.7953, (0.7827, 0.7640, 0.7500, 0.6444))
    figures: Figures = []
    for name, row in [*rows().items()][:: size.of(1, 6)]:
        words = "FLamby" if row.published else "FLamby's pooled model"
        figures += _figures(name, words, mean_of(row.train, data, seeds), row.published or central)
    for name, protocol in ({} if size.quick else tunable()).items():
        rate = best_rate(protocol, held_out, seeds)
        found = mean_of(federated(protocol, rate), data, seeds)
        figures += _figures(f"{name}-tuned-{rate:g}", "FLamby's pooled model", found, central)
    return figures


def _figures(name: str, words: str, found: Accuracy, published: Accuracy) -> Figures:
    named = {"": (found.pooled, published.pooled)}
    named |= {f"/{h}": pair for h, *pair in zip(HOSPITALS, found.hospitals, published.hospitals, strict=False)}  # type: ignore[misc]
    return [
        Figure(f"quality/heart/{name}{place}", value, "accuracy", words, reference)
        for place, (value, reference) in named.items()
    ]
