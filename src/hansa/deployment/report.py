"""A run's files, made of what the hub keeps: the folder that a simulation writes too."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hansa.deployment.api import Event, RunView
from hansa.deployment.store import Record
from hansa.deployment.worker.frames import Result
from hansa.deployment.worker.spool import Spool
from hansa.message import decode
from hansa.monitoring.folder import RunFolder
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo, Status
from hansa.params import Params
from hansa.protocol import Progress

_STATUS: dict[str, Status] = {"completed": "completed", "stopped": "stopped", "failed": "failed"}


def write_run(folder: Path, record: Record, view: RunView, rounds: Iterable[Event], spool: Spool) -> Path:
    """Write a run's folder anew: metrics, report and, where its server ran here, the model.

    Args:
        folder: where.
        record, view: the run.
        rounds: its events of kind "round"; they are read as they are written.
        spool: where a large model lies.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = RunFolder(folder)
    params = _model(record, spool)
    owners = [seat for seat in view.participants if seat.answer == "accepted"]
    settings = {"run": record.run, "parties": [seat.party for seat in owners]}
    size = params.size if params is not None else 0
    files.begin(RunInfo(record.name, record.described.plan, view.digest, view.rounds, len(owners), size, 0, settings))
    began = before = record.started or record.created
    for event in rounds:
        if event.progress is None:
            continue
        progress = decode(event.progress, Progress)
        files.round(
            RoundRecord(
                progress.round,
                progress.metrics,
                progress.parties,
                progress.note,
                event.time - began,
                event.time - before,
            )
        )
        before = event.time
    if params is not None:
        files.write_model(params)
    ended = record.ended or before
    if record.status in _STATUS:
        files.end(RunEnd(_STATUS[record.status], record.cause, ended - began, {}))
    return folder


def _model(record: Record, spool: Spool) -> Params | None:
    if record.result is None:
        return None
    inline = record.result.inline
    frame = inline if inline is not None else memoryview(spool.map(record.result.blob))
    return decode(frame, Result).params
