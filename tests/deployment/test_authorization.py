"""The whole matrix of rights, against a table written out here by itself; and names that try to be somebody else's."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment.authorization import KINDS, RIGHTS, THINGS, VERBS, WHOSE, Object, allow, may, refuse, whose
from hansa.errors import NotAuthorized

# o: one's own, p: of a run one is a party of, x: somebody else's, f: the federation's.
EXPECTED = """
operator   run         submit   o---
operator   run         see      opxf
operator   run         watch    opxf
operator   run         stop     opxf
operator   run         resume   opxf
operator   run         forget   opxf
operator   run         approve  opxf
operator   model       fetch    opxf
operator   metrics     see      opxf
operator   metrics     watch    opxf
operator   metrics     fetch    opxf
operator   logs        see      opxf
operator   member      renew    o---
operator   member      see      opxf
operator   member      revoke   opxf
operator   invitation  see      opxf
operator   invitation  invite   opxf
operator   invitation  revoke   opxf
operator   audit       see      opxf
operator   link        see      opxf
submitter  run         submit   o---
submitter  run         see      o---
submitter  run         watch    o---
submitter  run         stop     o---
submitter  run         resume   o---
submitter  run         forget   o---
submitter  model       fetch    o---
submitter  metrics     see      o---
submitter  metrics     watch    o---
submitter  metrics     fetch    o---
submitter  logs        see      o---
observer   run         see      opxf
observer   run         watch    opxf
observer   metrics     see      opxf
observer   metrics     watch    opxf
observer   metrics     fetch    opxf
node       run         see      -p--
node       run         approve  -p--
node       model       fetch    -p--
node       metrics     see      -p--
node       metrics     fetch    -p--
node       member      renew    o---
node       link        link     o---
invited    invitation  enrol    o---
"""
LETTERS = {"o": "own", "p": "part", "x": "other", "f": "federation"}
VERBS_HERE = [
    "see",
    "submit",
    "watch",
    "stop",
    "resume",
    "forget",
    "approve",
    "fetch",
    "invite",
    "revoke",
    "enrol",
    "renew",
    "link",
]
THINGS_HERE = ["run", "model", "metrics", "logs", "member", "invitation", "audit", "link"]
KINDS_HERE = ["operator", "submitter", "node", "observer", "invited", "hub"]

ALLOWED = {
    (kind, thing, verb, LETTERS[letter])
    for kind, thing, verb, letters in (line.split() for line in EXPECTED.split("\n") if line)
    for letter in letters
    if letter != "-"
}

ME = "hospital-a"


def object_of(kind: str, thing: str, relation: str) -> Object:
    """An object that is ``kind`` ME's in the way of ``relation``, by construction and not by asking the code."""
    owner = {"own": (kind, ME), "part": ("submitter", "bob"), "other": ("submitter", "bob"), "federation": None}[
        relation
    ]
    return Object(thing, owner, frozenset({ME, "hospital-b"}) if relation == "part" else frozenset({"hospital-b"}))


@pytest.mark.parametrize("kind", KINDS_HERE)
def test_the_matrix(kind: str) -> None:
    wrong = []
    for thing, verb, relation in itertools.product(THINGS_HERE, VERBS_HERE, LETTERS.values()):
        # Only nodes are parties; to another kind the same object is somebody else's.
        real = relation if relation != "part" or kind == "node" else "other"
        expected = (kind, thing, verb, real) in ALLOWED
        if may(kind, ME, verb, object_of(kind, thing, relation)) != expected:
            wrong.append((kind, thing, verb, relation, expected))
    assert not wrong


def test_the_matrix_is_the_whole_of_it() -> None:
    assert set(VERBS) == set(VERBS_HERE) and set(THINGS) == set(THINGS_HERE) and set(KINDS) == set(KINDS_HERE) - {"hub"}
    assert set(WHOSE) == set(LETTERS.values())
    rows = [(r.kind, r.thing, verb, how) for r in RIGHTS for verb in r.verbs for how in r.whose]
    assert len(rows) == len(set(rows)), "a right is given twice"
    assert set(rows) == ALLOWED


def test_who_may_do_nothing_that_is_done_as_somebody_for_another() -> None:
    for kind in KINDS:
        for verb, thing in (("submit", "run"), ("renew", "member"), ("link", "link"), ("enrol", "invitation")):
            assert not may(kind, ME, verb, Object(thing, ("submitter", "bob")))
            assert not may(kind, ME, verb, Object(thing))


def test_only_operators_invite_and_revoke() -> None:
    for kind in KINDS:
        for verb, thing in (("invite", "invitation"), ("revoke", "member"), ("revoke", "invitation"), ("see", "audit")):
            assert may(kind, ME, verb, Object(thing)) == (kind == "operator")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_the_same_name_of_another_kind_is_somebody_else(kind: str, other: str) -> None:
    assert whose(kind, ME, Object("run", (other, ME))) == ("own" if kind == other else "other")
    if kind != other:
        assert not may("submitter", ME, "stop", Object("run", (other, ME))) or other == "submitter"


def test_a_submitter_named_as_a_party_is_no_party() -> None:
    run = Object("model", ("submitter", "bob"), frozenset({"ada"}))
    allow("node", "ada", "fetch", run)
    assert [whose(kind, "ada", run) for kind in KINDS] == ["other", "other", "part", "other", "other"]
    for kind in ("submitter", "observer", "invited"):
        assert not may(kind, "ada", "fetch", run)


def test_a_node_sees_only_runs_it_is_in() -> None:
    run = Object("run", ("submitter", "bob"), frozenset({"hospital-b", "1"}))
    for name in (
        "hospital-a",
        "hospital",
        "hospital-",
        "-b",
        "h",
        "11",
        "01",
        "HOSPITAL-B",
        "hospital-b ",
        "ｈospital-b",
    ):
        assert not may("node", name, "see", run), name
    allow("node", "1", "see", run)


@pytest.mark.parametrize("parties", ["hospital-b", ["hospital-b"], ("hospital-b",), {"hospital-b": 1}])
def test_parties_are_a_set_of_names(parties: Any) -> None:
    with pytest.raises(TypeError, match="frozenset"):
        Object("run", ("submitter", "bob"), parties)


@pytest.mark.parametrize("name", [1, 0, True, None, b"ada", ["ada"], 1.0, ("submitter", "ada")])
def test_what_is_no_text_is_nobody(name: Any) -> None:
    for owner in (name, "1", str(name)):
        assert not may("submitter", name, "see", Object("run", ("submitter", owner)))
    assert not may("operator", name, "see", Object("run", ("submitter", "ada")))


def test_an_integer_like_name_is_a_name() -> None:
    allow("submitter", "1", "see", Object("run", ("submitter", "1")))
    owner: Any = ("submitter", 1)
    for on in (Object("run", ("submitter", "01")), Object("run", ("submitter", "1.0")), Object("run", owner)):
        assert not may("submitter", "1", "see", on)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_has_the_empty_name(kind: str) -> None:
    for verb, thing in itertools.product(VERBS, THINGS):
        for owner in ((kind, ""), ("", ""), None):
            assert not may(kind, "", verb, Object(thing, owner, frozenset({""})))


def test_an_empty_owner_is_nobody_s_own() -> None:
    for owner in (("", ""), ("submitter", ""), ("", "ada")):
        assert not may("submitter", "ada", "see", Object("run", owner))


def test_a_run_without_an_owner_is_no_submitter_s() -> None:
    for kind in ("submitter", "node", "invited"):
        assert not may(kind, ME, "see", Object("run", None, frozenset({ME})))


@pytest.mark.parametrize(
    "verb", ["", "See", "see ", "delete", "*", "see\n", "__class__", None, 3, ("see",), ["see"], {"see": 1}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_verb_is_refused(kind: str, verb: Any) -> None:
    with pytest.raises(NotAuthorized):
        allow(kind, ME, verb, Object("run", (kind, ME)))


@pytest.mark.parametrize("kind", ["", "root", "Operator", "operator ", "admin", "hub", "*", None, 0])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    for verb, thing in itertools.product(VERBS, THINGS):
        with pytest.raises(NotAuthorized):
            allow(kind, ME, verb, Object(thing, (kind, ME), frozenset({ME})))


@pytest.mark.parametrize("thing", ["", "runs", "Run", "*", "secret", None, 1, ["run"]])
def test_an_unknown_thing_is_refused(thing: Any) -> None:
    for kind, verb in itertools.product(KINDS, VERBS):
        with pytest.raises(NotAuthorized):
            allow(kind, ME, verb, Object(thing, (kind, ME), frozenset({ME})))


@pytest.mark.parametrize("kind", KINDS)
def test_absent_and_forbidden_are_the_same_sentence(kind: str) -> None:
    refusals = 0
    for verb, thing in itertools.product(VERBS, THINGS):
        with pytest.raises(NotAuthorized) as absent:
            refuse(kind, ME, verb, thing)
        for on in (
            Object(thing, ("submitter", "bob-the-secret"), frozenset({"secret-hospital"})),
            Object(thing, ("node", "bob-the-secret")),
            Object(thing, ("operator", "bob-the-secret")),
            Object(thing),
        ):
            if may(kind, ME, verb, on):
                continue
            with pytest.raises(NotAuthorized) as forbidden:
                allow(kind, ME, verb, on)
            assert str(forbidden.value) == str(absent.value)
            refusals += 1
        assert "secret" not in str(absent.value) and "\n" not in str(absent.value)
    assert refusals > 100


@pytest.mark.parametrize(
    ("verb", "thing", "sentence"),
    [
        ("submit", "run", "observer 'olga' may not submit runs"),
        ("invite", "invitation", "observer 'olga' may not invite anybody"),
        ("revoke", "member", "observer 'olga' may not revoke anybody"),
        ("see", "member", "observer 'olga' may not see who the members are"),
        ("link", "link", "observer 'olga' may not take part as a node"),
        ("stop", "run", "there is no such run, or observer 'olga' may not stop it"),
        ("watch", "run", "there is no such run, or observer 'olga' may not watch it"),
        ("fetch", "metrics", "there is no such run, or observer 'olga' may not fetch its metrics"),
        ("revoke", "invitation", "there is no such invitation, or observer 'olga' may not revoke it"),
    ],
)
def test_a_refusal_speaks_of_what_was_asked(verb: str, thing: str, sentence: str) -> None:
    """Of a thing that need not be there to be asked for, it does not say that it may be absent."""
    with pytest.raises(NotAuthorized) as caught:
        refuse("observer", "olga", verb, thing)
    assert str(caught.value) == sentence


@given(st.text(), st.text(), st.text(), st.text(), st.text(), st.text())
def test_nothing_made_up_is_allowed(kind: str, name: str, verb: str, thing: str, owner: str, party: str) -> None:
    known = kind in KINDS and verb in VERBS and thing in THINGS
    assert known or not may(kind, name, verb, Object(thing, (kind, owner), frozenset({party, name})))


@given(st.sampled_from(KINDS), st.text(min_size=1), st.sampled_from(VERBS), st.sampled_from(THINGS))
def test_a_refusal_is_one_line_whatever_the_name(kind: str, name: str, verb: str, thing: str) -> None:
    with pytest.raises(NotAuthorized) as caught:
        refuse(kind, name, verb, thing)
    assert len(str(caught.value).splitlines()) == 1


def test_a_right_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RIGHTS[0].verbs = ("see",)  # type: ignore[misc]
