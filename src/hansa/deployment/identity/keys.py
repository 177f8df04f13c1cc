"""Keys: one for TLS, and two for sealing what travels through a hub that must not read it.

======== ======= ============================== ===================================================
key      curve   for                            lives as long as
======== ======= ============================== ===================================================
TLS      P-256   the connection                 its certificate: a renewal brings a new one
signing  Ed25519 who wrote a sealed letter      the party: others have pinned it
agreeing X25519  who can open a sealed letter   the party: others have pinned it
======== ======= ============================== ===================================================

All are made where they are used, by the operating system's generator, and never sent; the one exception is the key inside
an invitation, which can do nothing but enrol. Source: RFC 8032 (Ed25519), RFC 7748 (X25519), FIPS 186-5 (P-256).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from hansa.errors import IdentityError

_RAW: Final = serialization.Encoding.Raw, serialization.PublicFormat.Raw
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z ]{1,40})-----\r?\n[A-Za-z0-9+/=\r\n]+-----END \1-----\r?\n?")
_P: Final = 2**255 - 19


@final
@dataclass(frozen=True)
class SealingPublic:
    """The public halves of a party's sealing keys, 32 bytes each.

    Raises:
        IdentityError: another length, or a key of small order, with which anybody could forge or open.
    """

    sign: bytes
    agree: bytes

    def __post_init__(self) -> None:
        if len(self.sign) != 32 or len(self.agree) != 32:
            raise IdentityError("a sealing key must have 32 bytes")
        if _small_order(self.agree) or _small_order(_montgomery(self.sign)):
            raise IdentityError("a sealing key of small order protects nothing and is refused; make new keys")

    @property
    def fingerprint(self) -> str:
        """128 bits of SHA-256 over both keys, in groups, for people to compare by telephone."""
        digest = hashlib.sha256(b"hansa sealing keys v1" + self.sign + self.agree).hexdigest()[:32]
        return " ".join(digest[i : i + 4] for i in range(0, 32, 4))

    @property
    def raw(self) -> bytes:
        """The two keys in a row, as certificates carry them."""
        return self.sign + self.agree

    @staticmethod
    def from_raw(raw: bytes) -> SealingPublic:
        """The keys that ``raw`` holds.

        Raises:
            IdentityError: it does not hold two of them.
        """
        return SealingPublic(raw[:32], raw[32:])

    def same_as(self, other: SealingPublic) -> bool:
        """Whether the keys are the same, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.raw, other.raw)


@final
@dataclass(frozen=True, eq=False)
class SealingKeys:
    """A party's private sealing keys."""

    sign: Ed25519PrivateKey
    agree: X25519PrivateKey

    @staticmethod
    def make() -> SealingKeys:
        """New keys from the operating system's generator."""
        return SealingKeys(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    @property
    def public(self) -> SealingPublic:
        """What others may know of them."""
        return SealingPublic(self.sign.public_key().public_bytes(*_RAW), self.agree.public_key().public_bytes(*_RAW))

    @property
    def pem(self) -> bytes:
        """Both keys, for :func:`~hansa.deployment.identity.files.write_private`."""
        return private_pem(self.sign) + private_pem(self.agree)

    @staticmethod
    def from_pem(pem: bytes) -> SealingKeys:
        """The keys that :attr:`pem` wrote.

        Raises:
            IdentityError: it holds something else.
        """
        keys = [_load_private(block) for label, block in pem_blocks(pem) if label == "PRIVATE KEY"]
        if len(keys) == 2:
            sign, agree = keys
            if isinstance(sign, Ed25519PrivateKey) and isinstance(agree, X25519PrivateKey):
                return SealingKeys(sign, agree)
        raise IdentityError("a file of sealing keys must hold an Ed25519 and an X25519 private key, in this order")


def make_tls_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key from the operating system's generator."""
    return ec.generate_private_key(ec.SECP256R1())


def tls_key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The one P-256 private key in ``pem``; certificates may stand beside it.

    Raises:
        IdentityError: there is none, another kind, or more than one.
    """
    blocks = [block for label, block in pem_blocks(pem) if "PRIVATE KEY" in label]
    if len(blocks) != 1:
        raise IdentityError(f"{len(blocks)} private keys where one TLS key must be")
    key = _load_private(blocks[0])
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError("the TLS key is not on the curve P-256, the only one in use here")
    require_p256(key.public_key())
    return key


def require_p256(key: object) -> ec.EllipticCurvePublicKey:
    """``key``, which must be a P-256 public key.

    Raises:
        IdentityError: it is on another curve, or of another kind (RSA, Ed25519).
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the TLS key is not on the curve P-256, the only one in use here")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """``key`` as PKCS #8 PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """``key`` as the DER of its SubjectPublicKeyInfo: the same bytes for the same key."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem_blocks(pem: bytes) -> list[tuple[str, bytes]]:
    """The blocks of ``pem`` with their labels, in order. Anything but blocks is refused: there is nothing to overlook.

    Raises:
        IdentityError: something stands before, between or behind blocks.
    """
    blocks, place = [], 0
    while place < len(pem):
        found = _BLOCK.match(pem, place)
        if found is None:
            raise IdentityError("not PEM blocks and nothing else; the file or message is damaged")
        blocks.append((found[1].decode("ascii"), found[0]))
        place = found.end()
    return blocks


def _load_private(block: bytes) -> object:
    try:
        return serialization.load_pem_private_key(block, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError("a private key that cannot be read; the file is damaged or encrypted") from None


def _small_order(u: bytes) -> bool:
    """Whether every agreement with the point ``u`` of Curve25519 gives the same, public, value (RFC 7748, section 6.1)."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(u))
    except ValueError:
        return True
    return False


def _montgomery(ed25519: bytes) -> bytes:
    """The u of an Ed25519 key on Curve25519, u = (1 + y) / (1 - y); order is kept (RFC 7748, section 4.1)."""
    y = int.from_bytes(ed25519, "little") & ((1 << 255) - 1)
    # 1 - y = 0 is the neutral element, which has no u; the power makes it 0, which is of small order too.
    return ((1 + y) * pow(1 - y, _P - 2, _P) % _P).to_bytes(32, "little")
