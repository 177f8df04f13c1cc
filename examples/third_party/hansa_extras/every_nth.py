"""A partitioner: a frozen value with one method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from hansa.data import Assignment, Dataset
from hansa.errors import DataError
from hansa.rng import Key


@final
@dataclass(frozen=True)
class EveryNth:
    """Row ``i`` goes to party ``(i + offset) % parties``.

    Args:
        offset: the party of the first row.
    """

    offset: int = 0

    def assign(self, dataset: Dataset, parties: int | None, rng: Key) -> Assignment:
        """Deal the rows out like cards."""
        if parties is None:
            raise DataError("EveryNth: say how many parties there are")
        return Assignment.by_owner((np.arange(len(dataset)) + self.offset) % parties, parties)
