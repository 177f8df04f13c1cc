"""Federated averaging on digits is as good as training on all of it in one place, each side at its own best learning rate."""

from __future__ import annotations

from statistics import mean

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")

from bench.quality import digits
from hansa.examples import Examples
from hansa.simulation.baselines import pooled


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.digits()


def test_no_image_is_both_learned_from_and_tested_on(data: digits.Digits) -> None:
    def images(rows: Examples) -> set[bytes]:
        return {x.tobytes() for x in rows.x}

    learned = images(pooled(data.reporting))
    assert len(pooled(data.reporting)) == 1348
    assert len(data.reporting.central_test) == 449
    assert not learned & images(data.reporting.central_test)
    chosen = images(pooled(data.choosing)), images(data.choosing.central_test)
    assert not chosen[0] & chosen[1]
    assert chosen[0] | chosen[1] == learned


def test_federated_is_within_001_of_central(data: digits.Digits) -> None:
    # The rates that the grid gives on the rows to choose with; the slow test below chooses them anew.
    federated = [digits.federated(digits.softmax, 3.0, data.reporting, seed) for seed in digits.SEEDS]
    central = [digits.central(digits.softmax, 1.0, data.reporting, seed) for seed in digits.SEEDS]
    assert mean(central) > 0.95
    assert abs(mean(federated) - mean(central)) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(digits.MODELS))
def test_with_both_tuned_alike_federated_is_within_001_of_central(data: digits.Digits, model: str) -> None:
    make = digits.MODELS[model]
    _, federated = digits.tuned(digits.federated, make, data)
    _, central = digits.tuned(digits.central, make, data)
    assert central > 0.95
    assert abs(federated - central) <= 0.01
