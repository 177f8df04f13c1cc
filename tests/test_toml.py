"""The line of a thing in a TOML file is where its reader would look."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.toml import Lines

TEXT = """\
name = "x"   # name = 3
"quoted.key" = 1

[ data.hearts ]  # the data
source = "csv:a.csv"
  test=0.2
options = { target = "disease" }
list = [
  1,
]

[[aggregation]]
name = "clip"

[[aggregation]]
name = "mean"
[policy]
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("name", 1),
        ("quoted.key", 2),
        ("data.hearts", 4),
        ("data.hearts.source", 5),
        ("data.hearts.test", 6),
        ("data.hearts.options.target", 7),
        ("data.hearts.list[0]", 8),
        ("data.hearts.absent", 4),
        ("aggregation", 12),
        ("aggregation[0]", 12),
        ("aggregation[0].name", 13),
        ("aggregation[1].name", 16),
        ("aggregation[1].bound", 15),
        ("aggregation[2]", 12),
        ("policy.protocols", 17),
        ("data", 0),
        ("absent", 0),
        ("", 0),
    ],
)
def test_the_line_of_a_place(place: str, line: int) -> None:
    lines = Lines.of(TEXT, "node.toml")
    assert lines.find(place) == line
    assert lines.place(place) == (f"node.toml line {line}" if line else "node.toml")


@given(st.text(), st.text())
def test_any_text_has_lines_within_it(text: str, place: str) -> None:
    assert 0 <= Lines.of(text, "x").find(place) <= len(text.splitlines())
