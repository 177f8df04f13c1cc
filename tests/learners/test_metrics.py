"""Metrics against scikit-learn's, and on input that has no mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import DataError
from hansa.learners import metrics


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
def test_auc_counts_pairs(pairs: list[tuple[bool, int]]) -> None:
    target, scores = np.array([int(p) for p, _ in pairs]), np.array([float(s) for _, s in pairs])
    high, low = scores[target == 1], scores[target == 0]
    if not len(high) or not len(low):
        with pytest.raises(DataError, match="both present"):
            metrics.auc(target, scores)
        return
    wins = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    assert metrics.auc(target, scores) == pytest.approx(wins)


def test_equal_to_scikit_learn() -> None:
    theirs = pytest.importorskip("sklearn.metrics")
    g = np.random.default_rng(0)
    y, p = g.integers(0, 2, 50), g.random(50)
    assert metrics.auc(y, p) == pytest.approx(theirs.roc_auc_score(y, p))
    assert metrics.accuracy(y, p > 0.5) == pytest.approx(theirs.accuracy_score(y, p > 0.5))
    assert metrics.mse(y, p) == pytest.approx(theirs.mean_squared_error(y, p))
    assert metrics.mae(y, p) == pytest.approx(theirs.mean_absolute_error(y, p))
    both = np.stack([1 - p, p], axis=1)
    assert metrics.cross_entropy(y, both) == pytest.approx(theirs.log_loss(y, both))


def test_what_has_no_mean_is_refused() -> None:
    for metric in (metrics.accuracy, metrics.mse, metrics.mae, metrics.auc):
        with pytest.raises(DataError, match="none"):
            metric(np.zeros(0), np.zeros(0))
        with pytest.raises(DataError, match="must be equal"):
            metric(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(DataError, match="0 or 1"):
        metrics.auc(np.array([0, 1, 2]), np.zeros(3))
    assert np.isfinite(metrics.cross_entropy(np.array([0]), np.array([[0.0, 1.0]])))
