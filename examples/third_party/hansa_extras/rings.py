"""A source: a function from what stands behind the colon, and options, to a data set."""

from __future__ import annotations

import numpy as np

from hansa.data import Dataset, arrays
from hansa.errors import DataError


def rings(rest: str, *, rings: int = 2) -> Dataset:
    """Points around centres on a circle; ``rings:300`` makes 300 of them.

    Args:
        rest: how many points.
        rings: how many classes.
    """
    if not rest.isdigit() or int(rest) < rings:
        raise DataError(f"rings:{rest} is not a number of points; write rings:300")
    rng = np.random.default_rng(0)
    label = rng.integers(rings, size=int(rest))
    angle = 2 * np.pi * label / rings
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.3 * rng.normal(size=(int(rest), 2))
    return arrays(points, label, name=f"rings:{rest}")
