"""What monitoring sees of a run, and the extension point of everything that follows one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Status = Literal["completed", "stopped", "interrupted", "failed"]
"""How a run ended: all rounds or its own stop rule (completed), a request (stopped, interrupted), or an error (failed)."""


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run before it begins.

    Args:
        name: the plan's name.
        plan: the plan as TOML text.
        digest: the plan's digest.
        rounds: the number of rounds at most, or None where the protocol has none.
        parties: the size of the population.
        parameters: the size of the model.
        first_round: 0, or the round from which a resumed run goes on.
        settings: how it is run (workers, devices, faults), as plain data.
    """

    name: str
    plan: str
    digest: str
    rounds: int | None
    parties: int
    parameters: int
    first_round: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """What is known after a round; round 0 is the model before training.

    Args:
        round: the round.
        metrics: averaged metrics: ``train_*`` of the cohort, ``test_*`` on the central test set, ``party_*`` over parties.
        parties: the metrics of each party that was evaluated.
        note: what went wrong and for whom, if anything did.
        time: seconds on the virtual clock of a simulation, or since the run began in a deployment.
        seconds: real seconds since the record before.
    """

    round: int
    metrics: Mapping[str, float]
    parties: Mapping[str, Mapping[str, float]]
    note: str
    time: float
    seconds: float


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Args:
        status: see :data:`Status`.
        cause: one sentence; empty where it completed.
        seconds: real seconds in total.
        traffic: messages and bytes by class.
        failures: the parties whose programs raised, each with its last line.
        baselines: metrics of central and local-only training, where they were asked for.
    """

    status: Status
    cause: str
    seconds: float
    traffic: Mapping[str, Mapping[str, int]]
    failures: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Tracker(Protocol):
    """Follows a run: a progress bar, a metrics file, TensorBoard. It must not change anything."""

    def begin(self, info: RunInfo) -> None:
        """The run is about to start."""
        ...

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""
        ...

    def end(self, end: RunEnd) -> None:
        """The run has ended, in whatever way."""
        ...
