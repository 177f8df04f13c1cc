"""Rosters: names in constant space, found in constant time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.party import Named, Roster


@given(st.text(max_size=5), st.integers(0, 60), st.integers(-70, 70))
def test_a_roster_is_the_list_of_its_names(prefix: str, total: int, place: int) -> None:
    roster, names = Roster(prefix, total), [f"{prefix}-{i}" for i in range(total)]
    assert list(roster) == names and len(roster) == total
    assert list(reversed(roster)) == names[::-1]
    assert roster[place:] == names[place:] and roster[:place:2] == names[:place:2]
    if -total <= place < total:
        assert roster[place] == names[place]
        assert roster.index(names[place]) == names.index(names[place])
    else:
        with pytest.raises(IndexError):
            roster[place]


@pytest.mark.parametrize(
    "name",
    ["client-10", "client--1", "client-01", "client-", "client", "-1", "server-1", "client-1 ", " client-1", "client-+1",
     "client-1_0", "client-\u0661", "client-\u00b2", "client-1e0", "CLIENT-1", "", "client-99999999999999999999999"],
)  # fmt: skip
def test_what_is_no_name_is_not_found(name: str) -> None:
    roster = Roster("client", 10)
    assert name not in roster
    with pytest.raises(ValueError, match="not in this roster"):
        roster.index(name)


def test_things_that_are_no_text_are_not_found() -> None:
    for thing in (3, None, b"client-1", ["client-1"]):
        assert thing not in Roster("client", 10)  # type: ignore[comparison-overlap]


def test_a_prefix_may_hold_a_dash() -> None:
    assert Roster("site-a", 3).index("site-a-2") == 2
    assert "site-2" not in Roster("site-a", 3)


def test_a_billion_names_cost_nothing() -> None:
    roster = Roster("client", 10**9)
    assert roster[-1] == "client-999999999" and roster.index("client-999999999") == 10**9 - 1
    assert "client-1000000000" not in roster


@given(st.lists(st.text(max_size=4), unique=True, max_size=20), st.text(max_size=4))
def test_given_names_are_found_where_they_are(names: list[str], other: str) -> None:
    roster = Named(names)
    assert list(roster) == names and len(roster) == len(names)
    for place, name in enumerate(names):
        assert roster[place] == name and roster.index(name) == place and name in roster
    if other not in names:
        assert other not in roster
        with pytest.raises(ValueError, match="not in this roster"):
            roster.index(other)


@pytest.mark.parametrize("roster", [Roster("a", 4), Named(["a-0", "a-1", "a-2", "a-3"])], ids=["numbered", "named"])
def test_a_search_keeps_to_its_range(roster: Roster | Named) -> None:
    assert roster.index("a-2", 2) == 2 and roster.index("a-2", 0, 3) == 2
    for start, stop in ((3, None), (0, 2)):
        with pytest.raises(ValueError, match="not in this roster"):
            roster.index("a-2", start, stop)
