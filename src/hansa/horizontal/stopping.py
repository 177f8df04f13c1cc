"""When a run has learned enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import msgspec

from hansa.errors import ConfigError
from hansa.learners.distribution import smaller_is_better


class Best(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best value of the watched metric so far, and when; part of the saved state."""

    value: float | None = None
    round: int = 0
    rounds_since: int = 0


@final
@dataclass(frozen=True)
class Stop:
    """Ends a run before its last round.

    Args:
        metric: the metric to watch, as it is reported (``test_accuracy``, ``test_loss``, ``party_accuracy``, ...).
        target: end when the metric is this good.
        patience: end after so many reports of the metric without a better one.
        mode: whether ``"max"`` or ``"min"`` is good; ``"auto"`` takes losses and errors as ``"min"``.
    """

    metric: str = "test_accuracy"
    target: float | None = None
    patience: int | None = None
    mode: Literal["auto", "max", "min"] = "auto"

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"Stop: patience must be at least 1, not {self.patience}")
        if self.target is not None and not math.isfinite(self.target):
            raise ConfigError(f"Stop: target must be a number, not {self.target}")
        if self.mode not in ("auto", "max", "min"):
            raise ConfigError(f"Stop: mode must be 'auto', 'max' or 'min', not {self.mode!r}")

    @property
    def falls(self) -> bool:
        """Whether a smaller value of the metric is better."""
        if self.mode == "auto":
            return smaller_is_better(self.metric)
        return self.mode == "min"

    def updated(self, best: Best, round: int, metrics: Mapping[str, float]) -> Best:
        """The best so far, with this round's metrics."""
        value = metrics.get(self.metric)
        if value is None:
            return best
        # What is not a number is never better, and nothing may have to beat it.
        if math.isnan(value):
            return Best(best.value, best.round, best.rounds_since + 1)
        if best.value is None or (value < best.value if self.falls else value > best.value):
            return Best(value, round, 0)
        return Best(best.value, best.round, best.rounds_since + 1)

    def reached(self, best: Best) -> bool:
        """Whether the run ends here."""
        if best.value is not None and self.target is not None:
            met = best.value <= self.target if self.falls else best.value >= self.target
            if met:
                return True
        return self.patience is not None and best.rounds_since >= self.patience
