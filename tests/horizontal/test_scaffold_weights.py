"""SCAFFOLD with parties weighted by their examples: both of its means, and what stays true of its control variates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hansa.errors import ConfigError
from hansa.horizontal.evaluation import Evaluation
from hansa.horizontal.fedavg import FedAvg
from hansa.horizontal.rounds import PartyState, RoundState
from hansa.horizontal.scaffold import Scaffold
from hansa.learners.optimizers import SGD
from hansa.rng import Key
from tests.protocols import TOLERANCE, LeastSquares, permutation, regression, run

SIZES = (7, 16, 4, 11, 9)
QUIET = Evaluation(every=0, parties=0)


def settings(**more: Any) -> dict[str, Any]:
    return {"rounds": 6, "cohort": len(SIZES), "evaluation": QUIET, "weights": "examples", **more}


def test_it_is_algorithm_1_with_weighted_means() -> None:
    data = regression(SIZES)
    p = np.array(SIZES) / sum(SIZES)
    w, c = Key.root(0).child("server/init").generator().normal(size=3), np.zeros(3)
    c_i = [np.zeros(3) for _ in data]
    for t in range(1, 7):
        dy, dc = np.zeros(3), np.zeros(3)
        for i, (x, y) in enumerate(data):
            y_i, steps = w.copy(), 0
            for epoch in range(2):
                order = permutation(f"client-{i}", t, len(y), epoch)
                for start in range(0, len(y), 4):
                    rows = order[start : start + 4]
                    gradient = x[rows].T @ (x[rows] @ y_i - y[rows]) / len(rows)
                    y_i, steps = y_i - 0.05 * (gradient - c_i[i] + c), steps + 1
            plus = c_i[i] - c + (w - y_i) / (steps * 0.05)
            dy, dc, c_i[i] = dy + p[i] * (y_i - w), dc + p[i] * (plus - c_i[i]), plus
        w, c = w + 0.8 * dy, c + dc
    outcome = run(Scaffold(**settings(server_learning_rate=0.8)), data)
    np.testing.assert_allclose(outcome.model, w, rtol=0, atol=TOLERANCE)
    state = outcome.world.states["server"]
    assert isinstance(state, RoundState)
    kept = [outcome.world.states[f"client-{i}"] for i in range(len(data))]
    own = [state.slots["c"].array for state in kept if isinstance(state, PartyState)]
    np.testing.assert_allclose(state.slots["c"].array, p @ np.array(own), rtol=0, atol=TOLERANCE)


def test_it_finds_the_optimum_of_all_examples_together() -> None:
    data = regression(SIZES)
    learner = LeastSquares(SGD(0.05), batch_size=64, epochs=5)
    optimum = np.linalg.lstsq(np.concatenate([x for x, _ in data]), np.concatenate([y for _, y in data]), rcond=None)[0]
    found = run(Scaffold(**settings(rounds=300)), data, learner=learner).model
    uniform = run(Scaffold(**settings(rounds=300, weights="uniform")), data, learner=learner).model
    drift = run(FedAvg(rounds=300, cohort=len(SIZES), evaluation=QUIET), data, learner=learner).model
    assert np.linalg.norm(found - optimum) < 1e-6
    assert np.linalg.norm(uniform - optimum) > 1e-2
    assert np.linalg.norm(drift - optimum) > 1e-3


@pytest.mark.parametrize("weights", ["rows", "", "Uniform"])
def test_other_weights_are_refused(weights: str) -> None:
    with pytest.raises(ConfigError, match="weights"):
        Scaffold(**settings(weights=weights))
