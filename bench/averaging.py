"""aggregation/mean: averaging 100 updates of 1.6 million float32 beside one flat in-place add loop over the same arrays.

``mean()`` gets them as messages and checks each for its length and for NaN; the loop only adds. One line is for arrays of their
own with equal weights, one for different weights, one for the rows of one batch, as a simulation has them. The last line is the
limit: the arrays read once, by the fastest thing that NumPy has for that, and nothing written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import hansa as hs
from bench.clock import alternate
from bench.figure import Disagreement, Figure, Figures, Size
from hansa.aggregation import Averaging, Contribution
from hansa.message import Message
from hansa.party import Party
from hansa.protocol import Gathering
from hansa.rng import Key
from hansa.tensor import Dense, Tensor
from hansa.threads import limit_threads

UPDATES, LENGTH, EXAMPLES = 100, 1_606_390, 18
Vector = npt.NDArray[np.float32]


class _There:
    """An effect whose result is there."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.value
        yield


class Collector(Party):
    """A party whose messages have all arrived, and that can do nothing but receive."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.name = "server"
        self.inbox = deque((f"client-{place}", message) for place, message in enumerate(messages))

    def recv(self, kind: Any, *, within: float | None, sender: str | None = None) -> Awaitable[Any]:
        """The next message."""
        return _There(self.inbox.popleft())

    def now(self) -> float:
        """No time passes."""
        return 0.0

    def send(self, to: str, message: Message) -> Awaitable[None]:
        """Not here."""
        raise NotImplementedError

    def compute(self, function: Callable[..., Any], *arguments: object) -> Awaitable[Any]:
        """Not here."""
        raise NotImplementedError

    def save(self, state: Message) -> Awaitable[None]:
        """Not here."""
        raise NotImplementedError

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Not here."""
        raise NotImplementedError

    def rng(self, label: str, *indices: int) -> Key:
        """Not here."""
        raise NotImplementedError


def measure(size: Size) -> Figures:
    """Three ways to arrive, and the limit."""
    count, length = size.of(UPDATES, 3), size.of(LENGTH, 5000)
    draws = np.random.default_rng(0)
    matrix = draws.standard_normal((count, length), dtype=np.float32)
    arrays = [np.array(row) for row in matrix]
    different = draws.integers(10, 30, count).astype(np.float64)

    def loop() -> Vector:
        total = np.zeros(length, np.float32)
        for array in arrays:
            total += array
        total *= np.float32(1 / count)
        return total

    def read() -> None:
        for array in arrays:
            np.dot(array, array)

    def apart() -> Vector:
        return _mean([Contribution(1, Tensor(array), float(EXAMPLES), {}) for array in arrays], length)

    def weighted() -> Vector:
        pairs = zip(arrays, different, strict=True)
        return _mean([Contribution(1, Tensor(array), float(weight), {}) for array, weight in pairs], length)

    def rows() -> Vector:
        batch = Dense(matrix)
        return _mean([Contribution(1, Tensor(None, batch, i), float(EXAMPLES), {}) for i in range(count)], length)

    for way in (apart, rows):
        if not np.allclose(way(), loop(), atol=1e-5):
            raise Disagreement("the mean is not what the add loop gives")
    with limit_threads(1):
        seconds = alternate(
            {"loop": loop, "apart": apart, "different": weighted, "rows": rows, "read": read}, size.of(9, 1)
        )
    against, rate = "the in-place add loop", count / seconds["loop"]
    return [
        Figure("aggregation/mean", count / seconds["apart"], "updates/s", against, rate),
        Figure("aggregation/mean/weighted", count / seconds["different"], "updates/s", against, rate),
        Figure("aggregation/mean/rows", count / seconds["rows"], "updates/s", against, rate),
        Figure("aggregation/mean/limit", count / seconds["read"], "updates/s", against, rate),
    ]


def _mean(contributions: Sequence[Contribution], length: int) -> Vector:
    """What ``mean()`` makes of the messages: the program of its collecting side, run to its end."""
    count = len(contributions)
    gathering = Gathering(
        invited={f"client-{place}": 1 for place in range(count)}, deadline=1.0, quorum=count, enough=count, size=length
    )
    aggregation = hs.mean()
    assert isinstance(aggregation, Averaging)
    program = aggregation.collect(Collector(contributions), gathering)
    try:
        program.send(None)
    except StopIteration as stop:
        delta: Vector = stop.value.value.delta
        return delta
    raise AssertionError("the collector waits, though everything has arrived")
