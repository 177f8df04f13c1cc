"""Run folders written by hand, in any state of completeness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLAN = """name = "digits"
seed = 7

[protocol]
name = "fedavg"
rounds = 3

[[aggregation]]
name = "clip"
bound = 10.0

[[aggregation]]
name = "mean"
"""


def record(round: int, metrics: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"round": round, "metrics": metrics, "parties": {}, "note": "", "time": 0.0, "seconds": 0.5, **more}


def write(
    folder: Path,
    records: Sequence[Mapping[str, Any]] = (),
    plan: str = PLAN,
    status: Mapping[str, Any] | None = None,
    traffic: Mapping[str, Any] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "plan.toml").write_text(plan)
    said = {"status": "completed", "cause": "", "name": "digits", **(status or {})}
    (folder / "status.json").write_text(json.dumps(said))
    if traffic is not None:
        (folder / "messages.json").write_text(json.dumps(traffic))
    return folder


CURVE = [record(0, {"test_accuracy": 0.1, "test_loss": 2.3}), record(1, {"test_accuracy": 0.5, "test_loss": 1.0})]
