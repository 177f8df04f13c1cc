"""Updates rounded to a grid: a stage is a pure function of a party's own value, and says what it accepts and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from hansa.aggregation import ClientStage
from hansa.errors import ConfigError
from hansa.pipeline import Form
from hansa.rng import Key
from hansa.tensor import Tensor
from hansa.update import Update


@final
@dataclass(frozen=True)
class Grid(ClientStage[Update, Update]):
    """Rounds each element to the nearest multiple of ``step``.

    Args:
        step: the distance of two grid points.
    """

    step: float

    flow: ClassVar[Mapping[Form, Form]] = {"update": "update"}
    needs: ClassVar[str] = "rounding may lengthen an update, so it belongs before the clip"

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ConfigError(f"Grid: step must be positive, not {self.step}")

    def on_client(self, value: Update, rng: Key) -> Update:
        """The rounded update."""
        array = value.delta.array
        rounded = (np.round(array / self.step) * self.step).astype(array.dtype)
        return Update(Tensor(rounded), value.weight, value.scalars)
