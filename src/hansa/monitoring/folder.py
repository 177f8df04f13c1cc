"""A run's folder: what it did, readable by people and programs, and from which it can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hansa.errors import ConfigError, ResumeError
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo
from hansa.params import Params


class RunFolder:
    """Writes a run into ``path``."""

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path = path
        if not resume and (path / "status.json").exists():
            raise ConfigError(f"{path} already holds a run; choose another folder, or go on with it by resuming")
        path.mkdir(parents=True, exist_ok=True)

    def begin(self, info: RunInfo) -> None:
        (self.path / "plan.toml").write_text(info.plan)

    def round(self, record: RoundRecord) -> None:
        with (self.path / "metrics.jsonl").open("a") as out:
            out.write(json.dumps(asdict(record)) + "\n")

    def end(self, end: RunEnd) -> None:
        (self.path / "status.json").write_text(json.dumps({"status": end.status, "cause": end.cause}))

    def write_model(self, params: Params) -> None:
        from safetensors.numpy import save_file

        save_file(params.tensors(), self.path / "model.safetensors")

    def write_checkpoint(self, frame: bytes, history: Sequence[RoundRecord]) -> None:
        lines = json.dumps([asdict(record) for record in history]).encode()
        temporary = self.path / "checkpoint.tmp"
        temporary.write_bytes(len(lines).to_bytes(8, "little") + lines + frame)
        os.replace(temporary, self.path / "checkpoint.bin")

    def checkpoint(self) -> tuple[bytes, list[RoundRecord]]:
        try:
            raw = (self.path / "checkpoint.bin").read_bytes()
        except OSError:
            raise ResumeError(f"{self.path} holds no checkpoint to go on from") from None
        size = int.from_bytes(raw[:8], "little")
        return raw[8 + size :], [RoundRecord(**record) for record in json.loads(raw[8 : 8 + size])]
