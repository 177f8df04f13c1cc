"""Secret files: whole or not at all, and for one pair of eyes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment.identity.files import private_folder, read_private, write_private
from hansa.errors import IdentityError, StoreError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_file_is_its_owners_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_private(tmp_path / "key", b"secret")
        made = private_folder(tmp_path / "one" / "two")
    finally:
        os.umask(before)
    assert mode(tmp_path / "key") == 0o600 and mode(made) == 0o700
    assert read_private(tmp_path / "key") == b"secret"


def test_the_secret_is_never_in_a_file_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    opening = os.open

    def watched(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if flags & os.O_CREAT:
            seen.append((bool(flags & os.O_EXCL), mode))
        return opening(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", watched)
    write_private(tmp_path / "key", b"secret")
    assert seen == [(True, 0o600)]


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660, 0o602, 0o601, 0o777])
def test_a_key_that_others_can_touch_is_not_read(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    path.chmod(bits)
    with pytest.raises(IdentityError, match=f"{bits:04o}.*chmod 600"):
        read_private(path)


def test_a_key_of_another_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", b"secret")
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(IdentityError, match="belongs to user"):
        read_private(tmp_path / "key")


def test_links_pipes_and_folders_are_not_read(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    os.mkfifo(tmp_path / "pipe", 0o600)  # read without care, this would wait for ever
    (tmp_path / "folder").mkdir(0o700)
    for name in ("link", "pipe", "folder"):
        with pytest.raises((IdentityError, StoreError)):
            read_private(tmp_path / name)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="key is not there"):
        read_private(tmp_path / "key")


def test_a_file_is_bounded(tmp_path: Path) -> None:
    write_private(tmp_path / "key", bytes(100))
    assert len(read_private(tmp_path / "key", 100)) == 100
    with pytest.raises(StoreError, match="more than 99"):
        read_private(tmp_path / "key", 99)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"first")
    with pytest.raises(IdentityError, match="there already"):
        write_private(tmp_path / "key", b"second")
    assert read_private(tmp_path / "key") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    write_private(tmp_path / "key", b"second", replace=True)
    assert read_private(tmp_path / "key") == b"second"


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IdentityError):
        write_private(tmp_path / "key", b"secret")
    write_private(tmp_path / "key", b"secret", replace=True)
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"
    assert not (tmp_path / "key").is_symlink() and read_private(tmp_path / "key") == b"secret"


@pytest.mark.parametrize("replace", [False, True])
def test_a_full_disk_changes_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    if replace:
        write_private(tmp_path / "key", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_private(tmp_path / "key", b"new", replace=replace)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == ([("key", b"old")] if replace else [])


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o770)
    with pytest.raises(IdentityError, match="chmod 700"):
        private_folder(tmp_path / "open")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be made"):
        private_folder(tmp_path / "file" / "home")
    with pytest.raises(StoreError, match="cannot be written"):
        write_private(tmp_path / "nowhere" / "key", b"")
