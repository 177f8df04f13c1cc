"""Runs side by side: how good, how soon, at what cost, and what was set differently."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from hansa.errors import ConfigError, nearest
from hansa.learners.distribution import smaller_is_better
from hansa.monitoring import saved
from hansa.monitoring.chart import shorten
from hansa.monitoring.saved import SavedRun

WIDEST = 32
"""Characters of a column in text; longer values are shortened in their middle."""


@final
@dataclass(frozen=True)
class Reached:
    """When a run first met the target.

    Args:
        round: after which round.
        time: seconds on the virtual clock.
        seconds: real seconds, summed over the rounds up to it.
    """

    round: int
    time: float
    seconds: float


@final
@dataclass(frozen=True)
class Row:
    """One run.

    Args:
        folder: where it is.
        name: the plan's, or the folder's.
        status: how it ended, or "unknown" where no file says so.
        rounds: the last round that ended.
        time, seconds: virtual and real seconds in total; real seconds of an unfinished run are those of its rounds.
        messages, bytes: its traffic; None where it is not on record.
        final: the last value of each metric; None where that is not finite.
        best: the best value of each metric that can be better or worse.
        reached: when it met the target; None where it did not, or where there is none.
    """

    folder: str
    name: str
    status: str
    rounds: int
    time: float
    seconds: float
    messages: int | None
    bytes: int | None
    final: Mapping[str, float | None]
    best: Mapping[str, float]
    reached: Reached | None


@final
@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        rows: one a run, in the order asked for.
        target: the metric and the value that was to be met.
        settings: each setting that differs, with its value in each run's plan; None where a plan does not have it.
    """

    rows: tuple[Row, ...]
    target: tuple[str, float] | None
    settings: Mapping[str, tuple[Any, ...]]

    def data(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "runs": [asdict(row) for row in self.rows],
            "target": None if self.target is None else {"metric": self.target[0], "value": self.target[1]},
            "settings": {key: [_plain(value) for value in values] for key, values in self.settings.items()},
        }

    def text(self) -> str:
        """A plain table: one column a run."""
        rows = self.rows
        lines: list[list[str]] = [
            ["", *_headings(rows)],
            ["status", *(row.status for row in rows)],
            ["rounds", *(f"{row.rounds:,}" for row in rows)],
            ["real seconds", *(f"{row.seconds:,.1f}" for row in rows)],
        ]
        if any(row.time for row in rows):
            lines.append(["virtual seconds", *(f"{row.time:,.1f}" for row in rows)])
        lines += [
            ["messages", *(_count(row.messages) for row in rows)],
            ["bytes", *(_count(row.bytes) for row in rows)],
        ]
        if self.target is not None:
            lines += self._target_lines(*self.target)
        for metric in dict.fromkeys(metric for row in rows for metric in row.final):
            lines.append([metric, *(_value(row.final, metric) for row in rows)])
            if any(metric in row.best for row in rows):
                lines.append(["  best", *(_value(row.best, metric) for row in rows)])
        if self.settings:
            lines.append([])
            lines.append(["settings that differ"])
            lines += [[f"  {key}", *("-" if v is None else str(v) for v in own)] for key, own in self.settings.items()]
        elif len(rows) > 1:
            lines += [[], ["the plans are equal in every setting"]]
        return _aligned(lines)

    def _target_lines(self, metric: str, value: float) -> list[list[str]]:
        sign = "<=" if smaller_is_better(metric) else ">="
        reached = [row.reached for row in self.rows]
        lines = [[f"rounds to {metric} {sign} {value:g}", *("-" if r is None else f"{r.round:,}" for r in reached)]]
        lines.append(["  real seconds", *("-" if r is None else f"{r.seconds:,.1f}" for r in reached)])
        if any(row.time for row in self.rows):
            lines.append(["  virtual seconds", *("-" if r is None else f"{r.time:,.1f}" for r in reached)])
        return lines


def compare(folders: Sequence[Path], target: tuple[str, float] | None = None) -> Comparison:
    """Compare runs by what their folders hold.

    Args:
        folders: of the runs.
        target: a metric and a value. It is met by the first round whose value is at least that good: as small for a loss or
            an error, as great for anything else.

    Raises:
        ConfigError: a folder is no run's or is damaged, there is none, or no run has the target's metric.
    """
    if not folders:
        raise ConfigError("there is nothing to compare: name the folders of runs")
    runs = [saved.read(Path(folder)) for folder in folders]
    if target is not None:
        known = {metric for run in runs for record in run.records for metric in record.metrics}
        if saved.finite(target[1]) is None:
            raise ConfigError(f"the target of {target[0]} must be a finite number, not {target[1]}")
        if target[0] not in known:
            hint = nearest(target[0], known) if known else "no round of them is on record"
            raise ConfigError(f"none of these runs has the metric {target[0]!r}; {hint}")
    return Comparison(tuple(_row(run, target) for run in runs), target, _differences([_settings(run) for run in runs]))


def _row(run: SavedRun, target: tuple[str, float] | None) -> Row:
    records = run.records
    final: dict[str, float | None] = {}
    best: dict[str, float] = {}
    for record in records:
        for metric, raw in record.metrics.items():
            value = final[metric] = saved.finite(raw)
            if value is not None and saved.goal(metric):
                better = min if smaller_is_better(metric) else max
                best[metric] = better(best.get(metric, value), value)
    seconds = run.number("seconds")
    return Row(
        folder=str(run.folder),
        name=run.name,
        status=str(run.status.get("status") or "unknown"),
        rounds=max((record.round for record in records), default=0),
        time=max((record.time for record in records), default=0.0),
        seconds=sum(record.seconds for record in records) if seconds is None else seconds,
        messages=sum(counts["messages"] for counts in run.traffic.values()) if run.traffic else None,
        bytes=sum(counts["bytes"] for counts in run.traffic.values()) if run.traffic else None,
        final=final,
        best=best,
        reached=None if target is None else _reached(run, *target),
    )


def _reached(run: SavedRun, metric: str, goal: float) -> Reached | None:
    small = smaller_is_better(metric)
    seconds = 0.0
    for record in run.records:
        seconds += record.seconds
        value = saved.finite(record.metrics.get(metric))
        if value is not None and (value <= goal if small else value >= goal):
            return Reached(record.round, record.time, seconds)
    return None


def _settings(run: SavedRun) -> dict[str, Any]:
    """The plan's settings by dotted key, and how the run was simulated where that is on record."""
    try:
        plan = tomllib.loads(run.plan)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{run.folder / 'plan.toml'} is not TOML: {error}; the run's folder is damaged") from None
    # How many workers there were changes nothing but real seconds, which are machine's matter anyway.
    how = {key: value for key, value in run.table("settings").items() if key != "workers"}
    return {**flat(plan), **flat(how, "simulation.")}


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted keys; places of tables in a list are in brackets.

    >>> flat({"seed": 1, "learner": {"optimizer": {"rate": 0.1}}, "aggregation": [{"name": "clip"}]})
    {'seed': 1, 'learner.optimizer.rate': 0.1, 'aggregation[0].name': 'clip'}
    """
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for place, item in enumerate(value):
                found |= flat(item, f"{prefix}{key}[{place}].")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    keys = dict.fromkeys(key for own in settings for key in own)
    values = {key: tuple(own.get(key) for own in settings) for key in keys}
    # By their texts: 1 and 1.0 and true are equal in Python and are not in a plan.
    return {key: own for key, own in values.items() if len({repr(value) for value in own}) > 1}


def _plain(value: Any) -> Any:
    """What JSON can say; a date or a number that is not finite becomes its text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool) or saved.finite(value) is not None else str(value)


def _headings(rows: Sequence[Row]) -> list[str]:
    """The runs' names; where two are the same, their folders tell them apart."""
    names = [row.name for row in rows]
    return [row.folder if names.count(row.name) > 1 else row.name for row in rows]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _value(values: Mapping[str, float | None], metric: str) -> str:
    if metric not in values:
        return "-"
    value = values[metric]
    return "not finite" if value is None else f"{value:,.4f}" if abs(value) < 1e9 else f"{value:.4g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    # A name may hold anything; a table has one line a row.
    cut = [[line[0], *(shorten(" ".join(cell.split()), WIDEST) for cell in line[1:])] if line else [] for line in lines]
    columns = max(len(line) for line in cut)
    widths = [
        max((len(line[place]) for line in cut if len(line) > max(place, 1)), default=0) for place in range(columns)
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(widths[place]) if place == 0 else cell.rjust(widths[place]) for place, cell in enumerate(line)
        ).rstrip()
        for line in cut
    )
