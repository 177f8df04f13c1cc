"""The message log of a run: traffic by kind, sequence diagrams, views.

Counting is exact and always on. The entries themselves are kept up to a bound, the views of the parties that were asked for
whole, and a digest over every byte when asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, NamedTuple, final

from hansa.message import Message, encode
from hansa.protocol import OBSERVER, Progress, View

KEPT: Final = 5_000
"""Entries kept unless told otherwise: a few rounds of a small federation, for diagrams."""


class Entry(NamedTuple):
    """One message that was sent: when, by whom, to whom, of which class, in how many bytes of frame."""

    time: float
    sender: str
    to: str
    kind: str
    nbytes: int


@dataclass(frozen=True)
class Traffic:
    """Messages and bytes of one class."""

    messages: int
    nbytes: int


@final
class MessageLog:
    """Takes note of every message.

    Args:
        views: the parties whose received messages are kept.
        keep: how many entries are kept.
        digest: whether to hash every frame (slow; for proofs of determinism).
    """

    def __init__(self, views: Collection[str] = (), keep: int = KEPT, digest: bool = False) -> None:
        self.entries: list[Entry] = []
        self.keep = keep
        self.counts: dict[type[Message], list[int]] = {}
        self.received: dict[str, list[tuple[str, Message]]] = {name: [] for name in views}
        # What was sent before a resumed run was cut off.
        self.before: dict[str, Traffic] = {}
        self._hash = blake2b(digest_size=32) if digest else None

    def note(self, time: float, sender: str, to: str, message: Message, nbytes: int) -> None:
        """A message was sent."""
        kind = type(message)
        count = self.counts.get(kind)
        if count is None:
            self.counts[kind] = [1, nbytes]
        else:
            count[0] += 1
            count[1] += nbytes
        if len(self.entries) < self.keep:
            self.entries.append(Entry(time, sender, to, kind.__name__, nbytes))
        if self._hash is not None:
            self._hash.update(f"{time!r} {sender} {to} ".encode())
            self._hash.update(encode(message))

    def delivered(self, to: str, letter: tuple[str, Message]) -> None:
        """A message arrived."""
        view = self.received.get(to)
        if view is not None:
            view.append(letter)

    def traffic(self) -> dict[str, Traffic]:
        """Messages and bytes by class; what goes to the observer stays with the owner and is left out."""
        sent = {
            kind.__name__: Traffic(messages, nbytes)
            for kind, (messages, nbytes) in self.counts.items()
            if kind is not Progress
        }
        known = dict.fromkeys([*self.before, *sent])
        return {name: total([t[name] for t in (self.before, sent) if name in t]) for name in known}

    def view(self, party: str) -> View:
        """What ``party`` received; it must have been named in ``views``."""
        if party not in self.received:
            raise KeyError(f"the view of {party!r} was not recorded; name it in record=")
        return View(party, tuple(self.received[party]))

    def digest(self) -> str:
        """Hex digest over time, sender, receiver and frame of every message, in order."""
        if self._hash is None:
            raise KeyError("the log was not hashed; ask for digest=True")
        return self._hash.hexdigest()


def mermaid(entries: Iterable[Entry], parties: int = 4, lines: int = 60) -> str:
    """A Mermaid sequence diagram of the first messages among the first ``parties`` parties met.

    >>> print(mermaid([Entry(0.0, "server", "client-0", "TrainTask", 2720)]))
    sequenceDiagram
        server->>client-0: TrainTask (2.7 kB)
    """
    seen: dict[str, None] = {}
    drawn: list[str] = []
    for entry in entries:
        if OBSERVER in (entry.sender, entry.to):
            continue
        for name in (entry.sender, entry.to):
            if name not in seen and len(seen) < parties:
                seen[name] = None
        if entry.sender in seen and entry.to in seen:
            drawn.append(f"    {entry.sender}->>{entry.to}: {entry.kind} ({_bytes(entry.nbytes)})")
        if len(drawn) == lines:
            break
    return "\n".join(["sequenceDiagram", *drawn])


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def total(traffic: Collection[Traffic]) -> Traffic:
    """The sum."""
    return Traffic(sum(t.messages for t in traffic), sum(t.nbytes for t in traffic))
