"""Tensors: rows that need not be built, and what a tensor knows without building them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from hansa.tensor import Dense, Rows, Tensor

floats = st.floats(-100, 100, width=32)
matrices = arrays_of.arrays(np.float32, arrays_of.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=floats)


class Sealed(Rows):
    """Rows that say how often they were built."""

    def __init__(self, matrix: npt.NDArray[Any]) -> None:
        self.inner = Dense(matrix)
        self.count, self.size, self.dtype = self.inner.count, self.inner.size, self.inner.dtype
        self.built = 0

    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        self.built += 1
        return self.inner.weighted_sum(coefficients)

    def norms(self) -> npt.NDArray[np.float64]:
        return self.inner.norms()

    def gram(self) -> npt.NDArray[np.float64]:
        return self.inner.gram()

    def finite(self) -> npt.NDArray[np.bool_]:
        return self.inner.finite()


@given(matrices, st.data())
def test_dense_rows_obey_the_laws(matrix: npt.NDArray[np.float32], data: st.DataObject) -> None:
    rows = Dense(matrix)
    c = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 1.0, -2.5, 0.125]), min_size=rows.count, max_size=rows.count))
    )
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(rows.weighted_sum(c), c @ wide, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(rows.gram(), wide @ wide.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(rows.norms(), np.sqrt((wide**2).sum(axis=1)), rtol=1e-12)
    assert rows.weighted_sum(c).dtype == np.float32


def test_rows_with_no_weight_are_not_touched() -> None:
    matrix = np.array([[1.0, 2.0], [np.nan, np.inf], [3.0, 4.0]], np.float32)
    assert Dense(matrix).weighted_sum(np.array([1.0, 0.0, 2.0])).tolist() == [7.0, 10.0]
    assert Dense(matrix).weighted_sum(np.array([0.0, 0.0, 2.0])).tolist() == [6.0, 8.0]
    assert Dense(matrix).weighted_sum(np.zeros(3)).tolist() == [0.0, 0.0]


def test_what_is_known_of_a_row_is_known_without_building_it() -> None:
    rows = Sealed(np.arange(12, dtype=np.float32).reshape(3, 4))
    row = Tensor(None, rows, 1)
    assert (row.shape, row.dtype, row.nbytes) == ((4,), np.dtype(np.float32), 16)
    assert row.norm() == pytest.approx(np.linalg.norm([4, 5, 6, 7]))
    half = row.scaled(0.5).scaled(-1.0)
    assert half.norm() == pytest.approx(0.5 * row.norm())
    assert "(4,)" in repr(half)
    assert rows.built == 0
    assert half.array.tolist() == [-2.0, -2.5, -3.0, -3.5]
    assert half.array is half.array and rows.built == 1


@pytest.mark.parametrize("size", [1, 5, 16_384, 16_385, 40_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_are_exact_at_any_size(size: int, dtype: str) -> None:
    array = np.random.default_rng(0).normal(size=size).astype(dtype)
    oracle = float(np.linalg.norm(array.astype(np.float64)))
    assert Tensor(array).norm() == pytest.approx(oracle, rel=1e-12)
    assert Tensor(array.reshape(1, size)).norm() == pytest.approx(oracle, rel=1e-12)
    assert Dense(np.stack([array, 2 * array])).norms() == pytest.approx([oracle, 2 * oracle], rel=1e-12)
    large = np.full(size, 1e30, dtype)
    assert Tensor(large).norm() == pytest.approx(1e30 * np.sqrt(size), rel=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1, 3, 40_000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_tells_what_is_not_finite(size: int, bad: float) -> None:
    for place in {0, size // 2, size - 1}:
        array = np.ones(size, np.float32)
        array[place] = bad
        assert not np.isfinite(Tensor(array).norm())
        assert not np.isfinite(Tensor(None, Dense(array[None]), 0).norm())
        assert not Tensor(array).finite()
        assert not Tensor(None, Dense(array[None]), 0).finite()
    assert Tensor(np.full(size, 1e30, np.float32)).finite()


def test_equality_is_of_values_shape_and_type() -> None:
    one = Tensor(np.array([1.0, 2.0], np.float32))
    assert one == Tensor(None, Dense(np.array([[1.0, 2.0]], np.float32)), 0)
    assert one == Tensor(np.array([1.0, 2.0], ">f4")) and hash(one) == hash(Tensor(np.array([1.0, 2.0], ">f4")))
    assert one != Tensor(np.array([1.0, 2.0], np.float64))
    assert one != Tensor(np.array([[1.0, 2.0]], np.float32))
    assert one != Tensor(np.array([1.0, 3.0], np.float32))
    assert one != [1.0, 2.0]


def test_a_scaled_array_keeps_its_type_and_leaves_the_first_alone() -> None:
    array = np.array([1.0, 2.0], np.float32)
    scaled = Tensor(array).scaled(0.1)
    assert scaled.dtype == np.float32 and array.tolist() == [1.0, 2.0]
    np.testing.assert_allclose(scaled.array, [0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize("size", [3, 40_000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_found_however_long(size: int, bad: float) -> None:
    matrix = np.ones((4, size), np.float32)
    matrix[2, -1] = bad
    rows = Dense(matrix)
    assert rows.finite().tolist() == [True, True, False, True]
    assert [Tensor(None, rows, place).finite() for place in range(4)] == [True, True, False, True]
    assert not Tensor(matrix[2]).finite()


def test_a_large_finite_row_is_not_taken_for_infinite() -> None:
    """Its squares overflow float32, its norm does not overflow float64."""
    assert Dense(np.full((2, 40_000), 1e30, np.float32)).finite().all()
