"""What a simulation adds to a plan: none of it changes what the parties agree to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from hansa.errors import ConfigError
from hansa.simulation.network import Devices, FaultPlan


@dataclass(frozen=True)
class Simulation:
    """How to simulate.

    Args:
        workers: processes that train; 1 runs everything in this process, 0 takes one a core. Results do not depend on it.
        threads: threads of each process; sums may differ in their last bits between different numbers.
        faults: what goes wrong.
        devices: what the parties run on.
        baselines: also train centrally on all data, and each of a few parties alone, for the result table.
        on_failure: ``"continue"`` goes on without a party whose program raised, ``"stop"`` ends the run with its traceback.
        checkpoint_every: rounds between checkpoints in the run folder; 0 for none.
        record: the parties whose views are kept.
        digest: hash every message of the log (slow).
    """

    workers: int = 1
    threads: int = 1
    faults: FaultPlan = field(default_factory=FaultPlan)
    devices: Devices = field(default_factory=Devices)
    baselines: bool = False
    on_failure: Literal["continue", "stop"] = "continue"
    checkpoint_every: int = 1
    record: tuple[str, ...] = ()
    digest: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"simulation: workers must be 0 (one a core) or more, not {self.workers}")
        if self.threads < 1:
            raise ConfigError(f"simulation: threads must be at least 1, not {self.threads}")
        if self.checkpoint_every < 0:
            raise ConfigError(f"simulation: checkpoint_every must not be negative, not {self.checkpoint_every}")
        if self.on_failure not in ("continue", "stop"):
            raise ConfigError(f"simulation: on_failure must be 'continue' or 'stop', not {self.on_failure!r}")

    @property
    def processes(self) -> int:
        """The number of worker processes that ``workers`` stands for."""
        return self.workers or os.cpu_count() or 1
