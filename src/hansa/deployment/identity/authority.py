"""The federation's own certificate authority: one key in one file, and nothing else.

It keeps no list of members; who is one, and who is no longer, the hub's store says. Adding a member touches nobody else's
certificate.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hansa.deployment.identity.certificates import (
    BACKDATE,
    Anchor,
    authority_extensions,
    date,
    member_extensions,
    read_anchor,
)
from hansa.deployment.identity.files import private_folder, read_private, write_private
from hansa.deployment.identity.keys import (
    SealingPublic,
    make_tls_key,
    pem_blocks,
    private_pem,
    public_der,
    require_p256,
    tls_key_from_pem,
)
from hansa.deployment.identity.names import HUB, Identity, Kind, MemberKind, member_kind, party_name
from hansa.deployment.identity.request import EnrolmentRequest, make_request, read_request, renewable
from hansa.errors import IdentityError

__all__ = ["LIFETIME", "Authority", "EnrolmentRequest", "make_request", "read_request", "renewable"]

DAY: Final = 86400.0
AUTHORITY_LIFETIME: Final = 3650 * DAY
LIFETIME: Final[dict[Kind, float]] = {
    "hub": 30 * DAY,
    "operator": 30 * DAY,
    "submitter": 30 * DAY,
    "observer": 30 * DAY,
    "node": 7 * DAY,
    "invited": 1 * DAY,
}
"""Seconds that a certificate of each kind is valid for, unless told otherwise."""

_FILE: Final = "authority.key"


@final
class Authority:
    """A certificate authority over a folder. Whoever can read the folder can be anybody in the federation.

    Attributes:
        certificate_pem: its own certificate, which every party keeps.
        federation: the federation's name.
    """

    __slots__ = ("_anchor", "_key", "certificate_pem", "federation")

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes) -> None:
        self._key = key
        self._anchor: Anchor = read_anchor(certificate_pem)
        if public_der(key.public_key()) != public_der(self._anchor.public_key):
            raise IdentityError(
                "the authority's key is not the one of its certificate; restore the file from its backup"
            )
        self.certificate_pem: bytes = self._anchor.pem
        self.federation: str = self._anchor.federation

    @staticmethod
    def create(folder: Path, federation: str, now: float, lifetime: float = AUTHORITY_LIFETIME) -> Authority:
        """A new authority in ``folder``, written there before anything is issued.

        Raises:
            IdentityError: the name cannot be used, or there is an authority already.
            StoreError: the disk does not take it.
        """
        key = make_tls_key()
        name = _name(party_name(federation, "federation"), "authority")
        builder = _dated(now - BACKDATE, now + lifetime).subject_name(name).issuer_name(name)
        builder = builder.public_key(key.public_key())
        for extension in authority_extensions(federation, key.public_key()):
            builder = builder.add_extension(extension.value, extension.critical)
        authority = Authority(key, _pem(builder.sign(key, hashes.SHA256())))
        write_private(private_folder(folder) / _FILE, private_pem(key) + authority.certificate_pem)
        return authority

    @staticmethod
    def open(folder: Path) -> Authority:
        """The authority in ``folder``.

        Raises:
            IdentityError: there is none, others can read it, or it does not fit together.
            StoreError: it cannot be read.
        """
        pem = read_private(folder / _FILE)
        certificates = [block for label, block in pem_blocks(pem) if label == "CERTIFICATE"]
        return Authority(tls_key_from_pem(pem), b"".join(certificates))

    def issue_hub(
        self,
        tls_public: ec.EllipticCurvePublicKey,
        sealing: SealingPublic,
        now: float,
        lifetime: float = LIFETIME["hub"],
    ) -> bytes:
        """A certificate, PEM, for the federation's hub.

        Raises:
            IdentityError: the key is not on P-256, or the authority itself is not valid at ``now``.
        """
        return self._issue(Identity(self.federation, "hub", HUB), tls_public, sealing, now, lifetime)

    def issue_member(
        self, request: EnrolmentRequest, kind: MemberKind, name: str, now: float, lifetime: float | None = None
    ) -> bytes:
        """A certificate, PEM, for who sent ``request``, as the ``name`` that it was invited as or has.

        Args:
            request: a verified request.
            kind: what it will be: of its invitation, or of the certificate that it renews; never what it says itself.
            name: from the same source.
            now: POSIX seconds.
            lifetime: seconds; :data:`LIFETIME` of its kind unless given.

        Raises:
            IdentityError: the request is in another name, or the authority itself is not valid at ``now``.
        """
        identity = Identity(self.federation, member_kind(kind), name)
        if request.name != name:
            raise IdentityError(
                f"a request in the name of '{request.name}' from who may only be '{name}'; it is refused"
            )
        key = require_p256(serialization.load_der_public_key(request.tls))
        return self._issue(identity, key, request.sealing, now, LIFETIME[kind] if lifetime is None else lifetime)

    def issue_invitation(
        self, kind: MemberKind, name: str, now: float, lifetime: float = LIFETIME["invited"]
    ) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A new key and its certificate, PEM, with which its holder may enrol as ``name`` and nothing else.

        Raises:
            IdentityError: there can be no such member, or the authority itself is not valid at ``now``.
        """
        identity, key = Identity(self.federation, "invited", name, member_kind(kind)), make_tls_key()
        return key, self._issue(identity, key.public_key(), None, now, lifetime)

    def _issue(
        self,
        identity: Identity,
        tls_public: ec.EllipticCurvePublicKey,
        sealing: SealingPublic | None,
        now: float,
        lifetime: float,
    ) -> bytes:
        anchor = self._anchor
        if not 0 < lifetime < float("inf"):
            raise IdentityError(f"a certificate cannot be valid for {lifetime} seconds")
        if not anchor.not_before <= now < anchor.not_after:
            raise IdentityError(
                f"the authority of federation '{self.federation}' is valid from {date(anchor.not_before)} to "
                f"{date(anchor.not_after)}, and it is {date(now)} here; check the clock"
            )
        builder = _dated(max(now - BACKDATE, anchor.not_before), min(now + lifetime, anchor.not_after))
        builder = builder.subject_name(_name(self.federation, identity.name)).issuer_name(anchor.certificate.subject)
        builder = builder.public_key(require_p256(tls_public))
        for extension in member_extensions(identity, sealing, anchor.public_key):
            builder = builder.add_extension(extension.value, extension.critical)
        return _pem(builder.sign(self._key, hashes.SHA256()))


def _dated(begins: float, ends: float) -> x509.CertificateBuilder:
    """A certificate's builder with its dates, in whole seconds, and a serial number of 159 random bits."""
    builder = x509.CertificateBuilder().serial_number(x509.random_serial_number())
    return builder.not_valid_before(_second(begins)).not_valid_after(_second(ends))


def _second(time: float) -> datetime:
    return datetime.fromtimestamp(int(time), UTC)


def _name(federation: str, name: str) -> x509.Name:
    """The distinguished name: for people who look at a certificate; nothing here reads it but the link to the issuer."""
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
