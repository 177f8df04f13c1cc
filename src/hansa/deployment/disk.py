"""What has reached the disk, and whether there is room on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

MAKE_ROOM: Final = "make room on the disk, then start again"
"""What to do about a disk that is full."""
ROOM: Final = 1 << 20
"""Bytes with fewer of which a disk counts as full, where what failed does not say so itself."""


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: what was only renamed is not, after a loss of power.

    Raises:
        OSError: there is no such file, or the disk is broken.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk, or this user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def reason(error: OSError) -> str:
    """Why something could not be written, with what to do where the disk is full.

    >>> reason(OSError(errno.ENOSPC, "No space left on device"))
    'No space left on device; make room on the disk, then start again'
    """
    return f"{error.strerror or error}{f'; {MAKE_ROOM}' if is_full(error) else ''}"


def crowded(path: Path) -> bool:
    """Whether hardly anything more goes onto the disk of ``path``: for errors that do not say why they came."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < ROOM or (found.f_files > 0 and found.f_favail == 0)
