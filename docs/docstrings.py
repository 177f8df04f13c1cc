"""Turns the marks that docstrings use for a terminal and an editor into the Markdown that the pages are made of.

Roles (``:class:`~hansa.tensor.Tensor```) become code, a paragraph that ends in two colons ends in one, and a table drawn with
``====`` becomes a Markdown table.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([\w.]+)`")
_BORDER = re.compile(r"^=+(?: +=+)+$")


def markdown(text: str) -> str:
    """The Markdown of a docstring.

    >>> markdown("See :func:`~hansa.aggregation.clip`.")
    'See `clip`.'
    >>> print(markdown("=====  ====\\nnorm   then\\n=====  ====\\nzero   kept\\n=====  ===="))
    <BLANKLINE>
    | norm | then |
    | --- | --- |
    | zero | kept |
    <BLANKLINE>
    """
    text = _ROLE.sub(lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", text)
    # Doctests are not prose: two colons there may be a slice.
    lines = [line if ">>>" in line or "..." in line else re.sub(r"(?<=\S)::$", ":", line) for line in text.split("\n")]
    lines = [line for line in lines if line.strip() != "::"]
    made: list[str] = []
    while lines:
        if not _BORDER.match(lines[0].strip()):
            made.append(lines.pop(0))
            continue
        borders = [place for place, line in enumerate(lines) if _BORDER.match(line.strip())][:3]
        made.extend(_table(lines[: borders[-1] + 1]))
        del lines[: borders[-1] + 1]
    return "\n".join(made)


def _table(lines: list[str]) -> list[str]:
    """A table of two or more columns, its borders giving where they start."""
    starts = [found.start() for found in re.finditer(r"=+", lines[0])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows = [[line[start:end].strip() for start, end in spans] for line in lines if not _BORDER.match(line.strip())]
    shown = ["| " + " | ".join(row) + " |" for row in rows]
    return ["", shown[0], "| " + " | ".join("---" for _ in spans) + " |", *shown[1:], ""]


class Docstrings(griffe.Extension):
    """Applies :func:`markdown` to everything that the reference describes."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
