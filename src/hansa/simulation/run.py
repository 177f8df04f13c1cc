"""The result of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hansa.monitoring.records import RoundRecord, Status
from hansa.params import Params
from hansa.plan import Plan
from hansa.protocol import View
from hansa.simulation.log import MessageLog, Traffic, mermaid, total
from hansa.simulation.world import Failure


@dataclass(frozen=True, eq=False)
class Run:
    """What came out of :func:`hansa.simulate`.

    Args:
        plan: the plan that ran.
        status, cause: how it ended; see :data:`hansa.monitoring.Status`.
        params: the final model; None if there is none. Of a protocol without a server, the first peer's.
        results: what each starting party's program returned.
        history: a record a round.
        failures: the parties whose own programs raised, with their tracebacks.
        seconds: real time in total.
        time: virtual time at the end.
        baselines: metrics of training centrally and alone, where asked for.
        log: the message log.
        stale: messages that arrived when nobody waited for them any more.
    """

    plan: Plan
    status: Status
    cause: str
    params: Params | None
    results: Mapping[str, Any]
    history: Sequence[RoundRecord]
    failures: Sequence[Failure]
    seconds: float
    time: float
    log: MessageLog
    stale: int = 0
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The last known value of every metric."""
        return {name: value for record in self.history for name, value in record.metrics.items()}

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Messages and bytes by class."""
        return self.log.traffic()

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(round, value) pairs of a metric.

        Raises:
            KeyError: no round has that metric; names those there are.
        """
        points = [(record.round, record.metrics[metric]) for record in self.history if metric in record.metrics]
        if not points:
            raise KeyError(f"no round has the metric {metric!r}; there are: {', '.join(sorted(self.metrics))}")
        return points

    def view(self, party: str) -> View:
        """What a party received; it must have been named in ``record``."""
        return self.log.view(party)

    def diagram(self, parties: int = 4, lines: int = 60) -> str:
        """A Mermaid sequence diagram of the run's first messages."""
        return mermaid(self.log.entries, parties, lines)

    def raise_if_failed(self) -> Run:
        """This run, if it completed; otherwise the error that ended it is raised."""
        if self.error is not None:
            raise self.error
        return self

    def _compared(self) -> list[str]:
        """The federated model beside the baselines, on the central test set."""
        if not self.baselines:
            return []
        names = list(next(iter(self.baselines.values())))
        own = {name: self.metrics.get(f"test_{name}", float("nan")) for name in names}
        rows = {"federated": own, **self.baselines}
        head = "  on the central test set  " + "".join(f"{name:>10}" for name in names)
        return [head, *(f"    {row:<23}" + "".join(f"{m[name]:>10.4f}" for name in names) for row, m in rows.items())]

    def summary(self) -> str:
        """A few lines for people: how it ended, how good the model is, what it cost."""
        rounds = max((record.round for record in self.history), default=0)
        sent = total(self.traffic.values())
        lines = [
            f"{self.plan.name or 'run'}: {self.status} after {rounds} rounds in {self.seconds:.1f} s"
            + (f" (virtual time {self.time:,.0f} s)" if self.time else "")
        ]
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        shown = [name for name in self.metrics if not name.startswith("party_") and name != "contributors"]
        lines += [f"  {name:<24} {self.metrics[name]:.4f}" for name in shown]
        for name in (n for n in self.metrics if n.startswith("party_") and n.endswith("_worst_decile")):
            stem = name.removesuffix("_worst_decile")
            count = int(self.metrics.get("party_count", 0))
            lines.append(
                f"  {stem:<24} {self.metrics[stem]:.4f} over {count} parties, worst decile {self.metrics[name]:.4f}"
            )
        lines += self._compared()
        lines.append(f"  {sent.messages:,} messages, {sent.nbytes / 1e6:,.1f} MB")
        if self.failures:
            first = self.failures[0]
            lines.append(f"  {len(self.failures)} parties failed; the first, {first.party}: {first.error}")
        return "\n".join(lines)
