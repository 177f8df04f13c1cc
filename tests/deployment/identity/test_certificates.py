"""Certificates: one form, one authority, one time; everything else is refused by name."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from hansa.deployment.identity.authority import AUTHORITY_LIFETIME, DAY, Authority
from hansa.deployment.identity.certificates import (
    BACKDATE,
    HUB_TLS_NAME,
    SEALING_KEYS,
    date,
    member_extensions,
    read,
    read_anchor,
    read_undated,
    tls_name,
)
from hansa.deployment.identity.keys import SealingKeys, make_tls_key, private_pem, tls_key_from_pem
from hansa.deployment.identity.names import Identity
from hansa.errors import IdentityError

Forge = Callable[..., bytes]
Issue = Callable[..., bytes]
Extensions = list[tuple[x509.ExtensionType, bool]]
NODE = Identity("hearts", "node", "hospital-a")


def proper(authority: Authority, who: Identity = NODE) -> Extensions:
    made = member_extensions(who, SealingKeys.make().public, authority._anchor.public_key)
    return [(extension.value, extension.critical) for extension in made]


def flipped(pem: bytes, place: int, bit: int = 1) -> bytes:
    der = bytearray(x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER))
    der[place] ^= bit
    return ssl.DER_cert_to_PEM_cert(bytes(der)).encode()


def test_a_member_reads_as_what_it_is(authority: Authority, issue: Issue, now: float) -> None:
    certificate = read(issue(authority), authority.certificate_pem, now)
    assert certificate.identity == NODE
    assert certificate.not_before == now - BACKDATE and certificate.not_after == now + 7 * DAY
    assert certificate.sealing is not None and certificate.serial > 1 << 100


def test_the_forger_can_also_do_it_right(authority: Authority, forge: Forge, now: float) -> None:
    """Else the refusals below would show nothing."""
    assert read(forge(proper(authority)), authority.certificate_pem, now).identity == NODE


def test_another_authority_of_the_same_name_is_not_this_one(
    authority: Authority, impostor: Authority, issue: Issue, now: float
) -> None:
    for pem, own in ((issue(impostor), authority), (issue(authority), impostor)):
        with pytest.raises(IdentityError, match="did not issue"):
            read(pem, own.certificate_pem, now)


def test_the_right_key_under_another_issuer_name_is_refused(authority: Authority, forge: Forge, now: float) -> None:
    with pytest.raises(IdentityError, match="did not issue"):
        read(forge(issuer=x509.Name([])), authority.certificate_pem, now)


def test_time(authority: Authority, issue: Issue, now: float) -> None:
    pem, own = issue(authority), authority.certificate_pem
    read(pem, own, now - BACKDATE)
    read(pem, own, now + 7 * DAY)
    with pytest.raises(IdentityError, match=f"expired on {date(now + 7 * DAY)}.*new invitation"):
        read(pem, own, now + 7 * DAY + 1)
    with pytest.raises(IdentityError, match="check the clocks"):
        read(pem, own, now - BACKDATE - 1)
    for odd in (float("inf"), float("-inf"), 0.0, -1e18, 1e18):
        with pytest.raises(IdentityError):
            read(pem, own, odd)


def test_no_time_is_no_valid_time(authority: Authority, issue: Issue) -> None:
    with pytest.raises(IdentityError):
        read(issue(authority), authority.certificate_pem, float("nan"))


def test_a_clock_an_hour_off_does_no_harm(authority: Authority, issue: Issue, now: float) -> None:
    for hours in (-1, 1):
        read(issue(authority), authority.certificate_pem, now + hours * 3600)


def test_a_member_cannot_certify(authority: Authority, forge: Forge, issue: Issue, now: float) -> None:
    """A chain member -> stolen name: neither as a chain nor with the member in the authority's place."""
    key = make_tls_key()
    member = forge(proper(authority), key=key.public_key())
    subject = x509.load_pem_x509_certificate(member).subject
    child = forge(proper(authority, Identity("hearts", "operator", "boss")), signer=key, issuer=subject)
    with pytest.raises(IdentityError, match="did not issue"):
        read(child, authority.certificate_pem, now)
    with pytest.raises(IdentityError, match="authority"):
        read(child, member, now)
    for chain in (child + member, member + child, child + member + authority.certificate_pem, member + member):
        with pytest.raises(IdentityError, match="exactly one certificate"):
            read(chain, authority.certificate_pem, now)


def test_the_authority_is_no_member(authority: Authority, now: float) -> None:
    with pytest.raises(IdentityError):
        read(authority.certificate_pem, authority.certificate_pem, now)


def alt(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})


def unknown(value: bytes, oid: x509.ObjectIdentifier = SEALING_KEYS) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(oid, value)


GOOD = SealingKeys.make().public.raw
OTHER_OID = x509.ObjectIdentifier("2.25.1")
BASIC, USAGE, PURPOSE, NAMES, ISSUER, SEALING = range(6)
SWAPS: dict[str, tuple[int, x509.ExtensionType, bool]] = {
    "a CA": (BASIC, x509.BasicConstraints(ca=True, path_length=None), True),
    "a CA of length 0": (BASIC, x509.BasicConstraints(ca=True, path_length=0), True),
    "constraints not critical": (BASIC, x509.BasicConstraints(ca=False, path_length=None), False),
    "may sign certificates": (USAGE, usage(digital_signature=True, key_cert_sign=True), True),
    "may not sign": (USAGE, usage(key_agreement=True), True),
    "usage not critical": (USAGE, usage(digital_signature=True), False),
    "a node that serves": (PURPOSE, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
    "any purpose": (PURPOSE, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
    "a node that only calls": (PURPOSE, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
    "purposes in another order": (
        PURPOSE,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        False,
    ),
    "another node's DNS name": (NAMES, alt(uri(NODE.uri), x509.DNSName(tls_name("hospital-b"))), False),
    "no DNS name": (NAMES, alt(uri(NODE.uri)), False),
    "the hub's DNS name": (NAMES, alt(uri(NODE.uri), x509.DNSName(HUB_TLS_NAME)), False),
    "a DNS name": (NAMES, alt(uri(NODE.uri), x509.DNSName("example.org")), False),
    "two URIs": (NAMES, alt(uri(NODE.uri), uri("hansa://hearts/operator/boss")), False),
    "the same URI twice": (NAMES, alt(uri(NODE.uri), uri(NODE.uri)), False),
    "no URI": (NAMES, alt(x509.DNSName(HUB_TLS_NAME)), False),
    "a mail address": (NAMES, alt(uri(NODE.uri), x509.RFC822Name("a@example.org")), False),
    "names critical": (NAMES, alt(uri(NODE.uri)), True),
    "another scheme": (NAMES, alt(uri("spiffe://hearts/node/hospital-a")), False),
    "a path": (NAMES, alt(uri("hansa://hearts/node/../hub/hub")), False),
    "upper case": (NAMES, alt(uri("hansa://hearts/node/Hospital-A")), False),
    "another federation": (NAMES, alt(uri("hansa://lungs/node/hospital-a")), False),
    "a reserved name": (NAMES, alt(uri("hansa://hearts/node/hub")), False),
    "an unknown kind": (NAMES, alt(uri("hansa://hearts/root/hospital-a")), False),
    "an authority's URI": (NAMES, alt(uri("hansa://hearts/authority")), False),
    "an invitation with sealing keys": (NAMES, alt(uri("hansa://hearts/invited/node/hospital-a")), False),
    "a hub without its DNS name": (NAMES, alt(uri("hansa://hearts/hub/hub")), False),
    "another issuer's key": (
        ISSUER,
        x509.AuthorityKeyIdentifier.from_issuer_public_key(make_tls_key().public_key()),
        False,
    ),
    "short keys": (SEALING, unknown(GOOD[:63]), False),
    "long keys": (SEALING, unknown(GOOD + b"\0"), False),
    "no keys": (SEALING, unknown(b""), False),
    "weak keys": (SEALING, unknown(bytes(64)), False),
    "keys critical": (SEALING, unknown(GOOD), True),
    "keys elsewhere": (SEALING, unknown(GOOD, OTHER_OID), False),
}


@pytest.mark.parametrize("what", SWAPS)
def test_no_other_form_is_accepted(authority: Authority, forge: Forge, now: float, what: str) -> None:
    place, value, critical = SWAPS[what]
    extensions = proper(authority)
    extensions[place] = (value, critical)
    with pytest.raises(IdentityError):
        read(forge(extensions), authority.certificate_pem, now)


@pytest.mark.parametrize("place", range(6))
def test_nothing_may_be_missing(authority: Authority, forge: Forge, now: float, place: int) -> None:
    extensions = proper(authority)
    del extensions[place]
    with pytest.raises(IdentityError):
        read(forge(extensions), authority.certificate_pem, now)


def test_nothing_may_be_added_or_moved(authority: Authority, forge: Forge, now: float) -> None:
    good = proper(authority)
    for extensions in (
        [*good, (unknown(b"x", OTHER_OID), False)],
        [*good, (unknown(b"x", OTHER_OID), True)],
        good[::-1],
        [],
    ):
        with pytest.raises(IdentityError, match="not a Hansa certificate"):
            read(forge(extensions), authority.certificate_pem, now)


def test_a_refusal_names_the_extension(authority: Authority, forge: Forge, now: float) -> None:
    extensions = proper(authority)
    extensions[BASIC] = (x509.BasicConstraints(ca=True, path_length=None), True)
    with pytest.raises(IdentityError, match="its basic constraints is not as"):
        read(forge(extensions), authority.certificate_pem, now)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 2048).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ],
    ids=["P-384", "secp256k1", "RSA", "Ed25519"],
)
def test_other_tls_keys_are_refused(authority: Authority, forge: Forge, now: float, key: Any) -> None:
    with pytest.raises(IdentityError, match="P-256"):
        read(forge(key=key), authority.certificate_pem, now)


def test_another_hash_is_refused(authority: Authority, forge: Forge, now: float) -> None:
    with pytest.raises(IdentityError, match="SHA-256"):
        read(forge(algorithm=hashes.SHA512()), authority.certificate_pem, now)


def test_a_certificate_does_not_outlive_its_authority(authority: Authority, forge: Forge, now: float) -> None:
    for times in ({"ends": now + AUTHORITY_LIFETIME + DAY}, {"begins": now - BACKDATE - 1}):
        with pytest.raises(IdentityError, match="when its authority is not"):
            read(forge(**times), authority.certificate_pem, now)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_bit_can_be_changed(authority: Authority, issue: Issue, now: float) -> None:
    """One bit in each byte, another bit from byte to byte; the signature and its coding included."""
    pem = issue(authority)
    length = len(x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER))
    for place in range(length):
        with pytest.raises(IdentityError):
            read(flipped(pem, place, 1 << place % 8), authority.certificate_pem, now)


def test_a_signature_has_one_coding(authority: Authority, issue: Issue, now: float) -> None:
    """How many bits at its end do not count is in no signed byte; where they are zero, the number could be another."""
    for _ in range(20):
        pem = issue(authority)
        parsed = x509.load_pem_x509_certificate(pem)
        place = len(parsed.public_bytes(serialization.Encoding.DER)) - len(parsed.signature) - 1
        for unused in range(1, 8):
            with pytest.raises(IdentityError):
                read(flipped(pem, place, unused), authority.certificate_pem, now)


@pytest.mark.parametrize(
    "pem",
    [
        b"", b"x", b"\0" * 100, b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"x" * 10_000_000,
        b"-----BEGIN CERTIFICATE-----\nMIIB\n", private_pem(make_tls_key()),
    ],
    ids=["empty", "x", "zeros", "no body", "no DER", "10 MB", "cut off", "a key"],
)  # fmt: skip
def test_what_is_no_certificate_is_named(authority: Authority, now: float, pem: bytes) -> None:
    with pytest.raises(IdentityError):
        read(pem, authority.certificate_pem, now)
    with pytest.raises(IdentityError):
        read_anchor(pem)


def test_every_prefix_is_refused(authority: Authority, issue: Issue, now: float) -> None:
    pem = issue(authority)
    # Without its last line end it is still the same certificate.
    for length in range(0, len(pem) - 1, 7):
        with pytest.raises(IdentityError):
            read(pem[:length], authority.certificate_pem, now)


def test_an_expired_certificate_can_be_looked_at(authority: Authority, issue: Issue, now: float) -> None:
    assert read_undated(issue(authority, lifetime=1.0), authority.certificate_pem).not_after == now + 1


def test_no_member_is_an_anchor(authority: Authority, forge: Forge, issue: Issue) -> None:
    ca = [(x509.BasicConstraints(ca=True, path_length=0), True)]
    for pem in (issue(authority), forge(), forge(ca + proper(authority)[1:])):
        with pytest.raises(IdentityError, match="authority"):
            read_anchor(pem)


def test_the_pem_of_a_certificate_is_its_own(authority: Authority, issue: Issue, now: float) -> None:
    pem = issue(authority)
    assert read(pem.replace(b"\n", b"\r\n"), authority.certificate_pem, now).pem == pem


# A TLS library other than the one that wrote them must agree about who may serve and who may call.


def context(folder: Path, server: bool, authority: bytes, key: bytes, pem: bytes) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata=authority.decode())
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    (folder / "pair.pem").write_bytes(key + pem)
    made.load_cert_chain(folder / "pair.pem")
    return made


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """The URI of the caller, as the server's TLS library sees it after a handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_side=False, server_hostname=HUB_TLS_NAME),
        server.wrap_bio(up, down, server_side=True),
    ]
    done = [False, False]
    for _ in range(8):
        for number, end in enumerate(ends):
            try:
                if not done[number]:
                    end.do_handshake()
                    done[number] = True
            except ssl.SSLWantReadError:
                continue
    assert all(done)
    seen: Any = ends[1].getpeercert()
    return str(dict(seen["subjectAltName"])["URI"])


@pytest.fixture
def today() -> float:
    """TLS libraries read the clock themselves."""
    import time

    return time.time()


def pair(authority: Authority, kind: str, now: float) -> tuple[bytes, bytes]:
    key, sealing = make_tls_key(), SealingKeys.make().public
    if kind == "hub":
        return private_pem(key), authority.issue_hub(key.public_key(), sealing, now)
    invited, pem = authority.issue_invitation("node", "hospital-a", now)
    return private_pem(invited), pem


def test_a_tls_library_accepts_hub_and_caller(tmp_path: Path, today: float) -> None:
    authority = Authority.create(tmp_path / "authority", "hearts", today)
    own = authority.certificate_pem
    hub = context(tmp_path, True, own, *pair(authority, "hub", today))
    caller = context(tmp_path, False, own, *pair(authority, "invited", today))
    assert handshake(caller, hub) == "hansa://hearts/invited/node/hospital-a"


def test_a_tls_library_refuses_a_caller_in_the_hubs_place(tmp_path: Path, today: float) -> None:
    authority = Authority.create(tmp_path / "authority", "hearts", today)
    own = authority.certificate_pem
    caller = context(tmp_path, False, own, *pair(authority, "invited", today))
    false_hub = context(tmp_path, True, own, *pair(authority, "invited", today))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"purpose|mismatch"):
        handshake(caller, false_hub)


def test_a_tls_library_refuses_another_authority(tmp_path: Path, today: float) -> None:
    one = Authority.create(tmp_path / "one", "hearts", today)
    two = Authority.create(tmp_path / "two", "hearts", today)
    caller = context(tmp_path, False, one.certificate_pem, *pair(one, "invited", today))
    hub = context(tmp_path, True, two.certificate_pem, *pair(two, "hub", today))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(caller, hub)


def test_tls_takes_what_is_kept(tmp_path: Path, today: float) -> None:
    key, _ = pair(Authority.create(tmp_path / "authority", "hearts", today), "hub", today)
    assert private_pem(tls_key_from_pem(key)) == key
