"""Metrics on arrays, shared by the learners that compute them in NumPy; each is a mean over the examples."""

from __future__ import annotations

import numpy as np

from hansa.errors import DataError
from hansa.tensor import Array


def accuracy(target: Array, predicted: Array) -> float:
    """The share of labels predicted exactly.

    >>> accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    0.75
    """
    _check(target, predicted)
    return float(np.mean(target == predicted))


def mse(target: Array, predicted: Array) -> float:
    """The mean squared error, over all outputs.

    >>> mse(np.array([0.0, 2.0]), np.array([0.0, 0.0]))
    2.0
    """
    _check(target, predicted)
    return float(np.mean(np.square(predicted.astype(np.float64) - target)))


def mae(target: Array, predicted: Array) -> float:
    """The mean absolute error, over all outputs.

    >>> mae(np.array([0.0, 2.0]), np.array([0.0, 0.0]))
    1.0
    """
    _check(target, predicted)
    return float(np.mean(np.abs(predicted.astype(np.float64) - target)))


def cross_entropy(target: Array, probabilities: Array) -> float:
    """The mean of ``-log(probability of the true class)``; probabilities below the smallest float64 count as it.

    >>> round(cross_entropy(np.array([0, 1]), np.array([[0.5, 0.5], [0.5, 0.5]])), 6)
    0.693147

    Args:
        target: class numbers, shape (n,).
        probabilities: shape (n, classes).
    """
    _check(target, probabilities[:, 0])
    chosen = probabilities[np.arange(len(target)), target].astype(np.float64)
    return float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float64).tiny))))


def auc(target: Array, scores: Array) -> float:
    """The area under the ROC curve: how likely a positive scores above a negative, a tie counting one half.

    >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75

    Args:
        target: 0 or 1, shape (n,).
        scores: higher for positives, shape (n,).

    Raises:
        DataError: the targets are not all 0 or 1, or one of the two is absent.

    Source: Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    Radiology 1982; by mid-ranks, as the Mann-Whitney statistic.
    """
    _check(target, scores)
    positive = target == 1
    positives = int(positive.sum())
    negatives = len(target) - positives
    if not np.all(positive | (target == 0)) or positives == 0 or negatives == 0:
        raise DataError("auc needs targets that are 0 or 1 with both present")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2.0
    above = mid_ranks[place.ravel()][positive].sum() - positives * (positives + 1) / 2.0
    return float(above / (positives * negatives))


def _check(target: Array, other: Array) -> None:
    if target.shape != other.shape:
        raise DataError(f"targets have shape {target.shape} and predictions {other.shape}; they must be equal")
    if target.size == 0:
        raise DataError("a metric is a mean over examples, and there are none")
