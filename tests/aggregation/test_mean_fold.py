"""Sums of contributions, however they arrive; and the check that costs less than a norm."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.averaging import Collector
from hansa.aggregation import Contribution, mean
from hansa.aggregation.mean import Averaging
from hansa.errors import NonFinite
from hansa.message import Message
from hansa.protocol import Collected, Gathering
from hansa.tensor import Array, Dense, Tensor
from hansa.update import Mean, Update

LONG = 40_000
"""More than what is widened at a time."""


def collected(messages: list[Message], size: int, quorum: int = 1) -> Collected[Mean[Update]]:
    aggregation = mean()
    assert isinstance(aggregation, Averaging)
    invited = {f"client-{place}": 1 for place in range(len(messages))}
    gathering = Gathering(invited=invited, deadline=1.0, quorum=quorum, enough=len(messages), size=size)
    program = aggregation.collect(Collector(messages), gathering)
    with pytest.raises(StopIteration) as stop:
        program.send(None)
    result: Collected[Mean[Update]] = stop.value.value
    return result


def contributions(arrays: list[Array], weights: list[float]) -> list[Message]:
    return [Contribution(1, Tensor(array), weight, {}) for array, weight in zip(arrays, weights, strict=True)]


@given(
    weights=st.lists(st.sampled_from([1.0, 18.0, 0.5]), min_size=1, max_size=7),
    seed=st.integers(0, 99),
    as_rows=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_the_mean_is_the_weighted_average_whatever_weights_repeat_and_whatever_arrives_as_a_row(
    weights: list[float], seed: int, as_rows: list[bool]
) -> None:
    matrix = np.random.default_rng(seed).standard_normal((len(weights), 9))
    batch = Dense(matrix)
    messages: list[Message] = [
        Contribution(1, Tensor(None, batch, i) if as_rows[i] else Tensor(matrix[i].copy()), w, {})
        for i, w in enumerate(weights)
    ]
    found = collected(messages, 9).value
    np.testing.assert_allclose(found.delta, np.average(matrix, axis=0, weights=weights), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [[18.0] * 4, [18.0, 18.0, 7.0, 18.0], [1.0, 2.0, 3.0, 4.0]])
def test_what_a_party_sent_is_not_changed(weights: list[float]) -> None:
    arrays = [np.full(5, float(place), np.float32) for place in range(4)]
    collected(contributions(arrays, weights), 5)
    assert [array.tolist() for array in arrays] == [[float(place)] * 5 for place in range(4)]


def test_read_only_arrays_are_summed() -> None:
    arrays = [np.ones(5, np.float32) for _ in range(3)]
    for array in arrays:
        array.setflags(write=False)
    assert collected(contributions(arrays, [2.0] * 3), 5).value.delta.tolist() == [1.0] * 5


def test_the_same_arrival_gives_the_same_bits() -> None:
    draws = np.random.default_rng(0)
    arrays = [draws.standard_normal(1000).astype(np.float32) for _ in range(5)]
    weights = [3.0, 3.0, 5.0, 3.0, 5.0]
    first = collected(contributions(arrays, weights), 1000).value.delta
    again = collected(contributions(arrays, weights), 1000).value.delta
    assert first.tobytes() == again.tobytes()


class Watched(np.ndarray[Any, Any]):
    """An array that notes, when it is added to a sum, whether another one is still there."""

    other: Callable[[], object]
    seen: list[bool]

    def __array_ufunc__(self, ufunc: Any, method: Any, *inputs: Any, out: Any = None, **more: Any) -> Any:
        if ufunc is np.add and out is not None:
            self.seen.append(self.other() is not None)
        plain = tuple(np.asarray(array) for array in inputs)
        return getattr(ufunc, method)(*plain, **more, **({} if out is None else {"out": out}))


def test_an_update_that_was_waited_for_is_let_go_before_those_that_waited_are_added() -> None:
    first, second = np.ones(5, np.float32), np.ones(5, np.float32).view(Watched)
    second.other, second.seen = weakref.ref(first), []
    collector = Collector([Contribution(1, Tensor(first), 1.0, {}), Contribution(1, Tensor(second), 1.0, {})])
    collector.inbox.reverse()
    seen = second.seen
    del first, second
    program = mean().collect(
        collector, Gathering({"client-0": 1, "client-1": 1}, deadline=1.0, quorum=2, enough=2, size=5)
    )
    with pytest.raises(StopIteration):
        program.send(None)
    assert seen == [False]


def test_mixed_precisions_are_summed_in_the_wider_one() -> None:
    arrays: list[Array] = [np.full(3, 0.1, np.float32), np.full(3, 0.1), np.full(3, 0.1, np.float32)]
    found = collected(contributions(arrays, [1.0, 1.0, 1.0]), 3).value.delta
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, (2 * np.float64(np.float32(0.1)) + 0.1) / 3, rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [10, LONG])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("row", [False, True])
def test_one_bad_element_refuses_one_party(bad: float, size: int, place: int, row: bool) -> None:
    matrix = np.ones((3, size), np.float32)
    matrix[1, place] = bad
    batch = Dense(matrix)
    messages: list[Message] = [
        Contribution(1, Tensor(None, batch, i) if row else Tensor(matrix[i]), 18.0, {}) for i in range(3)
    ]
    result = collected(messages, size)
    assert result.refused == {"client-1": "an update with NaN or infinity"}
    assert (result.value.delta == 1.0).all()


@pytest.mark.parametrize("size", [10, LONG])
def test_large_but_finite_elements_are_not_refused(size: int) -> None:
    big = np.full(size, 3e38, np.float32)
    assert Tensor(big).finite()
    assert Tensor(None, Dense(big[None]), 0).finite()
    assert collected(contributions([big], [1.0]), size).contributors == ["client-0"]


def test_finite_updates_whose_sum_overflows_end_by_name() -> None:
    big = np.full(4, 3e38, np.float32)
    aggregation = mean()
    assert isinstance(aggregation, Averaging)
    messages = contributions([big, big], [1.0, 1.0])
    gathering = Gathering(invited={"client-0": 1, "client-1": 1}, deadline=1.0, quorum=1, enough=2, size=4)
    with pytest.raises(NonFinite):
        aggregation.collect(Collector(messages), gathering).send(None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, LONG])
def test_norms_of_any_length_are_exact(dtype: type, size: int) -> None:
    matrix: Array = np.random.default_rng(size).standard_normal((3, size)).astype(dtype)
    exact = np.sqrt((matrix.astype(np.float64) ** 2).sum(1))
    np.testing.assert_allclose(Dense(matrix).norms(), exact, rtol=1e-12)
    np.testing.assert_allclose([Tensor(row).norm() for row in matrix], exact, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 650, 5000, 16_384, 16_385])
def test_a_norm_is_the_same_whatever_else_is_in_the_batch(size: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((40, size)).astype(np.float32)
    together = Dense(matrix).norms()
    alone = [Dense(row[None]).norms()[0] for row in matrix]
    pieces = [Dense(matrix[start : start + 9]).norms() for start in range(0, 40, 9)]
    assert together.tolist() == alone == np.concatenate(pieces).tolist()
