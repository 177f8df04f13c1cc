"""One tree of errors, and sentences that say what, where and what to do."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa import errors
from hansa.errors import HansaError, MissingExtra, PartyFailed, PlanError, QuorumNotReached, RunError, nearest


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([ │├└─]*)([A-Z]\w+)(?: {2,}|$)", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while above and above[-1][0] >= depth:
            above.pop()
        drawn[name] = above[-1][1] if above else "Exception"
        above.append((depth, name))
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, HansaError)
    }
    assert drawn == real


def test_a_run_error_says_who_when_what_and_what_to_do() -> None:
    assert str(RunError("it broke", party="server", round=3, remedy="mend it")) == "server, round 3: it broke; mend it"
    assert str(RunError("it broke", round=0)) == "round 0: it broke"
    assert str(RunError("it broke", party="server")) == "server: it broke"
    assert str(RunError("it broke")) == "it broke"
    error = QuorumNotReached("too few", party="a", round=1, remedy="r")
    assert (error.what, error.party, error.round, error.remedy) == ("too few", "a", 1, "r")
    assert PartyFailed("x", party="p", traceback="T").traceback == "T"


def test_all_mistakes_of_a_plan_are_in_its_text() -> None:
    error = PlanError(["first", "second"], "p.toml")
    assert str(error).splitlines() == ["p.toml: first", "p.toml: second"] and error.mistakes == ("first", "second")


def test_a_missing_extra_says_how_to_get_it() -> None:
    assert "pip install 'hansa[torch]'" in str(MissingExtra("learner 'torch'", "torch"))


def test_every_error_is_documented() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert kind.__module__ != errors.__name__ or kind.__doc__, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fedvag", "did you mean 'fedavg'?"), ("FedAvg", "fedavg"), ("", "known: fedavg, fedprox"), ("zzz", "known: ")],
)
def test_the_nearest_name_is_suggested(name: str, expected: str) -> None:
    assert expected in nearest(name, ["fedprox", "fedavg"])


@given(st.text(max_size=10), st.lists(st.text(max_size=10), max_size=5))
def test_a_suggestion_is_always_something_known(name: str, known: list[str]) -> None:
    text = nearest(name, known)
    assert any(f"'{each}'" in text for each in known) or text.startswith("known: ")
