"""Enrolment: from an invitation to credentials, whatever breaks on the way.

The keys are on the disk before the request leaves. So if the hub's answer is lost, or the power fails, the same invitation can be used
again at the same home: the request has the same fingerprint, and the hub gives the certificate that it gave before. Keys that no
hub can have certified, as it refused them, are removed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from cryptography.hazmat.primitives.asymmetric import ec

from hansa.deployment.identity.certificates import read
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.identity.files import private_folder, read_private, write_private
from hansa.deployment.identity.invitation import Invitation
from hansa.deployment.identity.keys import SealingKeys, make_tls_key, pem_blocks, private_pem, tls_key_from_pem
from hansa.deployment.identity.names import Identity
from hansa.deployment.identity.request import make_request
from hansa.errors import IdentityError


@final
@dataclass(frozen=True)
class Enrolment:
    """An enrolment under way at a home.

    Args:
        home: where the party will live.
        invitation: how it gets in.
        tls_key: its own new TLS key.
        sealing: its own sealing keys: new, or of the identity that it has here already and renews by an invitation.
        again: whether it was begun before, so that a request with these keys may have reached the hub already.
    """

    home: Path
    invitation: Invitation
    tls_key: ec.EllipticCurvePrivateKey = field(repr=False)
    sealing: SealingKeys
    again: bool = False

    @staticmethod
    def begin(home: Path, invitation: Invitation, now: float) -> Enrolment:
        """Begin, or go on with what was begun with this invitation.

        Raises:
            IdentityError: the invitation is not valid at ``now``, or the home is another party's.
            StoreError: the disk does not take the keys.
        """
        invitation.certificate.require_valid(now)
        sealing = _sealing_at(home, invitation, now)
        path = _path(private_folder(home), invitation)
        if os.path.lexists(path):
            blocks = [block for _, block in pem_blocks(read_private(path))]
            kept = SealingKeys.from_pem(b"".join(blocks[1:]))
            return Enrolment(home, invitation, tls_key_from_pem(b"".join(blocks[:1])), sealing or kept, again=True)
        begun = Enrolment(home, invitation, make_tls_key(), sealing or SealingKeys.make())
        write_private(path, private_pem(begun.tls_key) + begun.sealing.pem)
        return begun

    def request(self) -> bytes:
        """What to send to the hub."""
        return make_request(self.invitation.name, self.tls_key, self.sealing)

    def finish(self, certificate_pem: bytes, now: float) -> Credentials:
        """Keep the hub's answer.

        Raises:
            IdentityError: it is not the certificate that was asked for; nothing was changed.
            StoreError: the disk does not take it.
        """
        certificate = read(certificate_pem, self.invitation.authority_pem, now)
        if certificate.identity != _identity(self.invitation):
            raise IdentityError(
                f"invited was {_identity(self.invitation)}, and the hub sent a certificate of {certificate.identity}"
            )
        if has_identity(self.home):
            known = Credentials.load(self.home, now, even_expired=True)
            made = known.replace_certificate(certificate.pem, self.tls_key, now).joined_by(_serial(self.invitation))
        else:
            made = Credentials.save_new(
                self.home,
                self.invitation.authority_pem,
                certificate.pem,
                self.tls_key,
                self.sealing,
                self.invitation.addresses,
                now,
                _serial(self.invitation),
            )
        _path(self.home, self.invitation).unlink(missing_ok=True)
        return made

    def give_up(self) -> None:
        """Remove the keys: the hub has refused them, and whoever asks again asks with others."""
        with contextlib.suppress(OSError):  # why the hub refused is what matters
            _path(self.home, self.invitation).unlink()


def joined(home: Path, invitation: Invitation, now: float) -> Credentials | None:
    """Who joined at ``home`` by this very invitation, or None if nobody did; nothing is left to do then.

    Raises:
        IdentityError: somebody did, and its certificate is not valid at ``now``; or what is there cannot be used.
        StoreError: a file is damaged.
    """
    if not has_identity(home):
        return None
    known = Credentials.load(home, now, even_expired=True)
    if known.invitation != _serial(invitation) or known.authority_pem != invitation.authority_pem:
        return None
    _path(home, invitation).unlink(missing_ok=True)  # left where the power failed at the very end
    known.certificate.require_valid(now)
    return known


def _serial(invitation: Invitation) -> str:
    return f"{invitation.certificate.serial:x}"


def _identity(invitation: Invitation) -> Identity:
    return Identity(invitation.federation, invitation.kind, invitation.name)


def _path(home: Path, invitation: Invitation) -> Path:
    return home / f"enrolment-{_serial(invitation)}.pem"


def _sealing_at(home: Path, invitation: Invitation, now: float) -> SealingKeys | None:
    """The sealing keys of the identity at ``home``, which stay when it enrols again; None where there is none."""
    if not has_identity(home):
        return None
    known = Credentials.load(home, now, even_expired=True)
    wanted = _identity(invitation)
    if known.identity != wanted:
        raise IdentityError(
            f"{home} is the home of {known.identity}, and the invitation is for {wanted}; use another home"
        )
    if known.authority_pem != invitation.authority_pem:
        raise IdentityError(
            f"the invitation for {wanted} is of another authority than the one in {home}, though both have the same name; "
            f"ask the operator whether the federation was set up anew, and if so use another home"
        )
    return known.sealing
