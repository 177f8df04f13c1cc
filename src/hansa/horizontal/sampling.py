"""Who takes part in a round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from hansa.errors import ConfigError
from hansa.rng import Key


class Sampling(ABC):
    """Draws a cohort; the same key draws the same one."""

    @abstractmethod
    def draw(self, rng: Key, population: Sequence[str], cohort: int) -> list[str]:
        """Names out of ``population``, all different, in the order in which they are invited."""


@final
@dataclass(frozen=True)
class Uniform(Sampling):
    """``cohort`` parties, each set of that size equally likely (McMahan et al. 2017, algorithm 1). All of them, in order, where
    the cohort is the population."""

    def draw(self, rng: Key, population: Sequence[str], cohort: int) -> list[str]:
        if cohort >= len(population):
            return list(population)
        return [population[int(i)] for i in rng.generator().choice(len(population), cohort, replace=False)]


@final
@dataclass(frozen=True)
class Weighted(Sampling):
    """``cohort`` parties without replacement, each draw in proportion to public weights.

    Args:
        weights: one positive number a party, in the order of the roster.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.weights or any(not (math.isfinite(w) and w > 0) for w in self.weights):
            raise ConfigError("Weighted: every weight must be a positive number")

    def draw(self, rng: Key, population: Sequence[str], cohort: int) -> list[str]:
        if len(self.weights) != len(population):
            raise ConfigError(f"Weighted: {len(self.weights)} weights for {len(population)} parties; give one a party")
        # Exponential clocks: the smallest cohort of Exp(w_i) draws is a weighted sample without replacement
        # (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
        clocks = rng.generator().exponential(size=len(population)) / np.asarray(self.weights)
        first = np.argsort(clocks, kind="stable")[: min(cohort, len(population))]
        return [population[int(i)] for i in first]


@final
@dataclass(frozen=True)
class Poisson(Sampling):
    """Each party by itself with probability cohort / population, so the cohort's size varies; privacy accounting by
    subsampling assumes this (Abadi et al., CCS 2016, section 3.1)."""

    def draw(self, rng: Key, population: Sequence[str], cohort: int) -> list[str]:
        generator = rng.generator()
        count = len(population)
        # A binomial number of distinct parties is the same distribution, without a coin for each of a million.
        size = int(generator.binomial(count, min(1.0, cohort / count)))
        return [population[int(i)] for i in np.sort(generator.choice(count, size, replace=False))]


@final
@dataclass(frozen=True)
class Fixed(Sampling):
    """The same parties every round.

    Args:
        names: who takes part.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigError("Fixed: name at least one party")
        if len(set(self.names)) != len(self.names):
            raise ConfigError("Fixed: a party is named twice; name each once")

    def draw(self, rng: Key, population: Sequence[str], cohort: int) -> list[str]:
        unknown = [name for name in self.names if name not in population]
        if unknown:
            raise ConfigError(f"Fixed: no party is named {unknown[0]!r}")
        return list(self.names)
