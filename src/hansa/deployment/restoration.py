"""A home from a backup: looked at as a whole before it is one, and no longer the home that the copy was taken of.

What the machine said and heard since the copy is forgotten, and its peers are told so by another epoch of its database
(:mod:`hansa.deployment.store.mailbox`): they count anew, and end what was under way with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, final

import msgspec

from hansa.deployment.audit import AuditLog
from hansa.deployment.backup import DATABASES, FORMAT, MANIFEST, NAMES, Manifest, Part
from hansa.deployment.disk import sync
from hansa.deployment.identity.authority import Authority
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.identity.files import private_folder
from hansa.deployment.store import Database
from hansa.deployment.store.copies import Left, begin_anew, require_ours
from hansa.deployment.worker.spool import Spool
from hansa.errors import ConfigError, HansaError, StoreError

_MOST_MANIFEST: Final = 1 << 26
_SLICE: Final = 1 << 20
_LAST: Final = "identity"
"""A folder with this in it is somebody's home, so it comes in when everything else is there."""


@final
@dataclass(frozen=True)
class Restored:
    """A home that was restored.

    Args:
        manifest: of the backup.
        left: what its database holds, where it has one.
        expires: when the certificate of its identity ends, POSIX seconds.
    """

    manifest: Manifest
    left: Left | None
    expires: float


def restore(file: Path, home: Path, now: float) -> Restored:
    """Make ``home`` of the backup in ``file``.

    *Guarantees*: there is the whole home afterwards, or none; nothing is written beside it, whatever the file holds.

    Args:
        file: see :func:`hansa.deployment.backup.take`.
        home: an empty folder, or none.
        now: POSIX seconds.

    Raises:
        ConfigError: the home is not empty.
        StoreError: the file is not a backup, is damaged, or was altered; or the disk does not take the home.
        IdentityError, AuditError: what is in it does not fit together.
    """
    made = not os.path.lexists(home)
    if not made and (not home.is_dir() or any(home.iterdir())):
        raise ConfigError(f"{home} is not empty; a backup is restored into a new home: say another with --home")
    fresh = private_folder(home) / f".restoring.{secrets.token_hex(8)}"
    try:
        manifest = _unpacked(file, private_folder(fresh))
        restored = _begun(file, fresh, manifest, now)
        for path in sorted(fresh.iterdir(), key=lambda path: path.name == _LAST):
            path.rename(home / path.name)
        fresh.rmdir()
        sync(home)
    except OSError as error:
        raise StoreError(f"{home} cannot be restored from {file}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                home.rmdir()  # which succeeds only where nothing came of it
    return restored


def _begun(file: Path, home: Path, manifest: Manifest, now: float) -> Restored:
    """Look whether the parts belong together, and make a new home of them."""
    try:
        mine = Credentials.load(home, now, even_expired=True)
        who = mine.identity
        if (who.kind, who.federation, who.name) != (manifest.kind, manifest.federation, manifest.name):
            raise StoreError(f"its manifest is of {manifest.kind} '{manifest.name}', and its identity is {who}")
        if who.kind == "hub" and Authority.open(home / "authority").certificate_pem != mine.authority_pem:
            raise StoreError("its authority is not the one of its identity")
        if os.path.lexists(home / "operator"):
            Credentials.load(home / "operator", now, even_expired=True)
        left = None
        if who.kind in DATABASES:
            path = home / DATABASES[who.kind]
            require_ours(path)
            with contextlib.closing(Database(path)) as database, database.at_once():
                left = begin_anew(database, Spool(home / "spool"), min(manifest.time, now), now)
            with AuditLog(home / "audit.log", lambda: now, key=mine.sealing.sign) as audit:
                audit.append("restored", taken=manifest.time, software=manifest.software)
    except HansaError as error:
        raise type(error)(f"{file} cannot be restored: {error}") from None
    return Restored(manifest, left, mine.certificate.not_after)


def _unpacked(file: Path, folder: Path) -> Manifest:
    """Everything in the archive, which is what its manifest says.

    Raises:
        StoreError: it is not.
    """
    try:
        with file.open("rb") as reading, tarfile.open(fileobj=reading, mode="r:") as archive:
            manifest = _manifest(file, archive)
            for part in manifest.files:
                _unpack(file, archive, _next(file, archive, part.name), part, folder)
            extra = archive.next()
            if extra is not None:
                _flawed(file, f"it holds {extra.name[:100]!r}, which its manifest does not name")
            reading.seek(archive.offset)
            while data := reading.read(_SLICE):
                if data.count(0) != len(data):
                    _flawed(file, "something follows its end")
    except tarfile.TarError as error:
        _flawed(file, f"it is not an archive, or a damaged one: {error}")
    return manifest


def _manifest(file: Path, archive: tarfile.TarFile) -> Manifest:
    member = _next(file, archive, MANIFEST)
    if member.size > _MOST_MANIFEST:
        _flawed(file, f"its manifest has {member.size} bytes, and at most {_MOST_MANIFEST} are read")
    source = archive.extractfile(member)
    assert source is not None
    text = source.read(_MOST_MANIFEST)
    try:
        version = msgspec.json.decode(text, type=_Versioned).format
        if version > FORMAT:
            _flawed(file, f"it was written by a newer Hansa (format {version}, this one knows {FORMAT}); upgrade Hansa")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _flawed(file, f"its manifest cannot be read: {error}")
    if manifest.format < 1 or manifest.kind not in NAMES:
        _flawed(file, f"it is of a kind of home that this Hansa does not know: {manifest.kind[:40]!r}")
    names = [part.name for part in manifest.files]
    for name in names:
        if not re.fullmatch(NAMES[manifest.kind], name):
            _flawed(file, f"{name[:100]!r} is nothing that a backup of a {manifest.kind} holds")
    if len(set(names)) != len(names):
        _flawed(file, "its manifest names a member twice")
    needed = {"identity/authority.pem", "identity/tls.pem", "identity/sealing.pem", "identity/hub.json"}
    needed |= {DATABASES[manifest.kind]} if manifest.kind in DATABASES else set()
    needed |= {"authority/authority.key"} if manifest.kind == "hub" else set()
    if lacking := sorted(needed - set(names)):
        _flawed(file, f"it lacks {lacking[0]}")
    return manifest


def _next(file: Path, archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    """The next member, which must be a plain file of this name."""
    member = archive.next()
    if member is None:
        _flawed(file, f"it lacks {name}, or is cut short before it")
    if member.name != name:
        _flawed(file, f"it holds {member.name[:100]!r} where its manifest says {name}")
    if member.type != tarfile.REGTYPE or member.pax_headers or member.issparse():
        _flawed(file, f"its {name} is no plain file but a link, a folder or a device")
    return member


def _unpack(file: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, part: Part, folder: Path) -> None:
    if member.size != part.size:
        _flawed(file, f"its {part.name} has {member.size} bytes, and its manifest says {part.size}")
    for parent in reversed(Path(part.name).parents[:-1]):
        private_folder(folder / parent)
    target = folder / part.name
    digest, left = hashlib.sha256(), part.size
    source = archive.extractfile(member)
    assert source is not None
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as writing:
        while left and (data := source.read(min(left, _SLICE))):
            digest.update(data)
            writing.write(data)
            left -= len(data)
        writing.flush()
        os.fsync(writing.fileno())
    if left:
        _flawed(file, f"it is cut short in {part.name}")
    if digest.hexdigest() != part.sha256:
        _flawed(file, f"its {part.name} is not what was written: it is damaged, or was altered")


class _Versioned(msgspec.Struct, frozen=True):
    format: int


def _flawed(file: Path, why: str) -> NoReturn:
    raise StoreError(f"{file} cannot be restored: {why}")
