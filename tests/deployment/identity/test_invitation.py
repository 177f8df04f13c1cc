"""Invitations: a token comes back whole, or is refused with the reason."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment.identity.authority import DAY, Authority
from hansa.deployment.identity.invitation import MAX_TOKEN, hub_address, make_invitation, read_invitation
from hansa.deployment.identity.keys import make_tls_key, public_der
from hansa.deployment.identity.names import Identity
from hansa.errors import IdentityError

HUB = "hub.example.org:8443"


@pytest.fixture(scope="module")
def token(authority: Authority) -> str:
    return make_invitation(authority, HUB, "node", "hospital-a", 1.9e9)[0]


def packed(fields: Any) -> str:
    """A token with a right checksum over whatever is given."""
    content = fields if isinstance(fields, bytes) else msgspec.msgpack.encode(fields)
    checksum = hashlib.sha256(b"hansa invitation v1" + content).digest()[:8]
    return "hansa1-" + base64.urlsafe_b64encode(content + checksum).rstrip(b"=").decode()


def content_of(token: str) -> bytes:
    body = token.removeprefix("hansa1-")
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))[:-8]


def fields_of(token: str) -> list[Any]:
    fields: list[Any] = msgspec.msgpack.decode(content_of(token))
    return fields


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def secret(key: Any) -> bytes:
    return int(key.private_numbers().private_value).to_bytes(32, "big")


ports = st.integers(1, 65535)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{1,10}){0,3}", fullmatch=True).filter(str.isascii),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map("[{}]".format),
)


@given(
    st.lists(st.builds("{}:{}".format, hosts, ports), min_size=1, max_size=8),
    st.sampled_from(["operator", "submitter", "node", "observer"]),
    st.from_regex(r"x[a-z0-9-]{0,61}[a-z0-9]", fullmatch=True).filter(str.isascii),
    st.integers(0, 10**9),
)
def test_a_token_comes_back_whole(authority: Authority, addresses: list[str], kind: Any, name: str, later: int) -> None:
    now = 1.9e9 + later / 1e3
    token, serial = make_invitation(authority, addresses, kind, name, now)
    invitation = read_invitation(token)
    assert invitation.addresses == tuple(addresses) and invitation.authority_pem == authority.certificate_pem
    assert (invitation.federation, invitation.kind, invitation.name) == ("hearts", kind, name)
    assert invitation.certificate.serial == serial
    assert public_der(invitation.key.public_key()) == invitation.certificate.tls
    invitation.certificate.require_valid(now)
    assert abs(invitation.certificate.not_after - (now + DAY)) <= 1


def test_one_address_is_enough(token: str) -> None:
    assert read_invitation(token).addresses == (HUB,)


def test_an_invitation_expires(authority: Authority, now: float) -> None:
    invitation = read_invitation(make_invitation(authority, HUB, "node", "hospital-a", now, 60.0)[0])
    with pytest.raises(IdentityError, match="expired on"):
        invitation.certificate.require_valid(now + 61)


def test_two_invitations_share_no_secret(authority: Authority, now: float) -> None:
    made = [make_invitation(authority, HUB, "node", "hospital-a", now) for _ in range(10)]
    assert len({serial for _, serial in made}) == 10
    assert len({read_invitation(token).key_pem for token, _ in made}) == 10


def test_an_invitation_does_not_show_its_key(token: str) -> None:
    invitation = read_invitation(token)
    key = invitation.key.private_numbers().private_value
    assert f"{key:x}" not in repr(invitation) and str(key) not in repr(invitation)
    assert "PRIVATE" not in repr(invitation)


@pytest.mark.parametrize("how", ["\n".join, " ".join, "\r\n\t".join, lambda parts: "  " + "".join(parts) + "\n"])
def test_broken_lines_do_no_harm(token: str, how: Callable[[list[str]], str]) -> None:
    parts = [token[start : start + 76] for start in range(0, len(token), 76)]
    assert read_invitation(how(parts)) == read_invitation(token)


def test_every_flipped_character_is_noticed(token: str) -> None:
    for place, character in enumerate(token):
        for other in ("A" if character != "A" else "B", "-" if character != "-" else "_", "!", "\u0430"):
            with pytest.raises(IdentityError):
                read_invitation(token[:place] + other + token[place + 1 :])


def test_the_unused_bits_of_the_last_character_are_not_free(authority: Authority, now: float) -> None:
    """Else there would be several texts of one invitation."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for extra in range(3):
        token, _ = make_invitation(authority, "h" * (1 + extra) + ":1", "node", "hospital-a", now)
        for character in alphabet:
            if character != token[-1]:
                with pytest.raises(IdentityError, match="mistyped"):
                    read_invitation(token[:-1] + character)


def test_every_truncation_is_noticed(token: str) -> None:
    for length in range(len(token)):
        with pytest.raises(IdentityError):
            read_invitation(token[:length])
        with pytest.raises(IdentityError):
            read_invitation(token[length + 1 :])
    with pytest.raises(IdentityError, match="mistyped or cut-off"):
        read_invitation(token[:-1])


@pytest.mark.parametrize("more", ["A", "AAAA", "=", "==", "====", ".", "\0"])
def test_nothing_may_follow(token: str, more: str) -> None:
    with pytest.raises(IdentityError):
        read_invitation(token + more)


def test_a_swapped_pair_of_characters_is_noticed(token: str) -> None:
    for place in range(len(token) - 1):
        if token[place] != token[place + 1]:
            with pytest.raises(IdentityError):
                read_invitation(token[:place] + token[place + 1] + token[place] + token[place + 2 :])


def test_a_long_token_is_not_parsed(token: str) -> None:
    for text in ("A" * (MAX_TOKEN + 1), token + " " * MAX_TOKEN, "hansa1-" + "A" * 10_000_000):
        with pytest.raises(IdentityError, match=f"at most {MAX_TOKEN}"):
            read_invitation(text)


@pytest.mark.parametrize(
    "text", ["", " ", "hansa", "hansa1", "hansa1-", "hansa1-AAAA", "https://x", "\ud800", "HANSA1-AAAA"]
)
def test_what_is_no_token_is_named(text: str) -> None:
    with pytest.raises(IdentityError):
        read_invitation(text)


def test_a_newer_token_is_called_newer(token: str) -> None:
    with pytest.raises(IdentityError, match="version 2"):
        read_invitation(token.replace("hansa1-", "hansa2-"))


@given(st.binary(max_size=300))
def test_no_content_but_the_right_one_is_read(content: bytes) -> None:
    with pytest.raises(IdentityError):
        read_invitation(packed(content))


@given(st.text(max_size=300))
def test_no_text_is_read(text: str) -> None:
    for token in (text, "hansa1-" + text):
        with pytest.raises(IdentityError):
            read_invitation(token)


def test_the_forger_can_also_do_it_right(token: str) -> None:
    assert packed(fields_of(token)) == token


def test_parts_of_others_do_not_fit(
    token: str, authority: Authority, impostor: Authority, issue: Callable[..., bytes], now: float
) -> None:
    addresses, anchor, key, certificate = fields_of(token)
    other_key, other_pem = authority.issue_invitation("operator", "boss", now)
    swaps: list[Any] = [
        [addresses, der(impostor.certificate_pem), key, certificate],
        [addresses, certificate, key, certificate],
        [addresses, anchor, key, anchor],
        [addresses, anchor, key, der(other_pem)],
        [addresses, anchor, secret(other_key), certificate],
        [addresses, anchor, secret(make_tls_key()), certificate],
        [addresses, anchor, key, der(issue(authority))],
        [addresses, anchor, key, der(issue(impostor))],
        [addresses, anchor, bytes(32), certificate],
        [addresses, anchor, b"\xff" * 32, certificate],
        [addresses, anchor, b"\0" + key, certificate],
        [addresses, anchor, key[1:], certificate],
        [addresses, anchor, b"", certificate],
        [addresses, b"", key, certificate],
        [addresses, anchor, key, b""],
        [addresses, anchor, key, certificate + b"\0"],
        [addresses, anchor, key],
        [addresses, anchor, key, certificate, b""],
        [[], anchor, key, certificate],
        [addresses * 9, anchor, key, certificate],
        [["../x"], anchor, key, certificate],
        [HUB, anchor, key, certificate],
        {"addresses": addresses, "authority": anchor, "key": key, "certificate": certificate},
        None,
        7,
    ]
    for fields in swaps:
        with pytest.raises(IdentityError):
            read_invitation(packed(fields))


def test_a_certificate_of_a_member_is_no_invitation(authority: Authority, token: str, now: float) -> None:
    """A real member's key and certificate in the form of a token, by somebody who wants them to look like one."""
    from hansa.deployment.identity.keys import SealingKeys

    addresses, anchor, _, _ = fields_of(token)
    tls = make_tls_key()
    pem = authority.issue_hub(tls.public_key(), SealingKeys.make().public, now)
    with pytest.raises(IdentityError, match="invites nobody"):
        read_invitation(packed([addresses, anchor, secret(tls), der(pem)]))


def test_another_coding_of_the_same_content_is_refused(token: str) -> None:
    content = content_of(token)
    assert content[0] == 0x94  # an array of four, here said the long way
    with pytest.raises(IdentityError, match="form"):
        read_invitation(packed(b"\xdc\x00\x04" + content[1:]))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(IdentityError):
        read_invitation(packed(b"\x91" * 5000))


@pytest.mark.parametrize("kind", ["hub", "invited", "root", ""])
def test_only_members_are_invited(authority: Authority, now: float, kind: Any) -> None:
    with pytest.raises(IdentityError):
        make_invitation(authority, HUB, kind, "hospital-a", now)


@pytest.mark.parametrize("name", ["hub", "observer", "..", "a/b", ""])
def test_only_names_are_invited(authority: Authority, now: float, name: str) -> None:
    with pytest.raises(IdentityError):
        make_invitation(authority, HUB, "node", name, now)


@pytest.mark.parametrize(
    "address",
    [
        "", ":", "hub", "hub:", ":8443", "hub:0", "hub:65536", "hub:99999", "hub:-1", "hub:+1", "hub: 1", "hub:1 ", " hub:1",
        "hub:08443", "hub:1e3", "hub:\u0661", "hub:8443/path", "https://hub:8443", "a@hub:1", "hub..org:1", ".hub:1", "hub.:1",
        "-hub:1", "hub-:1", "h_b:1", "::1:8443", "[::1]", "[::1]:", "[hub]:1", "[::1%eth0]:1", "[:::1]:1", "[]:1",
        "h\u00fcb:1", "hub:1\n", "hub\n:1", "unix:/run/x:1", "dns:///hub:1", "*:1", "a" * 64 + ":1", "a." * 127 + "aa:1",
    ],
)  # fmt: skip
def test_no_addresses(authority: Authority, now: float, address: str) -> None:
    with pytest.raises(IdentityError, match="host:port"):
        hub_address(address)
    with pytest.raises(IdentityError):
        make_invitation(authority, address, "node", "hospital-a", now)


def test_an_invitation_needs_an_address_and_not_many(authority: Authority, now: float) -> None:
    for addresses in ([], [HUB] * 9):
        with pytest.raises(IdentityError, match="1 to 8 addresses"):
            make_invitation(authority, addresses, "node", "hospital-a", now)


def test_the_identity_of_an_invitation_is_not_the_members(token: str) -> None:
    assert read_invitation(token).certificate.identity != Identity("hearts", "node", "hospital-a")
