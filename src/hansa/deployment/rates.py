"""How often somebody may try: a bucket for each address, or for each member, of bounded number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from hansa.errors import LinkError

_MOST: Final = 10_000
"""Those who are remembered; beyond, whoever is longest unheard of is forgotten."""


@final
class Rates:
    """Counts tries per minute of each address, or of each member.

    Args:
        per_minute: how many are allowed.
        clock: seconds.
        of: how a refusal calls whoever tries.

    >>> rates = Rates(1, lambda: 0.0)
    >>> rates.count("ipv4:10.0.0.1", "enrolments")
    >>> rates.count("ipv4:10.0.0.1", "enrolments")
    Traceback (most recent call last):
    hansa.errors.LinkError: more than 1 enrolments in a minute from one address; try again in a minute
    """

    def __init__(self, per_minute: int, clock: Callable[[], float], of: str = "address") -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._of = of
        self._buckets: dict[str, tuple[float, float, int]] = {}

    def count(self, who: str, what: str) -> None:
        """One more try.

        Raises:
            LinkError: it is one too many.
        """
        if self.take(who) is None:
            raise LinkError(
                f"more than {self._per_minute} {what} in a minute from one {self._of}; try again in a minute"
            )

    def take(self, who: str) -> int | None:
        """One more try: how many were too many since the last that was not; None if this is one too many."""
        now = self._clock()
        left, since, missed = self._buckets.pop(who, (float(self._per_minute), now, 0))
        left = min(float(self._per_minute), left + max(0.0, now - since) * self._per_minute / 60)
        allowed = left >= 1
        self._buckets[who] = (left - 1, now, 0) if allowed else (left, now, missed + 1)
        if len(self._buckets) > _MOST:
            self._buckets.pop(next(iter(self._buckets)))
        return missed if allowed else None
