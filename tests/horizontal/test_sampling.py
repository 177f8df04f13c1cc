"""Cohorts: the right sizes, nobody twice, and the distributions that are promised."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import ConfigError
from hansa.horizontal.sampling import Fixed, Poisson, Sampling, Uniform, Weighted
from hansa.party import Roster
from hansa.rng import Key

DRAWS = 4000


def counts(sampling: Sampling, parties: int, cohort: int) -> Counter[str]:
    roster = Roster("client", parties)
    return Counter(
        name for round in range(DRAWS) for name in sampling.draw(Key.root(0).child("cohort", round), roster, cohort)
    )


def within(found: int, probability: float) -> bool:
    """Five standard deviations of a binomial: a false alarm in a million, and the seeds are fixed."""
    return abs(found - DRAWS * probability) < 5 * math.sqrt(DRAWS * probability * (1 - probability))


@given(parties=st.integers(1, 60), cohort=st.integers(1, 80), seed=st.integers(0, 10**6))
def test_a_cohort_has_its_size_and_nobody_twice(parties: int, cohort: int, seed: int) -> None:
    roster, key = Roster("client", parties), Key.root(seed)
    for sampling in (Uniform(), Weighted(tuple(float(i + 1) for i in range(parties)))):
        drawn = sampling.draw(key, roster, cohort)
        assert len(drawn) == min(cohort, parties) == len(set(drawn))
        assert set(drawn) <= set(roster)
        assert drawn == sampling.draw(key, roster, cohort)
    poisson = Poisson().draw(key, roster, cohort)
    assert len(poisson) == len(set(poisson))
    assert set(poisson) <= set(roster)


def test_uniform_gives_each_party_the_same_chance() -> None:
    found = counts(Uniform(), 12, 3)
    assert len(found) == 12
    assert all(within(count, 3 / 12) for count in found.values())


def test_uniform_gives_each_pair_the_same_chance() -> None:
    roster = Roster("client", 6)
    pairs = Counter(frozenset(Uniform().draw(Key.root(1).child("c", i), roster, 2)) for i in range(DRAWS))
    assert len(pairs) == 15
    assert all(within(count, 1 / 15) for count in pairs.values())


def test_uniform_over_everybody_is_everybody_in_order() -> None:
    assert Uniform().draw(Key.root(0), Roster("client", 4), 9) == [f"client-{i}" for i in range(4)]


def test_weighted_draws_in_proportion_at_each_draw() -> None:
    weights = (1.0, 2.0, 3.0, 4.0)
    first = Counter(Weighted(weights).draw(Key.root(2).child("c", i), Roster("client", 4), 1)[0] for i in range(DRAWS))
    for i, weight in enumerate(weights):
        assert within(first[f"client-{i}"], weight / 10)
    pairs = Counter(
        tuple(Weighted(weights).draw(Key.root(3).child("c", i), Roster("client", 4), 2)) for i in range(DRAWS)
    )
    for i, a in enumerate(weights):
        for j, b in enumerate(weights):
            if i != j:
                assert within(pairs[f"client-{i}", f"client-{j}"], a / 10 * b / (10 - a))


def test_poisson_takes_each_party_by_itself() -> None:
    roster = Roster("client", 10)
    drawn = [Poisson().draw(Key.root(4).child("c", i), roster, 3) for i in range(DRAWS)]
    found = Counter(name for names in drawn for name in names)
    assert all(within(found[name], 0.3) for name in roster)
    sizes = np.array([len(names) for names in drawn])
    assert abs(sizes.mean() - 3.0) < 5 * math.sqrt(2.1 / DRAWS)
    assert abs(sizes.var() - 2.1) < 0.3
    together = sum("client-0" in names and "client-7" in names for names in drawn)
    assert within(together, 0.09)


def test_poisson_with_a_cohort_of_all_is_all() -> None:
    assert Poisson().draw(Key.root(0), Roster("client", 5), 5) == [f"client-{i}" for i in range(5)]


def test_a_million_parties_are_drawn_from_without_listing_them() -> None:
    class Counting:
        asked = 0

        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int) -> str:
            self.asked += 1
            return f"client-{index}"

    for sampling in (Uniform(), Poisson()):
        population = Counting()
        drawn = sampling.draw(Key.root(0), population, 1000)  # type: ignore[arg-type]
        assert population.asked == len(drawn) < 1500


def test_fixed_is_fixed() -> None:
    names = ("client-3", "client-1")
    assert [Fixed(names).draw(Key.root(i), Roster("client", 5), 1) for i in range(3)] == [list(names)] * 3


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (1.0, -1.0), (float("nan"),), (float("inf"),)])
def test_weights_that_are_none_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="weight"):
        Weighted(weights)


def test_weights_for_another_number_of_parties_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 weights for 3 parties"):
        Weighted((1.0, 2.0)).draw(Key.root(0), Roster("client", 3), 1)


@pytest.mark.parametrize(("names", "word"), [((), "at least one"), (("client-0", "client-0"), "twice")])
def test_fixed_names_that_cannot_be_are_refused(names: tuple[str, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Fixed(names)


@pytest.mark.parametrize("name", ["client-5", "server", "client-00", "client--1", ""])
def test_a_fixed_stranger_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no party is named"):
        Fixed((name,)).draw(Key.root(0), Roster("client", 5), 1)
