"""Invitations: how a stranger gets in.

An invitation is one line of text that the operator hands over by another way than the network. It holds all that a stranger
needs to find the hub, to know it, and to be let in once::

    hansa1-<base64url without padding of:>
        MessagePack array: [addresses, authority's certificate (DER), private key (32 bytes), its certificate (DER)]
        8 bytes             the first of SHA-256 of that, so that a typing mistake is called one

The certificate is of kind ``invited``, short-lived, and its serial number is good for one enrolment. What the hub must do with it,
in one transaction of its store:

1. the serial is unknown or withdrawn: refuse;
2. it was used with a request of another ``fingerprint``: refuse, and tell the operator that somebody has a copy;
3. it was used with this very ``fingerprint``: give the certificate that was given then; its answer was lost on the way;
4. otherwise: issue, and write down serial, fingerprint and certificate before answering.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hansa.deployment.identity.authority import LIFETIME, Authority
from hansa.deployment.identity.certificates import UNREADABLE, Certificate, read_anchor, read_undated
from hansa.deployment.identity.keys import private_pem, public_der
from hansa.deployment.identity.names import MemberKind
from hansa.errors import IdentityError

MAX_TOKEN: Final = 8192
"""Characters of the longest token that is looked at; a real one has about 1,700."""
MAX_ADDRESSES: Final = 8
"""Addresses of the hub in one invitation."""

_PREFIX: Final = "hansa1-"
_CHECKSUM: Final = 8
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


@final
@dataclass(frozen=True)
class Invitation:
    """A token, read and verified but for its date and its single use.

    Args:
        addresses: where the hub is, ``host:port``.
        authority_pem: the authority's certificate, to be kept.
        certificate: the one-time certificate; its identity says whom the holder may become.
        key: its private key.
    """

    addresses: tuple[str, ...]
    authority_pem: bytes
    certificate: Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @property
    def federation(self) -> str:
        """The federation it invites to."""
        return self.certificate.identity.federation

    @property
    def name(self) -> str:
        """The name that its holder will have."""
        return self.certificate.identity.name

    @property
    def kind(self) -> MemberKind:
        """What its holder will be."""
        kind = self.certificate.identity.admits
        assert kind is not None
        return kind

    @property
    def key_pem(self) -> bytes:
        """The private key as TLS takes it."""
        return private_pem(self.key)


def make_invitation(
    authority: Authority,
    address: str | Sequence[str],
    kind: MemberKind,
    name: str,
    now: float,
    lifetime: float = LIFETIME["invited"],
) -> tuple[str, int]:
    """A token that admits ``name`` as a ``kind``, and the serial number that the hub must know it by.

    Args:
        authority: the federation's.
        address: where strangers reach the hub, ``host:port``, or several in order of preference.
        kind: what the holder will be.
        name: the name that it will have.
        now: POSIX seconds.
        lifetime: seconds until it is void.

    Raises:
        IdentityError: an address or the name cannot be used.
    """
    addresses = _addresses((address,) if isinstance(address, str) else tuple(address))
    key, pem = authority.issue_invitation(kind, name, now, lifetime)
    certificate = read_undated(pem, authority.certificate_pem)
    content = _Content(
        addresses,
        _der(authority.certificate_pem),
        key.private_numbers().private_value.to_bytes(32, "big"),
        _der(pem),
    )
    return _text(msgspec.msgpack.encode(content)), certificate.serial


def read_invitation(token: str) -> Invitation:
    """What ``token`` says. White space in it is ignored: mail programs break long lines.

    Its date is not looked at; ``certificate.require_valid(now)`` does that.

    Raises:
        IdentityError: it is mistyped, cut off, too long, of another version, or not what an authority made.
    """
    raw = _bytes(token)
    try:
        content = msgspec.msgpack.decode(raw, type=_Content)
        authority_pem, pem = _pem(content.authority), _pem(content.certificate)
        key = ec.derive_private_key(int.from_bytes(content.key, "big"), ec.SECP256R1())
    except (*UNREADABLE, msgspec.DecodeError, RecursionError) as error:
        raise IdentityError(f"an invitation that does not hold what it must: {error}") from None
    if len(content.key) != 32 or msgspec.msgpack.encode(content) != raw:
        raise IdentityError("an invitation that is not in the form that an operator's program gives it")
    authority_pem = read_anchor(authority_pem).pem
    certificate = read_undated(pem, authority_pem)
    if certificate.identity.kind != "invited":
        raise IdentityError(f"an invitation with the certificate of {certificate.identity}, which invites nobody")
    if public_der(key.public_key()) != certificate.tls:
        raise IdentityError("an invitation whose key and certificate do not belong together")
    return Invitation(_addresses(content.addresses), authority_pem, certificate, key)


def hub_address(text: str) -> str:
    """``text``, which must be ``host:port``: a DNS name, an IPv4 address or an IPv6 address in brackets, and 1 to 65535.

    Raises:
        IdentityError: it is not.

    >>> hub_address("hub.hospital.example:8443"), hub_address("[::1]:8443")
    ('hub.hospital.example:8443', '[::1]:8443')
    """
    host, colon, port = text.rpartition(":")
    number = int(port) if re.fullmatch(r"[1-9][0-9]{0,4}", port, re.ASCII) else 0
    if not (colon and 1 <= number <= 65535 and _is_host(host)):
        raise IdentityError(f"the hub's address {text[:80]!a} is not host:port, such as hub.example.org:8443")
    return text


class _Content(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    addresses: tuple[str, ...]
    authority: bytes
    key: bytes
    certificate: bytes


def _text(content: bytes) -> str:
    whole = content + _checksum(content)
    return _PREFIX + base64.urlsafe_b64encode(whole).rstrip(b"=").decode("ascii")


def _bytes(token: str) -> bytes:
    """The content of a token whose checksum holds."""
    if len(token) > MAX_TOKEN:
        raise IdentityError(f"an invitation of {len(token)} characters; at most {MAX_TOKEN} are looked at")
    text = "".join(token.split())
    if re.match(r"hansa[0-9]{1,3}-", text, re.ASCII) and not text.startswith(_PREFIX):
        raise IdentityError(
            f"an invitation of version {text[5 : text.index('-')]}, which this version of Hansa cannot read"
        )
    if not text.startswith(_PREFIX):
        raise IdentityError(f"not an invitation: it must begin with '{_PREFIX}'")
    body = text[len(_PREFIX) :]
    try:
        whole = base64.b64decode(body.encode("ascii") + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        whole = b""
    content, checksum = whole[:-_CHECKSUM], whole[-_CHECKSUM:]
    if not hmac.compare_digest(checksum, _checksum(content)) or _text(content) != text:
        raise IdentityError("a mistyped or cut-off invitation: its checksum is wrong; copy it again as a whole")
    return content


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(b"hansa invitation v1" + content).digest()[:_CHECKSUM]


def _addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(addresses) <= MAX_ADDRESSES:
        raise IdentityError(f"an invitation must have 1 to {MAX_ADDRESSES} addresses of the hub, not {len(addresses)}")
    return tuple(hub_address(address) for address in addresses)


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.IPv6Address(host[1:-1]).scope_id is None
        except ValueError:
            return False
    return _HOST.fullmatch(host) is not None


def _der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def _pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
