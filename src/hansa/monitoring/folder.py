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
from hansa.params import Params


@final
class RunFolder:
    """Writes a run into a folder. A tracker, and the keeper of the checkpoint.

    *Guarantees*: ``status.json``, the model and the checkpoint are replaced whole, so a process that is killed at any instant
    leaves the previous or the new one; a resumed run leaves the same metrics as one that was not interrupted, but for real
    seconds.

    Args:
        path: the folder; made if it is not there.
        resume: whether a run in it is to go on.

    Raises:
        ConfigError: it holds a run already and is not to be resumed, or cannot be written.
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
        self._replace("status.json", _json(self._status))
        if not self._records:
            (self.path / "metrics.jsonl").write_bytes(b"")

    def round(self, record: RoundRecord) -> None:
        """Append a round."""
        self._records.append(record)
        with (self.path / "metrics.jsonl").open("ab") as out:
            out.write(_line(record))

    def end(self, end: RunEnd) -> None:
        """Write the tables, the true end and the report."""
        _write_table(self.path / "metrics.csv", _round_rows(self._records))
        _write_table(self.path / "parties.csv", _party_rows(self._records))
        self._replace("messages.json", _json(end.traffic))
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
        """Keep a snapshot and the records up to it."""
        lines = json.dumps([asdict(record) for record in history]).encode()
        content = len(lines).to_bytes(8, "little") + lines + frame
        self._replace("checkpoint.bin", _checksum(content) + content)

    def checkpoint(self) -> tuple[bytes, list[RoundRecord]]:
        """The last snapshot and its records; the metrics files are cut back to them.

        Raises:
            ResumeError: there is none, or it is damaged.
        """
        try:
            raw = (self.path / "checkpoint.bin").read_bytes()
        except OSError:
            raise ResumeError(f"{self.path} holds no checkpoint to go on from; start the run anew") from None
        checksum, raw = raw[:_CHECKSUM], raw[_CHECKSUM:]
        if checksum != _checksum(raw):
            raise ResumeError(f"the checkpoint in {self.path} is damaged; start the run anew")
        size = int.from_bytes(raw[:8], "little")
        try:
            records = [RoundRecord(**record) for record in json.loads(raw[8 : 8 + size])]
        except (ValueError, TypeError):
            raise ResumeError(f"the checkpoint in {self.path} is damaged; start the run anew") from None
        self._records = list(records)
        self._replace("metrics.jsonl", b"".join(_line(record) for record in records))
        return raw[8 + size :], records

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file so that at any instant there is the old one or the new one."""
        temporary = self.path / f"{name}.new"
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self.path / name)


_CHECKSUM = 16


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM).digest()


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
    return json.dumps(_finite(asdict(record)), separators=(",", ":")).encode() + b"\n"


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(_finite(data), indent=2, default=str).encode() + b"\n"


def _finite(data: Any) -> Any:
    """JSON has no NaN: what is no number is null."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _round_rows(records: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    return [{"round": r.round, "time": r.time, "seconds": r.seconds, **r.metrics, "note": r.note} for r in records]


def _party_rows(records: Iterable[RoundRecord]) -> list[dict[str, Any]]:
    return [{"round": r.round, "party": party, **metrics} for r in records for party, metrics in r.parties.items()]


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV table with every column that any row has."""
    columns = dict.fromkeys(column for row in rows for column in row)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
