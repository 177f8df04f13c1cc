"""The spool: a folder of large frames, each written once and read in place.

Who writes a frame and who reads it are different processes of one machine. A reader maps the file, so that a tensor is a view
of the page cache and nobody holds a copy. Making a new file costs an operating system far more than writing over an old one,
so removed files are kept for a while and written over; a reader's shared lock, which lives as long as its mapping, keeps its
file from that.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import secrets
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Final, final

from hansa.deployment.disk import reason, sync
from hansa.errors import StoreError

_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FREE, _PART = ".free", ".part"
_WORTH_KEEPING: Final = 1 << 20
"""Bytes below which a new file is as quick as an old one."""
_SLICE: Final = 1 << 24
"""Bytes of one system call: a signal waits no longer than it takes."""


@final
class Spool:
    """Frames in files of ``folder``, under random names that nobody chooses.

    *Guarantees*: no name leads out of the folder; a frame that can be mapped was written whole; a file is never written while
    somebody maps it.

    Args:
        folder: made, for its owner alone, if it is not there.
        spare: bytes of removed files that are kept at most, for writing over.

    Raises:
        StoreError: the folder cannot be made.
    """

    __slots__ = ("folder", "spare")

    def __init__(self, folder: Path | str, spare: int = 1 << 31) -> None:
        self.folder = Path(folder)
        self.spare = spare
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the spool {self.folder} cannot be made: {reason(error)}") from None

    def path(self, name: str) -> Path:
        """Where the frame called ``name`` lies.

        Raises:
            StoreError: that is no name of a frame.
        """
        if not _NAME.fullmatch(name):
            raise StoreError(f"the spool has no frame {name[:80]!r}: a name is 32 hexadecimal digits")
        return self.folder / name

    @staticmethod
    def fresh() -> str:
        """A name that nothing has."""
        return secrets.token_hex(16)

    def draft(self, size: int = 0) -> Draft:
        """A frame that comes piece by piece; ``size`` is its size, as far as it is known.

        Raises:
            StoreError: no file can be made.
        """
        name = secrets.token_hex(16)
        part = self.folder / (name + _PART)
        try:
            descriptor = self._reused(part, size) if size >= _WORTH_KEEPING else None
            if descriptor is None:
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreError(f"the spool {self.folder} takes no frame: {error.strerror}") from None
        return Draft(self.folder, name, descriptor)

    def write(self, parts: Iterable[bytes | memoryview], size: int = 0, durable: bool = False) -> str:
        """Store a frame given in parts; returns its name. A ``durable`` one outlives a loss of power from then on.

        Raises:
            StoreError: the disk is full, or the folder cannot be written; nothing is left behind.
        """
        draft = self.draft(size)
        try:
            for part in parts:
                draft.write(part)
            return draft.finish(durable)
        except BaseException:
            draft.abandon()
            raise

    def map(self, name: str) -> mmap.mmap:
        """The frame called ``name``, read-only; views of it keep it mapped.

        Raises:
            StoreError: there is no such frame.
        """
        path = self.path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                # The mapping has a duplicate of the descriptor, and the lock lives until the last of them is closed.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino != os.stat(path).st_ino:
                    raise StoreError(f"the spool's frame {name} was removed")
                return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise StoreError(f"the spool {self.folder} has no frame {name}: {error}") from None

    def sync(self, name: str) -> None:
        """Wait until a frame is on the disk.

        Raises:
            StoreError: there is no such frame, or the disk is broken.
        """
        try:
            sync(self.path(name))
            sync(self.folder)
        except OSError as error:
            raise StoreError(f"the spool's frame {name} cannot be kept: {error.strerror}") from None

    def remove(self, name: str) -> None:
        """Forget a frame; one that is gone already is no error.

        Raises:
            StoreError: that is no name of a frame, or it cannot be removed.
        """
        path = self.path(name)
        try:
            size = path.stat().st_size
            if size >= _WORTH_KEEPING and size + sum(found for found, _ in self._retired()) <= self.spare:
                path.rename(path.with_name(name + _FREE))
            else:
                path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"the spool's frame {name} cannot be removed: {error.strerror}") from None

    def sweep(self, keep: Container[str]) -> int:
        """Delete all that nobody wants after a crash, half-written frames too; returns how many files. Not while others write."""
        count = 0
        for path in self.folder.iterdir():
            stem = path.name.removesuffix(_FREE).removesuffix(_PART)
            if _NAME.fullmatch(stem) and (stem != path.name or stem not in keep):
                path.unlink(missing_ok=True)
                count += 1
        return count

    def _retired(self) -> list[tuple[int, str]]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_FREE):
                    try:
                        found.append((entry.stat(follow_symlinks=False).st_size, entry.path))
                    except FileNotFoundError:  # another process took it
                        continue
        return found

    def _reused(self, part: Path, size: int) -> int | None:
        """A removed file that nobody maps, now called ``part``; the one whose size is nearest."""
        for _, path in sorted(self._retired(), key=lambda entry: abs(entry[0] - size)):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(path, part)  # of two that want it, one succeeds
            except (BlockingIOError, FileNotFoundError):
                os.close(descriptor)
                continue
            return descriptor
        return None


@final
class Draft:
    """A frame on its way into the spool; see :meth:`Spool.draft`."""

    __slots__ = ("_descriptor", "_folder", "name", "size")

    def __init__(self, folder: Path, name: str, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self.name = name
        self.size = 0

    def write(self, part: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            StoreError: the disk is full.
        """
        view = memoryview(part).cast("B")
        try:
            while view:
                written = os.write(self._descriptor, view[:_SLICE])
                view = view[written:]
                self.size += written
        except OSError as error:
            raise StoreError(f"the spool {self._folder} cannot be written: {error.strerror}") from None

    def finish(self, durable: bool = False) -> str:
        """The frame is whole; returns its name, when it is on the disk if it is to be ``durable``.

        Raises:
            StoreError: it cannot be kept.
        """
        try:
            os.ftruncate(self._descriptor, self.size)
            if durable:
                os.fsync(self._descriptor)
            self._close()
            (self._folder / (self.name + _PART)).rename(self._folder / self.name)
            if durable:
                sync(self._folder)
        except OSError as error:
            raise StoreError(f"the spool {self._folder} cannot be written: {error.strerror}") from None
        return self.name

    def abandon(self) -> None:
        """Forget it."""
        self._close()
        (self._folder / (self.name + _PART)).unlink(missing_ok=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
