"""Where things stand in a TOML file: mistakes and refusals name its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


@final
@dataclass(frozen=True)
class Lines:
    """The lines of a TOML file by what stands there.

    >>> lines = Lines.of("seed = 1\\n[data.hearts]\\ntest = 0.2\\n", "node.toml")
    >>> lines.find("data.hearts.test"), lines.find("data.hearts.options.target"), lines.find("policy")
    (3, 2, 0)
    >>> lines.place("data.hearts.test"), lines.place("policy")
    ('node.toml line 3', 'node.toml')

    Args:
        source: the file's name.
        numbers: the line of each table and key, by dotted path; lists count in brackets: ``aggregation[0].bound``.
    """

    source: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(text: str, source: str) -> Lines:
        """Read off headers and plain assignments; what that misses has its table's line."""
        numbers: dict[str, int] = {}
        counts: dict[str, int] = {}
        prefix = ""
        for number, line in enumerate(text.splitlines(), 1):
            header = _HEADER.match(line)
            if header:
                name = header[2].replace('"', "").replace("'", "")
                if header[1] == "[[":
                    place = counts.get(name, 0)
                    counts[name] = place + 1
                    numbers.setdefault(name, number)
                    name = f"{name}[{place}]"
                prefix = f"{name}."
                numbers.setdefault(name, number)
                continue
            assignment = _ASSIGNMENT.match(line)
            if assignment:
                numbers.setdefault(prefix + assignment[1].replace('"', "").replace("'", ""), number)
        return Lines(source, numbers)

    def find(self, place: str) -> int:
        """The line of ``place``, or of the nearest thing around it; 0 where there is none."""
        while place:
            if place in self.numbers:
                return self.numbers[place]
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        return 0

    def place(self, place: str) -> str:
        """The file and, where it is known, the line: how a sentence begins."""
        line = self.find(place)
        return f"{self.source} line {line}" if line else self.source
