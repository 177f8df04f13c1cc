"""Names: what may be one, and that identities and URIs are the same thing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment.identity.names import RESERVED, Identity, member_kind, party_name
from hansa.errors import IdentityError

LABEL = re.compile(r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$(?!\n)", re.ASCII)
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True).filter(lambda name: name not in RESERVED)
names = names.filter(str.isascii)


@pytest.mark.parametrize("name", ["a", "0", "a-b", "a--b", "xn--hospital", "a" * 63, "hub2", "observers"])
def test_names(name: str) -> None:
    assert party_name(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "..", "/", "../hub", "a/b", "a\\b", "a.b", "-a", "a-", "-", "A", "Hospital", "a_b", "a b", " a", "a ",
        "a\n", "\na", "a\r", "a\0", "a\x00b", "a" * 64, "ho\u0455pital", "\uff41", "e\u0301", "\u00e9", "\u0661", "a\u200b", "a\u202eb",
        "\u1d43", "\u0131", "hansa://a", "a%2fb", "*", "a*", "$HOME", "~", "hub", "observer", "con:", "a@b", "\U0001d41a", "\ud800",
    ],
)  # fmt: skip
def test_no_names(text: str) -> None:
    with pytest.raises(IdentityError):
        party_name(text)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"], True])
def test_what_is_no_text_is_no_name(value: Any) -> None:
    with pytest.raises(IdentityError):
        party_name(value)


@given(st.text(max_size=70))
def test_a_name_is_exactly_the_grammar(text: str) -> None:
    lawful = LABEL.match(text) is not None and text not in RESERVED
    try:
        assert party_name(text) == text
        assert lawful
    except IdentityError:
        assert not lawful


def test_an_error_cannot_forge_a_line_of_a_log() -> None:
    with pytest.raises(IdentityError) as caught:
        party_name("a\n2026-01-01 operator logged in \x1b[2J" + "x" * 10_000, "federation")
    sentence = str(caught.value)
    assert "\n" not in sentence and "\x1b" not in sentence and len(sentence) < 300
    assert sentence.startswith("the federation 'a\\n")


@given(names, names, st.sampled_from(["operator", "submitter", "node", "observer"]), st.booleans())
def test_an_identity_is_its_uri(federation: str, name: str, kind: Any, invited: bool) -> None:
    one = Identity(federation, "invited", name, kind) if invited else Identity(federation, kind, name)
    assert Identity.from_uri(one.uri) == one


def test_the_hub_has_one_name() -> None:
    assert Identity.from_uri("hansa://hearts/hub/hub") == Identity("hearts", "hub", "hub")
    with pytest.raises(IdentityError, match="hub is called 'hub'"):
        Identity("hearts", "hub", "hospital-a")


@pytest.mark.parametrize(
    "uri",
    [
        "", "hansa:", "hansa://", "hansa:///", "hansa://hearts", "hansa://hearts/node", "hansa://hearts/node/",
        "hansa://hearts//hospital-a", "hansa:///node/hospital-a", "hansa://hearts/node/hospital-a/", "hansa://hearts/node/a/b",
        "hansa://hearts/node/../hub", "hansa://hearts/hub/hospital-a", "hansa://hearts/node/hub", "hansa://hearts/Node/a",
        "HANSA://hearts/node/a", "hansa://hearts/node/a?x=1", "hansa://hearts/node/a#x", "hansa://u@hearts/node/a",
        "hansa://hearts:1/node/a", "https://hearts/node/a", "hansa://hearts/root/a", "hansa://hearts/invited/a",
        "hansa://hearts/invited/hub/hub", "hansa://hearts/invited/hub/a", "hansa://hearts/invited/invited/a",
        "hansa://hearts/invited/node/observer", "hansa://hearts/authority", "hansa://hearts/node/node/a", "x" * 10_000,
        "hansa://hub/node/a", " hansa://hearts/node/a", "hansa://hearts/node/a\n", "hansa://hearts/invited//a",
    ],
)  # fmt: skip
def test_no_identities(uri: str) -> None:
    with pytest.raises(IdentityError):
        Identity.from_uri(uri)


@given(st.text(max_size=60))
def test_no_text_becomes_an_identity_with_another_uri(text: str) -> None:
    for uri in (text, "hansa://" + text, "hansa://f/node/" + text, "hansa://f/invited/" + text):
        try:
            identity = Identity.from_uri(uri)
        except IdentityError:
            continue
        assert identity.uri == uri


def test_only_an_invitation_admits() -> None:
    with pytest.raises(IdentityError, match="only an invitation"):
        Identity("hearts", "node", "a", "operator")
    with pytest.raises(IdentityError):
        Identity("hearts", "invited", "a")


@pytest.mark.parametrize("kind", ["hub", "invited", "", "NODE", "admin", "node "])
def test_no_member_kinds(kind: str) -> None:
    with pytest.raises(IdentityError, match="no kind of member"):
        member_kind(kind)
