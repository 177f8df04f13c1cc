"""How good is the model: on a central test set, and over the parties' own test examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from hansa.errors import ConfigError
from hansa.message import Message
from hansa.params import Params


class EvaluateTask(Message):
    """The request to evaluate a model."""

    tag = "hansa.evaluate-task/1"
    discloses = "the current model, to every party that is asked to evaluate it"

    round: int
    params: Params


class Scores(Message):
    """A party's metrics on its own test examples."""

    tag = "hansa.scores/1"
    discloses = "one party's metrics on its own test examples, and how many it has"

    round: int
    metrics: dict[str, float]
    examples: int


@final
@dataclass(frozen=True)
class Evaluation:
    """When and on what the model is evaluated. The first and the last round are always among the due ones.

    Args:
        every: central evaluation every so many rounds; 0 for never.
        parties: how many parties evaluate on their own test examples when it is their turn; 0 for none.
        parties_every: their turn every so many rounds; 0 for after the last round only.
    """

    every: int = 1
    parties: int = 100
    parties_every: int = 0

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("parties", self.parties), ("parties_every", self.parties_every)):
            if value < 0:
                raise ConfigError(f"Evaluation: {name} must not be negative, not {value}")

    def central_due(self, round: int, last: bool) -> bool:
        """Whether the central test set is due after ``round``."""
        return self.every > 0 and (last or round % self.every == 0)

    def parties_due(self, round: int, last: bool) -> bool:
        """Whether the parties' own test examples are due after ``round``."""
        return self.parties > 0 and (last or (self.parties_every > 0 and round % self.parties_every == 0))


def distribution(parties: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics over parties: the mean weighted by examples, the plain mean over parties, the median, and the mean of the worst
    decile (the tenth of the parties, at least one, with the highest loss or the lowest of anything else).

    >>> distribution({"a": {"accuracy": 1.0, "examples": 3.0}, "b": {"accuracy": 0.5, "examples": 1.0}})["party_accuracy"]
    0.875
    """
    if not parties:
        return {}
    weights = np.array([scores["examples"] for scores in parties.values()])
    result: dict[str, float] = {"party_count": float(len(parties))}
    names = [name for name in next(iter(parties.values())) if name != "examples"]
    for name in names:
        values = np.array([scores.get(name, np.nan) for scores in parties.values()])
        ordered = np.sort(values)
        tenth = max(1, len(values) // 10)
        worst = ordered[-tenth:] if name in _SMALLER_IS_BETTER else ordered[:tenth]
        result[f"party_{name}"] = float(np.average(values, weights=weights))
        result[f"party_{name}_mean"] = float(values.mean())
        result[f"party_{name}_median"] = float(np.median(values))
        result[f"party_{name}_worst_decile"] = float(worst.mean())
    return result


_SMALLER_IS_BETTER = frozenset({"loss", "mse", "mae", "rmse"})
