"""Populations given party by party or by a function; names; the skew report."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

import hansa.data as d
from hansa.errors import DataError
from hansa.examples import Examples, Shard
from hansa.party import Roster

DIGITS = d.arrays(np.arange(200.0).reshape(100, 2), np.arange(100) % 4)


def test_a_shard_reads_the_shared_arrays_and_is_named() -> None:
    fed = DIGITS.partition(d.IID(), parties=10, test=0.2)
    shard = fed.shard(3)
    assert shard.train.base[0] is fed.example.base[0]
    assert (shard.train.ref, shard.test.ref) == ((3, 0), (3, 1))
    assert (len(shard.train), len(shard.test)) == (8, 2)
    for wrong in (-1, 10):
        with pytest.raises(DataError, match="no number"):
            fed.shard(wrong)
    with pytest.raises(ValueError, match="read-only"):
        shard.train.rows[0] = 0  # type: ignore[index]


def test_numbered_names_are_a_sequence() -> None:
    names = Roster("client", 12)
    listed = [f"client-{i}" for i in range(12)]
    assert list(names) == listed and len(names) == 12
    assert names[-1] == "client-11" and list(names[2:4]) == listed[2:4]
    assert [names.index(name) for name in listed] == list(range(12))
    assert names.count("client-3") == 1
    for wrong in ("client-12", "client-01", "client-", "client--1", "client-1 ", "klient-1", "client-²", 3):
        assert wrong not in names
    with pytest.raises(ValueError, match="not in this roster"):
        names.index("client-12")
    with pytest.raises(IndexError):
        names[12]


def test_own_tests_are_kept_and_the_others_divided() -> None:
    x = np.arange(10.0)[:, None]
    fed = d.from_parties({"a": (x, [0, 1] * 5, x[:3], [0, 0, 0]), "b": (x, [0, 1] * 5)}, test=0.5)
    assert fed.shard(0).train.x.tolist() == x.tolist()
    assert fed.shard(0).test.x.tolist() == x[:3].tolist()
    assert (len(fed.shard(1).train), len(fed.shard(1).test)) == (5, 5)
    assert len(fed.central_test) == 8


def test_class_names_of_data_sets_are_united() -> None:
    a, b = d.arrays([[0.0]], ["x"]), d.arrays([[1.0], [2.0]], ["y", "x"])
    fed = d.from_parties({"a": a, "b": b}, test=0.0)
    assert fed.classes == ("x", "y")
    assert fed.shard(0).train.y.tolist() == [0]
    assert sorted(fed.shard(1).train.y.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("parties", "words"),
    [
        ({}, "at least one party"),
        ({"a": ([[1.0]], [0]), "b": ([[1.0, 2.0]], [0])}, "party 'b' has rows of shape (2,)"),
        ({"a": ([[1.0]], [0]), "b": ([[1.0]], ["x"])}, "differ in their targets"),
        ({"a": ([[1.0]], [0]), "b": ([[1.0]], [0.5])}, "differ in their targets"),
        ({"a": ([[1.0]], [0]), "b": (np.zeros((0, 1)), np.zeros(0, int))}, "party 'b' has no training row"),
        ({"a": ([[1.0]], [0, 1])}, "equally many"),
        ({"a": ([[1.0], [1.0, 2.0]], [0, 1])}, "differ in shape"),
        ({"a": 3}, "must be (x, y)"),
        (
            {"a": d.arrays([[1.0]], [0], features=["age"]), "b": d.arrays([[1.0]], [0], features=["dose"])},
            "differ in features: age, dose",
        ),
        ({"a": ([[np.nan]], [0])}, "is nan"),
    ],
)
def test_bad_parties_are_refused(parties: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        d.from_parties(parties)
    assert words in str(caught.value)


def test_a_function_is_called_for_the_party_that_is_asked_for() -> None:
    called: list[int] = []

    def make(i: int) -> tuple[Any, Any]:
        called.append(i)
        return np.full((5, 2), float(i)), [0, 1, 0, 1, 0]

    fed = d.from_function(make, parties=1_000_000, sizes=4, test=0.2, central_test=([[0.0, 0.0]], [1]))
    assert called == []
    shard = fed.shard(77)
    assert called == [77]
    assert (len(shard.train), len(shard.test), shard.train.ref) == (4, 1, (77, 0))
    assert np.array_equal(fed.shard(77).train.y, shard.train.y)
    assert fed.sizes.shape == (1_000_000,) and len(fed.central_test) == 1
    assert len(called) == 2


def test_a_function_without_sizes_is_counted_when_parties_are_few() -> None:
    fed = d.from_function(lambda i: (np.zeros((i + 2, 1)), np.zeros(i + 2, int)), parties=["u", "v"], test=0.5)
    assert list(fed.names) == ["u", "v"]
    assert fed.sizes.tolist() == [1, 1] and len(fed.central_test) == 3
    many = d.from_function(lambda i: ([[0.0]], [0]), parties=10_001)
    for name in ("sizes", "central_test"):
        with pytest.raises(DataError, match=f"give {name}="):
            getattr(many, name)


EMPTY = Examples(np.zeros((0, 1)), np.zeros(0, np.int64))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (([[np.nan]], [0]), "party 'client-1': row 0"),
        (([[1.0]], [5]), "out of range"),
        ((np.zeros((0, 1)), []), "has no rows"),
        (Shard(EMPTY, EMPTY), "no training row"),
        (([[1.0], [1.0]], [0, 1]), "where sizes says 1"),
        (None, "must return"),
    ],
)
def test_what_a_function_gives_is_checked(value: Any, words: str) -> None:
    fed = d.from_function(lambda i: value, parties=2, sizes=1, classes=["a", "b"], test=0.0)
    with pytest.raises(DataError, match=words):
        fed.shard(1)


@pytest.mark.parametrize(
    "options", [{"parties": 0}, {"parties": ["a", "a"]}, {"parties": 2, "sizes": [1]}, {"parties": 2, "sizes": 0}]
)
def test_bad_populations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        d.from_function(lambda i: ([[0.0]], [0]), **options)


def test_skew_of_known_populations() -> None:
    x = np.zeros((4, 1))
    apart = d.from_parties({"a": (x, [0] * 4), "b": (x + 2, [1] * 4)}, test=0.0).skew()
    assert apart.entropy.tolist() == [0, 0] and apart.effective.tolist() == [1, 1]
    assert apart.variation.tolist() == [0.5, 0.5]
    # JS(P, M) with P = (1, 0), M = (1/2, 1/2): H(3/4, 1/4) - H(M) / 2
    assert apart.divergence == pytest.approx([0.8112781 - 0.5] * 2)
    assert apart.shift == pytest.approx([1.0, 1.0])
    alike = d.from_parties({"a": (x, [0, 1, 0, 1]), "b": (x, [1, 0, 1, 0])}, test=0.0).skew()
    assert alike.entropy.tolist() == [1, 1] and alike.variation.tolist() == [0, 0]
    assert alike.divergence.tolist() == [0, 0] and alike.shift.tolist() == [0, 0]


def test_real_targets_are_measured_in_bins_and_sequences_not() -> None:
    y = np.linspace(0, 1, 100)
    by_value = d.arrays(np.zeros((100, 1)), y).partition(d.Shards(1), parties=5, test=0.0).skew()
    assert len(by_value.labels) == 10
    assert by_value.variation.min() == pytest.approx(0.8)
    tokens = d.arrays(np.zeros((10, 3), int), np.zeros((10, 3), int)).partition(d.IID(), parties=2).skew()
    assert tokens.labels == () and np.isnan(tokens.shift).all()
    assert "entropy" not in tokens.text()
    ET.fromstring(tokens.svg())


def test_the_picture_is_well_formed_and_bounded() -> None:
    named = d.from_parties({"<a&b>": ([[0.0]], [0]), 'q"': ([[1.0]], [1])}, classes=["<no>", "&"], test=0.0)
    ET.fromstring(named.skew().svg())
    report = d.arrays(np.zeros((400, 1)), np.arange(400) % 30).partition(d.IID(), parties=200, test=0.0).skew()
    assert len(report.drawn) == 60 and report.measured == 200
    drawn = [bar for bar in ET.fromstring(report.svg()).iter() if bar.tag.endswith("title")]
    assert len(drawn) == sum(1 for _, counts in report.drawn for count in counts if count)
    assert "200 parties" in report.text()
