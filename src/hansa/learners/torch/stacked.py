"""Updates as the stacked engines leave them: one tensor a parameter, all parties of a group in it.

A flat vector a party would be another copy of everything; sums over parties do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from hansa.tensor import Array, Dense, Rows


@final
class Stacked(Rows):
    """The changes of several groups of parties.

    Args:
        groups: a list a group: one tensor a trained parameter, of shape (parties of the group, ...).
        size: the length of a flat vector; what follows the trained parameters has not changed.
        dtype: of a flat vector.
    """

    def __init__(self, groups: Sequence[Sequence[torch.Tensor]], size: int, dtype: np.dtype[np.floating]) -> None:
        self._groups = [[part.reshape(len(part), -1) for part in group] for group in groups]
        self.count = sum(len(group[0]) for group in self._groups)
        self.size = size
        self.dtype = dtype
        self._norms: npt.NDArray[np.float64] | None = None
        self._finite: npt.NDArray[np.bool_] | None = None

    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> Array:
        total = np.zeros(self.size, self.dtype)
        first = 0
        for group in self._groups:
            own = coefficients[first : first + len(group[0])]
            first += len(own)
            used = np.flatnonzero(own)
            if not len(used):
                continue
            whole = len(used) == len(own)
            factors = torch.from_numpy(own[used].astype(self.dtype)).to(group[0].device)
            for part, place in self._places(group):
                rows = part if whole else part[torch.from_numpy(used)]
                total[place] += torch.mv(rows.t(), factors).cpu().numpy()
        return total

    def norms(self) -> npt.NDArray[np.float64]:
        if self._norms is None:
            squares = [sum(part.double().square().sum(1) for part in group) for group in self._groups]
            self._norms = np.sqrt(torch.cat([torch.as_tensor(part) for part in squares]).cpu().numpy())
        return self._norms

    def gram(self) -> npt.NDArray[np.float64]:
        matrix = np.zeros((self.count, self.size), self.dtype)
        first = 0
        for group in self._groups:
            last = first + len(group[0])
            for part, place in self._places(group):
                matrix[first:last, place] = part.cpu().numpy()
            first = last
        return Dense(matrix).gram()

    def finite(self) -> npt.NDArray[np.bool_]:
        if self._finite is None:
            lengths = [sum(torch.linalg.vector_norm(part, dim=1) for part in group) for group in self._groups]
            # A norm in the tensors' own precision is finite only if all elements are; if not, it may have overflowed.
            found = torch.isfinite(torch.cat([torch.as_tensor(part) for part in lengths])).cpu().numpy()
            self._finite = found if found.all() else np.isfinite(self.norms())
        return self._finite

    def _places(self, group: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, slice]]:
        place = 0
        for part in group:
            yield part, slice(place, place + part.shape[1])
            place += part.shape[1]
