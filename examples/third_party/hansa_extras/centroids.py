"""A classifier by the nearest class mean: a learner needs no gradient and no library, only three pure methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from hansa.errors import ConfigError
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Tensor
from hansa.update import Update


@final
@dataclass(frozen=True)
class Centroids:
    """One point a class, which local training pulls towards the mean of that class.

    Args:
        pull: the share of the way, above 0 and at most 1.
    """

    pull: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.pull <= 1:
            raise ConfigError(f"Centroids: pull must be above 0 and at most 1, not {self.pull}")

    def init(self, rng: Key, example: Examples) -> Params:
        """Points near the origin, one for each class of the whole data."""
        classes = int(example.base[1].max()) + 1
        return Params.of({"points": 0.01 * rng.generator().normal(size=(classes, example.x.shape[1]))})

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Pull the points of the classes that are here."""
        points, x, y = params["points"], data.x, data.y
        moved = points.copy()
        for label in np.unique(y):
            moved[label] += self.pull * (x[y == label].mean(axis=0) - points[label])
        scalars = {"loss": self.evaluate(params, data)["loss"], "steps": 1.0}
        return Update(Tensor((moved - points).ravel()), float(len(y)), scalars)

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """``loss``, the mean squared distance to the point of the right class, and ``accuracy``."""
        squared = ((data.x[:, None, :] - params["points"][None]) ** 2).sum(axis=2)
        right = squared[np.arange(len(data)), data.y]
        return {"loss": float(right.mean()), "accuracy": float((squared.argmin(axis=1) == data.y).mean())}
