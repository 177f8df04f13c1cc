"""A backup: one file with all of a home that is of use on another day, taken while its machine runs or not.

It is a tar archive. Its first member is the manifest, which names the others in their order, with their sizes and SHA-256; then come the
identity, the authority of a hub and its operator's identity, the settings, the audit log, the database as of one instant, and the
results of runs that have ended. It is as secret as the home.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, cast, final

import msgspec

from hansa.deployment.disk import sync
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.standing import SOFTWARE
from hansa.deployment.store.copies import needed, snapshot
from hansa.errors import ConfigError, StoreError

FORMAT: Final = 1
"""The version of the archive that is written, and the newest that is read."""
MANIFEST: Final = "manifest.json"
_SLICE: Final = 1 << 20

_IDENTITY: Final = r"identity/(authority\.pem|tls\.pem|sealing\.pem|hub\.json|pins\.json)"
_STATE: Final = r"audit\.log(\.torn-[0-9]{1,18})?|spool/[0-9a-f]{32}"
NAMES: Final = {
    "hub": rf"{_IDENTITY}|operator/{_IDENTITY}|authority/authority\.key|hub\.toml|hub\.db|address|{_STATE}",
    "node": rf"{_IDENTITY}|node\.toml|node\.db|{_STATE}",
    **dict.fromkeys(("operator", "submitter", "observer"), _IDENTITY),
}
"""By kind of home, what a backup of it may hold, and nothing else."""
DATABASES: Final = {"hub": "hub.db", "node": "node.db"}


@final
class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member of the archive."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@final
class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive is.

    Args:
        format: its version.
        software: the version of the program that wrote it.
        kind, federation, name: of the home's identity.
        time: what the database says is of this instant; POSIX seconds.
        files: the other members, in their order.
    """

    format: int
    software: str
    kind: str
    federation: str
    name: str
    time: Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
    files: tuple[Part, ...]


@final
@dataclass(frozen=True)
class Taken:
    """A backup that was taken: ``size`` in bytes, and how many ``results`` of runs are in it."""

    manifest: Manifest
    size: int
    results: int


def take(home: Path, file: Path, now: float) -> Taken:
    """Write a backup of ``home`` to ``file``, which its owner alone can read.

    *Guarantees*: the file is there as a whole, or not at all; one that is there is not overwritten.

    Args:
        home: of a hub, a node or a person; its machine may run.
        file: where.
        now: POSIX seconds.

    Raises:
        ConfigError: there is no home, or the file is there already.
        IdentityError, StoreError: the home cannot be read, or the file cannot be written.
    """
    if not has_identity(home):
        raise ConfigError(f"{home} is no home of a federation: nobody has joined there, and it has no hub")
    if os.path.lexists(file):
        raise ConfigError(f"{file} is there already, and is not overwritten")
    who = Credentials.load(home, now, even_expired=True).identity
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    staged = file.with_name(f"{fresh.name}.d")
    try:
        staged.mkdir(0o700)
        sources = _staged(home, staged, who.kind)
        parts = tuple(Part(name, *_measured(path)) for name, path in sources.items())
        manifest = Manifest(FORMAT, SOFTWARE, who.kind, who.federation, who.name, now, parts)
        _write(fresh, manifest, sources, int(now))
        os.link(fresh, file)  # unlike a rename, this fails where the name is taken
        sync(file.parent)
        size = file.stat().st_size
    except FileExistsError:
        raise ConfigError(f"{file} is there already, and is not overwritten") from None
    except OSError as error:
        raise StoreError(f"the backup {file} cannot be written: {error.strerror or error}") from None
    finally:
        fresh.unlink(missing_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
    return Taken(manifest, size, sum(part.name.startswith("spool/") for part in parts))


def _staged(home: Path, staged: Path, kind: str) -> dict[str, Path]:
    """Where each member is read from: what may change meanwhile, from a copy."""
    sources: dict[str, Path] = {}
    bodies: dict[str, int] = {}
    if kind in DATABASES and (home / DATABASES[kind]).exists():
        # First of all: whatever it relies on must be newer.
        sources[DATABASES[kind]] = staged / DATABASES[kind]
        snapshot(home / DATABASES[kind], sources[DATABASES[kind]])
        bodies = needed(sources[DATABASES[kind]])
    for name in sorted(_present(home, kind)):
        if name.startswith("spool/") or name in DATABASES.values():
            continue
        sources[name] = staged / name.replace("/", "~")
        _copy(home / name, sources[name], whole_lines=name == "audit.log")
    for blob, size in bodies.items():
        path = sources[f"spool/{blob}"] = home / "spool" / blob
        if not path.is_file() or path.stat().st_size != size:
            raise StoreError(f"the result of a run is not in {path}, or not whole; the home is damaged")
    return sources


def _present(home: Path, kind: str) -> Iterator[str]:
    for folder in ("", "identity", "authority", "operator/identity"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in (home / folder).iterdir():
                name = f"{folder}/{path.name}" if folder else path.name
                if re.fullmatch(NAMES[kind], name) and path.is_file():
                    yield name


def _copy(source: Path, target: Path, whole_lines: bool) -> None:
    """Copy a file; of one that is appended to, up to its last whole line."""
    with source.open("rb") as reading, _private(target) as writing:
        shutil.copyfileobj(reading, writing, _SLICE)
        if whole_lines:
            size = writing.tell()
            while size:
                begin = max(0, size - _SLICE)
                writing.seek(begin)
                end = writing.read(size - begin).rfind(b"\n")
                size = begin + end + 1 if end >= 0 else begin
                if end >= 0:
                    break
            writing.truncate(size)


def _measured(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _write(fresh: Path, manifest: Manifest, sources: dict[str, Path], time: int) -> None:
    with _private(fresh) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            text = msgspec.json.format(msgspec.json.encode(manifest))
            archive.addfile(_member(MANIFEST, len(text), time), io.BytesIO(text))
            for part in manifest.files:
                with sources[part.name].open("rb") as source:
                    read = _Digesting(source)
                    archive.addfile(_member(part.name, part.size, time), cast(BinaryIO, read))
                if read.digest.hexdigest() != part.sha256:
                    raise StoreError(f"{sources[part.name]} was exchanged while it was copied; take the backup again")
        file.flush()
        os.fsync(file.fileno())


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w+b")


def _member(name: str, size: int, time: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, time
    return member


@final
class _Digesting:
    """Reads a file, and digests what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data
