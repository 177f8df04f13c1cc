"""Enrolment requests: a party asks for a certificate over keys that it made itself, and proves that it holds them.

A request is a PKCS #10 request (RFC 2986) in DER, signed by the new TLS key. Its subject is one common name, the party's; its one
attribute asks for one extension, PROOF, of 128 bytes::

    32  Ed25519 public key
    32  X25519 public key
    64  Ed25519 signature over "hansa enrolment v1", a zero byte, the TLS key as DER, both public keys, and the name

So the TLS key vouches for the whole request, and the Ed25519 key for the TLS key, the name and the X25519 key: nobody can put
another's key beside its own. Holding the X25519 key is not proved apart; who names a key that it does not hold can open nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from hansa.deployment.identity.certificates import HANSA_ARC, UNREADABLE, Certificate, require_one_coding
from hansa.deployment.identity.keys import SealingKeys, SealingPublic, public_der, require_p256
from hansa.deployment.identity.names import party_name
from hansa.errors import IdentityError

PROOF: Final = x509.ObjectIdentifier(f"{HANSA_ARC}.2")
"""The extension of a request with the sealing keys and the proof of holding them."""
_EXTENSION_REQUEST: Final = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
MAX_REQUEST: Final = 2048
"""Bytes of the longest request that is looked at; a real one has about 450."""


@final
@dataclass(frozen=True)
class EnrolmentRequest:
    """A request whose two proofs hold.

    Args:
        name: whom it asks to be.
        tls: the public TLS key, as DER.
        sealing: the sealing keys.
    """

    name: str
    tls: bytes
    sealing: SealingPublic

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is asked for, in hex. Two requests for the same keys and name have the same one, though ECDSA signs
        neither alike; by it the hub knows a request that is repeated because its answer was lost.
        """
        parts = (self.name.encode("ascii"), self.tls, self.sealing.raw)
        return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()


def make_request(name: str, tls_key: ec.EllipticCurvePrivateKey, sealing: SealingKeys) -> bytes:
    """The request of the party ``name`` for a certificate over its keys.

    Raises:
        IdentityError: the name cannot be used, or the TLS key is not on P-256.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, party_name(name))])
    tls, public = public_der(require_p256(tls_key.public_key())), sealing.public
    proof = public.raw + sealing.sign.sign(_statement(name, tls, public))
    builder = x509.CertificateSigningRequestBuilder(subject)
    builder = builder.add_extension(x509.UnrecognizedExtension(PROOF, proof), critical=False)
    return builder.sign(tls_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def read_request(data: bytes, max_bytes: int = MAX_REQUEST) -> EnrolmentRequest:
    """The request in ``data``, in the one form that :func:`make_request` gives it, with both proofs verified.

    Raises:
        IdentityError: the first thing that is wrong with it.
    """
    if len(data) > max_bytes:
        raise IdentityError(f"an enrolment request of {len(data)} bytes; at most {max_bytes} are looked at")
    try:
        parsed = x509.load_der_x509_csr(data)
        name, proof = _subject(parsed), _proof(parsed)
        tls = public_der(require_p256(parsed.public_key()))
        signed = parsed.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256 and parsed.is_signature_valid
        require_one_coding(data, parsed.signature)
    except UNREADABLE as error:
        raise IdentityError(f"not an enrolment request: {error}") from None
    if not signed:
        raise IdentityError(f"the enrolment request of '{name}' is not signed by its own TLS key; it was altered")
    sealing = SealingPublic.from_raw(proof[:64])
    try:
        Ed25519PublicKey.from_public_bytes(sealing.sign).verify(proof[64:], _statement(name, tls, sealing))
    except (InvalidSignature, ValueError):
        raise IdentityError(
            f"the enrolment request of '{name}' does not prove that it holds its sealing keys"
        ) from None
    return EnrolmentRequest(name, tls, sealing)


def renewable(current: Certificate, request: EnrolmentRequest) -> None:
    """Do nothing, if the holder of ``current`` may have the certificate that ``request`` asks for.

    The TLS key may be new; the sealing keys may not, because others have pinned them.

    Raises:
        IdentityError: it is an invitation, another's name, or brings other sealing keys.
    """
    if current.sealing is None:
        raise IdentityError(f"an invitation is not renewed, it is used; make a new one for '{current.identity.name}'")
    if request.name != current.identity.name:
        raise IdentityError(f"{current.identity} asks for a certificate in the name of '{request.name}'; it is refused")
    if not request.sealing.same_as(current.sealing):
        raise IdentityError(
            f"{current.identity} asks to renew with other sealing keys ({request.sealing.fingerprint}) than it has "
            f"({current.sealing.fingerprint}); others have pinned those, so new ones need a new invitation"
        )


def _statement(name: str, tls: bytes, sealing: SealingPublic) -> bytes:
    # All but the name have lengths of their own: the DER says its own, the keys have 64 bytes.
    return b"hansa enrolment v1\0" + tls + sealing.raw + name.encode("ascii")


def _subject(parsed: x509.CertificateSigningRequest) -> str:
    attributes = list(parsed.subject)
    if len(attributes) != 1 or attributes[0].oid != NameOID.COMMON_NAME:
        raise IdentityError("not an enrolment request: its subject must be one common name")
    return party_name(str(attributes[0].value))


def _proof(parsed: x509.CertificateSigningRequest) -> bytes:
    asked, extensions = list(parsed.attributes), list(parsed.extensions)
    if [attribute.oid for attribute in asked] == [_EXTENSION_REQUEST] and len(extensions) == 1:
        value = extensions[0].value
        plain = value.oid == PROOF and not extensions[0].critical
        if plain and isinstance(value, x509.UnrecognizedExtension) and len(value.value) == 128:
            return value.value
    raise IdentityError("not an enrolment request: it must ask for the proof of its sealing keys and nothing else")
