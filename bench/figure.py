"""One measured figure beside its reference, and how it is printed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TypeAlias


class Unavailable(Exception):
    """A figure cannot be measured here; its message is one line that says why."""


class Disagreement(Exception):
    """What is timed and its reference do not compute the same, so a ratio would mean nothing."""


@dataclass(frozen=True)
class Figure:
    """A figure and its reference, both measured in one run.

    Args:
        name: ``suite`` or ``suite/detail``.
        value: what Hansa reached, in ``unit``.
        unit: the unit of both values.
        reference: what it is compared with, in words.
        reference_value: what the reference reached, in ``unit``.
    """

    name: str
    value: float
    unit: str
    reference: str
    reference_value: float
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", self.value / self.reference_value if self.reference_value else float("nan"))


@dataclass(frozen=True)
class Size:
    """How much a suite measures.

    Args:
        quick: a tiny run that shows that a suite works; its figures mean nothing.
    """

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """``full``, or ``quick`` in a tiny run."""
        return quick if self.quick else full


Figures: TypeAlias = list[Figure]


def as_json(figure: Figure) -> str:
    """One line with one object.

    >>> as_json(Figure("a/b", 30.0, "s", "a loop", 10.0))
    '{"name": "a/b", "value": 30.0, "unit": "s", "reference": "a loop", "reference_value": 10.0, "ratio": 3.0}'
    """
    return json.dumps(asdict(figure))


def as_text(figure: Figure) -> str:
    """One line for people.

    >>> as_text(Figure("a/b", 30.0, "s", "a loop", 10.0))
    'a/b                                   30.0 s             3.00x of a loop: 10.0'
    """
    value, reference = _digits(figure.value), _digits(figure.reference_value)
    return f"{figure.name:<28} {value:>13} {figure.unit:<11} {figure.ratio:>6.2f}x of {figure.reference}: {reference}"


def as_row(figure: Figure) -> str:
    """One row of a Markdown table, as in ``docs/benchmarks.md``.

    >>> as_row(Figure("a/b", 30.0, "s", "a loop", 10.0))
    '| `a/b` | 30.0 s | a loop: 10.0 | 3.00 |'
    """
    value, reference = _digits(figure.value), _digits(figure.reference_value)
    return f"| `{figure.name}` | {value} {figure.unit} | {figure.reference}: {reference} | {figure.ratio:.2f} |"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
