"""Enrolment requests: both proofs, one form, and nothing smuggled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from hansa.deployment.identity.authority import Authority
from hansa.deployment.identity.certificates import HUB_TLS_NAME, read
from hansa.deployment.identity.keys import SealingKeys, make_tls_key, public_der
from hansa.deployment.identity.request import MAX_REQUEST, PROOF, make_request, read_request, renewable
from hansa.errors import IdentityError


def proof_of(request: bytes) -> bytes:
    value = x509.load_der_x509_csr(request).extensions[0].value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def forged(
    proof: bytes | None,
    *,
    key: Any,
    names: tuple[tuple[x509.ObjectIdentifier, str], ...] = ((NameOID.COMMON_NAME, "hospital-a"),),
    more: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    critical: bool = False,
    algorithm: Any = None,
    password: bool = False,
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([x509.NameAttribute(oid, text) for oid, text in names]))
    if proof is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(PROOF, proof), critical)
    for value, flag in more:
        builder = builder.add_extension(value, flag)
    if password:
        builder = builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"x")
    plain = isinstance(key, ed25519.Ed25519PrivateKey)
    return builder.sign(key, None if plain else algorithm or hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.fixture(scope="module")
def keys() -> tuple[ec.EllipticCurvePrivateKey, SealingKeys]:
    return make_tls_key(), SealingKeys.make()


def test_a_request_says_what_was_asked(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    tls, sealing = keys
    request = read_request(make_request("hospital-a", tls, sealing))
    assert (request.name, request.tls) == ("hospital-a", public_der(tls.public_key()))
    assert request.sealing == sealing.public


def test_the_forger_can_also_do_it_right(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    proof = proof_of(make_request("hospital-a", *keys))
    assert read_request(forged(proof, key=keys[0])).sealing == keys[1].public


def test_a_request_made_again_has_the_same_fingerprint(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    one, two = make_request("hospital-a", *keys), make_request("hospital-a", *keys)
    assert one != two  # ECDSA draws a new number for each signature
    assert read_request(one).fingerprint == read_request(two).fingerprint


def test_another_request_has_another_fingerprint(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    tls, sealing = keys
    others = [
        make_request("hospital-a", tls, sealing),
        make_request("hospital-b", tls, sealing),
        make_request("hospital-a", make_tls_key(), sealing),
        make_request("hospital-a", tls, SealingKeys.make()),
        make_request("hospital-a", tls, SealingKeys(sealing.sign, SealingKeys.make().agree)),
    ]
    assert len({read_request(other).fingerprint for other in others}) == len(others)


def test_no_byte_can_be_changed(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    """Subject, TLS key, sealing keys, proof, signature and all that holds them together."""
    request = make_request("hospital-a", *keys)
    for place in range(len(request)):
        for bit in (1 << place % 8, 0x80):
            damaged = bytearray(request)
            damaged[place] ^= bit
            with pytest.raises(IdentityError):
                read_request(bytes(damaged))


def test_a_signature_has_one_coding(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    for _ in range(20):
        request = make_request("hospital-a", *keys)
        place = len(request) - len(x509.load_der_x509_csr(request).signature) - 1
        for unused in range(1, 8):
            damaged = bytearray(request)
            damaged[place] = unused
            with pytest.raises(IdentityError):
                read_request(bytes(damaged))


def test_no_byte_can_be_missing_or_added(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    request = make_request("hospital-a", *keys)
    for length in range(len(request)):
        with pytest.raises(IdentityError):
            read_request(request[:length])
    for more in (request + b"\0", b"\0" + request, request + request, request[:50] + b"\0" + request[50:]):
        with pytest.raises(IdentityError):
            read_request(more)


def test_a_long_request_is_not_parsed(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    with pytest.raises(IdentityError, match=f"at most {MAX_REQUEST}"):
        read_request(b"\x30" * (MAX_REQUEST + 1))
    request = make_request("hospital-a", *keys)
    read_request(request, len(request))
    with pytest.raises(IdentityError, match="at most"):
        read_request(request, len(request) - 1)


def test_a_proof_does_not_serve_another(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    """A thief of a request cannot put its proof beside another TLS key or name, nor other keys beside its proof."""
    tls, sealing = keys
    proof = proof_of(make_request("hospital-a", tls, sealing))
    other = SealingKeys.make().public
    stolen = [
        forged(proof, key=make_tls_key()),
        forged(proof, key=tls, names=((NameOID.COMMON_NAME, "hospital-b"),)),
        forged(proof[:32] + other.agree + proof[64:], key=tls),
        forged(other.sign + proof[32:], key=tls),
        forged(proof[:64] + bytes(64), key=tls),
        forged(proof[:64] + proof_of(make_request("hospital-b", tls, sealing))[64:], key=tls),
    ]
    for request in stolen:
        with pytest.raises(IdentityError, match="does not prove"):
            read_request(request)


def test_a_proof_by_a_key_of_small_order_is_refused(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    weak = (1).to_bytes(32, "little")
    with pytest.raises(IdentityError, match="small order"):
        read_request(forged(weak + keys[1].public.agree + weak + bytes(32), key=keys[0]))


@pytest.mark.parametrize("length", [0, 1, 64, 127, 129, 500])
def test_a_proof_has_its_length(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys], length: int) -> None:
    with pytest.raises(IdentityError, match="not an enrolment request"):
        read_request(forged(b"\1" * length, key=keys[0]))


SMUGGLED: dict[str, dict[str, Any]] = {
    "the hub's DNS name": {"more": ((x509.SubjectAlternativeName([x509.DNSName(HUB_TLS_NAME)]), False),)},
    "another URI": {
        "more": ((x509.SubjectAlternativeName([x509.UniformResourceIdentifier("hansa://hearts/hub/hub")]), False),)
    },
    "a CA": {"more": ((x509.BasicConstraints(ca=True, path_length=None), True),)},
    "something unknown": {"more": ((x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"x"), False),)},
    "critical": {"critical": True},
    "a password": {"password": True},
    "two names": {"names": ((NameOID.COMMON_NAME, "hospital-a"), (NameOID.COMMON_NAME, "hub"))},
    "an organisation": {"names": ((NameOID.ORGANIZATION_NAME, "x"), (NameOID.COMMON_NAME, "hospital-a"))},
    "only an organisation": {"names": ((NameOID.ORGANIZATION_NAME, "hospital-a"),)},
    "no name": {"names": ()},
    "another hash": {"algorithm": hashes.SHA512()},
}


@pytest.mark.parametrize("what", SMUGGLED)
def test_nothing_is_smuggled_in(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys], what: str) -> None:
    proof = proof_of(make_request("hospital-a", *keys))
    with pytest.raises(IdentityError):
        read_request(forged(proof, key=keys[0], **SMUGGLED[what]))


@pytest.mark.parametrize("name", ["hub", "observer", "Hospital", "a/b", "..", "a" * 64, "a\nb", "hospit\u0430l", " a"])
def test_a_name_in_a_request_is_a_name(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys], name: str) -> None:
    tls, sealing = keys
    with pytest.raises(IdentityError, match="cannot be used"):
        make_request(name, tls, sealing)
    public = sealing.public
    signed = sealing.sign.sign(b"hansa enrolment v1\0" + public_der(tls.public_key()) + public.raw + name.encode())
    request = forged(public.raw + signed, key=tls, names=((NameOID.COMMON_NAME, name[:64]),))
    with pytest.raises(IdentityError):
        read_request(request)


def test_a_request_without_a_proof_is_refused(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys]) -> None:
    with pytest.raises(IdentityError, match="nothing else"):
        read_request(forged(None, key=keys[0]))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "secp256k1", "RSA", "Ed25519"],
)
def test_other_tls_keys_are_refused(keys: tuple[ec.EllipticCurvePrivateKey, SealingKeys], key: Any) -> None:
    with pytest.raises(IdentityError, match="P-256"):
        read_request(forged(proof_of(make_request("hospital-a", *keys)), key=key))
    with pytest.raises(IdentityError, match="P-256"):
        make_request("hospital-a", key, keys[1])


def test_a_certificate_is_no_request(authority: Authority, issue: Callable[..., bytes]) -> None:
    der = x509.load_pem_x509_certificate(issue(authority)).public_bytes(serialization.Encoding.DER)
    for data in (der, issue(authority), b"", b"\0", b"{}"):
        with pytest.raises(IdentityError):
            read_request(data)


def test_a_renewal_keeps_name_and_sealing_keys(authority: Authority, now: float) -> None:
    sealing = SealingKeys.make()
    first = read_request(make_request("hospital-a", make_tls_key(), sealing))
    current = read(authority.issue_member(first, "node", "hospital-a", now), authority.certificate_pem, now)
    renewable(current, read_request(make_request("hospital-a", make_tls_key(), sealing)))
    with pytest.raises(IdentityError, match="in the name of 'hospital-b'"):
        renewable(current, read_request(make_request("hospital-b", make_tls_key(), sealing)))
    for other in (SealingKeys.make(), SealingKeys(sealing.sign, SealingKeys.make().agree)):
        with pytest.raises(IdentityError, match=sealing.public.fingerprint):
            renewable(current, read_request(make_request("hospital-a", make_tls_key(), other)))


def test_an_invitation_is_not_renewed(authority: Authority, now: float) -> None:
    _, pem = authority.issue_invitation("node", "hospital-a", now)
    invited = read(pem, authority.certificate_pem, now)
    with pytest.raises(IdentityError, match="not renewed"):
        renewable(invited, read_request(make_request("hospital-a", make_tls_key(), SealingKeys.make())))
