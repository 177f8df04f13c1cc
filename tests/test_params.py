"""Parameters: one buffer, and named views into it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.params import Layout, Params

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=4)


@given(shapes, st.sampled_from(["float32", "float64"]))
def test_tensors_are_views_that_tile_the_buffer(parts: list[tuple[int, ...]], dtype: str) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=shape) for i, shape in enumerate(parts)}
    params = Params.of(tensors, dtype=dtype)
    assert params.size == sum(int(np.prod(shape)) for shape in parts) == len(params.flat)
    assert params.flat.dtype == dtype and params.flat.flags.c_contiguous
    assert list(params.tensors()) == list(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(params[name], value.astype(dtype))
        assert params[name].shape == value.shape
        assert params[name].size == 0 or np.shares_memory(params[name], params.flat)
    joined = np.concatenate([t.ravel() for t in params.tensors().values()]) if parts else np.zeros(0)
    np.testing.assert_array_equal(joined, params.flat)


def test_writing_to_a_view_writes_to_the_buffer() -> None:
    params = Params.of({"a": np.zeros((2, 2)), "b": np.zeros(3)})
    params.layout.views(params.flat)["b"][1] = 5.0
    assert params.flat.tolist() == [0, 0, 0, 0, 0, 5, 0]


def test_what_is_made_of_tensors_is_a_copy() -> None:
    source = np.ones(3, np.float32)
    params = Params.of({"a": source})
    source[0] = 9.0
    assert params.flat.tolist() == [1, 1, 1]


def test_other_values_must_fit() -> None:
    params = Params.of({"a": np.ones((2, 2)), "b": np.ones(1)})
    for wrong in (np.ones(4), np.ones(6), np.ones((5, 1)), np.float32(1.0)):
        with pytest.raises(ValueError, match="expected 5 values"):
            params.replaced(np.asarray(wrong))
    other = params.replaced(np.arange(10)[::2])
    assert other.flat.dtype == np.float32 and other.flat.flags.c_contiguous and other["b"].tolist() == [8.0]
    assert other.layout is params.layout


def test_a_sum_leaves_the_summands_alone() -> None:
    params = Params.of({"a": np.ones(3)})
    moved = params + np.array([1.0, 2.0, 3.0])
    assert moved.flat.tolist() == [2, 3, 4] and params.flat.tolist() == [1, 1, 1]
    assert moved.flat.dtype == np.float32
    with pytest.raises(ValueError, match=r"expected 3|broadcast"):
        params + np.ones(4)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"'weigth'.*did you mean 'weight'"):
        Params.of({"weight": np.ones(1)})["weigth"]


def test_layouts_are_equal_by_what_they_say() -> None:
    one = Layout(("a",), ((2, 3),))
    assert one == Layout(("a",), ((2, 3),)) and hash(one) == hash(Layout(("a",), ((2, 3),)))
    assert one != Layout(("a",), ((3, 2),))
    assert one != Layout(("b",), ((2, 3),))
    assert one != Layout(("a",), ((2, 3),), "float64")
    assert one != Layout(("a",), ((2, 3),), buffers=frozenset({"a"}))
    assert one.offsets == (0, 6) and Layout((), ()).size == 0
