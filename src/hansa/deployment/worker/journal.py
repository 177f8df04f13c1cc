"""What the owner of a worker must remember of it: the rule by which its words become the setup of the next worker.

An owner writes each word down before it acts on it. :class:`Journal` says in memory what that must come to; an owner with a
disk keeps the same in tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from msgspec.structs import replace

from hansa.deployment.worker.frames import (
    Began,
    Body,
    Dropped,
    Ended,
    Failed,
    Letter,
    Saved,
    Sent,
    Setup,
    Step,
    Stepped,
)
from hansa.message import Message


@final
@dataclass
class Journal:
    """One party's standing in one run.

    *Law*: a worker that is started with ``setup(first)`` goes on as the one would have whose words were heard here, wherever
    the hearing stopped.

    Args:
        letters: received and not finished with, in order.
        invited: whether its last program was invited.
        over: the party started by itself, and its program has ended or failed: it needs no worker any more.
    """

    letters: list[Letter] = field(default_factory=list)
    saved: Body | None = None
    live: bool = False
    since: float = 0.0
    steps: list[Step] = field(default_factory=list)
    sent: int = 0
    time: float = 0.0
    invited: bool = False
    over: bool = False

    def received(self, letter: Letter) -> None:
        """A letter for the party is here; it is given to its worker after this."""
        self.letters.append(letter)

    def heard(self, message: Message) -> list[Body]:
        """The worker said something; returns the bodies that are needed no longer. What it sent is the owner's to keep."""
        freed: list[Body] = []
        if isinstance(message, Began):
            self._since(message.time)
            self.live = True
            self.invited = message.invited
        elif isinstance(message, Stepped):
            self.steps.append(message.step)
            self.time = message.step.time
        elif isinstance(message, Sent):
            self.sent += 1
        elif isinstance(message, Saved):
            freed = self._read() + self._save(message.body)
            self._since(message.time)
        elif isinstance(message, Dropped):
            freed = self._without({message.number})
        elif isinstance(message, Ended | Failed):
            freed = self._read() + self._save(message.saved)
            self._since(message.time)
            self.live = False
            self.over = not self.invited
        return freed

    def setup(self, first: Setup, time: float | None = None) -> Setup:
        """``first``, which began the party, as it stands now; ``time`` is what its clock reads by now, if that is known."""
        return replace(
            first,
            saved=self.saved,
            live=self.live,
            since=self.since,
            steps=list(self.steps),
            sent=self.sent,
            letters=list(self.letters),
            time=self.time if time is None else max(time, self.time),
        )

    def _since(self, time: float) -> None:
        self.since = self.time = time
        self.steps.clear()
        self.sent = 0

    def _read(self) -> list[Body]:
        """Forget the letters that the program took."""
        return self._without({step.letter for step in self.steps if step.kind == "took"})

    def _without(self, numbers: set[int]) -> list[Body]:
        gone = [letter.body for letter in self.letters if letter.number in numbers]
        self.letters = [letter for letter in self.letters if letter.number not in numbers]
        return gone

    def _save(self, body: Body | None) -> list[Body]:
        if body is None:
            return []
        before, self.saved = self.saved, body
        return [] if before is None else [before]
