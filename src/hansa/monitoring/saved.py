"""A run's folder read back, whatever state the run left it in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hansa.errors import ConfigError
from hansa.monitoring.records import RoundRecord


@final
@dataclass(frozen=True)
class SavedRun:
    """What the files of a run's folder say.

    Args:
        folder: where they are.
        plan: the plan's TOML text; empty where there is none.
        status: the content of ``status.json``; empty where there is none.
        records: one a round, in order. A value that JSON has no number for is NaN.
        traffic: messages and bytes by class.
        environment: versions and machine.
        unread: how many lines of ``metrics.jsonl`` are no records.
    """

    folder: Path
    plan: str
    status: Mapping[str, Any]
    records: Sequence[RoundRecord]
    traffic: Mapping[str, Mapping[str, int]]
    environment: Mapping[str, Any]
    unread: int

    @property
    def name(self) -> str:
        """The plan's name, or the folder's."""
        return str(self.status.get("name") or self.folder.resolve().name)

    def table(self, key: str) -> dict[str, Any]:
        """A table of ``status.json``; empty where it is missing or no table."""
        value = self.status.get(key)
        return dict(value) if isinstance(value, Mapping) else {}

    def number(self, key: str) -> float | None:
        """A finite number of ``status.json``; None where it is missing or no number."""
        return finite(self.status.get(key))


def read(folder: Path) -> SavedRun:
    """Read a run's folder. A run that was killed has left some files out, or a last line half written; that is no error.

    Raises:
        ConfigError: it is no run's folder, or one of its files is no text or no JSON.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a run's folder: there is no such folder")
    if not any((folder / name).is_file() for name in ("status.json", "metrics.jsonl")):
        raise ConfigError(f"{folder} is not a run's folder: it has neither status.json nor metrics.jsonl")
    records, unread = _records(_text(folder / "metrics.jsonl"))
    traffic = {
        kind: {"messages": int(finite(counts.get("messages")) or 0), "bytes": int(finite(counts.get("bytes")) or 0)}
        for kind, counts in _object(folder / "messages.json").items()
        if isinstance(counts, Mapping)
    }
    return SavedRun(
        folder,
        _text(folder / "plan.toml"),
        _object(folder / "status.json"),
        records,
        traffic,
        _object(folder / "environment.json"),
        unread,
    )


def finite(value: object) -> float | None:
    """A finite number as a float; None for anything else.

    >>> finite(3), finite(float("nan")), finite(None), finite(True)
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def goal(metric: str) -> bool:
    """Whether a metric is one to be made better, and not a count.

    >>> goal("test_accuracy"), goal("contributors"), goal("party_count"), goal("train_steps")
    (True, False, False, False)
    """
    stem = metric.removeprefix("train_").removeprefix("test_").removeprefix("party_")
    return stem != metric and stem not in {"count", "steps", "examples"}


def series(records: Sequence[RoundRecord], metric: str) -> list[tuple[RoundRecord, float | None]]:
    """The records that have a metric, each with its value; None where that is not finite."""
    return [(record, finite(record.metrics[metric])) for record in records if metric in record.metrics]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; the run's folder is damaged") from None


def _object(path: Path) -> dict[str, Any]:
    text = _text(path)
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is not JSON; the run's folder is damaged") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object; the run's folder is damaged")
    return value


def _records(text: str) -> tuple[list[RoundRecord], int]:
    records: list[RoundRecord] = []
    unread = 0
    for line in filter(str.strip, text.split("\n")):
        record = _record(line)
        if record is None:
            unread += 1
        else:
            records.append(record)
    return records, unread


def _record(line: str) -> RoundRecord | None:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    number = finite(data.get("round")) if isinstance(data, dict) else None
    if number is None:
        return None
    parties = data.get("parties")
    return RoundRecord(
        int(number),
        _metrics(data.get("metrics")),
        {name: _metrics(own) for name, own in parties.items()} if isinstance(parties, dict) else {},
        str(data.get("note") or ""),
        finite(data.get("time")) or 0.0,
        finite(data.get("seconds")) or 0.0,
    )


def _metrics(data: object) -> dict[str, float]:
    """Numbers by name; null stands for what is not finite, and what is no number at all is left out."""
    if not isinstance(data, dict):
        return {}
    return {
        name: math.nan if (known := finite(value)) is None else known
        for name, value in data.items()
        if value is None or (isinstance(value, float | int) and not isinstance(value, bool))
    }
