"""Credentials and enrolment: what belongs together stays together, through every crash."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment.identity.authority import DAY, Authority
from hansa.deployment.identity.certificates import read
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.identity.enrolment import Enrolment
from hansa.deployment.identity.files import write_private
from hansa.deployment.identity.invitation import Invitation, make_invitation, read_invitation
from hansa.deployment.identity.keys import SealingKeys, make_tls_key, private_pem
from hansa.deployment.identity.names import Identity
from hansa.deployment.identity.request import make_request, read_request
from hansa.errors import HansaError, IdentityError, StoreError

HUB = ("hub.example.org:8443",)


class Killed(BaseException):
    """What kill -9 is to the code that it strikes: nothing after it runs, no clean-up either."""


@contextmanager
def killed_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first ``calls`` calls that change the disk happen, the next and all after it do not."""
    left = [calls]

    def struck(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "replace", "link", "rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, struck(getattr(os, name)))
        patch.setattr(shutil, "rmtree", struck(shutil.rmtree))
        yield


def certified(
    authority: Authority, now: float, name: str = "hospital-a", **more: Any
) -> tuple[bytes, Any, SealingKeys]:
    key, sealing = make_tls_key(), SealingKeys.make()
    request = read_request(make_request(name, key, sealing))
    return authority.issue_member(request, "node", name, now, **more), key, sealing


def renewed(authority: Authority, credentials: Credentials, now: float) -> tuple[bytes, Any]:
    key, name = make_tls_key(), credentials.identity.name
    request = read_request(make_request(name, key, credentials.sealing))
    return authority.issue_member(request, "node", name, now), key


@pytest.fixture
def party(authority: Authority, home: Path, now: float) -> Credentials:
    pem, key, sealing = certified(authority, now)
    return Credentials.save_new(home, authority.certificate_pem, pem, key, sealing, HUB, now)


def same(one: Credentials, two: Credentials) -> bool:
    return (
        one.certificate == two.certificate
        and one.tls_key_pem == two.tls_key_pem
        and one.sealing.public == two.sealing.public
        and one.addresses == two.addresses
        and one.authority_pem == two.authority_pem
    )


def test_a_party_comes_home(party: Credentials, home: Path, now: float) -> None:
    found = Credentials.load(home, now)
    assert same(found, party) and found.identity == Identity("hearts", "node", "hospital-a")
    assert found.addresses == HUB and found.pins().names() == ()


def test_all_of_it_is_private(party: Credentials, home: Path) -> None:
    party.pins().pin("hospital-b", SealingKeys.make().public)
    for path in home.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert {path.name for path in home.iterdir()} == {"identity"}


def test_credentials_do_not_show_their_keys(party: Credentials) -> None:
    assert "PRIVATE" not in repr(party)


@pytest.mark.parametrize("name", ["tls.pem", "sealing.pem", "authority.pem", "hub.json"])
@pytest.mark.parametrize("bits", [0o644, 0o660])
def test_what_others_can_touch_is_refused(party: Credentials, home: Path, now: float, name: str, bits: int) -> None:
    (home / "identity" / name).chmod(bits)
    with pytest.raises(IdentityError, match=f"{name}.*{bits:04o}"):
        Credentials.load(home, now)


@pytest.mark.parametrize("name", ["tls.pem", "sealing.pem", "authority.pem", "hub.json"])
@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000, b"{}", None])
def test_damage_is_named(party: Credentials, home: Path, now: float, name: str, content: bytes | None) -> None:
    path = home / "identity" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(HansaError):
        Credentials.load(home, now)


def test_an_empty_home_is_nobodys(home: Path, now: float) -> None:
    with pytest.raises(IdentityError, match="not there"):
        Credentials.load(home, now)
    assert not has_identity(home)


def test_parts_of_two_parties_do_not_mix(authority: Authority, home: Path, now: float) -> None:
    one, two = certified(authority, now), certified(authority, now)
    own = authority.certificate_pem
    for pem, key, sealing in ((one[0], two[1], one[2]), (one[0], one[1], two[2])):
        with pytest.raises(IdentityError, match="not for the"):
            Credentials.save_new(home, own, pem, key, sealing, HUB, now)
    assert not has_identity(home)


def test_swapped_files_are_noticed(
    party: Credentials, authority: Authority, home: Path, tmp_path: Path, now: float
) -> None:
    pem, key, sealing = certified(authority, now)
    Credentials.save_new(tmp_path / "other", authority.certificate_pem, pem, key, sealing, HUB, now)
    for name in ("tls.pem", "sealing.pem"):
        path = home / "identity" / name
        kept = path.read_bytes()
        write_private(path, (tmp_path / "other" / "identity" / name).read_bytes(), replace=True)
        with pytest.raises(IdentityError, match="sealing keys beside it"):
            Credentials.load(home, now)
        write_private(path, kept, replace=True)


def test_another_authority_in_the_home_is_noticed(
    party: Credentials, impostor: Authority, home: Path, now: float
) -> None:
    write_private(home / "identity" / "authority.pem", impostor.certificate_pem, replace=True)
    with pytest.raises(IdentityError, match="did not issue"):
        Credentials.load(home, now)


def test_an_invitation_is_no_credential(authority: Authority, home: Path, now: float) -> None:
    key, pem = authority.issue_invitation("node", "hospital-a", now)
    with pytest.raises(IdentityError, match="sealing"):
        Credentials.save_new(home, authority.certificate_pem, pem, key, SealingKeys.make(), HUB, now)


def test_an_expired_certificate_is_not_saved_nor_loaded(
    party: Credentials, authority: Authority, home: Path, now: float
) -> None:
    later = now + 8 * DAY
    with pytest.raises(IdentityError, match="expired on"):
        Credentials.load(home, later)
    assert same(Credentials.load(home, later, even_expired=True), party)
    pem, key, sealing = certified(authority, now)
    with pytest.raises(IdentityError, match="expired on"):
        Credentials.save_new(home / "x", authority.certificate_pem, pem, key, sealing, HUB, later)


def test_a_home_has_one_identity(party: Credentials, authority: Authority, home: Path, now: float) -> None:
    pem, key, sealing = certified(authority, now, "hospital-b")
    with pytest.raises(IdentityError, match="has an identity already"):
        Credentials.save_new(home, authority.certificate_pem, pem, key, sealing, HUB, now)
    assert same(Credentials.load(home, now), party)


def test_renewal_is_due_at_two_thirds(party: Credentials, now: float) -> None:
    due = now + 7 * DAY * 2 / 3
    assert not party.renew_due(now) and not party.renew_due(due - 1) and party.renew_due(due + 1)
    assert party.renew_due(now + 30 * DAY)


def test_a_renewal_replaces_key_and_certificate(
    party: Credentials, authority: Authority, home: Path, now: float
) -> None:
    pem, key = renewed(authority, party, now + 5 * DAY)
    new = party.replace_certificate(pem, key, now + 5 * DAY)
    assert new.certificate.not_after == now + 12 * DAY and new.certificate.serial != party.certificate.serial
    assert new.tls_key_pem == private_pem(key) and new.sealing is party.sealing
    assert same(Credentials.load(home, now + 9 * DAY), new)


def test_no_other_certificate_takes_its_place(
    party: Credentials, authority: Authority, impostor: Authority, home: Path, now: float
) -> None:
    pem, key = renewed(authority, party, now)
    wrong = [
        (pem, make_tls_key()),
        renewed(impostor, party, now),
        certified(authority, now)[:2],
        certified(authority, now, "hospital-b")[:2],
        (authority.certificate_pem, key),
        (b"", key),
        (pem[:-40], key),
        (
            authority.issue_member(
                read_request(make_request("hospital-a", key, party.sealing)), "operator", "hospital-a", now
            ),
            key,
        ),
        renewed(authority, party, now + 30 * DAY),
    ]
    for other, other_key in wrong:
        with pytest.raises(IdentityError):
            party.replace_certificate(other, other_key, now)
        assert same(Credentials.load(home, now), party)


def test_a_full_disk_keeps_the_old_pair(
    party: Credentials, authority: Authority, home: Path, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = renewed(authority, party, now)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError):
            party.replace_certificate(pem, key, now)
    assert same(Credentials.load(home, now), party)
    assert {path.name for path in (home / "identity").iterdir()} == {
        "authority.pem",
        "tls.pem",
        "sealing.pem",
        "hub.json",
    }


def test_a_crash_of_a_renewal_leaves_a_usable_pair(
    party: Credentials, authority: Authority, home: Path, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each call that changes the disk, in turn; the pair on the disk is the old one or the new one."""
    pem, key = renewed(authority, party, now)
    old_seen = new_seen = False
    for calls in range(100):
        try:
            with killed_after(calls, monkeypatch):
                new = party.replace_certificate(pem, key, now)
            break
        except Killed:
            found = Credentials.load(home, now)
            old_seen |= found.certificate == party.certificate
            new_seen |= found.certificate != party.certificate
            assert found.certificate in (party.certificate, read(pem, authority.certificate_pem, now))
    else:
        pytest.fail("the renewal never ended")
    assert old_seen and new_seen and same(Credentials.load(home, now), new)


def test_a_crash_of_the_first_save_leaves_nothing_or_all(
    authority: Authority, home: Path, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key, sealing = certified(authority, now)

    def save() -> Credentials:
        return Credentials.save_new(home, authority.certificate_pem, pem, key, sealing, HUB, now)

    none_seen = all_seen = False
    for calls in range(200):
        shutil.rmtree(home, ignore_errors=True)
        try:
            with killed_after(calls, monkeypatch):
                made = save()
            break
        except Killed:
            if has_identity(home):
                all_seen = Credentials.load(home, now).certificate.pem == pem
                assert all_seen
            else:
                none_seen = True
                assert save().certificate.pem == pem
    else:
        pytest.fail("the save never ended")
    assert none_seen and all_seen and same(Credentials.load(home, now), made)


# Enrolment.


@pytest.fixture
def invitation(authority: Authority, now: float) -> Invitation:
    return read_invitation(make_invitation(authority, HUB, "node", "hospital-a", now)[0])


def answer(authority: Authority, enrolment: Enrolment, now: float, kind: Any = "node") -> bytes:
    request = read_request(enrolment.request())
    return authority.issue_member(request, kind, request.name, now)


def test_a_stranger_becomes_a_member(authority: Authority, home: Path, invitation: Invitation, now: float) -> None:
    enrolment = Enrolment.begin(home, invitation, now)
    made = enrolment.finish(answer(authority, enrolment, now), now)
    assert made.identity == Identity("hearts", "node", "hospital-a") and same(Credentials.load(home, now), made)
    assert [path.name for path in home.iterdir()] == ["identity"]


def test_a_lost_answer_costs_nothing(authority: Authority, home: Path, invitation: Invitation, now: float) -> None:
    """Begun twice, it is the same request, so the hub may give the same certificate."""
    first = Enrolment.begin(home, invitation, now)
    given = answer(authority, first, now)
    again = Enrolment.begin(home, invitation, now + 60)
    assert read_request(again.request()).fingerprint == read_request(first.request()).fingerprint
    assert again.finish(given, now + 60).certificate.pem == given


def test_the_keys_are_on_the_disk_before_the_request(
    home: Path, invitation: Invitation, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    for calls in range(100):
        try:
            with killed_after(calls, monkeypatch):
                seen.add(read_request(Enrolment.begin(home, invitation, now).request()).fingerprint)
            break
        except Killed:
            continue
    seen.add(read_request(Enrolment.begin(home, invitation, now).request()).fingerprint)
    assert len(seen) == 1


def test_a_crash_at_the_end_can_be_repeated(
    authority: Authority, home: Path, invitation: Invitation, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = answer(authority, Enrolment.begin(home, invitation, now), now)
    for calls in range(200):
        try:
            with killed_after(calls, monkeypatch):
                Enrolment.begin(home, invitation, now).finish(given, now)
            break
        except Killed:
            continue
    else:
        pytest.fail("the enrolment never ended")
    assert Credentials.load(home, now).certificate.pem == given


def test_two_invitations_have_two_keys(authority: Authority, home: Path, invitation: Invitation, now: float) -> None:
    other = read_invitation(make_invitation(authority, HUB, "node", "hospital-a", now)[0])
    one, two = Enrolment.begin(home, invitation, now), Enrolment.begin(home, other, now)
    assert read_request(one.request()).fingerprint != read_request(two.request()).fingerprint


def test_who_was_away_too_long_keeps_its_sealing_keys(authority: Authority, home: Path, now: float) -> None:
    pem, key, sealing = certified(authority, now)
    Credentials.save_new(home, authority.certificate_pem, pem, key, sealing, HUB, now)
    later = now + 60 * DAY
    invitation = read_invitation(make_invitation(authority, HUB, "node", "hospital-a", later)[0])
    enrolment = Enrolment.begin(home, invitation, later)
    made = enrolment.finish(answer(authority, enrolment, later), later)
    assert made.sealing.public == sealing.public and made.tls_key_pem != private_pem(key)
    assert same(Credentials.load(home, later), made)


def test_a_home_of_another_is_refused_before_anything_is_sent(
    party: Credentials, authority: Authority, impostor: Authority, home: Path, now: float
) -> None:
    for own, kind, name in ((authority, "node", "hospital-b"), (authority, "operator", "hospital-a")):
        invitation = read_invitation(make_invitation(own, HUB, kind, name, now)[0])  # type: ignore[arg-type]
        with pytest.raises(IdentityError, match="use another home"):
            Enrolment.begin(home, invitation, now)
    assert same(Credentials.load(home, now), party)


def test_an_invitation_of_an_impostor_changes_nothing(
    party: Credentials, impostor: Authority, home: Path, now: float
) -> None:
    """Same federation, name and kind, another authority: it must not get the sealing keys of this home certified."""
    invitation = read_invitation(make_invitation(impostor, HUB, "node", "hospital-a", now)[0])
    with pytest.raises(IdentityError, match="authority"):
        Enrolment.begin(home, invitation, now)
    assert same(Credentials.load(home, now), party)


def test_an_expired_invitation_is_not_begun(home: Path, invitation: Invitation, now: float) -> None:
    with pytest.raises(IdentityError, match="expired on"):
        Enrolment.begin(home, invitation, now + 2 * DAY)
    assert not home.exists()


def test_a_lying_hub_is_not_believed(
    authority: Authority, impostor: Authority, home: Path, invitation: Invitation, now: float
) -> None:
    enrolment = Enrolment.begin(home, invitation, now)
    wrong = [
        answer(authority, enrolment, now, "operator"),
        answer(impostor, enrolment, now),
        certified(authority, now)[0],
        certified(authority, now, "hospital-b")[0],
        answer(authority, enrolment, now + 30 * DAY),
        invitation.certificate.pem,
        b"",
    ]
    for pem in wrong:
        with pytest.raises(IdentityError):
            enrolment.finish(pem, now)
        assert not has_identity(home)
    enrolment.finish(answer(authority, enrolment, now), now)


def test_a_damaged_enrolment_is_named(home: Path, invitation: Invitation, now: float) -> None:
    Enrolment.begin(home, invitation, now)
    (path,) = home.iterdir()
    for content in (b"", b"x", private_pem(make_tls_key()), SealingKeys.make().pem):
        write_private(path, content, replace=True)
        with pytest.raises(IdentityError):
            Enrolment.begin(home, invitation, now)
