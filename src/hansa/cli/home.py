"""What the commands of a federation share: the home, the extra that they need, and times as people read them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from hansa.errors import MissingExtra

NEEDED: Final = ("grpc", "cryptography")
LEAST_CELL: Final = 24
"""Characters to which a cell is cut at most, however narrow the terminal is."""

Home = Annotated[
    Path | None, typer.Option("--home", help="Where keys and state are kept; $HANSA_HOME, or ~/.hansa, if not said.")
]


def home_of(given: Path | None, what: str) -> Path:
    """The home that a command works on.

    Raises:
        MissingExtra: what every federation needs is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise MissingExtra(what, "net")
    if given is not None:
        return given
    named = os.environ.get("HANSA_HOME")
    return Path(named) if named else Path.home() / ".hansa"


def same_home(given: Path | None) -> str:
    """What a further command needs so that it works on the same home; with a space before it."""
    return f" --home {given}" if given is not None else ""


def hint(text: str) -> None:
    """What people may want to know and programs need not: on standard error."""
    print(text, file=sys.stderr, flush=True)


def date(seconds: float | None) -> str:
    """A time of POSIX seconds, in UTC.

    >>> date(0.0), date(None)
    ('1970-01-01 00:00:00', '')
    """
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def terminal() -> int:
    """How many characters a line of the terminal has; 0 where the output goes to no terminal, which takes lines of any length."""
    return shutil.get_terminal_size((0, 0)).columns


def table(rows: Sequence[tuple[str, ...]], heads: tuple[str, ...], width: int = 0) -> str:
    """Columns of text.

    >>> print(table([("a", "bcd")], ("x", "y")))
    x  y
    a  bcd

    Args:
        rows, heads: the cells.
        width: characters of a line; the last column is cut to it, but not so far that nothing of it could be read. 0 for any.
    """
    if width:
        before = sum(max(len(row[i]) for row in [heads, *rows]) + 2 for i in range(len(heads) - 1))
        room = max(width - before, LEAST_CELL, len(heads[-1]))
        rows = [(*row[:-1], row[-1] if len(row[-1]) <= room else row[-1][: room - 3] + "...") for row in rows]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    )
