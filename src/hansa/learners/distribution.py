"""One metric over many parties: not only how good the model is, but for whom."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def distribution(parties: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics over parties: the mean weighted by examples, the plain mean over parties, the median, and the mean of the worst
    decile (the tenth of the parties, at least one, with the highest loss or the lowest of anything else).

    >>> distribution({"a": {"accuracy": 1.0, "examples": 3.0}, "b": {"accuracy": 0.5, "examples": 1.0}})["party_accuracy"]
    0.875

    Args:
        parties: each party's metrics, and its number of ``examples``, above 0. A party without some metric does not count in it.
    """
    if not parties:
        return {}
    result: dict[str, float] = {"party_count": float(len(parties))}
    names = dict.fromkeys(name for scores in parties.values() for name in scores if name != "examples")
    for name in names:
        having = [scores for scores in parties.values() if name in scores]
        weights = np.array([scores["examples"] for scores in having])
        values = np.array([scores[name] for scores in having])
        ordered = np.sort(values)
        tenth = max(1, len(values) // 10)
        worst = ordered[-tenth:] if smaller_is_better(name) else ordered[:tenth]
        result[f"party_{name}"] = float(np.average(values, weights=weights))
        result[f"party_{name}_mean"] = float(values.mean())
        result[f"party_{name}_median"] = float(np.median(values))
        result[f"party_{name}_worst_decile"] = float(worst.mean())
    return result


def smaller_is_better(metric: str) -> bool:
    """Whether a metric of this name is a loss or an error.

    >>> smaller_is_better("test_loss"), smaller_is_better("rmse"), smaller_is_better("accuracy")
    (True, True, False)
    """
    return any(word in metric for word in ("loss", "error", "mse", "mae"))
