"""How often somebody may try: a bucket for each address, of bounded number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from hansa.errors import LinkError

_MOST: Final = 10_000
"""Addresses that are remembered; beyond, those longest unheard of are forgotten."""


@final
class Rates:
    """Counts tries per address and minute.

    Args:
        per_minute: how many are allowed.
        clock: seconds.

    >>> rates = Rates(1, lambda: 0.0)
    >>> rates.count("ipv4:10.0.0.1", "enrolments")
    >>> rates.count("ipv4:10.0.0.1", "enrolments")
    Traceback (most recent call last):
    hansa.errors.LinkError: more than 1 enrolments in a minute from one address; try again in a minute
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def count(self, address: str, what: str) -> None:
        """One more try.

        Raises:
            LinkError: it is one too many.
        """
        now = self._clock()
        left, since = self._buckets.pop(address, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + max(0.0, now - since) * self._per_minute / 60)
        allowed = left >= 1
        self._buckets[address] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST:
            self._buckets.pop(next(iter(self._buckets)))
        if not allowed:
            raise LinkError(f"more than {self._per_minute} {what} in a minute from one address; try again in a minute")
