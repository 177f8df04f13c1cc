"""Checks of the numbers a user writes: one sentence that names the place, the rule and the value."""

from __future__ import annotations

import math

from hansa.errors import ConfigError, nearest


def real(place: str, value: object) -> float:
    """``value`` as a finite number.

    Raises:
        ConfigError: it is not a number, or NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{place} must be a finite number, not {value!r}")
    return float(value)


def positive(place: str, value: object) -> None:
    """Check that ``value`` is a number above zero.

    >>> positive("SGD.learning_rate", 0.0)
    Traceback (most recent call last):
    hansa.errors.ConfigError: SGD.learning_rate must be above 0, not 0.0
    """
    if real(place, value) <= 0:
        raise ConfigError(f"{place} must be above 0, not {value!r}")


def not_negative(place: str, value: object) -> None:
    """Check that ``value`` is a number that is zero or above."""
    if real(place, value) < 0:
        raise ConfigError(f"{place} must be 0 or above, not {value!r}")


def in_unit(place: str, value: object, *, zero: bool = True, one: bool = True) -> None:
    """Check that ``value`` is in the unit interval, whose ends count where ``zero`` and ``one`` say so."""
    number = real(place, value)
    if not ((number > 0 or (zero and number == 0)) and (number < 1 or (one and number == 1))):
        interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
        raise ConfigError(f"{place} must be in {interval}, not {value!r}")


def count(place: str, value: object, least: int = 1) -> None:
    """Check that ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{place} must be a whole number of at least {least}, not {value!r}")


def choice(place: str, value: object, known: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``known``."""
    if value not in known:
        raise ConfigError(f"{place} {value!r} is unknown; {nearest(str(value), known)}")
