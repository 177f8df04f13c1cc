"""What the hub and a node count, in the text format that Prometheus reads.

The numbers are plain Python values; the client library of Prometheus writes them down, and is imported when they are asked for.

*Guarantee*: the number of series is bounded. A label's values are listed beforehand, or are bounded in number, and any other
value is counted as ``"other"``; a peer that invents values makes no series. Labels hold what this process knows by itself (a
direction, a status, a reason, the tag of a message class), never the name of a peer.

Source: Prometheus documentation, Exposition formats, text format 0.0.4.
"""

from __future__ import annotations

import bisect
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias, final

from hansa.errors import MissingExtra

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Labels: TypeAlias = Mapping[str, tuple[str, ...] | int]
"""Label names, each with its values, or with how many different ones it may take."""

OTHER: Final = "other"
"""The value of a label that was given one too many, or one that no label should have."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds of the histogram's buckets: from a round of a small model on one machine to one of half an hour."""

_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,63}", re.ASCII)


@dataclass
class _Series:
    """The numbers of one name, by the values of its labels."""

    name: str
    about: str
    labels: Labels
    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    seen: dict[str, set[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        listed = [known for known in self.labels.values() if not isinstance(known, int)]
        if len(listed) == len(self.labels) <= 1:
            self.values.update(dict.fromkeys(((value,) for value in listed[0]) if listed else ((),), 0.0))

    def at(self, given: Sequence[str]) -> tuple[str, ...]:
        """The labels' values that are counted for those given."""
        if len(given) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {list(self.labels)}, not {len(given)} of them")
        return tuple(
            self._known(name, known, value) for (name, known), value in zip(self.labels.items(), given, strict=True)
        )

    def _known(self, name: str, known: tuple[str, ...] | int, value: str) -> str:
        if not isinstance(known, int):
            return value if value in known else OTHER
        seen = self.seen.setdefault(name, set())
        if value in seen:
            return value
        if len(seen) >= known or not _VALUE.fullmatch(value):
            return OTHER
        seen.add(value)
        return value

    def change(self, given: Sequence[str], amount: float, keep: float) -> None:
        with self.lock:
            where = self.at(given)
            self.values[where] = keep * self.values.get(where, 0.0) + amount

    def snapshot(self) -> list[tuple[tuple[str, ...], float]]:
        with self.lock:
            return sorted(self.values.items())


@final
class Counter:
    """A number that only grows.

    >>> refusals = Counter("hansa_refusals_total", "Refusals.", {"reason": ("revoked", "expired")})
    >>> refusals.add("revoked")
    >>> refusals.add("no such reason", by=2)
    >>> refusals.value("revoked"), refusals.value("other")
    (1.0, 2.0)
    """

    def __init__(self, name: str, about: str, labels: Labels | None = None) -> None:
        self._series = _Series(name, about, labels or {})

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Grow by ``by``, which is finite and not negative."""
        if not 0.0 <= by < math.inf:
            raise ValueError(f"{self._series.name} grows by {by}: a counter never shrinks")
        self._series.change(labels, by, 1.0)

    def value(self, *labels: str) -> float:
        """What was counted for these values of the labels."""
        return self._series.values.get(labels, 0.0)

    def families(self) -> Iterable[Metric]:
        """What the exposition writes."""
        from prometheus_client.metrics_core import CounterMetricFamily

        family = CounterMetricFamily(self._series.name, self._series.about, labels=list(self._series.labels))
        for labels, value in self._series.snapshot():
            family.add_metric(labels, value)
        return [family]


@final
class Gauge:
    """A number that goes up and down."""

    def __init__(self, name: str, about: str, labels: Labels | None = None) -> None:
        self._series = _Series(name, about, labels or {})

    def set(self, value: float, *labels: str) -> None:
        """Be ``value`` from now on."""
        self._series.change(labels, value, 0.0)

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Go up by ``by``, or down where it is negative."""
        self._series.change(labels, by, 1.0)

    def value(self, *labels: str) -> float:
        """What it is for these values of the labels."""
        return self._series.values.get(labels, 0.0)

    def families(self) -> Iterable[Metric]:
        """What the exposition writes."""
        from prometheus_client.metrics_core import GaugeMetricFamily

        family = GaugeMetricFamily(self._series.name, self._series.about, labels=list(self._series.labels))
        for labels, value in self._series.snapshot():
            family.add_metric(labels, value)
        return [family]


@final
class Histogram:
    """How often a quantity fell into each of a few ranges.

    Args:
        bounds: upper bounds of the ranges, ascending; one without a bound follows them.
    """

    def __init__(self, name: str, about: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.about, self.bounds = name, about, tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one ``value``, which is finite."""
        if not math.isfinite(value):
            raise ValueError(f"{self.name} was given {value}, which no sum survives")
        with self._lock:
            self._counts[bisect.bisect_left(self.bounds, value)] += 1
            self._sum += value

    def families(self) -> Iterable[Metric]:
        """What the exposition writes: of each range the count of all up to its bound."""
        from prometheus_client.metrics_core import HistogramMetricFamily

        with self._lock:
            totals, whole = list(accumulate(self._counts)), self._sum
        buckets = [
            ("+Inf" if b == math.inf else str(float(b)), float(n))
            for b, n in zip((*self.bounds, math.inf), totals, strict=True)
        ]
        family = HistogramMetricFamily(self.name, self.about)
        family.add_metric([], buckets, whole)
        return [family]


_DIRECTIONS: Final = ("in", "out")


@final
class Metrics:
    """All that one process counts; a process makes one and hands it to its parts.

    >>> metrics = Metrics()
    >>> metrics.runs.set(2, "running")
    >>> metrics.messages.add("in", "fedavg.update/1")
    >>> metrics.bytes.add("in", by=2048)
    >>> print([line for line in metrics.text().splitlines() if line.startswith("hansa_messages_total")][0])
    hansa_messages_total{class="fedavg.update/1",direction="in"} 1.0
    """

    def __init__(self) -> None:
        sent: Labels = {"direction": _DIRECTIONS, "class": 128}
        moved: Labels = {"direction": _DIRECTIONS}
        self.runs = Gauge("hansa_runs", "Runs by status.", {"status": 16})
        self.workers = Gauge("hansa_workers", "Worker processes alive.")
        self.nodes_connected = Gauge("hansa_nodes_connected", "Nodes with a standing stream to this hub.")
        self.link_connected = Gauge("hansa_link_connected", "1 while this node's stream to its hub stands.")
        self.waiting = Gauge("hansa_messages_waiting", "Messages kept for parties that have not taken them.")
        self.spool_bytes = Gauge("hansa_spool_bytes", "Bytes of the files in the spool.")
        self.certificate_end = Gauge("hansa_certificate_end_seconds", "POSIX time at which the own certificate ends.")
        self.rounds = Counter("hansa_rounds_total", "Rounds ended.")
        self.messages = Counter("hansa_messages_total", "Messages by direction and class.", sent)
        self.bytes = Counter("hansa_bytes_total", "Bytes of messages by direction.", moved)
        self.duplicates = Counter("hansa_duplicates_total", "Messages that came again and were not counted again.")
        self.refusals = Counter("hansa_refusals_total", "What was refused, by reason.", {"reason": 64})
        self.reconnects = Counter("hansa_link_reconnects_total", "Streams made again after one was lost.")
        self.worker_restarts = Counter("hansa_worker_restarts_total", "Workers brought back after one was lost.")
        self.failures = Counter("hansa_run_failures_total", "Runs that failed, by cause.", {"cause": 32})
        self.round_seconds = Histogram("hansa_round_seconds", "Seconds from a round's beginning to its end.")

    def collect(self) -> Iterable[Metric]:
        """Every family; the collector's one method, as the client library wants it."""
        return [family for one in vars(self).values() for family in one.families()]

    def text(self) -> str:
        """All numbers in the text exposition format.

        Raises:
            MissingExtra: the client library is not installed.
        """
        try:
            from prometheus_client import generate_latest
        except ImportError:
            raise MissingExtra("the metrics endpoint", "net") from None
        return generate_latest(self).decode("utf-8")
