"""Pins: the first keys stay, whatever comes after."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from hansa.deployment.identity.files import write_private
from hansa.deployment.identity.keys import SealingKeys, SealingPublic
from hansa.deployment.identity.pins import Pins
from hansa.errors import IdentityError, StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pins.json"


def test_the_first_keys_stay(path: Path) -> None:
    first, pins = SealingKeys.make().public, Pins(path)
    pins.pin("hospital-a", first)
    pins.pin("hospital-a", first)
    again = Pins(path)
    assert again.get("hospital-a") == first and again.names() == ("hospital-a",)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("which", ["both", "sign", "agree", "swapped"])
def test_other_keys_are_refused_with_both_fingerprints(path: Path, which: str) -> None:
    first, new, pins = SealingKeys.make().public, SealingKeys.make().public, Pins(path)
    pins.pin("hospital-a", first)
    other = {
        "both": new,
        "sign": SealingPublic(new.sign, first.agree),
        "agree": SealingPublic(first.sign, new.agree),
        "swapped": SealingPublic(first.agree, first.sign),
    }[which]
    for opened in (pins, Pins(path)):
        with pytest.raises(IdentityError, match="not over this network") as caught:
            opened.pin("hospital-a", other)
        assert first.fingerprint in str(caught.value) and other.fingerprint in str(caught.value)
        assert str(path) in str(caught.value)
    assert Pins(path).get("hospital-a") == first


def test_one_party_may_not_be_taken_for_another(path: Path) -> None:
    one, two, pins = SealingKeys.make().public, SealingKeys.make().public, Pins(path)
    pins.pin("hospital-a", one)
    pins.pin("hospital-b", two)
    with pytest.raises(IdentityError):
        pins.pin("hospital-b", one)
    assert pins.get("hospital-c") is None


def test_the_hub_is_pinned_too(path: Path) -> None:
    pins = Pins(path)
    pins.pin("hub", SealingKeys.make().public)
    assert Pins(path).names() == ("hub",)
    with pytest.raises(IdentityError):
        pins.pin("hub", SealingKeys.make().public)


@pytest.mark.parametrize("name", ["", "../x", "A", "observer", "a\nb"])
def test_only_names_are_pinned(path: Path, name: str) -> None:
    with pytest.raises(IdentityError):
        Pins(path).pin(name, SealingKeys.make().public)
    assert not path.exists()


def test_a_person_may_forget(path: Path) -> None:
    pins = Pins(path)
    pins.pin("hospital-a", SealingKeys.make().public)
    pins.forget("hospital-a")
    pins.forget("nobody")
    other = SealingKeys.make().public
    Pins(path).pin("hospital-a", other)
    assert Pins(path).get("hospital-a") == other


def test_a_full_disk_pins_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = Pins(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError):
            pins.pin("hospital-a", SealingKeys.make().public)
    assert pins.get("hospital-a") is None and not path.exists()


GOOD = SealingKeys.make().public.raw.hex()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'{"hospital-a": 7}', b'{"hospital-a": ""}', b'{"hospital-a": "zz"}', b"\xff",
        msgspec.json.encode({"hospital-a": GOOD[:-2]}), msgspec.json.encode({"hospital-a": GOOD + "00"}),
        msgspec.json.encode({"../a": GOOD}), msgspec.json.encode({"hospital-a": "00" * 64}), b"[" * 100_000,
        msgspec.json.encode({"hospital-a": GOOD})[:-1],
    ],
)  # fmt: skip
def test_a_damaged_file_is_not_an_empty_one(path: Path, content: bytes) -> None:
    write_private(path, content)
    with pytest.raises(StoreError, match="damaged"):
        Pins(path)


def test_a_file_that_others_can_write_is_not_believed(path: Path) -> None:
    Pins(path).pin("hospital-a", SealingKeys.make().public)
    path.chmod(0o666)
    with pytest.raises(IdentityError, match="others"):
        Pins(path)


def test_a_link_to_nowhere_is_not_an_empty_file(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))
    with pytest.raises((StoreError, IdentityError)):
        Pins(path)
