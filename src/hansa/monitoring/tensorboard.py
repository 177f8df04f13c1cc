"""A run in TensorBoard: scalars by round, and the plan as text. Needs neither TensorFlow nor PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from hansa.errors import MissingExtra
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo


@final
class TensorBoard:
    """Writes event files; look at them with ``tensorboard --logdir FOLDER``.

    A run that goes on in the same folder takes back the rounds that it repeats. Non-finite values are written as they are.

    Args:
        folder: where the event files go; made if it is not there.
        clock: seconds since the epoch.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.time) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.plugins.text import metadata
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
            from tensorboard.util import tensor_util
        except ImportError:
            raise MissingExtra("the TensorBoard tracker", "tensorboard") from None
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._text: Any = metadata
        self._tensors: Any = tensor_util
        self._open: Any = EventFileWriter
        self._writer: Any = None
        self._folder = Path(folder)
        self._clock = clock
        self._last = 0

    def begin(self, info: RunInfo) -> None:
        """Open a file, and write what is known before the run."""
        self._writer = self._open(str(self._folder))
        if info.first_round:
            log = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(info.first_round + 1, session_log=log)
        self._last = info.first_round
        self._add_text("plan", f"```toml\n{info.plan}\n```", 0)
        facts = {"digest": info.digest, "parties": info.parties, "parameters": info.parameters}
        self._add_text("run", "\n".join(f"- {name}: {value}" for name, value in facts.items()), 0)

    def round(self, record: RoundRecord) -> None:
        """Write a round's metrics under their own names, and its clocks under ``time/``."""
        self._last = record.round
        self._add_scalars(
            {**record.metrics, "time/virtual_seconds": record.time, "time/real_seconds": record.seconds}, record.round
        )
        if record.note:
            self._add_text("notes", record.note, record.round)
        self._writer.flush()

    def end(self, end: RunEnd) -> None:
        """Write how it ended, and close the file."""
        self._add_text("end", f"{end.status}{': ' if end.cause else ''}{end.cause}", self._last)
        for kind, counts in end.traffic.items():
            self._add_scalars({f"traffic/{kind}/{unit}": float(count) for unit, count in counts.items()}, self._last)
        for name, metrics in end.baselines.items():
            self._add_scalars({f"baseline/{name}/{metric}": value for metric, value in metrics.items()}, self._last)
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=self._clock(), step=step, **content))

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=self._summaries.Summary(value=scalars))

    def _add_text(self, tag: str, content: str, step: int) -> None:
        value = self._summaries.Summary.Value(
            tag=tag,
            metadata=self._text.create_summary_metadata(display_name=tag, description=""),
            tensor=self._tensors.make_tensor_proto(content.encode(), shape=()),
        )
        self._add(step, summary=self._summaries.Summary(value=[value]))
