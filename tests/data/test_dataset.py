"""Arrays become a data set or are refused with one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hansa.data as d
from hansa.errors import DataError


def test_pixels_are_scaled_and_real_numbers_are_single() -> None:
    pixels = d.arrays(np.array([[0, 255], [51, 102]], np.uint8), [0, 1])
    assert pixels.x.dtype == np.float32
    assert pixels.x.tolist() == [[0.0, 1.0], [np.float32(0.2), np.float32(0.4)]]
    assert d.arrays(np.zeros((2, 1), np.float64), [0.5, 1.5]).y.dtype == np.float32
    assert d.arrays(np.array([[3], [4]]), [0, 1]).x.dtype == np.int64
    assert d.arrays(np.zeros((2, 4)), [0, 1], shape=(1, 2, 2)).x.shape == (2, 1, 2, 2)


def test_own_test_set_is_treated_as_the_training_rows() -> None:
    x = np.array([[0], [255]], np.uint8)
    data = d.arrays(x, ["a", "b"], test=(x, ["b", "b"]))
    assert data.test is not None
    assert data.test.y.tolist() == [1, 1]
    assert data.test.x.tolist() == [[0.0], [1.0]]
    wider = d.arrays([[0.0], [1.0]], [0, 1], test=([[2.0]], [2]))
    assert wider.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        ([[1.0], [np.nan]], [0, 1], {}, "row 1 of feature '0' is nan"),
        ([[1.0, np.inf]], [0], {"features": ["age", "dose"]}, "row 0 of feature 'dose' is inf"),
        ([[1e300]], [0], {}, "is inf"),
        ([[1.0], [2.0]], [0], {}, "x has 2 rows and y has 1"),
        ([[1.0], [2.0, 3.0]], [0, 1], {}, "differ in shape"),
        (np.zeros((0, 3)), [], {}, "no rows"),
        ([["a"]], [0], {}, "array of numbers"),
        ([[1.0]], [-1], {}, "label -1 in row 0 is out of range"),
        ([[1.0], [1.0]], [0, 3], {"classes": ["no", "yes"]}, "label 3 in row 1 is out of range"),
        ([[1.0]], [10**9], {}, "would mean"),
        ([[1.0]], ["maybe"], {"classes": ["no", "yes"]}, "'maybe' is not among the classes"),
        ([[1.0]], [0.5], {"classes": ["no", "yes"]}, "make them integers"),
        ([[1.0]], [np.inf], {}, "target of row 0 is inf"),
        ([[1.0]], [0], {"features": ["a", "b"]}, "2 feature names"),
        ([[1.0]], [0], {"columns": {"site": [1, 2]}}, "column 'site' has 2 values for 1 rows"),
        ([[1.0]], [0], {"standardize": "globally"}, "standardize must be one of"),
        ([[1.0]], [0], {"scale": 0.0}, "scale must be above 0"),
        ([[1.0, 2.0]], [0], {"shape": (3,)}, "cannot be reshaped"),
        ([[1.0, 2.0]], [0], {"shape": (0, 2)}, "whole numbers of at least 1"),
        ([[1.0]], [0], {"test": ([[1.0, 2.0]], [0])}, "a row has shape"),
        ([[1.0]], [0], {"test": ([[1.0]], [0, 1])}, "x has 1 rows and y has 2"),
        ([[1.0]], [0], {"test": ([[1.0]], [0.5])}, "targets are float64"),
        ([[1.0]], ["a"], {"test": ([[1.0]], ["b"])}, "'b' is not among the classes"),
        ([[1.0]], ["a"], {"test": ([[1.0]], [1])}, "label 1 in row 0 is out of range"),
    ],
)
def test_bad_arrays_are_refused(x: Any, y: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        d.arrays(x, y, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_public_names_are_those_that_are_visible() -> None:
    modules = {"dataset", "federated", "partition", "partitioners", "population", "skew", "sources", "table"}
    visible = {name for name in vars(d) if not name.startswith("_")} - modules - {"annotations"}
    assert set(d.__all__) == visible
    assert len(set(d.__all__)) == len(d.__all__)
