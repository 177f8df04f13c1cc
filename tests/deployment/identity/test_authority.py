"""The authority: who it certifies as what, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.deployment.identity.authority import AUTHORITY_LIFETIME, DAY, LIFETIME, Authority
from hansa.deployment.identity.certificates import BACKDATE, HUB_TLS_NAME, date, read
from hansa.deployment.identity.files import write_private
from hansa.deployment.identity.keys import SealingKeys, make_tls_key, private_pem
from hansa.deployment.identity.names import Identity
from hansa.deployment.identity.request import EnrolmentRequest, make_request, read_request
from hansa.errors import IdentityError, StoreError

Issue = Callable[..., bytes]


def request_of(name: str) -> EnrolmentRequest:
    return read_request(make_request(name, make_tls_key(), SealingKeys.make()))


def test_an_authority_is_found_again(tmp_path: Path, now: float, issue: Issue) -> None:
    made = Authority.create(tmp_path / "a", "hearts", now)
    found = Authority.open(tmp_path / "a")
    assert (found.federation, found.certificate_pem) == ("hearts", made.certificate_pem)
    assert read(issue(found), made.certificate_pem, now).identity.federation == "hearts"


def test_an_authority_is_not_made_twice(tmp_path: Path, now: float) -> None:
    made = Authority.create(tmp_path, "hearts", now)
    with pytest.raises(IdentityError, match="there already"):
        Authority.create(tmp_path, "lungs", now)
    assert Authority.open(tmp_path).certificate_pem == made.certificate_pem


@pytest.mark.parametrize("federation", ["", "Hearts", "hearts/../x", "hub", "a" * 64, "h\u0435arts"])
def test_a_federation_has_a_name(tmp_path: Path, now: float, federation: str) -> None:
    with pytest.raises(IdentityError, match="federation"):
        Authority.create(tmp_path / "a", federation, now)
    assert not (tmp_path / "a").exists()


def test_an_authority_that_others_can_read_is_not_opened(tmp_path: Path, now: float) -> None:
    Authority.create(tmp_path, "hearts", now)
    (tmp_path / "authority.key").chmod(0o644)
    with pytest.raises(IdentityError, match="others can read"):
        Authority.open(tmp_path)


def test_a_missing_or_damaged_authority_is_named(tmp_path: Path, now: float, authority: Authority) -> None:
    with pytest.raises(IdentityError, match="not there"):
        Authority.open(tmp_path)
    for content in (b"", b"x", private_pem(make_tls_key()), authority.certificate_pem):
        write_private(tmp_path / "authority.key", content, replace=True)
        with pytest.raises(IdentityError):
            Authority.open(tmp_path)
    write_private(tmp_path / "authority.key", private_pem(make_tls_key()) + authority.certificate_pem, replace=True)
    with pytest.raises(IdentityError, match="not the one of its certificate"):
        Authority.open(tmp_path)


def test_a_member_cannot_be_opened_as_an_authority(tmp_path: Path, authority: Authority, now: float) -> None:
    key, pem = authority.issue_invitation("node", "hospital-a", now)
    write_private(tmp_path / "authority.key", private_pem(key) + pem)
    with pytest.raises(IdentityError, match="not the certificate of a Hansa authority"):
        Authority.open(tmp_path)


def test_a_full_disk_makes_no_authority(tmp_path: Path, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError):
        Authority.create(tmp_path, "hearts", now)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "days"), [("node", 7), ("operator", 30), ("submitter", 30), ("observer", 30)])
def test_members_live_as_long_as_their_kind(
    authority: Authority, issue: Issue, now: float, kind: str, days: int
) -> None:
    certificate = read(issue(authority, "some-body", kind), authority.certificate_pem, now)
    assert certificate.identity == Identity("hearts", kind, "some-body")  # type: ignore[arg-type]
    assert certificate.not_after == now + days * DAY and certificate.not_before == now - BACKDATE


def test_the_hub_has_its_tls_name_and_nobody_else(authority: Authority, issue: Issue, now: float) -> None:
    pem = authority.issue_hub(make_tls_key().public_key(), SealingKeys.make().public, now)
    certificate = read(pem, authority.certificate_pem, now)
    assert certificate.identity == Identity("hearts", "hub", "hub") and certificate.not_after == now + 30 * DAY

    def names(pem: bytes) -> list[str]:
        san = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return san.get_values_for_type(x509.DNSName)

    assert names(pem) == [HUB_TLS_NAME]
    assert names(issue(authority)) == ["hospital-a.node.hansa.invalid"]
    assert names(authority.issue_invitation("node", "a", now)[1]) == []


def test_an_invitation_admits_and_seals_nothing(authority: Authority, now: float) -> None:
    _, pem = authority.issue_invitation("node", "hospital-a", now)
    certificate = read(pem, authority.certificate_pem, now)
    assert certificate.identity == Identity("hearts", "invited", "hospital-a", "node")
    assert certificate.sealing is None and certificate.not_after == now + DAY


@pytest.mark.parametrize("kind", ["hub", "invited", "", "root", "Node"])
def test_nobody_is_made_a_hub_or_an_unknown(authority: Authority, now: float, kind: Any) -> None:
    with pytest.raises(IdentityError, match="no kind of member"):
        authority.issue_member(request_of("hospital-a"), kind, "hospital-a", now)
    with pytest.raises(IdentityError, match="no kind of member"):
        authority.issue_invitation(kind, "hospital-a", now)


def test_nobody_gets_anothers_name(authority: Authority, now: float) -> None:
    with pytest.raises(IdentityError, match="in the name of 'hospital-b'"):
        authority.issue_member(request_of("hospital-b"), "node", "hospital-a", now)


@pytest.mark.parametrize("name", ["hub", "observer", "", "../a", "A"])
def test_nobody_gets_an_unlawful_name(authority: Authority, now: float, name: str) -> None:
    with pytest.raises(IdentityError, match="cannot be used"):
        authority.issue_invitation("node", name, now)
    lied = EnrolmentRequest(name, request_of("a").tls, SealingKeys.make().public)
    with pytest.raises(IdentityError, match="cannot be used"):
        authority.issue_member(lied, "node", name, now)


def test_the_hub_key_is_on_p256(authority: Authority, now: float) -> None:
    with pytest.raises(IdentityError, match="P-256"):
        authority.issue_hub(ec.generate_private_key(ec.SECP384R1()).public_key(), SealingKeys.make().public, now)


@pytest.mark.parametrize("lifetime", [0.0, -1.0, float("inf"), float("nan")])
def test_a_lifetime_is_a_lifetime(authority: Authority, issue: Issue, lifetime: float) -> None:
    with pytest.raises(IdentityError, match="cannot be valid for"):
        issue(authority, lifetime=lifetime)


def test_nothing_outlives_the_authority(authority: Authority, issue: Issue, now: float) -> None:
    pem = issue(authority, lifetime=100 * AUTHORITY_LIFETIME)
    assert read(pem, authority.certificate_pem, now).not_after == now + AUTHORITY_LIFETIME


def test_an_expired_authority_issues_nothing(authority: Authority, now: float) -> None:
    for when in (now + AUTHORITY_LIFETIME, now - BACKDATE - 1):
        with pytest.raises(IdentityError, match=f"to {date(now + AUTHORITY_LIFETIME)}"):
            authority.issue_invitation("node", "hospital-a", when)


def test_what_is_issued_when_the_clock_went_back_a_little_is_good(authority: Authority, now: float) -> None:
    _, pem = authority.issue_invitation("node", "hospital-a", now - BACKDATE / 2)
    read(pem, authority.certificate_pem, now - BACKDATE / 2)


def test_serials_are_long_and_never_the_same(authority: Authority, issue: Issue, now: float) -> None:
    serials = [x509.load_pem_x509_certificate(issue(authority)).serial_number for _ in range(50)]
    assert len(set(serials)) == 50 and all(serial > 0 for serial in serials)
    assert max(serials).bit_length() > 150


def test_an_authority_does_not_show_its_key(tmp_path: Path, now: float) -> None:
    made = Authority.create(tmp_path, "hearts", now)
    secret = made._key.private_numbers().private_value
    assert str(secret) not in repr(made) and f"{secret:x}" not in repr(made)


def test_every_kind_has_a_lifetime() -> None:
    assert set(LIFETIME) == {"hub", "operator", "submitter", "node", "observer", "invited"}
