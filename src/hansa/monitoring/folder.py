"""A run's folder: what it did, readable by people and programs, and from which it can go on.

::

    plan.toml           the plan that ran
    status.json         how the run stands; true at any moment
    metrics.jsonl       one record a round, with full precision
    metrics.csv         the same as a table
    parties.csv         the metrics of each evaluated party, by round
    model.safetensors   the final model, tensors by name
    messages.json       messages and bytes by class
    environment.json    versions and machine
    report.html         all of it to look at
    checkpoint.bin      where to go on from
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

from safetensors.numpy import save_file

from hansa.errors import ConfigError, ResumeError
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo
from hansa.monitoring.report import report
from hansa.monitoring.strict_json import dumps
from hansa.params import Params


@final
class RunFolder:
    """Writes a run into a folder. A tracker, and the keeper of the checkpoint.

    *Guarantees*: every file but ``metrics.jsonl`` is replaced whole, so a process that is killed at any instant leaves the
    previous or the new one; ``metrics.jsonl`` grows by a line a round, and a checkpoint knows how many of them are its own. A
    resumed run leaves the same metrics as one that was not interrupted, but for real seconds.

    Args:
        path: the folder; made if it is not there.
        resume: whether a run in it is to go on.

    Raises:
        ConfigError: it holds a run already and is not to be resumed, or cannot be made.
    """

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        if not resume and (path / "status.json").exists():
            raise ConfigError(
                f"{path} already holds a run; choose another folder, or go on with that run by resuming it"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path} cannot be made: {error.strerror}") from None
        self._records: list[RoundRecord] = []
        self._kept = b""
        self._hash, self._size = _hash(b""), 0
        self._status: dict[str, Any] = {}

    def begin(self, info: RunInfo) -> None:
        """Write what is known before the run."""
        self._replace("plan.toml", info.plan.encode())
        self._replace("environment.json", _json(environment()))
        self._status = {
            "status": "running",
            "cause": "",
            "name": info.name,
            "digest": info.digest,
            "rounds": info.rounds,
            "parties": info.parties,
            "parameters": info.parameters,
            "settings": dict(info.settings),
        }
        # What an interrupted run did after its checkpoint is done again.
        self._rewrite(self._kept)
        self._kept = b""
        self._replace("status.json", _json(self._status))

    def round(self, record: RoundRecord) -> None:
        """Append a round."""
        self._records.append(record)
        line = _line(record)
        self._hash.update(line)
        self._size += len(line)
        with (self.path / "metrics.jsonl").open("ab") as out:
            out.write(line)

    def end(self, end: RunEnd) -> None:
        """Write the tables, the true end and the report."""
        self._replace("metrics.csv", _table(_round_rows(self._records)))
        self._replace("parties.csv", _table(_party_rows(self._records)))
        self._replace("messages.json", _json(dict(sorted(end.traffic.items()))))
        self._status |= {
            "status": end.status,
            "cause": end.cause,
            "seconds": end.seconds,
            "failures": dict(end.failures),
            "baselines": {name: dict(metrics) for name, metrics in end.baselines.items()},
        }
        self._replace("status.json", _json(self._status))
        self._replace("report.html", report(self.path).encode())

    def write_model(self, params: Params) -> None:
        """Write the model's tensors by name."""
        temporary = self.path / "model.safetensors.new"
        save_file(params.tensors(), temporary)
        temporary.replace(self.path / "model.safetensors")

    def write_checkpoint(self, frame: bytes, history: Sequence[RoundRecord]) -> None:
        """Keep a snapshot, and how much of ``metrics.jsonl`` belongs to it.

        Args:
            frame: the snapshot.
            history: the records so far.
        """
        if len(history) != len(self._records):
            self._records = list(history)
            self._rewrite(b"".join(_line(record) for record in history))
        with (self.path / "metrics.jsonl").open("rb") as lines:
            os.fsync(lines.fileno())
        content = self._size.to_bytes(8, "little") + self._hash.digest() + frame
        self._replace("checkpoint.bin", _hash(content).digest() + content)

    def checkpoint(self) -> tuple[bytes, list[RoundRecord]]:
        """The last snapshot and its records; when the run begins, the metrics files are cut back to them.

        Raises:
            ResumeError: there is none, or it is damaged.
        """
        try:
            raw = (self.path / "checkpoint.bin").read_bytes()
        except OSError:
            raise ResumeError(f"{self.path} holds no checkpoint to go on from; start the run anew") from None
        checksum, content = raw[:_CHECKSUM], raw[_CHECKSUM:]
        if len(content) < 8 + _CHECKSUM or checksum != _hash(content).digest():
            raise ResumeError(f"the checkpoint in {self.path} is damaged; start the run anew")
        size, lines_checksum, frame = (
            int.from_bytes(content[:8], "little"),
            content[8:][:_CHECKSUM],
            content[8 + _CHECKSUM :],
        )
        try:
            with (self.path / "metrics.jsonl").open("rb") as lines:
                kept = lines.read(size)
        except OSError:
            kept = b""
        if _hash(kept).digest() != lines_checksum:
            raise ResumeError(
                f"metrics.jsonl in {self.path} is not what it was at the checkpoint; put it back, or start the run anew"
            )
        self._kept = kept
        self._records = [_record(line) for line in kept.splitlines()]
        return frame, list(self._records)

    def _rewrite(self, lines: bytes) -> None:
        """Make ``lines`` all that ``metrics.jsonl`` holds."""
        self._hash, self._size = _hash(lines), len(lines)
        self._replace("metrics.jsonl", lines)

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file so that at any instant there is the old one or the new one."""
        temporary = self.path / f"{name}.new"
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self.path / name)


_CHECKSUM = 16


def _hash(content: bytes) -> blake2b:
    return blake2b(content, digest_size=_CHECKSUM)


def environment() -> dict[str, Any]:
    """What the run ran on: versions, platform and cores; nothing that tells who or where."""
    packages = {}
    for name in ("hansa", "numpy", "msgspec", "torch", "scikit-learn"):
        try:
            packages[name] = version(name)
        except ModuleNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": packages,
    }


def _line(record: RoundRecord) -> bytes:
    return dumps(asdict(record)).encode() + b"\n"


def _record(line: bytes) -> RoundRecord:
    data = json.loads(line)
    parties = {name: _metrics(own) for name, own in data.pop("parties").items()}
    return RoundRecord(metrics=_metrics(data.pop("metrics")), parties=parties, **data)


def _metrics(data: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in data.items()}


def _json(data: Mapping[str, Any]) -> bytes:
    return dumps(data, indent=2).encode() + b"\n"


def _round_rows(records: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    return [{"round": r.round, "time": r.time, "seconds": r.seconds, **r.metrics, "note": r.note} for r in records]


def _party_rows(records: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    return [{"round": r.round, "party": party, **metrics} for r in records for party, metrics in r.parties.items()]


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A CSV table with every column that any row has."""
    columns = dict.fromkeys(column for row in rows for column in row)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(columns), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
