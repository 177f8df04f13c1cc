"""Letters between two parties that a hub relays and cannot read, alter, repeat, reorder or redirect.

An envelope is a header that says who writes to whom, the message in encrypted segments, and the sender's signature over both::

    header        who, to whom, in which run, which number, how long; the sender's ephemeral key
    commitment    32 bytes that fix the secret key, so that an envelope opens in one way only
    segments      the plaintext in pieces of `segment` bytes, each with a 16-byte tag
    signature     64 bytes, Ed25519

X25519 between a fresh key and the receiver's gives a secret that HKDF-SHA256 binds to the *transcript*: the whole header and
both hosts' public keys. It yields the key of ChaCha20-Poly1305 and the commitment. Segments carry a counter and a mark on the
last one in their nonces (STREAM: Hoang, Reyhanitabar, Rogaway and Vizár, "Online authenticated-encryption and its nonce-reuse
misuse-resistance", CRYPTO 2015, section 7). The signature covers transcript, commitment and every sealed byte, and is verified
before anything is decrypted. ``docs/wire.md`` gives the bytes and the reasons.

*What is not promised*: the hub sees the header (names, tag, length, number), can withhold letters, and whoever gets hold of a
receiver's private key can read what was sealed to it before.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, final, overload

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.deployment.identity.keys import SealingKeys, SealingPublic
from hansa.errors import SealError, StoreError
from hansa.message import MAX_FRAME

SEGMENT: Final = 1 << 20
"""Bytes of plaintext in a segment, unless told otherwise."""

_MAGIC, _VERSION = b"HNSE", 1
_FIXED: Final = struct.Struct("<4sBBHQQ32s32s32s")
_SMALLEST, _LARGEST = 10, 20  # powers of two; smaller segments would let a sender make its receiver work for nothing
_KEY, _TAG, _SIGNATURE, _NAME = 32, 16, 64, 255

_Read: TypeAlias = "Callable[[int, int], bytes | memoryview]"
_Write: TypeAlias = Callable[[bytes], object]


@final
@dataclass(frozen=True, slots=True)
class Envelope:
    """What a letter is bound to. Every text is 1 to 255 bytes of UTF-8.

    Args:
        federation, run: where the letter belongs.
        sender_host, receiver_host: the hosts, by the names in their certificates; theirs are the keys.
        sender, receiver: the parties, as the run's roster names them.
        tag: the tag of the message inside.
        sequence: 1 for the first letter of this sender to this receiver in this run, then one more each.
    """

    federation: str
    run: str
    sender_host: str
    receiver_host: str
    sender: str
    receiver: str
    tag: str
    sequence: int


_NAMES: Final = tuple(item.name for item in fields(Envelope) if item.name != "sequence")


@final
@dataclass(frozen=True, slots=True)
class Sequence:
    """A receiver's order check: the number that the next letter must have. Its caller stores ``next`` durably.

    >>> Sequence().accept(1).accept(2)
    Sequence(next=3)
    """

    next: int = 1

    def accept(self, number: int) -> Sequence:
        """What is expected after the letter ``number``.

        Raises:
            SealError: the letter came before, or letters before it are missing.
        """
        if number < self.next:
            raise SealError(f"letter {number} came already (a replay): the next one is {self.next}")
        if number > self.next:
            raise SealError(f"letter {number} came before letter {self.next} (reordered, or letters were withheld)")
        return Sequence(self.next + 1)


@final
@dataclass(frozen=True, slots=True)
class Header:
    """An envelope's header as it stands there. Nothing in it is proven until the envelope is verified or opened.

    Args:
        envelope: what the sender says the letter is bound to.
        length: bytes of the plaintext.
        segment: bytes of plaintext in a segment.
        ephemeral: the sender's X25519 key for this envelope.
        sender_keys, receiver_keys: the :func:`key_id` of each host's keys.
        raw: the header's own bytes.
    """

    envelope: Envelope
    length: int
    segment: int
    ephemeral: bytes
    sender_keys: bytes
    receiver_keys: bytes
    raw: bytes = field(repr=False)

    @property
    def segments(self) -> int:
        """How many segments there are; an empty plaintext has one."""
        return max(1, -(-self.length // self.segment))

    @property
    def size(self) -> int:
        """Bytes of the whole envelope."""
        return len(self.raw) + _KEY + self.length + _TAG * self.segments + _SIGNATURE


def key_id(keys: SealingPublic) -> bytes:
    """The 32 bytes by which a header names a host's keys."""
    return hashlib.sha256(b"hansa.seal/1 keys\0" + keys.sign + keys.agree).digest()


@overload
def seal(
    envelope: Envelope, plaintext: bytes | Path, mine: SealingKeys, theirs: SealingPublic, *, to: None = None,
    segment: int = SEGMENT, ephemeral: X25519PrivateKey | None = None,
) -> bytes: ...  # fmt: skip
@overload
def seal(
    envelope: Envelope, plaintext: bytes | Path, mine: SealingKeys, theirs: SealingPublic, *, to: Path,
    segment: int = SEGMENT, ephemeral: X25519PrivateKey | None = None,
) -> None: ...  # fmt: skip
def seal(
    envelope: Envelope,
    plaintext: bytes | Path,
    mine: SealingKeys,
    theirs: SealingPublic,
    *,
    to: Path | None = None,
    segment: int = SEGMENT,
    ephemeral: X25519PrivateKey | None = None,
) -> bytes | None:
    """Seal a message for one receiver: in memory, or into the file ``to`` with memory of the order of a segment.

    Args:
        envelope: what the letter is bound to.
        plaintext: the message's frame, or the file that holds it.
        mine: the sender's keys.
        theirs: the receiver's, from its certificate.
        to: the file to write; it appears whole or not at all. It is not synced: after a loss of power no letter is believed.
        segment: bytes of a segment: a power of two from 1 KiB to 1 MiB.
        ephemeral: for golden vectors only. Used twice, it gives two letters one key.

    Returns:
        The envelope; None where it is in ``to``.

    Raises:
        SealError: a name or key that cannot be used.
        StoreError: a file that cannot be read or written, or changed meanwhile.
    """
    sender = _public(mine)
    with _source(plaintext) as (size, read):
        fresh = X25519PrivateKey.generate() if ephemeral is None else ephemeral
        header = _header(envelope, size, segment, fresh, sender, theirs)
        transcript = _transcript(header, sender, theirs)
        key, commitment = _derive(_exchange(fresh, theirs.agree), transcript)
        with _target(to) as (write, result):
            write(header.raw)
            write(commitment)
            digest = _write_segments(header, read, write, ChaCha20Poly1305(key), transcript)
            write(mine.sign.sign(_signed(transcript, commitment, digest)))
            return result()


@overload
def open_sealed(
    sealed: bytes | Path, expected: Envelope, mine: SealingKeys, theirs: SealingPublic, *, to: None = None,
    limit: int = MAX_FRAME,
) -> bytes: ...  # fmt: skip
@overload
def open_sealed(
    sealed: bytes | Path, expected: Envelope, mine: SealingKeys, theirs: SealingPublic, *, to: Path,
    limit: int = MAX_FRAME,
) -> None: ...  # fmt: skip
def open_sealed(
    sealed: bytes | Path,
    expected: Envelope,
    mine: SealingKeys,
    theirs: SealingPublic,
    *,
    to: Path | None = None,
    limit: int = MAX_FRAME,
) -> bytes | None:
    """Open an envelope, or raise and release nothing.

    *Guarantees*: what is returned was sealed by the holder of ``theirs`` for the holder of ``mine`` as exactly ``expected``.
    Sizes are checked before anything is allocated; nothing is decrypted before the signature held.

    Args:
        sealed: the envelope, or the file that holds it.
        expected: all that the receiver knows of the letter; ``sequence`` is the next number of its :class:`Sequence`.
        mine: the receiver's keys.
        theirs: the sender's, from its certificate.
        to: the file to write; it appears whole and verified, or not at all. It is not synced.
        limit: bytes of plaintext at most.

    Returns:
        The plaintext; None where it is in ``to``.

    Raises:
        SealError: what did not hold, in one sentence.
        StoreError: a file that cannot be read or written.
    """
    with _source(sealed) as (size, read):
        header = _read_header(size, read)
        _check(header, size, limit)
        _check_context(header.envelope, expected)
        transcript = _check_signature(header, read, theirs, _public(mine))
        key, commitment = _derive(_exchange(mine.agree, header.ephemeral), transcript)
        if not hmac.compare_digest(commitment, _at(read, len(header.raw), _KEY)):
            raise _unopened()
        with _target(to) as (write, result):
            cipher = ChaCha20Poly1305(key)
            for number, start, count in _places(header):
                try:
                    write(cipher.decrypt(_nonce(header, number), _at(read, start, count), transcript))
                except InvalidTag:
                    raise _unopened() from None
            return result()


def read_header(sealed: bytes | Path) -> Header:
    """The header of an envelope, unproven: enough to find the keys and the expectations to open it with.

    Raises:
        SealError: it is no envelope, or of another version.
    """
    with _source(sealed) as (size, read):
        return _read_header(size, read)


def verify_sealed(sealed: bytes | Path, sender: SealingPublic, receiver: SealingPublic) -> Header:
    """What the holder of ``sender`` verifiably sealed for the holder of ``receiver``; anybody can check it, without a secret.

    Raises:
        SealError: what did not hold.
    """
    with _source(sealed) as (size, read):
        header = _read_header(size, read)
        _check(header, size, limit=2**64)
        _check_signature(header, read, sender, receiver)
        return header


def _header(
    envelope: Envelope, length: int, segment: int, fresh: X25519PrivateKey, mine: SealingPublic, theirs: SealingPublic
) -> Header:
    power = segment.bit_length() - 1
    if not _SMALLEST <= power <= _LARGEST or segment != 1 << power:
        raise SealError(f"segments have a power of two of bytes, from 1 KiB to 1 MiB, not {segment} bytes")
    if not 1 <= envelope.sequence < 2**64:
        raise SealError(f"letters are numbered from 1, below 2**64, not {envelope.sequence}")
    names = b""
    for name in _NAMES:
        text: str = getattr(envelope, name)
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raw = b""
        if not 1 <= len(raw) <= _NAME:
            raise SealError(
                f"the {name.replace('_', ' ')} of an envelope is 1 to {_NAME} bytes of UTF-8: {text[:300]!r}"
            )
        names += bytes([len(raw)]) + raw
    ephemeral = fresh.public_key().public_bytes_raw()
    ids = key_id(mine), key_id(theirs)
    size = _FIXED.size + len(names)
    raw = _FIXED.pack(_MAGIC, _VERSION, power, size, envelope.sequence, length, ephemeral, *ids) + names
    return Header(envelope, length, segment, ephemeral, *ids, raw)


def _read_header(size: int, read: _Read) -> Header:
    start = bytes(read(0, min(size, _FIXED.size)))
    if start[:4] != _MAGIC[: len(start)]:
        raise SealError("these bytes are not an envelope")
    if len(start) > 4 and start[4] != _VERSION:
        raise SealError(f"an envelope of version {start[4]}: this side reads version {_VERSION} only")
    if len(start) < _FIXED.size:
        raise SealError(f"an envelope that ends in its header, after {size} bytes")
    _, _, power, whole, sequence, length, ephemeral, sender, receiver = _FIXED.unpack(start)
    if not (
        _SMALLEST <= power <= _LARGEST and sequence and _FIXED.size < whole <= _FIXED.size + len(_NAMES) * (_NAME + 1)
    ):
        raise SealError("an envelope whose header has a number out of bounds")
    if size < whole:
        raise SealError(f"an envelope that ends in its header, after {size} bytes")
    raw = start + _at(read, _FIXED.size, whole - _FIXED.size)
    names: dict[str, str] = {}
    place = _FIXED.size
    for name in _NAMES:
        end = place + 1 + raw[place] if place < whole else 0
        try:
            names[name] = raw[place + 1 : end].decode()
        except UnicodeDecodeError:
            raise SealError("an envelope whose header has a name that is not UTF-8") from None
        if not place + 1 < end <= whole:
            raise SealError("an envelope whose header has a name out of bounds")
        place = end
    if place != whole:
        raise SealError("an envelope whose header has bytes that belong to nothing")
    return Header(Envelope(sequence=sequence, **names), length, 1 << power, ephemeral, sender, receiver, raw)


def _check(header: Header, size: int, limit: int) -> None:
    if header.length > limit:
        raise SealError(f"an envelope of {header.length} bytes, where {limit} are allowed")
    if size != header.size:
        raise SealError(f"an envelope of {size} bytes whose header stands for {header.size}: cut short, or added to")


def _check_context(said: Envelope, expected: Envelope) -> None:
    for name in _NAMES:
        one, other = getattr(said, name), getattr(expected, name)
        if one != other:
            raise SealError(f"an envelope for the {name.replace('_', ' ')} {one!r}, where {other!r} was expected")
    Sequence(expected.sequence).accept(said.sequence)


def _check_signature(header: Header, read: _Read, sender: SealingPublic, receiver: SealingPublic) -> bytes:
    """The transcript, once the sender is known to have signed it."""
    if header.sender_keys != key_id(sender):
        raise SealError("an envelope that names other keys of its sender than the sender's certificate")
    if header.receiver_keys != key_id(receiver):
        raise SealError("an envelope sealed for other keys than its receiver's certificate has")
    transcript = _transcript(header, sender, receiver)
    digest = hashlib.sha256()
    for _, start, count in _places(header):
        digest.update(hashlib.sha256(_at(read, start, count)).digest())
    signed = _signed(transcript, bytes(_at(read, len(header.raw), _KEY)), digest.digest())
    try:
        _verifier(sender.sign).verify(bytes(_at(read, header.size - _SIGNATURE, _SIGNATURE)), signed)
    except (InvalidSignature, ValueError):
        raise SealError("an envelope that its sender did not sign as it is: forged or altered") from None
    return transcript


def _write_segments(header: Header, read: _Read, write: _Write, cipher: ChaCha20Poly1305, transcript: bytes) -> bytes:
    """Seal and write all segments; the digest over them."""
    digest = hashlib.sha256()
    for number in range(header.segments):
        start = number * header.segment
        plain = _at(read, start, min(header.segment, header.length - start))
        piece = cipher.encrypt(_nonce(header, number), plain, transcript)
        digest.update(hashlib.sha256(piece).digest())
        write(piece)
    return digest.digest()


def _transcript(header: Header, sender: SealingPublic, receiver: SealingPublic) -> bytes:
    keys = sender.sign + sender.agree + receiver.sign + receiver.agree
    return hashlib.sha256(b"hansa.seal/1 transcript\0" + header.raw + keys).digest()


def _signed(transcript: bytes, commitment: bytes, digest: bytes) -> bytes:
    return b"hansa.seal/1 signature\0" + transcript + commitment + digest


def _exchange(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise SealError("an X25519 key of low order, whose secret everybody knows") from None


def _derive(secret: bytes, transcript: bytes) -> tuple[bytes, bytes]:
    both = HKDF(SHA256(), 2 * _KEY, salt=b"hansa.seal/1 key", info=transcript).derive(secret)
    return both[:_KEY], both[_KEY:]


def _nonce(header: Header, number: int) -> bytes:
    return struct.pack("<QI", number, number == header.segments - 1)


def _places(header: Header) -> Iterator[tuple[int, int, int]]:
    """Number, place and size of each sealed segment."""
    first, each = len(header.raw) + _KEY, header.segment + _TAG
    for number in range(header.segments):
        start = number * header.segment
        yield number, first + number * each, min(header.segment, header.length - start) + _TAG


@lru_cache(maxsize=1024)
def _verifier(sign: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(sign)


@lru_cache(maxsize=8)
def _public(keys: SealingKeys) -> SealingPublic:
    return keys.public


def _unopened() -> SealError:
    # One sentence for all that depends on a secret: which check failed is nobody's business.
    return SealError("an envelope and keys that do not fit each other: it was not sealed for this receiver as it says")


def _at(read: _Read, start: int, count: int) -> bytes | memoryview:
    piece = read(start, count)
    if len(piece) != count:
        raise StoreError("a file changed while it was sealed or opened; try again with one that nobody writes to")
    return piece


@contextmanager
def _source(source: bytes | Path) -> Iterator[tuple[int, _Read]]:
    """The size of bytes or of a file, and a function of (start, count) that reads them."""
    if not isinstance(source, Path):
        view = memoryview(source)
        yield len(view), lambda start, count: view[start : start + count]
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise _store(source, error) from error
    buffer = bytearray()

    def read(start: int, count: int) -> memoryview:
        # One buffer for all pieces, each good until the next is read: new pages for each would cost more than the cipher.
        nonlocal buffer
        if len(buffer) < count:
            buffer = bytearray(count)
        view, done = memoryview(buffer)[:count], 0
        try:
            while done < count and (more := os.preadv(file.fileno(), [view[done:]], start + done)):
                done += more
        except OSError as error:
            raise _store(source, error) from error
        return view[:done]

    with file:
        yield os.fstat(file.fileno()).st_size, read


@contextmanager
def _target(to: Path | None) -> Iterator[tuple[_Write, Callable[[], bytes | None]]]:
    """A function that writes, and one that gives what was written; a file takes its name only if nothing raised."""
    if to is None:
        pieces: list[bytes] = []
        yield pieces.append, lambda: b"".join(pieces)
        return
    part = to.with_name(f".{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _store(to, error) from error
    try:
        with open(descriptor, "wb", buffering=0) as file:
            yield lambda piece: _write_all(to, file, piece), lambda: None
        os.replace(part, to)
    except OSError as error:
        raise _store(to, error) from error
    finally:
        part.unlink(missing_ok=True)


def _write_all(to: Path, file: BinaryIO, piece: bytes) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise _store(to, error) from error


def _store(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: {error.strerror or error}; free space or correct the path, then try again")
