"""Laws of the partitioners: exact, deterministic, as skewed as asked; and their refusals."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hansa.data as d
from hansa import registry, schema
from hansa.data.federated import Packed
from hansa.errors import DataError
from hansa.rng import Key


def table(n: int, classes: int, seed: int = 0) -> d.Dataset:
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), generator.integers(0, classes, n - classes)])
    return d.arrays(generator.normal(size=(n, 3)), generator.permutation(y))


def packed(fed: d.FederatedData) -> Packed:
    assert isinstance(fed, Packed)
    return fed


def variation(fed: d.FederatedData) -> float:
    return float(fed.skew().variation.mean())


EXACT = st.one_of(
    st.just(d.IID()),
    st.builds(d.Dirichlet, st.floats(0.001, 1000.0), st.integers(1, 2)),
    st.builds(d.Shards, st.integers(1, 2)),
    st.builds(d.LabelLimited, st.integers(2, 3)),
    st.builds(
        d.QuantitySkew, st.sampled_from(["lognormal", "power"]), st.floats(0, 5), st.floats(0, 5), st.integers(1, 2)
    ),
    st.builds(d.FeatureSkew, st.floats(0, 1), st.sampled_from([None, 1, "2"])),
)


@settings(max_examples=150, deadline=None)
@given(how=EXACT, parties=st.integers(2, 20), n=st.integers(60, 300), seed=st.integers(0, 99), test=st.floats(0, 0.9))
def test_partitions_are_exact_deterministic_and_leave_a_training_row(
    how: d.Partitioner, parties: int, n: int, seed: int, test: float
) -> None:
    data = table(n, 3)
    fed = packed(data.partition(how, parties=parties, seed=seed, test=test))
    again = packed(data.partition(how, parties=parties, seed=seed, test=test))
    assert sorted(fed.rows.tolist()) == list(range(n))
    assert np.array_equal(fed.rows, again.rows)
    assert np.array_equal(fed.offsets, again.offsets)
    assert np.array_equal(fed.train, again.train)
    sizes = np.diff(fed.offsets)
    assert sizes.min() >= getattr(how, "least", 1)
    assert fed.sizes.min() >= 1
    assert np.all(np.abs((sizes - fed.train) - sizes * test) <= np.where(sizes == 1, 1, 0.5 + 0.51))
    assert len(fed.central_test) == int((sizes - fed.train).sum())


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(1e-4, 10), least=st.integers(1, 10), seed=st.integers(0, 10**6))
def test_dirichlet_keeps_its_least_size_however_skewed(alpha: float, least: int, seed: int) -> None:
    fed = packed(table(100, 4).partition(d.Dirichlet(alpha, least), parties=10, seed=seed, test=0.0))
    assert fed.sizes.min() >= least
    assert sorted(fed.rows.tolist()) == list(range(100))


def test_seeds_and_labels_matter() -> None:
    data = table(200, 3)
    one = packed(data.partition(d.Dirichlet(0.5), parties=5, seed=1))
    two = packed(data.partition(d.Dirichlet(0.5), parties=5, seed=2))
    assert not np.array_equal(one.rows, two.rows)


def test_skew_falls_as_alpha_grows() -> None:
    data = table(5000, 10)
    found = [variation(data.partition(d.Dirichlet(a), parties=20, test=0.0)) for a in (0.05, 0.3, 2.0, 100.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.6
    assert found[-1] < 0.1


def test_dirichlet_shares_have_the_stated_moments() -> None:
    """Over seeds, a party's share of a class has the variance of Dirichlet(alpha): (P - 1) / (P^2 (P alpha + 1))."""
    data = d.arrays(np.zeros((2000, 1)), np.zeros(2000, np.int64))
    parties, alpha = 4, 0.7
    shares = np.array(
        [data.partition(d.Dirichlet(alpha), parties=parties, seed=s, test=0.0).sizes / 2000 for s in range(300)]
    )
    expected = (parties - 1) / (parties**2 * (parties * alpha + 1))
    assert shares.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.05)
    assert shares.var() == pytest.approx(expected, rel=0.2)


def test_shards_give_few_labels_and_equal_sizes() -> None:
    data = d.arrays(np.zeros((600, 1)), np.repeat(np.arange(10), 60))
    fed = data.partition(d.Shards(2), parties=10, test=0.0)
    assert fed.sizes.tolist() == [60] * 10
    assert all(len(np.unique(fed.shard(i).train.y)) <= 2 for i in range(10))


def test_label_limited_shows_each_party_its_number_of_labels() -> None:
    data = d.arrays(np.zeros((600, 1)), np.repeat(np.arange(10), 60))
    for parties, classes in ((20, 3), (4, 3), (10, 1)):
        fed = data.partition(d.LabelLimited(classes), parties=parties, test=0.0)
        assert {len(np.unique(fed.shard(i).train.y)) for i in range(parties)} == {classes}


def test_quantity_skew_follows_its_law() -> None:
    data = table(10_000, 2)
    power = np.sort(data.partition(d.QuantitySkew("power", exponent=1.0), parties=10, test=0.0).sizes)[::-1]
    ideal = 1 + 9990 * (1 / np.arange(1, 11)) / (1 / np.arange(1, 11)).sum()
    assert np.all(np.abs(power - ideal) <= 1)
    spread = [
        data.partition(d.QuantitySkew("lognormal", sigma=s), parties=50, test=0.0).sizes.std() for s in (0.0, 0.5, 2.0)
    ]
    assert spread[0] == 0
    assert spread[1] < spread[2]


def test_feature_skew_sorts_by_the_feature_and_strength_weakens_it() -> None:
    data = table(1000, 2)
    fed = data.partition(d.FeatureSkew(1.0, "1"), parties=5, test=0.0)
    tops = [fed.shard(i).train.x[:, 1].max() for i in range(5)]
    lows = [fed.shard(i).train.x[:, 1].min() for i in range(5)]
    assert all(top <= low for top, low in zip(tops[:-1], lows[1:], strict=True))
    shifts = [data.partition(d.FeatureSkew(s), parties=5, test=0.0).skew().shift.mean() for s in (0.0, 0.5, 1.0)]
    assert shifts == sorted(shifts)
    assert shifts[2] > 4 * shifts[0]


def test_principal_component_is_the_direction_of_most_variance() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3)) * [1.0, 5.0, 0.5] + [100.0, 0.0, 0.0]
    fed = d.arrays(x, np.zeros(400, np.int64)).partition(d.FeatureSkew(), parties=2, test=0.0)
    means = [fed.shard(i).train.x.mean(axis=0) for i in range(2)]
    assert abs(means[0][1] - means[1][1]) > 5
    assert abs(means[0][0] - means[1][0]) < 1


def test_by_column_groups_and_names() -> None:
    data = d.arrays(np.arange(5.0)[:, None], [0, 1, 0, 1, 0], columns={"site": ["b", "a", "b", "c", "a"]})
    fed = data.partition(d.ByColumn("site"), test=0.0)
    assert list(fed.names) == ["a", "b", "c"]
    assert [sorted(fed.shard(i).train.x[:, 0].tolist()) for i in range(3)] == [[1.0, 4.0], [0.0, 2.0], [3.0]]


def test_drawing_with_replacement_never_tests_on_a_row_that_somebody_trained_on() -> None:
    fed = packed(table(50, 2).partition(d.IID(examples=18), parties=200, test=0.2))
    assert set(fed.sizes.tolist()) == {14}
    trained = {row for i in range(200) for row in np.asarray(fed.shard(i).train.rows).tolist()}
    tested = {row for i in range(200) for row in np.asarray(fed.shard(i).test.rows).tolist()}
    assert trained.isdisjoint(tested)
    assert sorted(np.asarray(fed.central_test.rows).tolist()) == sorted(tested)
    counts = np.bincount(fed.rows, minlength=50)[sorted(trained)]
    assert counts.min() > 0.5 * counts.mean()
    assert counts.max() < 1.6 * counts.mean()


def test_fewer_examples_than_there_are_leave_rows_out() -> None:
    fed = packed(table(100, 2).partition(d.IID(examples=3), parties=10, test=0.0))
    assert len(set(fed.rows.tolist())) == 30


def test_a_million_parties_cost_their_row_numbers() -> None:
    data = table(1797, 10)
    tracemalloc.start()
    fed = packed(data.partition(d.IID(examples=18), parties=1_000_000, test=0.2))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 110e6
    assert peak < 200e6
    assert len(fed.shard(999_999).train) == 14
    assert fed.names[999_999] == "client-999999"


def test_standardizing_uses_training_rows_only() -> None:
    generator = np.random.default_rng(1)
    sites = np.repeat(["a", "b"], 50)
    x = generator.normal(size=(100, 2)) + np.where(sites == "a", 0.0, 50.0)[:, None]
    x[:, 1] = 3.0
    for kind in ("global", "party"):
        data = d.arrays(x, [0, 1] * 50, columns={"site": sites}, standardize=kind)
        fed = data.partition(d.ByColumn("site"), test=0.3)
        trains = [fed.shard(i).train.x for i in range(2)]
        for group in [np.concatenate(trains)] if kind == "global" else trains:
            assert group[:, 0].mean() == pytest.approx(0, abs=1e-4)
            assert group[:, 0].std() == pytest.approx(1, abs=1e-4)
        assert not np.any(np.concatenate(trains)[:, 1])
        assert abs(float(fed.central_test.x[:, 0].mean())) > 1e-6


@dataclass(frozen=True)
class Fixed:
    """A partitioner that gives what it was told."""

    assignment: d.Assignment

    def assign(self, dataset: d.Dataset, parties: int | None, rng: Key) -> d.Assignment:
        return self.assignment


@pytest.mark.parametrize(
    ("rows", "drawn", "words"),
    [
        ([[0, 1], [1]], False, "one row to two parties"),
        ([[0, 1], []], False, "1 of 2 parties without a row"),
        ([[0], [99]], False, "gave row 99"),
        ([[0], [-1]], True, "gave row"),
    ],
)
def test_what_a_foreign_partitioner_gives_is_checked(rows: list[list[int]], drawn: bool, words: str) -> None:
    made = d.Assignment.of(rows)
    with pytest.raises(DataError, match=words):
        table(4, 2).partition(Fixed(d.Assignment(made.rows, made.offsets, drawn=drawn)))


REAL = d.arrays(np.zeros((10, 1)), np.linspace(0, 1, 10))


@pytest.mark.parametrize(
    ("data", "how", "parties", "words"),
    [
        (table(10, 2), d.IID(), 11, "cannot make 11 parties"),
        (table(10, 2), d.Dirichlet(1.0, least=4), 3, "at least 4 rows each"),
        (table(10, 2), d.Shards(4), 3, "from the 10 rows"),
        (table(10, 2), d.QuantitySkew(least=6), 2, "at least 6"),
        (table(10, 2), d.FeatureSkew(), 11, "cannot make 11"),
        (table(10, 2), d.LabelLimited(3), 2, "has rows of 2 classes"),
        (table(10, 5), d.LabelLimited(2), 2, "cannot place 5 classes"),
        (REAL, d.Dirichlet(1.0), 2, "has no class labels"),
        (REAL, d.LabelLimited(1), 2, "has no class labels"),
        (table(10, 2), d.IID(), None, "give parties="),
        (table(10, 2), d.IID(), 0, "at least 1"),
        (table(10, 2), d.IID(), True, "whole number"),
        (table(10, 2), d.ByColumn("sit"), None, "no column 'sit'"),
        (table(10, 2), d.FeatureSkew(1.0, "age"), 2, "no feature 'age'"),
        (table(10, 2), d.FeatureSkew(1.0, 7), 2, "no number 7"),
        (table(10, 2), "iid", 2, "a partitioner such as"),
        (d.arrays(np.zeros((4, 1)), [0, 1, 0, 1], standardize="party"), d.IID(3), 5, "several parties"),
        (d.arrays(np.zeros((4, 2, 2)), [0, 1, 0, 1], standardize="global"), d.IID(), 2, "not a table"),
    ],
)
def test_impossible_divisions_are_refused(data: d.Dataset, how: Any, parties: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        data.partition(how, parties=parties)
    assert words in str(caught.value)


def test_by_column_must_agree_with_a_given_number() -> None:
    data = d.arrays(np.zeros((2, 1)), [0, 1], columns={"site": [1, 2]})
    with pytest.raises(DataError, match="makes 2 parties, not 3"):
        data.partition(d.ByColumn("site"), parties=3)


@pytest.mark.parametrize("test", [1.0, -0.1, float("nan"), "half", True])
def test_shares_outside_the_interval_are_refused(test: Any) -> None:
    with pytest.raises(DataError, match=r"in \[0, 1\)"):
        table(10, 2).partition(d.IID(), parties=2, test=test)


@pytest.mark.parametrize(
    ("kind", "settings_"),
    [
        (d.Dirichlet, {"alpha": 0}),
        (d.Dirichlet, {"alpha": -1.0}),
        (d.Dirichlet, {"alpha": float("nan")}),
        (d.Dirichlet, {"alpha": "big"}),
        (d.Dirichlet, {"alpha": 1.0, "least": 0}),
        (d.IID, {"examples": 0}),
        (d.Shards, {"per_party": 0}),
        (d.LabelLimited, {"classes": 1.5}),
        (d.QuantitySkew, {"distribution": "lognorm"}),
        (d.QuantitySkew, {"sigma": -1.0}),
        (d.QuantitySkew, {"exponent": float("inf")}),
        (d.FeatureSkew, {"strength": 1.5}),
    ],
)
def test_bad_settings_are_refused(kind: Any, settings_: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        kind(**settings_)


def test_every_partitioner_and_source_is_registered() -> None:
    for group, mine in (("partitioners", d.PARTITIONERS), ("sources", d.SOURCES)):
        for name, value in mine.items():
            assert registry.find(group, name) is value
        assert set(registry.BUILT_IN[group]) == set(mine)


@pytest.mark.parametrize(
    ("name", "table_", "mistake"),
    [
        ("dirichlet", {"alpha": 1}, ""),
        ("feature_skew", {"feature": "age", "strength": 1}, ""),
        ("iid", {"examples": 18}, ""),
        ("quantity_skew", {"distribution": "power", "exponent": 2}, ""),
        ("quantity_skew", {"distribution": "powr"}, "did you mean 'power'?"),
        ("dirichlet", {"alpah": 1.0}, "did you mean 'alpha'?"),
        ("dirichlet", {"alpha": -1}, "above 0"),
        ("label_limited", {}, "classes"),
    ],
)
def test_a_plan_names_partitioners_by_tables(name: str, table_: dict[str, Any], mistake: str) -> None:
    notes: list[tuple[str, str]] = []
    kind = registry.find("partitioners", name)
    made = schema.build(kind, table_, "data.partition", lambda place, text: notes.append((place, text)))
    assert (made == kind(**table_)) if not mistake else mistake in notes[-1][1] + notes[0][1]
