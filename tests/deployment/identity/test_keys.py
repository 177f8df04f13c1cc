"""Keys: the right curves, the right form, and nothing said of the secret."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519

from hansa.deployment.identity.keys import (
    SealingKeys,
    SealingPublic,
    make_tls_key,
    pem_blocks,
    private_pem,
    public_der,
    require_p256,
    tls_key_from_pem,
)
from hansa.errors import IdentityError

P = 2**255 - 19
# The points of small order of Curve25519, as u (RFC 7748; cr.yp.to/ecdh.html, "validate").
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
# And of Ed25519, as y: of order 1, 2, 4 and 8.
SMALL_Y = (
    1,
    P - 1,
    0,
    int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
    int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
)


def point(value: int) -> bytes:
    return value.to_bytes(32, "little")


def test_sealing_keys_come_back_from_their_pem() -> None:
    keys = SealingKeys.make()
    assert SealingKeys.from_pem(keys.pem).public == keys.public
    assert keys.public.same_as(SealingPublic.from_raw(keys.public.raw))


def test_new_keys_are_new() -> None:
    made = {SealingKeys.make().public.raw for _ in range(20)}
    assert len(made) == 20


def test_a_fingerprint_depends_on_both_keys_and_their_order() -> None:
    one, two = SealingKeys.make().public, SealingKeys.make().public
    mixed = SealingPublic(one.sign, two.agree)
    assert len({one.fingerprint, two.fingerprint, mixed.fingerprint}) == 3
    assert not mixed.same_as(one) and not mixed.same_as(two)
    groups = one.fingerprint.split(" ")
    assert [len(group) for group in groups] == [4] * 8 and bytes.fromhex("".join(groups))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_sealing_keys_have_32_bytes(length: int) -> None:
    good = SealingKeys.make().public
    with pytest.raises(IdentityError, match="32 bytes"):
        SealingPublic(b"\1" * length, good.agree)
    with pytest.raises(IdentityError, match="32 bytes"):
        SealingPublic(good.sign, b"\1" * length)
    with pytest.raises(IdentityError, match="32 bytes"):
        SealingPublic.from_raw(good.raw + b"\0")


@pytest.mark.parametrize("u", [0, 1, *ORDER_8, P - 1, P, P + 1])
def test_an_agreeing_key_of_small_order_is_refused(u: int) -> None:
    with pytest.raises(IdentityError, match="small order"):
        SealingPublic(SealingKeys.make().public.sign, point(u))


@pytest.mark.parametrize("y", [*SMALL_Y, P, P + 1])
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_a_signing_key_of_small_order_is_refused(y: int, sign: int) -> None:
    with pytest.raises(IdentityError, match="small order"):
        SealingPublic(point(y | sign), SealingKeys.make().public.agree)


def test_a_signature_by_a_key_of_small_order_would_prove_nothing() -> None:
    """Why such keys are refused: this signature, made without any secret, holds for every message."""
    key = ed25519.Ed25519PublicKey.from_public_bytes(point(1))
    for message in (b"yes", b"no"):
        key.verify(point(1) + point(0), message)


def test_a_private_key_does_not_show_itself() -> None:
    keys = SealingKeys.make()
    raw = keys.sign.private_bytes_raw()
    assert raw.hex() not in repr(keys) and repr(raw)[2:-1] not in repr(keys)


def test_a_tls_key_is_on_p256() -> None:
    key = make_tls_key()
    assert public_der(tls_key_from_pem(private_pem(key)).public_key()) == public_der(key.public_key())
    assert require_p256(key.public_key()) is not None


def others() -> list[object]:
    return [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        x25519.X25519PrivateKey.generate(),
    ]


def test_no_other_tls_key_is_taken() -> None:
    for key in others():
        assert isinstance(
            key,
            ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey,
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(IdentityError, match="P-256"):
            tls_key_from_pem(pem)
        with pytest.raises(IdentityError, match="P-256"):
            require_p256(key.public_key())


def test_files_of_keys_hold_what_they_must() -> None:
    keys, tls = SealingKeys.make(), private_pem(make_tls_key())
    sign, agree = (block for _, block in pem_blocks(keys.pem))
    for pem in (b"", sign, agree, agree + sign, sign + sign, keys.pem + agree, tls + agree, sign + tls, tls):
        with pytest.raises(IdentityError):
            SealingKeys.from_pem(pem)
    for pem in (b"", tls + tls, tls + sign, sign):
        with pytest.raises(IdentityError):
            tls_key_from_pem(pem)


def test_an_encrypted_or_broken_key_is_named() -> None:
    locked = make_tls_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.BestAvailableEncryption(b"x"),
    )
    with pytest.raises(IdentityError):
        tls_key_from_pem(locked)
    pem = private_pem(make_tls_key())
    with pytest.raises(IdentityError, match="damaged"):
        tls_key_from_pem(pem.replace(b"\nM", b"\nA", 1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda pem: b"Bag Attributes\n" + pem,
        lambda pem: pem + b"x",
        lambda pem: pem[:-3],
        lambda pem: pem.replace(b"BEGIN", b"BEGXN"),
        lambda pem: pem.replace(b"END PRIVATE", b"END PUBLIC"),
        lambda pem: pem.replace(b"\n", b"\n!", 1),
        lambda pem: b"\0" + pem,
        lambda pem: b"\xff\xfe",
    ],
)
def test_pem_is_blocks_and_nothing_else(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(IdentityError, match="not PEM"):
        pem_blocks(damage(private_pem(make_tls_key())))


def test_line_ends_of_another_system_are_read() -> None:
    pem = private_pem(make_tls_key())
    assert public_der(tls_key_from_pem(pem.replace(b"\n", b"\r\n")).public_key())
