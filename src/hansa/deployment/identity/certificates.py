"""Certificates: what the federation's authority says about a key, in exactly one form.

A member's certificate is X.509 version 3, P-256, ECDSA with SHA-256, issued by the authority itself, with these extensions, in this
order, and no other:

==================== ======== =================================================================================
extension            critical content
==================== ======== =================================================================================
basicConstraints     yes      not a CA
keyUsage             yes      digitalSignature
extendedKeyUsage     no       serverAuth for the hub, both for a node, clientAuth for everybody else
subjectAltName       no       one URI, ``hansa://<federation>/<kind>/<name>``; for hub and node also a name in TLS
authorityKeyIdentif. no       of the authority's key (RFC 5280, section 4.2.1.2, method 1)
SEALING_KEYS         no       64 bytes: Ed25519 and X25519 public keys; absent in an invitation
==================== ======== =================================================================================

An invitation's URI is ``hansa://<federation>/invited/<kind>/<name>``. The authority's own certificate has the URI
``hansa://<federation>/authority`` and a path length of 0, so nobody whom it certifies can certify anybody.

*Guarantee*: the identity in a :class:`Certificate` was read from these extensions, and written back it gives the very extensions that
were read; nothing in a certificate is left unread, so nothing can be smuggled in one. Source: RFC 5280.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from hansa.deployment.identity.keys import SealingPublic, pem_blocks, public_der, require_p256
from hansa.deployment.identity.names import Identity, party_name
from hansa.errors import IdentityError

HUB_TLS_NAME: Final = "hub.hansa.invalid"
"""The hub's name in TLS wherever it stands; clients override the target's name with it. RFC 2606 keeps it out of the DNS."""
NODE_TLS_ZONE: Final = "node.hansa.invalid"
"""The zone of the names by which other nodes dial a node; see :func:`tls_name`."""
BACKDATE: Final = 2 * 3600.0
"""Seconds by which a certificate begins before it is issued, for clocks that are behind."""
HANSA_ARC: Final = "2.25.312317967701856387344952328474409365179"
"""The arc of Hansa's object identifiers: a random UUID (ITU-T X.667), so nobody had to be asked."""
SEALING_KEYS: Final = x509.ObjectIdentifier(f"{HANSA_ARC}.1")
"""The extension with the sealing keys."""
MAX_CERTIFICATE: Final = 4096
"""Bytes of the longest certificate that is looked at, as PEM."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.ExtensionNotFound,
)
"""What the X.509 library raises about bytes that are not what they should be."""


@final
@dataclass(frozen=True)
class Certificate:
    """A certificate whose authority, form and keys have been verified.

    Args:
        identity: who holds it.
        serial: unique among the authority's; up to 159 bits, more than an INTEGER of SQLite.
        not_before: when it begins, POSIX seconds.
        not_after: when it ends, POSIX seconds.
        sealing: the sealing keys bound to the identity; None in an invitation.
        tls: the public TLS key, as DER.
        pem: the certificate itself.
    """

    identity: Identity
    serial: int
    not_before: float
    not_after: float
    sealing: SealingPublic | None
    tls: bytes
    pem: bytes

    def require_valid(self, now: float) -> None:
        """Do nothing, if the certificate is valid at ``now``.

        Raises:
            IdentityError: it has expired, or has not begun.
        """
        if not now <= self.not_after:  # so that NaN is no valid time
            again = "" if self.identity.admits else "it cannot be renewed any more: "
            raise IdentityError(
                f"the certificate of {self.identity} expired on {date(self.not_after)}; {again}"
                f"ask the operator for a new invitation"
            )
        if now < self.not_before:
            raise IdentityError(
                f"the certificate of {self.identity} is not valid before {date(self.not_before)}, and it is "
                f"{date(now)} here; check the clocks of both machines"
            )


@final
@dataclass(frozen=True, eq=False)
class Anchor:
    """The certificate of a federation's authority, in which everything else is anchored."""

    federation: str
    certificate: x509.Certificate
    public_key: ec.EllipticCurvePublicKey
    not_before: float
    not_after: float
    pem: bytes


def read(pem: bytes, authority_pem: bytes, now: float) -> Certificate:
    """The certificate ``pem``, valid at ``now`` and issued by the authority.

    Args:
        pem: one certificate.
        authority_pem: the authority's own certificate, which is trusted.
        now: POSIX seconds.

    Raises:
        IdentityError: the first thing that is wrong with it.
    """
    certificate = read_undated(pem, authority_pem)
    certificate.require_valid(now)
    return certificate


def read_undated(pem: bytes, authority_pem: bytes) -> Certificate:
    """As :func:`read`, at whatever time: for those who must look at an expired certificate, and say so.

    Raises:
        IdentityError: the first thing that is wrong with it.
    """
    anchor = read_anchor(authority_pem)
    parsed = _parse(pem)
    try:
        parsed.verify_directly_issued_by(anchor.certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise IdentityError(
            f"a certificate that the authority of federation '{anchor.federation}' did not issue; it is damaged or belongs "
            f"to another federation"
        ) from None
    try:
        tls = require_p256(parsed.public_key())
        identity, sealing = _identity(parsed), _sealing(parsed)
        _require_form(parsed, member_extensions(identity, sealing, anchor.public_key))
    except UNREADABLE as error:
        raise IdentityError(f"not a Hansa certificate: {error}") from None
    if identity.federation != anchor.federation:
        raise IdentityError(f"a certificate for federation '{identity.federation}' from that of '{anchor.federation}'")
    if (sealing is None) != (identity.kind == "invited"):
        raise IdentityError(f"the certificate of {identity} must have sealing keys if and only if it is no invitation")
    begins, ends = _validity(parsed)
    if begins < anchor.not_before or ends > anchor.not_after:
        raise IdentityError(f"the certificate of {identity} is valid when its authority is not; it is refused")
    return Certificate(identity, parsed.serial_number, begins, ends, sealing, public_der(tls), _pem(parsed))


def read_anchor(pem: bytes) -> Anchor:
    """The authority's certificate, checked for what an authority must be. That it is the right one, its owner must know.

    Raises:
        IdentityError: it is none of a Hansa federation.
    """
    parsed = _parse(pem)
    try:
        key = require_p256(parsed.public_key())
        parsed.verify_directly_issued_by(parsed)
        uri = _uris(parsed)
        federation = uri[0].removeprefix("hansa://").removesuffix("/authority") if len(uri) == 1 else ""
        _require_form(parsed, authority_extensions(party_name(federation, "federation"), key))
    except InvalidSignature:
        raise IdentityError("not the certificate of an authority: it is not signed by itself") from None
    except UNREADABLE as error:
        raise IdentityError(f"not the certificate of a Hansa authority: {error}") from None
    return Anchor(federation, parsed, key, *_validity(parsed), _pem(parsed))


def member_extensions(
    identity: Identity, sealing: SealingPublic | None, authority: ec.EllipticCurvePublicKey
) -> list[x509.Extension[x509.ExtensionType]]:
    """The extensions of a certificate for ``identity``: what the authority writes, and what a reader expects."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    serves, calls = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    usages = [calls]
    if identity.kind == "hub":
        names.append(x509.DNSName(HUB_TLS_NAME))
        usages = [serves]
    elif identity.kind == "node":
        names.append(x509.DNSName(tls_name(identity.name)))
        usages = [calls, serves]
    extensions = [
        _extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
        _extension(_key_usage("digital_signature"), critical=True),
        _extension(x509.ExtendedKeyUsage(usages)),
        _extension(x509.SubjectAlternativeName(names)),
        _extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority)),
    ]
    if sealing is not None:
        extensions.append(_extension(x509.UnrecognizedExtension(SEALING_KEYS, sealing.raw)))
    return extensions


def tls_name(node: str) -> str:
    """The name of a node in TLS, wherever it stands.

    >>> tls_name("hospital-a")
    'hospital-a.node.hansa.invalid'
    """
    return f"{node}.{NODE_TLS_ZONE}"


def authority_extensions(federation: str, key: ec.EllipticCurvePublicKey) -> list[x509.Extension[x509.ExtensionType]]:
    """The extensions of the authority's own certificate."""
    return [
        _extension(x509.BasicConstraints(ca=True, path_length=0), critical=True),
        _extension(_key_usage("key_cert_sign"), critical=True),
        _extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"hansa://{federation}/authority")])),
        _extension(x509.SubjectKeyIdentifier.from_public_key(key)),
    ]


def date(time: float) -> str:
    """``time`` for people.

    >>> date(1.75e9)
    '2025-06-15 15:06:40 UTC'
    """
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{time} seconds after 1970"


def _parse(pem: bytes) -> x509.Certificate:
    if len(pem) > MAX_CERTIFICATE:
        raise IdentityError(f"a certificate of {len(pem)} bytes; at most {MAX_CERTIFICATE} are looked at")
    blocks = pem_blocks(pem)
    if [label for label, _ in blocks] != ["CERTIFICATE"]:
        raise IdentityError(
            "not exactly one certificate in PEM; a chain is not accepted, the authority issues directly"
        )
    try:
        parsed = x509.load_pem_x509_certificate(blocks[0][1])
        version, algorithm = parsed.version, parsed.signature_algorithm_oid
    except UNREADABLE:
        raise IdentityError("a certificate that cannot be read; it is damaged") from None
    if version is not x509.Version.v3 or algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise IdentityError("not a Hansa certificate: it must be of version 3 and signed with ECDSA and SHA-256")
    require_one_coding(parsed.public_bytes(serialization.Encoding.DER), parsed.signature)
    return parsed


def require_one_coding(der: bytes, signature: bytes) -> None:
    """Go on only if ``der`` ends with the one coding of its signature.

    The signature is a string of bits, which says how many of its last ones do not count. Where these happen to be zero the number
    could be another, and the same thing have two codings: nothing that is signed says otherwise.

    Raises:
        IdentityError: it ends with another.
    """
    if not der.endswith(bytes((0x03, len(signature) + 1, 0)) + signature):
        raise IdentityError("its signature is not coded as it must be; it was altered")


def _identity(parsed: x509.Certificate) -> Identity:
    uris = _uris(parsed)
    if len(uris) != 1:
        raise IdentityError(f"not a Hansa certificate: it names {len(uris)} identities, and must name one")
    return Identity.from_uri(uris[0])


def _uris(parsed: x509.Certificate) -> list[str]:
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _sealing(parsed: x509.Certificate) -> SealingPublic | None:
    for extension in parsed.extensions:
        if extension.oid == SEALING_KEYS and isinstance(extension.value, x509.UnrecognizedExtension):
            return SealingPublic.from_raw(extension.value.value)
    return None


def _require_form(parsed: x509.Certificate, expected: list[x509.Extension[x509.ExtensionType]]) -> None:
    found = list(parsed.extensions)
    if found == expected:
        return
    odd = [extension for extension in found if extension not in expected]
    lacking = [extension for extension in expected if extension not in found]
    names = sorted({_oid_name(extension.oid) for extension in (*odd, *lacking)}) or ["order of extensions"]
    raise IdentityError(f"not a Hansa certificate: its {', '.join(names)} is not as an authority of Hansa writes it")


def _oid_name(oid: x509.ObjectIdentifier) -> str:
    known = {value: name for name, value in vars(ExtensionOID).items() if isinstance(value, x509.ObjectIdentifier)}
    return known.get(oid, oid.dotted_string).replace("_", " ").lower()


def _validity(parsed: x509.Certificate) -> tuple[float, float]:
    return parsed.not_valid_before_utc.timestamp(), parsed.not_valid_after_utc.timestamp()


def _pem(parsed: x509.Certificate) -> bytes:
    return parsed.public_bytes(serialization.Encoding.PEM)


def _extension(value: x509.ExtensionType, *, critical: bool = False) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, critical, value)


def _key_usage(only: str) -> x509.KeyUsage:
    uses = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{use: use == only for use in uses})
