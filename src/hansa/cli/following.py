"""A run of a federation on the screen, event by event."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, final

from rich.console import Console

from hansa.message import decode
from hansa.monitoring.progress import Lines, Live
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo, Status, Tracker
from hansa.monitoring.strict_json import dumps
from hansa.protocol import Progress

if TYPE_CHECKING:
    from hansa.deployment.api import Event, RunView

_ENDS: dict[str, Status] = {"completed": "completed", "stopped": "stopped", "failed": "failed"}


@final
class Following:
    """Shows what happens in a run: a bar on a terminal, lines elsewhere, JSON lines for programs.

    Args:
        run: as it was when the watching began.
        json: for programs.
    """

    def __init__(self, run: RunView, json: bool) -> None:
        self.metrics: dict[str, float] = {}
        self._json = json
        self._console = Console(file=sys.stderr, highlight=False)
        self._tracker: Tracker = Live(self._console) if self._console.is_terminal else Lines(sys.stderr)
        self._began = self._before = run.created
        self._ended = ""
        self._answers: list[str] = []
        if not json:
            self._tracker.begin(RunInfo(run.name, "", run.digest, run.rounds, 0, 0))

    def event(self, event: Event) -> None:
        """Show one."""
        if event.time < self._before and self._before == self._began:
            # A resumed run counts as made when it was resumed; what happened before is shown too.
            self._began = self._before = event.time
        progress = None if event.progress is None else decode(event.progress, Progress)
        if progress is not None:
            self.metrics.update(progress.metrics)
        if self._json:
            print(dumps(as_data(event, progress)), flush=True)
            return
        if self._ended:  # it was not the last end: the run was resumed
            self.say(self._ended)
            self._ended = ""
        if progress is not None:
            since, took = event.time - self._began, event.time - self._before
            self._before = event.time
            record = RoundRecord(progress.round, progress.metrics, progress.parties, progress.note, since, took)
            self._tracker.round(record)
        elif event.kind == "status" and event.text.partition(":")[0] in _ENDS:
            self._ended = event.text
        else:
            self.say(sentence(event))
            if event.kind == "answer":
                self._answers.append(event.text)

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if not self._json:
            self._console.print(text, markup=False, soft_wrap=True)

    def end(self, run: RunView) -> None:
        """Show how it ended, and of what: once, but for the reasons that its parties were seen to give."""
        if self._json:
            return
        end = RunEnd(
            _ENDS.get(run.status, "interrupted"), self._cause(run), (run.ended or self._before) - self._began, {}
        )
        self._tracker.end(end)
        if isinstance(self._tracker, Live):  # its bar says no more than how far it came
            Lines(sys.stderr).end(end)

    def _cause(self, run: RunView) -> str:
        status, _, told = self._ended.partition(": ")
        cause = told if status == run.status else ": ".join(filter(None, [run.party if run.cause else "", run.cause]))
        for seat in run.participants:
            if seat.reason and any(text.endswith(f": {seat.reason}") for text in self._answers):
                cause = cause.replace(f" ({seat.reason})", "")
        return cause

    def leave(self) -> None:
        """Stop showing a run that goes on."""
        if isinstance(self._tracker, Live):
            self._tracker.end(RunEnd("interrupted", "", 0.0, {}))


def as_data(event: Event, progress: Progress | None) -> dict[str, object]:
    """An event as plain data."""
    told: dict[str, object] = {
        "event": event.kind, "number": event.number, "time": event.time, "run": event.run, "party": event.party,
        "round": event.round, "text": event.text,
    }  # fmt: skip
    return told if progress is None else {**told, "metrics": progress.metrics, "parties": progress.parties}


def sentence(event: Event) -> str:
    """An event as a line for people."""
    place = ", ".join(filter(None, [event.party, "" if event.round is None else f"round {event.round}"]))
    plain = event.kind in ("status", "answer") or not place
    return event.text if plain else f"{event.kind} at {place}: {event.text}"
