"""The ``[deployment]`` table that may stand beside a plan: who is asked, and where the roles are placed."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import final

from hansa.errors import ConfigError


@final
@dataclass(frozen=True)
class Deployment:
    """How a plan is placed on a federation; it is no part of what the parties agree to in the plan's digest.

    Args:
        data: the name by which the nodes bind their data; the plan's own name if empty.
        parties: the nodes that are asked; all, if empty.
        least: how many must take part; 0 for all that are asked.
        server: where the role that owns no data runs: ``"hub"``, or a node.
        within: seconds that the nodes have to answer; 0 for the hub's own limit.

    Raises:
        ConfigError: a number that cannot be.
    """

    data: str = ""
    parties: tuple[str, ...] = ()
    least: int = 0
    server: str = "hub"
    within: float = 0.0

    def __post_init__(self) -> None:
        if self.least < 0:
            raise ConfigError(f"deployment: least is how many must take part, or 0 for all, not {self.least}")
        if not (isfinite(self.within) and self.within >= 0):
            raise ConfigError(f"deployment: within is a number of seconds, or 0 for the hub's limit, not {self.within}")
