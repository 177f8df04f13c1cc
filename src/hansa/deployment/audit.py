"""A party's own audit log: what left it, to whom, when and in which class, and who was let in, refused or approved.

One record a line, JSON in ASCII, each with the SHA-256 of the line before it, so that no line can be edited, removed, inserted
or moved without breaking the chain at that place (Schneier and Kelsey, "Secure audit logs to support computer forensics", ACM
TISSEC 1999)::

    {"n":7,"time":"2026-03-01T09:30:00.000000Z","previous":"<64 hex digits>","kind":"sent","fields":{...}}

The chain alone does not show that its *end* was cut off or rewritten: for that, note its head elsewhere, or have it signed.
``docs/wire.md`` gives the bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, cast, final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hansa.deployment.disk import is_full, reason, sync
from hansa.errors import AuditError, StoreError

CHECKPOINT_EVERY: Final = 1000
"""Records between two signed heads."""
MAX_LINE: Final = 1 << 16
"""Bytes of a record at most."""
OWN_KINDS: Final = frozenset({"opened", "torn", "checkpoint"})
"""Kinds of records that only the log itself writes."""

_FORMAT, _CLOSED = "hansa.audit/1", "it is closed"
_NOTHING = "0" * 64
_KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_LONGEST_TEXT, _MOST_ITEMS, _DEEPEST = 1000, 200, 4  # a text's length is that of its JSON


@final
@dataclass(frozen=True, slots=True)
class Head:
    """The end of a log: its last record's number and the SHA-256 of its line. ``str`` gives a text to note elsewhere.

    >>> Head.parse("2:" + "ab" * 32).n
    2
    """

    n: int
    hash: str

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"

    @staticmethod
    def parse(text: str) -> Head:
        """The head that ``text`` noted.

        Raises:
            AuditError: it is not a head.
        """
        if not re.fullmatch(r"[0-9]{1,18}:[0-9a-f]{64}", text.strip()):
            raise AuditError(f"a head is a number, a colon and 64 hexadecimal digits, not {text[:100]!r}")
        n, _, digest = text.strip().partition(":")
        return Head(int(n), digest)


@final
class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a log. ``time`` is UTC by the party's own clock."""

    n: int
    time: str
    previous: str
    kind: str
    fields: dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Outflow:
    """What left the party in one run, to one receiver, in one class of message."""

    run: str
    receiver: str
    tag: str
    discloses: str
    messages: int
    bytes: int


class LogFile(Protocol):
    """The part of an unbuffered file, open for reading and writing, that a log needs; tests give one whose disk is full."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...

    def write(self, data: memoryview, /) -> int | None:
        """Append some of ``data``; how much."""
        ...

    def close(self) -> None:
        """Let it go."""
        ...


def _open(path: Path) -> LogFile:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return cast(LogFile, os.fdopen(descriptor, "a+b", buffering=0))


@final
class AuditLog:
    """A log open for writing, by this process alone.

    *Guarantees*: when :meth:`append` returns, the record is in the file and, with ``durable``, on the disk; when it raises, the
    record is taken back, as far as the disk lets it, and not counted. A last line that a crash tore is set aside beside the log when it is opened, and a
    record says so. Several threads may use one log.

    Args:
        path: the log; made if it is not there, readable by its owner only.
        clock: seconds since 1970, UTC.
        key: signs the head every ``every`` records and at :meth:`close`. With it, a log that exists is verified whole when it is
            opened, its checkpoints included: nothing is signed that this key's holder did not write.
        every: records between two signed heads.
        durable: sync after each record; otherwise in :meth:`sync` and :meth:`close`.
        opener: opens the file.

    Raises:
        AuditError: it is not what was written (without ``key``, only the last two lines are looked at).
        StoreError: another process writes it, or it cannot be opened or written.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        *,
        key: Ed25519PrivateKey | None = None,
        every: int = CHECKPOINT_EVERY,
        durable: bool = True,
        opener: Callable[[Path], LogFile] = _open,
    ) -> None:
        self.path = path
        self._clock, self._key, self._every, self._durable = clock, key, every, durable
        self._broken, self._lock = "", threading.RLock()
        new = not path.exists()
        try:
            self._file = opener(path)
        except OSError as error:
            raise _store(path, error) from error
        try:
            self._take_over(new)
        except BaseException:
            self._file.close()
            raise

    def append(self, kind: str, **fields: object) -> Head:
        """Write one record; the log's head with it.

        Args:
            kind: what happened, in small letters, figures and hyphens: "admitted", "refused", "approved", ...
            fields: None, truth values, 64-bit numbers that are finite, texts, and lists and mappings of them. A text longer than
                1,000 characters is cut and its hash kept, so that nothing that a peer sends can be too long to be recorded.

        Raises:
            AuditError: a field that cannot be recorded.
            StoreError: the disk is full or broken, or the log is closed; nothing was recorded.
        """
        if kind in OWN_KINDS or not _KIND.fullmatch(kind):
            raise AuditError(
                f"a kind of record is small letters, figures and hyphens, and not the log's own: {kind[:100]!r}"
            )
        with self._lock:
            # Before the record, not after: an append that raises must not have recorded anything.
            if self._key is not None and self._head.n - self._signed >= self._every:
                self._checkpoint()
            self._write(kind, fields)
            return self._head

    def sent(
        self, *, run: str, receiver: str, tag: str, discloses: str, bytes: int, round: int | None = None, **more: object
    ) -> Head:
        """Write that a message leaves the party; :func:`summary` counts these.

        Args:
            run: the run.
            receiver: the party it goes to.
            tag, discloses: of its class.
            bytes: of its frame.
            round: where it is known.
            more: further fields, such as the protection.
        """
        known = {"run": run, "receiver": receiver, "tag": tag, "discloses": discloses, "bytes": bytes, "round": round}
        return self.append("sent", **known, **more)

    @property
    def head(self) -> Head:
        """The last record's number and hash."""
        return self._head

    def sync(self) -> None:
        """Bring to the disk what was written.

        Raises:
            StoreError: it may not be there; the log has to be opened again.
        """
        with self._lock:
            self._usable()
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                # After a failed sync nobody knows what is on the disk: only reading it again tells.
                self._broken = "it could not be synced"
                raise _store(self.path, error) from error

    def close(self) -> None:
        """Sign the head, where there is a key, and let the log go; a second call does nothing."""
        with self._lock:
            if self._broken == _CLOSED:
                return
            try:
                if not self._broken:
                    if self._key is not None and self._head.n > self._signed:
                        self._checkpoint()
                    self.sync()
            finally:
                self._file.close()
                self._broken = _CLOSED

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_over(self, new: bool) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"{self.path}: another process writes this audit log; one writes it at a time") from error
        try:
            self._end, torn = _tail(self._file.fileno(), self.path)
            self._head = self._end_of_chain()
            self._signed = self._last_signed()
            # Named by the record that will say so, which is never the first.
            aside = self.path.with_name(f"{self.path.name}.torn-{max(self._head.n, 1) + 1}")
            if torn:
                _set_aside(aside, torn)
                os.ftruncate(self._file.fileno(), self._end)
                os.fsync(self._file.fileno())
            if new:
                sync(self.path.parent)
            # It is there without a record, too, if the last attempt to open the log ended between the two.
            left = aside.read_bytes() if aside.exists() else None
        except OSError as error:
            raise _store(self.path, error) from error
        if not self._head.n:
            self._write("opened", {"format": _FORMAT, "log": secrets.token_hex(16)})
        if left is not None:
            self._write("torn", {"bytes": len(left), "sha256": hashlib.sha256(left).hexdigest(), "kept": aside.name})

    def _last_signed(self) -> int:
        """The number of the last checkpoint, once the whole log is known to be what was written; 0 where nothing is signed."""
        if self._key is None:
            return 0
        found = _verified(self.path, None, self._key.public_key(), self._every, self._end)
        return max((record.n for record in found if record.kind == "checkpoint"), default=0)

    def _end_of_chain(self) -> Head:
        """The head, from the last two lines alone."""
        start = max(0, self._end - 2 * MAX_LINE)
        lines = _pread(self._file.fileno(), self._end - start, start).split(b"\n")[:-1]
        if not lines:
            return Head(0, _NOTHING)
        last = _parsed(lines[-1], f"{self.path}: the last line")
        before = _hash(lines[-2]) if len(lines) > 1 else _NOTHING
        if last.previous != before or last.n < 1 or (len(lines) == 1) != (last.n == 1):
            raise AuditError(
                f"{self.path}: the last two lines do not belong together; verify the log, and begin a new one"
            )
        return Head(last.n, _hash(lines[-1]))

    def _checkpoint(self) -> None:
        assert self._key is not None
        head, public = self._head, self._key.public_key().public_bytes_raw()
        signature = self._key.sign(_checkpoint_text(head)).hex()
        self._write("checkpoint", {"n": head.n, "hash": head.hash, "key": public.hex(), "signature": signature})
        self._signed = self._head.n

    def _write(self, kind: str, fields: Mapping[str, object]) -> None:
        self._usable()
        values = {"n": self._head.n + 1, "time": _time(self._clock()), "previous": self._head.hash, "kind": kind}
        line = json.dumps(values | {"fields": _clean_fields(fields)}, allow_nan=False, separators=(",", ":")).encode()
        if len(line) >= MAX_LINE:
            raise AuditError(f"a record of {len(line)} bytes, where {MAX_LINE} are allowed; record less of it")
        end = self._end
        try:
            self._put(line + b"\n")
            if self._durable:
                self.sync()
        except StoreError:
            self._take_back(end)
            raise
        self._head = Head(self._head.n + 1, _hash(line))

    def _put(self, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[_some(self._file.write(left)) :]
        except OSError as error:
            raise _store(self.path, error) from error
        self._end += len(line)

    def _take_back(self, end: int) -> None:
        try:
            os.ftruncate(self._file.fileno(), end)
            self._end = end
        except OSError:
            self._broken = "a record that was not counted may stand at its end"

    def _usable(self) -> None:
        if self._broken:
            raise StoreError(f"{self.path}: this audit log takes no records: {self._broken}; open it again")


def _some(count: int | None) -> int:
    if not count:
        raise OSError(errno.EIO, "nothing was written")
    return count


def verify(
    path: Path,
    head: Head | None = None,
    *,
    signer: Ed25519PublicKey | None = None,
    every: int = CHECKPOINT_EVERY,
) -> int:
    """Check that every line is what was written; the number of records.

    Without ``head`` and ``signer``, a log whose end was cut off, or rewritten from some line to its end, passes.

    Args:
        path: the log.
        head: an end that was noted elsewhere: the log must contain it.
        signer: whose checkpoints must hold, with at most ``every`` records after each; records after the last one are not signed.
        every: as the log was written with.

    Raises:
        AuditError: the first line that is not what was written, and what is wrong with it.
        StoreError: the log cannot be read.
    """
    return sum(1 for _ in _verified(path, head, signer, every))


def records(path: Path) -> Iterator[Record]:
    """The records of a log, each verified against the one before it.

    Raises:
        AuditError: as :func:`verify`, when the iteration comes to it.
        StoreError: the log cannot be read.
    """
    return _verified(path, None, None, CHECKPOINT_EVERY)


def read_head(path: Path) -> Head:
    """The end of a log, once all of it is known to be a chain.

    Raises:
        AuditError: as :func:`verify`.
        StoreError: the log cannot be read.
    """
    head = Head(0, _NOTHING)
    for n, (_, line) in enumerate(zip(records(path), _lines(path, None), strict=False), 1):
        head = Head(n, _hash(line.removesuffix(b"\n")))
    return head


def summary(path: Path) -> tuple[Outflow, ...]:
    """What left the party, by run, receiver and class of message, in this order.

    Raises:
        AuditError: the log is not what was written, or a record of what was sent lacks a field.
        StoreError: the log cannot be read.
    """
    totals: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for record in records(path):
        if record.kind == "sent":
            fields = record.fields
            found = [fields.get(name) for name in ("run", "receiver", "tag", "discloses")]
            size = fields.get("bytes")
            if not all(isinstance(text, str) for text in found) or type(size) is not int or size < 0:
                raise AuditError(f"{path}: line {record.n} does not say what was sent, to whom and how much")
            key = cast("tuple[str, str, str, str]", tuple(found))
            messages, total = totals.get(key, (0, 0))
            totals[key] = messages + 1, total + size
    return tuple(Outflow(*key, messages=count, bytes=total) for key, (count, total) in sorted(totals.items()))


def _verified(
    path: Path, head: Head | None, signer: Ed25519PublicKey | None, every: int, end: int | None = None
) -> Iterator[Record]:
    """The records, as far as byte ``end``; one line is read ahead, because only its successor tells which of two was changed."""
    before, before_that, last, signed = _NOTHING, "", 0, 0
    lines = _lines(path, end)
    line = next(lines, None)
    while line is not None:
        n, following = last + 1, next(lines, None)
        record, own = _parsed(line, f"{path}: line {n}"), _hash(line.removesuffix(b"\n"))
        if record.n != n:
            if record.previous == before_that and n > 1:
                raise AuditError(f"{path}: line {n - 1} was inserted: line {n} continues the one before it")
            raise AuditError(f"{path}: line {n} holds record {record.n}: a line was removed, inserted or moved here")
        if record.previous != before:
            raise AuditError(f"{path}: {_blame(n, own, following, head)} not what was written")
        if not line.endswith(b"\n"):
            raise AuditError(f"{path}: line {n} has no end: it was torn in a crash, or is not what was written")
        if head is not None and head.n == n and head.hash != own:
            raise AuditError(
                f"{path}: line {n} is not the one that was noted: it, or lines before it, were written anew"
            )
        if record.kind == "checkpoint":
            _check_signed(path, record, Head(last, before), signer)
            signed = n
        elif signer is not None and n - signed > every:
            raise AuditError(f"{path}: line {n} comes more than {every} records after the last signed head")
        yield record
        before_that, before, last, line = before, own, n, following
    if head is not None and last < head.n:
        raise AuditError(f"{path}: line {last + 1} is missing: the log was noted with {head.n} records and has {last}")
    if not last and end is None:
        raise AuditError(f"{path}: line 1 is missing: an audit log begins with one that says that it was opened")


def _blame(n: int, own: str, following: bytes | None, head: Head | None) -> str:
    """Which of lines n-1 and n was changed, where n does not continue n-1: the one that its successor does not know."""
    if n == 1:
        return "line 1 is"
    if following is not None:
        try:
            known = _parsed(following, "").previous
        except AuditError:
            known = ""
    elif head is not None and head.n == n:
        known = head.hash
    else:
        return f"line {n - 1} or line {n} is"
    return f"line {n - 1} is" if known == own else f"line {n} is"


def _check_signed(path: Path, record: Record, head: Head, signer: Ed25519PublicKey | None) -> None:
    fields = record.fields
    if (fields.get("n"), fields.get("hash")) != (head.n, head.hash):
        raise AuditError(f"{path}: line {record.n} signs another head than the one before it")
    if signer is not None:
        try:
            signer.verify(bytes.fromhex(str(fields.get("signature"))), _checkpoint_text(head))
        except (InvalidSignature, ValueError):
            raise AuditError(f"{path}: line {record.n} is not signed by the key that was given") from None


def _checkpoint_text(head: Head) -> bytes:
    return b"hansa.audit/1 checkpoint\0" + head.n.to_bytes(8, "little") + bytes.fromhex(head.hash)


def _lines(path: Path, end: int | None) -> Iterator[bytes]:
    """Lines with their ends, as far as byte ``end``; of one that is too long, as much as shows that it is."""
    place = 0
    try:
        with path.open("rb") as file:
            while (end is None or place < end) and (line := file.readline(MAX_LINE + 1)):
                place += len(line)
                yield line
    except OSError as error:
        raise _store(path, error) from error


_decoder = msgspec.json.Decoder(Record)


def _parsed(line: bytes, where: str) -> Record:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        torn = "" if line.endswith(b"\n") else ", but torn in a crash or altered"
        raise AuditError(f"{where} is not a record{torn}: it is not what was written") from None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError, OSError):
        raise AuditError(f"{seconds} is no time in seconds since 1970") from None


def _clean_fields(fields: Mapping[str, object]) -> dict[str, object]:
    for name in fields:
        if not _NAME.fullmatch(name):
            raise AuditError(f"a field's name is small letters, figures and underscores, not {name[:100]!r}")
    return {name: _clean(value, name, 1) for name, value in fields.items() if value is not None}


def _clean(value: object, name: str, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple | Mapping) and depth < _DEEPEST and len(value) <= _MOST_ITEMS:
        if isinstance(value, Mapping):
            return {_clean_text(str(key)): _clean(item, name, depth + 1) for key, item in value.items()}
        return [_clean(item, name, depth + 1) for item in value]
    raise AuditError(
        f"the field {name!r} holds a {type(value).__name__} that cannot be recorded: numbers are finite and of 64 bits, lists "
        f"and mappings have {_MOST_ITEMS} items at most and are not nested deeper than {_DEEPEST}"
    )


def _clean_text(text: str) -> str:
    raw = text.encode("utf-8", "replace")  # half a surrogate pair is no text
    kept = raw.decode()
    if len(text) <= _LONGEST_TEXT and len(json.dumps(kept)) <= _LONGEST_TEXT + 2:
        return kept
    kept = kept[:_LONGEST_TEXT]
    while len(json.dumps(kept)) > _LONGEST_TEXT + 2:
        kept = kept[: len(kept) * 3 // 4]
    return f"{kept}... [{len(text)} characters, SHA-256 {hashlib.sha256(raw).hexdigest()}]"


def _tail(descriptor: int, path: Path) -> tuple[int, bytes]:
    """Where the last whole line ends, and what stands behind it."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - MAX_LINE)
    rest = _pread(descriptor, size - start, start)
    cut = rest.rfind(b"\n") + 1
    if not cut and start:
        raise AuditError(f"{path}: its last line is longer than any record: this is not an audit log, or was altered")
    return start + cut, rest[cut:]


def _pread(descriptor: int, count: int, start: int) -> bytes:
    found = b""
    while len(found) < count and (more := os.pread(descriptor, count - len(found), start + len(found))):
        found += more
    return found


def _set_aside(aside: Path, torn: bytes) -> None:
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "a+b", buffering=0) as file:
        # An earlier attempt may have ended after this, or have torn the record that was to say so.
        file.seek(0)
        if not file.read().endswith(torn):
            left = memoryview(torn)
            while left:
                left = left[_some(file.write(left)) :]
        os.fsync(file.fileno())
    sync(aside.parent)


def _store(path: Path, error: OSError) -> StoreError:
    if is_full(error):
        return StoreError(f"{path}: {reason(error)}")
    return StoreError(f"{path}: {error.strerror or error}; correct the path, then try again")
