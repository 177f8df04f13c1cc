"""What lies between simulated parties: devices of different speed, slow links, and faults on demand.

Everything here moves virtual time only, and every draw is keyed by the message's number or the party's name, so a fault plan is
reproducible to the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

from hansa.errors import ConfigError
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.message import Message
from hansa.rng import Key


@dataclass(frozen=True)
class Device:
    """What a party runs on.

    Args:
        examples_per_second: training speed; infinite takes no virtual time.
        up, down: link speeds in bytes a second; infinite takes no time.
        latency: seconds that every message needs besides.
        available: windows (from, until) in seconds, inside a period of ``period`` seconds, in which the party is reachable;
            empty means always. What is sent to it outside them is lost, what it sends waits for the next window.
        period: the length after which the windows repeat; infinite means never.
    """

    examples_per_second: float = math.inf
    up: float = math.inf
    down: float = math.inf
    latency: float = 0.0
    available: tuple[tuple[float, float], ...] = ()
    period: float = math.inf

    def __post_init__(self) -> None:
        for name in ("examples_per_second", "up", "down", "period"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"Device: {name} must be positive, not {value}")
        if not (math.isfinite(self.latency) and self.latency >= 0):
            raise ConfigError(f"Device: latency must be a number of seconds, not {self.latency}")
        for start, end in self.available:
            if not 0 <= start < end <= self.period:
                raise ConfigError(f"Device: the window ({start}, {end}) must have 0 <= from < until <= period")

    def next_available(self, time: float) -> float:
        """The first moment from ``time`` on at which the party is reachable; infinite if never again."""
        if not self.available:
            return time
        base = 0.0 if math.isinf(self.period) else math.floor(time / self.period) * self.period
        for cycle in (base, base + self.period):
            for start, end in sorted(self.available):
                if math.isfinite(cycle) and time < cycle + end:
                    return max(time, cycle + start)
        return math.inf


@dataclass(frozen=True)
class Devices:
    """A fleet: kinds of devices and their shares; each party's kind is drawn by its name.

    Args:
        kinds: (share, device) pairs; shares are positive and need not sum to 1.
        named: devices of single parties, by name.
    """

    kinds: tuple[tuple[float, Device], ...] = ()
    named: Mapping[str, Device] | None = None

    def __post_init__(self) -> None:
        if any(not share > 0 for share, _ in self.kinds):
            raise ConfigError("Devices: every share must be positive")

    def of(self, name: str, key: Key) -> Device:
        """The device of the party called ``name``."""
        if self.named and name in self.named:
            return self.named[name]
        if not self.kinds:
            return _IDEAL
        draw = _uniform(key.child("device/" + name)) * sum(share for share, _ in self.kinds)
        for share, device in self.kinds:
            draw -= share
            if draw < 0:
                return device
        return self.kinds[-1][1]


@dataclass(frozen=True)
class Crash:
    """A party's process dies at ``at`` seconds; it restarts from its last save ``restart`` seconds later, or never.

    What reaches it while it is down is lost; what it had sent before still arrives.
    """

    party: str
    at: float
    restart: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at < math.inf:
            raise ConfigError(f"Crash: at must be a number of seconds from 0 on, not {self.at}")
        if self.restart is not None and not 0 <= self.restart < math.inf:
            raise ConfigError(f"Crash: restart must be a number of seconds after the crash, not {self.restart}")


@dataclass(frozen=True)
class Partition:
    """From ``start`` until ``end`` the named parties cannot reach anybody outside their group, nor be reached.

    A message is lost if it leaves its sender in that time.
    """

    parties: tuple[str, ...]
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ConfigError(f"Partition: ({self.start}, {self.end}) must have 0 <= start <= end")


@dataclass(frozen=True)
class FaultPlan:
    """What goes wrong, as data.

    Args:
        drop: the probability that a message is lost.
        duplicate: the probability that a message arrives twice.
        delay: (least, most) extra seconds, drawn evenly for each message.
        crashes: processes that die.
        partitions: groups cut off for a time.
        only: names of message classes that drop, duplicate and delay apply to; empty for all.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)
    crashes: tuple[Crash, ...] = ()
    partitions: tuple[Partition, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("drop", self.drop), ("duplicate", self.duplicate)):
            if not 0 <= value <= 1:
                raise ConfigError(f"FaultPlan: {name} is a probability, so from 0 to 1, not {value}")
        low, high = self.delay
        if not (0 <= low <= high < math.inf):
            raise ConfigError(
                f"FaultPlan: delay must be (least, most) seconds with 0 <= least <= most, not {self.delay}"
            )


_IDEAL: Final = Device()


@final
class Network:
    """Times every message and every piece of work.

    Args:
        faults: what goes wrong.
        devices: what the parties run on.
        key: the root of the faults' and the fleet's draws.
        epochs, batch_size: the learner's own, which a call to train stands for unless its work says otherwise; a batch size
            of 0 is not known.
    """

    def __init__(self, faults: FaultPlan, devices: Devices, key: Key, epochs: int = 1, batch_size: int = 0) -> None:
        self.faults = faults
        self.devices = devices
        self.key = key
        self.epochs = epochs
        self.batch_size = batch_size
        self.down: set[str] = set()
        self.dropped = 0
        self._known: dict[str, Device] = {}

    def device(self, name: str) -> Device:
        """The device of a party, remembered."""
        device = self._known.get(name)
        if device is None:
            device = self._known[name] = self.devices.of(name, self.key)
        return device

    def arrivals(
        self, now: float, sequence: int, sender: str, to: str, nbytes: int, kind: type[Message]
    ) -> list[float]:
        """When a message sent now arrives: no time if it is lost, two if it is doubled."""
        source, target = self.device(sender), self.device(to)
        leaves = source.next_available(now)
        arrival = leaves + source.latency + target.latency + nbytes / source.up + nbytes / target.down
        faults = self.faults
        touched = not faults.only or kind.__name__ in faults.only
        if not math.isfinite(arrival):
            return self._lost()
        if any((sender in p.parties) != (to in p.parties) and p.start <= leaves < p.end for p in faults.partitions):
            return self._lost()
        times = [arrival]
        if touched and (faults.drop or faults.duplicate or faults.delay[1]):
            lost, doubled, first, second = self.key.child("message", sequence).generator().random(4)
            if lost < faults.drop:
                return self._lost()
            low, high = faults.delay
            times = [arrival + low + (high - low) * first]
            if doubled < faults.duplicate:
                times.append(arrival + low + (high - low) * second)
        reached = [time for time in times if target.next_available(time) == time]
        self.dropped += len(times) - len(reached)
        return reached

    def compute_seconds(self, name: str, arguments: tuple[object, ...]) -> float:
        """How long a party's device works: the examples that it goes through, over its speed.

        To train goes through all examples once an epoch, or through a batch a step where the work asks for steps; to evaluate
        goes through them once.
        """
        device = self.device(name)
        if math.isinf(device.examples_per_second):
            return 0.0
        examples = sum(len(a) for a in arguments if isinstance(a, Examples))
        for work in arguments:
            if isinstance(work, LocalWork):
                if work.steps is not None and self.batch_size:
                    examples = work.steps * (examples if work.full_batch else min(self.batch_size, examples))
                else:
                    examples *= work.epochs or self.epochs
        return examples / device.examples_per_second

    def crashes(self) -> Iterable[tuple[float, str, float | None]]:
        """The crashes to come."""
        return [(crash.at, crash.party, crash.restart) for crash in self.faults.crashes]

    def _lost(self) -> list[float]:
        self.dropped += 1
        return []


def _uniform(key: Key) -> float:
    return int.from_bytes(key.digest[:8], "little") / 2.0**64
