"""A run on the screen: a live bar on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TextIO, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo, Tracker
from hansa.monitoring.strict_json import dumps

_FIRST = ("test_accuracy", "test_loss", "train_loss")


def progress(as_json: bool = False, stream: TextIO | None = None) -> Tracker:
    """The tracker that suits ``stream`` (standard error by default): live on a terminal, lines elsewhere."""
    if as_json:
        return JsonLines(sys.stdout)
    console = Console(file=stream or sys.stderr)
    return Live(console) if console.is_terminal else Lines(stream or sys.stderr)


@final
class Lines:
    """One plain line a round.

    >>> import sys
    >>> Lines(sys.stdout).round(RoundRecord(12, {"test_accuracy": 0.9123}, {}, "", 0.0, 0.021))
    round 12  test_accuracy 0.9123  0.02 s
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._rounds: int | None = None

    def begin(self, info: RunInfo) -> None:
        """Say what begins."""
        self._rounds = info.rounds
        again = f", from round {info.first_round}" if info.first_round else ""
        # Who only watches does not know them.
        known = [f"{info.parties:,} parties, {info.parameters:,} parameters"] if info.parties else []
        print(f"{': '.join([info.name or 'run', *known])}{again}", file=self.stream, flush=True)

    def round(self, record: RoundRecord) -> None:
        """Say how good the model is."""
        place = f"round {record.round}" + (f"/{self._rounds}" if self._rounds else "")
        note = f"  ({record.note})" if record.note else ""
        print(f"{place}  {shown(record.metrics)}  {record.seconds:.2f} s{note}", file=self.stream, flush=True)

    def end(self, end: RunEnd) -> None:
        """Say how it ended."""
        print(
            f"{end.status} in {end.seconds:.1f} s{'; ' + end.cause if end.cause else ''}", file=self.stream, flush=True
        )


@final
class JsonLines:
    """One JSON object a line: ``{"event": "begin" | "round" | "end", ...}``."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def begin(self, info: RunInfo) -> None:
        """Write what begins."""
        self._write("begin", asdict(info))

    def round(self, record: RoundRecord) -> None:
        """Write a round."""
        self._write("round", asdict(record))

    def end(self, end: RunEnd) -> None:
        """Write how it ended."""
        self._write("end", asdict(end))

    def _write(self, event: str, data: Mapping[str, Any]) -> None:
        print(dumps({"event": event, **data}), file=self.stream, flush=True)


@final
class Live:
    """A bar with the time that is left and the newest metrics."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
        )
        self._task = self._bar.add_task("run", total=None, metrics="")

    def begin(self, info: RunInfo) -> None:
        """Draw the empty bar."""
        self._bar.update(self._task, description=info.name or "run", total=info.rounds, completed=info.first_round)
        self._bar.start()

    def round(self, record: RoundRecord) -> None:
        """Move it."""
        self._bar.update(self._task, completed=record.round, metrics=shown(record.metrics))
        if record.note:
            self._bar.console.print(
                f"round {record.round}: {record.note}", style="yellow", highlight=False, markup=False
            )

    def end(self, end: RunEnd) -> None:
        """Leave it as it stands."""
        self._bar.stop()


def shown(metrics: Mapping[str, float], most: int = 3) -> str:
    """The metrics that people look at first, in one line."""
    names = [name for name in _FIRST if name in metrics]
    names += [name for name in metrics if name not in names and name.startswith(("test_", "party_", "train_"))]
    return "  ".join(f"{name} {metrics[name]:.4f}" for name in names[:most])
