"""Which large bodies leave a machine now: a few at a time, the others in the order in which they came.

Served all alike, the nodes of a round would have their model at one instant, compute at one instant and answer at one instant, and
whoever adds their answers up would begin when the last is there. Served in turns, the first computes and answers while the others
are served. A peer that takes slowly keeps nobody waiting: it goes on outside, and its place is another's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Final, final

WIDTH: Final = 2
"""Bodies at a time: while one waits for its peer, the other keeps the line busy."""
SLOW: Final = 0.05
"""Seconds that a peer may take for a piece and keep its place."""


@final
class Gate:
    """The places of one machine.

    *Guarantees*: whoever waits is let in after those who came before, each of whom holds a place for as long as its peer takes
    pieces without pause and no longer.

    >>> gate, woken = Gate(1), []
    >>> gate.enter("a", lambda: None), gate.enter("b", lambda: woken.append("b"))
    (True, False)
    >>> gate.leave("a")
    >>> woken, gate.enter("b", lambda: None)
    (['b'], True)

    Args:
        width: places.
        slow: seconds; see :data:`SLOW`.
    """

    def __init__(self, width: int = WIDTH, slow: float = SLOW) -> None:
        self._width = width
        self._slow = slow
        self._inside: set[Hashable] = set()
        self._waiting: dict[Hashable, Callable[[], None]] = {}

    def enter(self, who: Hashable, wake: Callable[[], None]) -> bool:
        """Whether ``who`` has a place; if not, ``wake`` is called when it has."""
        if who not in self._inside and len(self._inside) >= self._width:
            self._waiting.setdefault(who, wake)
            return False
        self._inside.add(who)
        return True

    def leave(self, who: Hashable) -> None:
        """Give up the place, or the wait for one."""
        self._waiting.pop(who, None)
        if who in self._inside:
            self._inside.discard(who)
            if self._waiting:
                following = next(iter(self._waiting))
                wake = self._waiting.pop(following)
                self._inside.add(following)
                wake()

    @contextlib.contextmanager
    def sending(self, who: Hashable) -> Iterator[None]:
        """While a piece is handed to its peer: if that takes long, the place is given up."""
        timer = asyncio.get_running_loop().call_later(self._slow, self.leave, who)
        try:
            yield
        finally:
            timer.cancel()
