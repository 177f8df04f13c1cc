"""Public randomness: the same everywhere, different wherever anything differs, and good enough to shuffle with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.rng import Key, permutations

labels = st.text(max_size=8)
paths = st.lists(st.tuples(labels, st.lists(st.integers(-5, 5), max_size=2).map(tuple)), max_size=3).map(tuple)


def at(seed: int, path: tuple[tuple[str, tuple[int, ...]], ...]) -> Key:
    key = Key.root(seed)
    for label, indices in path:
        key = key.child(label, *indices)
    return key


def test_keys_and_draws_stay_what_they_are() -> None:
    """Golden: a change here would make every recorded run another one."""
    key = Key.root(7).child("client-3/fit", 2)
    assert key.digest.hex() == "7266b2cecd2a4280eff760d002cbc151"
    assert key.permutation(8).tolist() == [1, 2, 0, 4, 7, 3, 5, 6]
    assert key.permutation(8, epoch=1).tolist() == [2, 0, 7, 1, 6, 4, 3, 5]
    assert key.generator().integers(0, 1000, 4).tolist() == [614, 593, 990, 721]


@given(st.integers(), paths, st.integers(), paths)
def test_keys_are_equal_only_where_their_paths_are(s1: int, p1: tuple, s2: int, p2: tuple) -> None:  # type: ignore[type-arg]
    assert (at(s1, p1) == at(s2, p2)) == (s1 == s2 and p1 == p2)


def test_a_label_cannot_be_taken_for_its_numbers() -> None:
    root = Key.root(0)
    keys = [
        root.child("a"), root.child("a", 1), root.child("a", 1, 2), root.child("a", 12), root.child("a1"), root.child("a").child("1"),
        root.child("a/b"), root.child("a").child("b"), root.child("a", -1), root.child(""), root,
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(0, 40), st.integers(0, 9))
def test_a_batch_is_shuffled_as_each_alone(seed: int, count: int, size: int, epoch: int) -> None:
    keys = [Key.root(seed).child("x", i) for i in range(count)]
    together = permutations(keys, size, epoch)
    assert together.shape == (count, size) and together.dtype == np.int64
    for row, key in zip(together, keys, strict=True):
        assert sorted(row.tolist()) == list(range(size))
        np.testing.assert_array_equal(row, key.permutation(size, epoch))


def test_every_place_is_as_likely() -> None:
    """Chi-squared over places: 20 rows and 20 places, 20,000 permutations; the bound is its 0.9999 quantile at 361 degrees."""
    size, draws = 20, 20_000
    order = permutations([Key.root(5).child("x", i) for i in range(draws)], size)
    counts = np.zeros((size, size))
    for place in range(size):
        counts[place] = np.bincount(order[:, place], minlength=size)
    expected = draws / size
    assert ((counts - expected) ** 2 / expected).sum() < 468


def test_epochs_and_neighbouring_keys_share_nothing() -> None:
    orders = [tuple(Key.root(1).child("x", i).permutation(12, epoch)) for i in range(40) for epoch in range(40)]
    assert len(set(orders)) == len(orders)
    first = permutations([Key.root(1).child("x", i) for i in range(4000)], 2)
    assert abs(float((first[:-1, 0] == first[1:, 0]).mean()) - 0.5) < 0.04


@pytest.mark.parametrize("epoch", [0, 1, 2**31, 2**63, 2**70])
def test_any_epoch_is_an_epoch(epoch: int) -> None:
    assert sorted(Key.root(0).permutation(6, epoch).tolist()) == list(range(6))
