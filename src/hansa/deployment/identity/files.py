"""Secret files: written whole or not at all, and read only where nobody else can read them.

A file comes into being under another name, is flushed to the disk, and takes its place in one step; so at any instant, a power
failure included, there is the old content or the new one.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from hansa.deployment.disk import sync
from hansa.errors import IdentityError, StoreError

MAX_FILE: Final = 1 << 20
"""Bytes of the largest file that is read here: 1 MiB."""


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write ``data`` to ``path``, which its owner alone can read (mode 0600).

    Args:
        path: the file; its folder exists.
        data: the whole content.
        replace: whether a file that is already there gives way.

    Raises:
        IdentityError: there is such a file, and ``replace`` is False.
        StoreError: the disk does not take it.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            _write_synced(fresh, data)
            if replace:
                os.replace(fresh, path)
            else:
                os.link(fresh, path)  # unlike a rename, this fails where the name is taken
        finally:
            fresh.unlink(missing_ok=True)
        sync(path.parent)
    except FileExistsError:
        raise IdentityError(f"{path} is there already, and is not overwritten; move it away first") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def read_private(path: Path, max_bytes: int = MAX_FILE) -> bytes:
    """The content of a file that :func:`write_private` wrote.

    Raises:
        IdentityError: there is no such file, or somebody else than its owner could read or exchange it.
        StoreError: it is too large or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise IdentityError(f"{path} is not there; is this the home of a party that has joined?") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        _owned_alone(path, os.fstat(descriptor))  # of what is open, not of what the name means by then
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise StoreError(f"{path} holds more than {max_bytes} bytes; it is not what was written there")
    return data


def private_folder(path: Path) -> Path:
    """``path`` as a folder that its owner alone can enter (mode 0700), made where it is not there.

    Raises:
        IdentityError: others can write to it, and so exchange what is in it.
        StoreError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise StoreError(f"the folder {path} cannot be made: {error.strerror}") from error
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise IdentityError(f"others can write to the folder {path}; run: chmod 700 {path}")
    return path


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _owned_alone(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise IdentityError(f"{path} is no plain file; a private key is read from nothing else")
    if found.st_uid != os.geteuid():
        raise IdentityError(
            f"{path} belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}; "
            f"a private key must be its owner's alone: run as that user, or change the owner"
        )
    if found.st_mode & 0o077:
        raise IdentityError(
            f"others can read {path} (mode {stat.S_IMODE(found.st_mode):04o}), so its keys may be known; "
            f"run: chmod 600 {path}, and renew the keys if anybody may have read them"
        )
