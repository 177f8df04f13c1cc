"""Rounds of FedAvg on MNIST: the paper's models and divisions, its way of counting, and one target that is reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.quality import mnist

Curve = list[tuple[int, float]]


@pytest.fixture(scope="module")
def images(real_data: Callable[[str], Path]) -> Path:
    return real_data("mnist") / "mnist.npz"


@pytest.mark.parametrize(("model", "parameters"), [("2nn", 199_210), ("cnn", 1_663_370)])
def test_the_models_have_the_papers_sizes(model: str, parameters: int) -> None:
    assert sum(p.numel() for p in mnist.MODELS[model].make().parameters()) == parameters


@pytest.mark.parametrize(
    ("curve", "target", "round"),
    [
        ([(0, 0.0), (10, 0.5), (20, 1.0)], 0.75, 15.0),
        ([(0, 0.0), (1, 0.75)], 0.75, 1.0),
        ([(0, 0.8), (1, 0.9)], 0.75, 0.0),
        # A fall does not count: the value to interpolate from is the best so far.
        ([(0, 0.0), (1, 0.6), (2, 0.2), (3, 0.8)], 0.7, 2.5),
        # What comes after the first crossing changes nothing.
        ([(0, 0.0), (4, 1.0), (5, 0.0), (6, 1.0)], 0.5, 2.0),
        ([(0, 0.0), (1, 0.5), (2, 0.5), (3, 0.5)], 0.75, None),
        ([], 0.5, None),
        ([(0, float("nan")), (1, 0.4), (2, 0.8)], 0.6, 1.5),
    ],
)
def test_rounds_are_counted_on_the_best_so_far_and_interpolated(
    curve: Curve, target: float, round: float | None
) -> None:
    found = mnist.crossing(curve, target)
    assert found == (None if round is None else pytest.approx(round))


def test_the_best_learning_rate_needs_the_fewest_rounds_or_comes_nearest() -> None:
    never, better = mnist.Count(0.1, None, 50, 0.90, 1.0), mnist.Count(0.2, None, 50, 0.95, 1.0)
    slow, quick = mnist.Count(0.3, 40.0, 40, 0.97, 1.0), mnist.Count(0.4, 20.0, 20, 0.97, 1.0)
    assert mnist.best_of([never, slow, quick, better]) == quick
    assert mnist.best_of([never, better]) == better
    assert "not reached within 50 rounds" in str(never)


@pytest.mark.slow
def test_the_divisions_are_the_papers(images: Path) -> None:
    iid, shards = mnist.division("iid", path=images), mnist.division("shards", path=images)
    for data in (iid, shards):
        assert data.sizes.tolist() == [600] * 100
        assert len(data.central_test) == 10_000
        assert data.example.x.shape[1:] == (1, 28, 28)
        assert data.example.x.min() >= 0 and data.example.x.max() <= 1
    kinds = [len(np.unique(shards.shard(i).train.y)) for i in range(100)]
    # Two shards of 300 sorted images; only where one digit ends and the next begins does a shard hold two.
    assert max(kinds) <= 4
    assert np.mean(kinds) < 2.3
    assert min(len(np.unique(iid.shard(i).train.y)) for i in range(100)) == 10


@pytest.mark.slow
def test_the_2nn_reaches_97_percent_iid_within_60_rounds(images: Path) -> None:
    found = mnist.count(mnist.division("iid", path=images), "2nn", rate=0.215, rounds=60)
    assert found.rounds is not None, found
    assert 20 < found.rounds <= 60
