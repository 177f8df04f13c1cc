"""One federation, made once, and a forger who can make any certificate with any key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from hansa.deployment.identity.authority import DAY, Authority
from hansa.deployment.identity.certificates import member_extensions
from hansa.deployment.identity.keys import SealingKeys, make_tls_key
from hansa.deployment.identity.names import Identity
from hansa.deployment.identity.request import make_request, read_request

NOW = 1.9e9
Forge = Callable[..., bytes]


@pytest.fixture
def now() -> float:
    return NOW


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"), "hearts", NOW)


@pytest.fixture(scope="session")
def impostor(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority that gives itself the same name."""
    return Authority.create(tmp_path_factory.mktemp("impostor"), "hearts", NOW)


@pytest.fixture(scope="session")
def issue() -> Callable[..., bytes]:
    """A certificate for a party with new keys, by the proper way."""

    def issued(authority: Authority, name: str = "hospital-a", kind: Any = "node", **more: Any) -> bytes:
        request = read_request(make_request(name, make_tls_key(), SealingKeys.make()))
        return authority.issue_member(request, kind, name, NOW, **more)

    return issued


@pytest.fixture(scope="session")
def forge(authority: Authority) -> Forge:
    """A certificate as nobody should make one, signed with the authority's own key unless told otherwise."""

    def forged(
        extensions: Sequence[tuple[x509.ExtensionType, bool]] | None = None,
        *,
        key: Any = None,
        signer: Any = None,
        issuer: x509.Name | None = None,
        algorithm: Any = None,
        begins: float = NOW,
        ends: float = NOW + DAY,
        identity: Identity | None = None,
    ) -> bytes:
        own = x509.load_pem_x509_certificate(authority.certificate_pem)
        if extensions is None:
            who = identity or Identity("hearts", "node", "hospital-a")
            proper = member_extensions(who, SealingKeys.make().public, authority._anchor.public_key)
            extensions = [(extension.value, extension.critical) for extension in proper]
        builder = (
            x509.CertificateBuilder()
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(begins, UTC))
            .not_valid_after(datetime.fromtimestamp(ends, UTC))
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
            .issuer_name(own.subject if issuer is None else issuer)
            .public_key(key or make_tls_key().public_key())
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical)
        signed = builder.sign(signer or authority._key, algorithm or hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    return forged


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"
