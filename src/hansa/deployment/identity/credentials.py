"""Credentials: what a party keeps at home to be who it is.

::

    <home>/identity/            made in one step, when everything in it is there
        authority.pem           the federation's authority
        tls.pem                 the TLS key and its certificate: one file, so that they are exchanged together
        sealing.pem             the sealing keys; they stay
        hub.json                where the hub is, and by which invitation the party came
        pins.json               whom the party has met

All files are mode 0600, the folder 0700.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.deployment.disk import sync
from hansa.deployment.identity.certificates import BACKDATE, Certificate, read_anchor, read_undated
from hansa.deployment.identity.files import private_folder, read_private, write_private
from hansa.deployment.identity.keys import SealingKeys, pem_blocks, private_pem, public_der, tls_key_from_pem
from hansa.deployment.identity.names import Identity
from hansa.deployment.identity.pins import Pins
from hansa.errors import IdentityError, StoreError

_FOLDER, _AUTHORITY, _TLS, _SEALING, _HUB, _PINS = (
    "identity", "authority.pem", "tls.pem", "sealing.pem", "hub.json", "pins.json",
)  # fmt: skip
_RENEW_AT: Final = 2 / 3


@final
@dataclass(frozen=True)
class Credentials:
    """The credentials of one party: a value; a renewal gives another one.

    Guarantees: the certificate is of the authority, for this TLS key and these sealing keys.

    Args:
        home: the party's home.
        authority_pem: the authority's certificate.
        certificate: the party's own.
        tls_key_pem: the private TLS key, as TLS takes it.
        sealing: the private sealing keys.
        addresses: where the hub is, ``host:port``; empty for the hub itself.
        invitation: the serial number of the one by which the party joined last, in hex; empty where there was none.
    """

    home: Path
    authority_pem: bytes
    certificate: Certificate
    tls_key_pem: bytes = field(repr=False)
    sealing: SealingKeys
    addresses: tuple[str, ...]
    invitation: str = ""

    def __post_init__(self) -> None:
        _require_fit(self.certificate, self.tls_key_pem, self.sealing)

    @property
    def identity(self) -> Identity:
        """Who the party is."""
        return self.certificate.identity

    def pins(self) -> Pins:
        """Whom the party has met; to be opened once."""
        return Pins(self.home / _FOLDER / _PINS)

    @staticmethod
    def save_new(
        home: Path,
        authority_pem: bytes,
        certificate_pem: bytes,
        tls_key: ec.EllipticCurvePrivateKey,
        sealing: SealingKeys,
        addresses: Sequence[str],
        now: float,
        invitation: str = "",
    ) -> Credentials:
        """Make a party of ``home``: all of it, or after a crash at any instant nothing that :meth:`load` would find.

        Raises:
            IdentityError: the parts do not belong together, or the home has an identity already.
            StoreError: the disk does not take it.
        """
        certificate = read_undated(certificate_pem, authority_pem)
        certificate.require_valid(now)
        key_pem, authority_pem = private_pem(tls_key), read_anchor(authority_pem).pem
        made = Credentials(home, authority_pem, certificate, key_pem, sealing, tuple(addresses), invitation)
        contents = {
            _AUTHORITY: authority_pem,
            _TLS: key_pem + certificate.pem,
            _SEALING: sealing.pem,
            _HUB: msgspec.json.encode(_Hub(made.addresses, invitation)),
        }
        if has_identity(home):
            raise IdentityError(f"{home} has an identity already; use another home, or move {home / _FOLDER} away")
        fresh = private_folder(home) / f".{_FOLDER}.{secrets.token_hex(8)}"
        try:
            for name, data in contents.items():
                write_private(private_folder(fresh) / name, data)
            fresh.rename(home / _FOLDER)
            sync(home)
        except OSError as error:
            raise StoreError(f"the identity in {home} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return made

    @staticmethod
    def load(home: Path, now: float, *, even_expired: bool = False) -> Credentials:
        """The credentials in ``home``.

        Args:
            home: the party's home.
            now: POSIX seconds.
            even_expired: give them also where the certificate is not valid at ``now``: for a hub that was down for long and
                gives itself a new one, and for those who only look.

        Raises:
            IdentityError: there are none, others can read them, they do not fit together, or are not valid at ``now``.
            StoreError: a file is damaged.
        """
        folder = home / _FOLDER
        authority_pem, tls = read_private(folder / _AUTHORITY), read_private(folder / _TLS)
        sealing = SealingKeys.from_pem(read_private(folder / _SEALING))
        try:
            hub = msgspec.json.decode(read_private(folder / _HUB), type=_Hub)
        except msgspec.DecodeError as error:
            raise StoreError(f"{folder / _HUB} is damaged ({error}); restore it from its backup") from None
        certificates = b"".join(block for label, block in pem_blocks(tls) if label == "CERTIFICATE")
        certificate = read_undated(certificates, authority_pem)
        if not even_expired:
            certificate.require_valid(now)
        key_pem = private_pem(tls_key_from_pem(tls))
        return Credentials(home, authority_pem, certificate, key_pem, sealing, hub.addresses, hub.invitation)

    def renew_at(self) -> float:
        """When to renew, POSIX seconds: at two thirds of the certificate's life, counted from when it was issued."""
        begins, ends = self.certificate.not_before + BACKDATE, self.certificate.not_after
        return begins + _RENEW_AT * (ends - begins)

    def renew_due(self, now: float) -> bool:
        """Whether it is time to ask for a new certificate."""
        return now >= self.renew_at()

    def replace_certificate(self, pem: bytes, new_key: ec.EllipticCurvePrivateKey, now: float) -> Credentials:
        """These credentials with a renewed certificate, on the disk and as returned.

        Guarantees: a crash at any instant leaves the old key with the old certificate, or the new with the new.

        Raises:
            IdentityError: the new certificate is not valid, or of another identity, key or sealing keys; nothing was changed.
            StoreError: the disk does not take it; nothing was changed.
        """
        certificate = read_undated(pem, self.authority_pem)
        certificate.require_valid(now)
        if certificate.identity != self.identity:
            raise IdentityError(f"{self.identity} was sent the certificate of {certificate.identity}; it is not used")
        renewed = replace(self, certificate=certificate, tls_key_pem=private_pem(new_key))
        write_private(self.home / _FOLDER / _TLS, renewed.tls_key_pem + certificate.pem, replace=True)
        return renewed

    def joined_by(self, invitation: str) -> Credentials:
        """These credentials, after the party joined by another invitation, on the disk and as returned.

        Raises:
            StoreError: the disk does not take it; nothing was changed.
        """
        hub = msgspec.json.encode(_Hub(self.addresses, invitation))
        write_private(self.home / _FOLDER / _HUB, hub, replace=True)
        return replace(self, invitation=invitation)


def has_identity(home: Path) -> bool:
    """Whether there is an identity in ``home``, good or bad."""
    return os.path.lexists(home / _FOLDER)


class _Hub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    addresses: tuple[str, ...]
    invitation: str = ""


def _require_fit(certificate: Certificate, tls_key_pem: bytes, sealing: SealingKeys) -> None:
    who = certificate.identity
    if public_der(tls_key_from_pem(tls_key_pem).public_key()) != certificate.tls:
        raise IdentityError(f"the certificate of {who} is not for the TLS key beside it")
    if certificate.sealing is None or not sealing.public.same_as(certificate.sealing):
        raise IdentityError(f"the certificate of {who} is not for the sealing keys beside it")
