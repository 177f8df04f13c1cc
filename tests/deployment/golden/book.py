"""Envelopes as docs/wire.md describes them, step by step and without the code under test; `main` writes sealing.json.

The other way round the vectors would only prove that the code agrees with itself. Run from the repository's root:
``python -m tests.deployment.golden.book``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

FILE = Path(__file__).parent / "sealing.json"
NAMES = ("federation", "run", "sender_host", "receiver_host", "sender", "receiver", "tag")


@dataclass(frozen=True)
class Host:
    """Private keys, as seeds."""

    sign: bytes
    agree: bytes

    @property
    def public(self) -> bytes:
        signing = Ed25519PrivateKey.from_private_bytes(self.sign).public_key().public_bytes_raw()
        return signing + X25519PrivateKey.from_private_bytes(self.agree).public_key().public_bytes_raw()


A, B, EVIL = (Host(bytes([n]) * 32, bytes([n + 1]) * 32) for n in (0x11, 0x21, 0x31))
FRESH = bytes(range(32))
CONTEXT: dict[str, Any] = {
    "federation": "hearts", "run": "run-7", "sender_host": "hospital-a", "receiver_host": "hospital-b",
    "sender": "client-1", "receiver": "client-2", "tag": "dpsgd.model/1", "sequence": 1,
}  # fmt: skip
LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


@dataclass(frozen=True)
class Parts:
    """An envelope in parts, to be put together again wrongly."""

    header: bytes
    commitment: bytes
    segments: tuple[bytes, ...]
    signature: bytes = b""

    def joined(self) -> bytes:
        return self.header + self.commitment + b"".join(self.segments) + self.signature


def header(context: dict[str, Any], length: int, power: int, fresh: bytes, sender: bytes, receiver: bytes) -> bytes:
    names = b"".join(bytes([len(context[n].encode())]) + context[n].encode() for n in NAMES)
    return (
        b"HNSE" + bytes([1, power]) + struct.pack("<H", 120 + len(names))
        + struct.pack("<QQ", context["sequence"], length) + fresh
        + hashlib.sha256(b"hansa.seal/1 keys\0" + sender).digest()
        + hashlib.sha256(b"hansa.seal/1 keys\0" + receiver).digest() + names
    )  # fmt: skip


def transcript(head: bytes, sender: bytes, receiver: bytes) -> bytes:
    return hashlib.sha256(b"hansa.seal/1 transcript\0" + head + sender + receiver).digest()


def secrets_of(shared: bytes, bound: bytes) -> tuple[bytes, bytes]:
    """HKDF-SHA256 (RFC 5869), 64 bytes."""
    extracted = hmac.digest(b"hansa.seal/1 key", shared, "sha256")
    first = hmac.digest(extracted, bound + b"\x01", "sha256")
    return first, hmac.digest(extracted, first + bound + b"\x02", "sha256")


def encrypt(key: bytes, pieces: Sequence[bytes], bound: bytes, last: int | None = None) -> tuple[bytes, ...]:
    """STREAM; ``last`` is the segment that carries the mark."""
    end = len(pieces) - 1 if last is None else last
    nonces = [struct.pack("<Q", i) + struct.pack("<I", int(i == end)) for i in range(len(pieces))]
    return tuple(ChaCha20Poly1305(key).encrypt(n, p, bound) for n, p in zip(nonces, pieces, strict=True))


def signed(parts: Parts, by: Host, sender: bytes, receiver: bytes) -> Parts:
    digest = hashlib.sha256(b"".join(hashlib.sha256(s).digest() for s in parts.segments)).digest()
    text = b"hansa.seal/1 signature\0" + transcript(parts.header, sender, receiver) + parts.commitment + digest
    return replace(parts, signature=Ed25519PrivateKey.from_private_bytes(by.sign).sign(text))


def book(
    plaintext: bytes, context: dict[str, Any] = CONTEXT, power: int = 20, sender: Host = A, receiver: Host = B,
    fresh: bytes = FRESH, last: int | None = None,
) -> Parts:  # fmt: skip
    """The envelope of ``plaintext``, signed."""
    ephemeral = X25519PrivateKey.from_private_bytes(fresh)
    size = 1 << power
    pieces = [plaintext[i : i + size] for i in range(0, len(plaintext), size)] or [b""]
    head = header(
        context, len(plaintext), power, ephemeral.public_key().public_bytes_raw(), sender.public, receiver.public
    )
    bound = transcript(head, sender.public, receiver.public)
    key, commitment = secrets_of(ephemeral.exchange(X25519PublicKey.from_public_bytes(receiver.public[32:])), bound)
    parts = Parts(head, commitment, encrypt(key, pieces, bound, last))
    return signed(parts, sender, sender.public, receiver.public)


def patched(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


def good() -> dict[str, tuple[Parts, bytes, int]]:
    long = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(80))
    return {
        "empty": (book(b""), b"", 20),
        "small": (book(b"a small letter"), b"a small letter", 20),
        "exactly one segment": (book(long[:1024], power=10), long[:1024], 10),
        "three segments": (book(long, power=10), long, 10),
    }


def malformed(small: bytes) -> list[tuple[str, str, bytes]]:
    """(name, failure, envelope): bytes that no sender of this format makes."""
    head = struct.unpack_from("<H", small, 6)[0]
    shorter = bytes([len("hearts") - 1])
    return [
        ("no bytes at all", "format", b""),
        ("another magic", "format", b"HNSA" + small[4:]),
        ("version 0", "version", patched(small, 4, b"\0")),
        ("version 2", "version", patched(small, 4, b"\2")),
        ("a version of which nothing else is known", "version", b"HNSE\xff"),
        ("segments of 512 bytes", "format", patched(small, 5, b"\x09")),
        ("segments of 2 MiB", "format", patched(small, 5, b"\x15")),
        ("number 0", "format", patched(small, 8, bytes(8))),
        ("a header length of 0", "format", patched(small, 6, b"\0\0")),
        ("a header without names", "format", patched(small, 6, struct.pack("<H", 120))),
        ("the longest header length", "format", patched(small, 6, b"\xff\xff")),
        ("a header one byte shorter than its names", "format", patched(small, 6, struct.pack("<H", head - 1))),
        ("a header one byte longer than its names", "format", patched(small, 6, struct.pack("<H", head + 1))),
        ("a name that runs over the header", "format", patched(small, 120, b"\xff")),
        ("a name of no bytes", "format", patched(small, 120, b"\0")),
        ("names cut at another place", "format", patched(small, 120, shorter)),
        ("a name that is not UTF-8", "format", patched(small, 121, b"\xff")),
        ("cut in the fixed part", "format", small[:119]),
        ("cut in the names", "format", small[: head - 1]),
        ("cut after the header", "size", small[:head]),
        ("the last byte missing", "size", small[:-1]),
        ("a byte too many", "size", small + b"\0"),
        ("the signature missing", "size", small[:-64]),
        ("a length of one more", "size", patched(small, 16, struct.pack("<Q", 15))),
        ("a length of 2**64 - 1", "limit", patched(small, 16, b"\xff" * 8)),
    ]


def forged(small: Parts, three: Parts) -> list[tuple[str, str, bytes]]:
    """What somebody without the sender's signing key can make."""
    evil = replace(EVIL, agree=A.agree)
    seg = three.segments
    resigned = signed(small, EVIL, A.public, B.public)
    order = 2**252 + 27742317777372353535851937790883648493
    malleated = small.signature[:32] + (int.from_bytes(small.signature[32:], "little") + order).to_bytes(32, "little")
    return [
        ("a bit of the ephemeral key", "signature", patched(small.joined(), 24, bytes([small.header[24] ^ 1]))),
        ("the high bit of the ephemeral key", "signature", patched(small.joined(), 55, bytes([small.header[55] ^ 128]))),
        ("a low-order ephemeral key", "signature", patched(small.joined(), 24, LOW_ORDER)),
        ("a bit of the commitment", "signature", replace(small, commitment=flip(small.commitment)).joined()),
        ("a bit of the segment", "signature", replace(small, segments=(flip(small.segments[0]),)).joined()),
        ("a bit of the signature", "signature", replace(small, signature=flip(small.signature)).joined()),
        ("a signature whose S is the group's order more", "signature", replace(small, signature=malleated).joined()),
        ("a signature of zeros", "signature", replace(small, signature=bytes(64)).joined()),
        ("a smaller segment size", "signature", patched(small.joined(), 5, b"\x13")),
        ("two segments swapped", "signature", replace(three, segments=(seg[1], seg[0], seg[2])).joined()),
        ("a segment twice", "signature", replace(three, segments=(seg[0], seg[0], seg[2])).joined()),
        ("a segment dropped", "size", replace(three, segments=(seg[0], seg[2])).joined()),
        (
            "the last segment dropped and the length corrected", "signature",
            replace(three, header=patched(three.header, 16, struct.pack("<Q", 2048)), segments=seg[:2]).joined(),
        ),
        ("signed by another", "signature", resigned.joined()),
        ("sealed and signed by another who has the sender's agreement key", "keys", book(b"x", sender=evil).joined()),
        ("sealed by another under the sender's name", "keys", book(b"x", sender=EVIL).joined()),
        ("sealed for another receiver's keys", "keys", book(b"x", receiver=EVIL).joined()),
    ]  # fmt: skip


def dishonest(small: Parts, three: Parts) -> list[tuple[str, str, bytes]]:
    """What a sender can sign that no receiver may take for a letter."""

    def resign(parts: Parts) -> bytes:
        return signed(parts, A, A.public, B.public).joined()

    seg = three.segments
    to_evil = book(b"a small letter", receiver=EVIL)
    low = replace(small, header=patched(small.header, 24, LOW_ORDER))
    return [
        ("a wrong commitment", "content", resign(replace(small, commitment=flip(small.commitment)))),
        ("a segment that was not made with this key", "content", resign(replace(small, segments=(flip(small.segments[0]),)))),
        ("segments swapped", "content", resign(replace(three, segments=(seg[1], seg[0], seg[2])))),
        ("a segment repeated", "content", resign(replace(three, segments=(seg[0], seg[0], seg[2])))),
        ("the last mark on the second segment", "content", book(good()["three segments"][1], power=10, last=1).joined()),
        ("no last mark", "content", book(good()["three segments"][1], power=10, last=99).joined()),
        (
            "an end before the last segment", "content",
            resign(replace(three, header=patched(three.header, 16, struct.pack("<Q", 2048)), segments=seg[:2])),
        ),
        ("the contents of another's letter", "content", resign(replace(small, segments=to_evil.segments))),
        ("a name of no bytes", "format", book(b"a small letter", CONTEXT | {"run": ""}).joined()),
        ("a low-order ephemeral key", "low-order", resign(low)),
        ("an ephemeral key of zeros", "low-order", resign(replace(small, header=patched(small.header, 24, bytes(32))))),
    ]  # fmt: skip


def flip(raw: bytes) -> bytes:
    return bytes([raw[0] ^ 1]) + raw[1:]


def misdirected(small: bytes) -> list[dict[str, Any]]:
    """A perfect envelope before a receiver that expects another."""
    found = []
    for name in NAMES:
        failure = {"expect": "context", "context": CONTEXT | {name: "other"}}
        found.append({"name": f"where another {name.replace('_', ' ')} is expected", "hex": small.hex()} | failure)
    swapped = CONTEXT | {
        "sender_host": "hospital-b",
        "receiver_host": "hospital-a",
        "sender": "client-2",
        "receiver": "client-1",
    }
    late = book(b"a small letter", CONTEXT | {"sequence": 3}).joined()
    return [
        *found,
        {"name": "reflected to its sender", "expect": "context", "context": swapped, "keys": "ba", "hex": small.hex()},
        {"name": "opened with another's keys", "expect": "keys", "keys": "ae", "hex": small.hex()},
        {"name": "pinned to another sender", "expect": "keys", "keys": "eb", "hex": small.hex()},
        {"name": "a second time", "expect": "replay", "context": CONTEXT | {"sequence": 2}, "hex": small.hex()},
        {"name": "too early", "expect": "order", "context": CONTEXT | {"sequence": 2}, "hex": late.hex()},
    ]


def vectors() -> dict[str, Any]:
    oks = good()
    small, three = oks["small"][0], oks["three segments"][0]
    stolen = replace(small, header=book(b"a small letter", sender=EVIL).header)
    cases: list[dict[str, Any]] = [
        {"name": name, "expect": "ok", "plaintext": plain.hex(), "power": power, "hex": parts.joined().hex()}
        for name, (parts, plain, power) in oks.items()
    ]
    bad = [
        *malformed(small.joined()),
        *(("forged: " + name, failure, raw) for name, failure, raw in forged(small, three)),
        *(("signed by its sender: " + name, failure, raw) for name, failure, raw in dishonest(small, three)),
    ]
    cases += [{"name": name, "expect": failure, "hex": raw.hex()} for name, failure, raw in bad]
    cases += misdirected(small.joined())
    cases.append({
        "name": "another's ciphertext under one's own signature", "expect": "content", "keys": "eb",
        "hex": signed(stolen, EVIL, EVIL.public, B.public).joined().hex(),
    })  # fmt: skip
    hosts = {
        letter: {name: raw.hex() for name, raw in asdict(host).items()} | {"public": host.public.hex()}
        for letter, host in (("a", A), ("b", B), ("e", EVIL))
    }
    return {"hosts": hosts, "ephemeral": FRESH.hex(), "context": CONTEXT, "keys": "ab", "cases": cases}


def main() -> None:
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")


if __name__ == "__main__":
    main()
