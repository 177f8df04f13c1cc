"""How things are timed: what is compared runs in turns, so that a change of the machine's speed meets both sides.

A block is a few rounds without a pause. The figure is the median over the blocks of one side, the reference's that over its own.

What runs on one core in one process is timed by the processor time of that process: on a machine that does other things as well it
is what the wall clock would show on an idle one, and a thread too many makes it worse. What runs in several processes is timed by
the wall clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import process_time

from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo


class Turns:
    """A tracker that lets something else run between the blocks of a simulation, and times the blocks alone.

    Args:
        rounds: rounds in a block.
        warm: rounds at the beginning that belong to no block: what is built, compiled or forked once is no steady state.
        between: called after each block.
        clock: what the time is read from.
    """

    def __init__(
        self,
        rounds: int,
        warm: int,
        between: Callable[[], None] | None = None,
        clock: Callable[[], float] = process_time,
    ) -> None:
        self.rounds, self.warm, self.between, self.clock = rounds, warm, between, clock
        self.seconds: list[float] = []
        self.first = 0.0
        self._began = self._started = clock()

    def begin(self, info: RunInfo) -> None:
        """The run is about to start."""
        self._began = self.clock()

    def round(self, record: RoundRecord) -> None:
        """A round has ended; perhaps a block."""
        now = self.clock()
        done = record.round - self.warm
        if done < 0:
            return
        if done == 0:
            self.first = now - self._began
        elif done % self.rounds:
            return
        else:
            self.seconds.append((now - self._started) / self.rounds)
        if self.between is not None:
            self.between()
        self._started = self.clock()

    def end(self, end: RunEnd) -> None:
        """The run has ended."""

    @property
    def a_round(self) -> float:
        """The median block's seconds a round."""
        return median(self.seconds)


def alternate(
    sides: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float] = process_time
) -> dict[str, float]:
    """The median seconds of one call of each side, called in turn; one call of each before does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, call in sides.items():
            began = clock()
            call()
            if turn:
                seconds[name].append(clock() - began)
    return {name: median(values) for name, values in seconds.items()}
