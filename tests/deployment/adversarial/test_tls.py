"""TLS 1.3 and nothing older: on each door, and towards whoever listens, with the best of papers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from hansa.deployment.diagnosis import diagnose
from hansa.deployment.dial import calling
from hansa.deployment.identity import Credentials
from hansa.deployment.identity.certificates import HUB_TLS_NAME
from hansa.deployment.knocks import reason_of
from hansa.deployment.quantity import Address
from hansa.errors import HansaError, Unreachable
from tests.deployment.adversarial.strangers import context, others_go_on, paper_of, visit
from tests.deployment.federation import Federation, drive, federation

OLD, NEW = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
SUITES = ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "ALL"]


def spoken(port: int, made: ssl.SSLContext) -> str:
    """The version of TLS that a listener and a visitor agree on; empty for none."""
    with visit(port) as plain:
        try:
            with made.wrap_socket(plain) as secure:
                return secure.version() or ""
        except (ssl.SSLError, ConnectionResetError):
            return ""


def member(fed: Federation, folder: Path, newest: ssl.TLSVersion, suites: str = "") -> ssl.SSLContext:
    """TLS of a member with good papers."""
    made = context(paper_of(Credentials.load(fed.folder / "node-3", fed.clock())), folder)
    made.maximum_version = newest
    if suites:
        made.set_ciphers(suites)
    return made


@contextlib.contextmanager
def server(folder: Path, pem: bytes, newest: ssl.TLSVersion) -> Iterator[tuple[str, list[str]]]:
    """Somebody who listens and speaks ``newest`` at most: the address, and the versions that visitors agreed on."""
    file = folder / "server.pem"
    file.write_bytes(pem)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.maximum_version = newest
    made.set_alpn_protocols(["h2"])
    made.load_cert_chain(file)
    agreed: list[str] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listening.accept()
                plain.settimeout(5.0)
                with contextlib.suppress(OSError), made.wrap_socket(plain, server_side=True) as secure:
                    agreed.append(secure.version() or "")
                    secure.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", agreed
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(6.0)


async def dialled(fed: Federation, address: str) -> HansaError:
    """Why a member could not call whoever listens there."""
    own = replace(Credentials.load(fed.folder / "node-3", fed.clock()), addresses=(address,))
    with pytest.raises(HansaError) as caught:
        async with calling(own):
            pass
    return caught.value


@pytest.mark.parametrize("suites", SUITES)
def test_the_hub_speaks_no_older_tls(tmp_path: Path, suites: str) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            old = member(fed, tmp_path, OLD, suites)
            assert await asyncio.to_thread(spoken, fed.address.port, old) == ""
            new = member(fed, tmp_path, ssl.TLSVersion.MAXIMUM_SUPPORTED, suites)
            assert await asyncio.to_thread(spoken, fed.address.port, new) == "TLSv1.3"
            await others_go_on(fed)

    drive(scenario())


def test_a_nodes_own_door_speaks_no_older_tls(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            settings = replace(fed.settings("node-0"), listen=Address("127.0.0.1", 0))
            node = await fed.start_node("node-0", settings)
            assert node.peers.address is not None
            port = node.peers.address.port
            assert await asyncio.to_thread(spoken, port, member(fed, tmp_path, OLD)) == ""
            assert await asyncio.to_thread(spoken, port, member(fed, tmp_path, NEW)) == "TLSv1.3"

    drive(scenario())


def test_nobody_calls_a_hub_by_older_tls_though_it_has_the_hubs_own_keys(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            hub, own = fed.hub.credentials, paper_of(Credentials.load(fed.folder / "node-3", fed.clock()))
            pem = hub.tls_key_pem + hub.certificate.pem
            with server(tmp_path, pem, OLD) as (address, agreed):
                error = await dialled(fed, address)
                assert isinstance(error, Unreachable)
                error = await diagnose(address, own.authority_pem, own.certificate_pem, own.key_pem)
                assert "does not speak TLS 1.3" in str(error)
            assert agreed == []
            with server(tmp_path, pem, NEW) as (address, agreed):
                await dialled(fed, address)
            assert set(agreed) == {"TLSv1.3"}

    drive(scenario())


def test_the_suites_that_are_left_are_of_no_use_to_a_stranger(tmp_path: Path) -> None:
    """An RSA certificate has a suite in common with us, and no authority of ours."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HUB_TLS_NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HUB_TLS_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)

    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            with server(tmp_path, pem, OLD) as (address, agreed):
                await dialled(fed, address)
            assert agreed == []

    drive(scenario())


PROBED = """
import asyncio, ssl, sys
from pathlib import Path
import hansa.deployment
from tests.deployment.adversarial.test_tls import member, spoken
from tests.deployment.federation import federation

async def main(folder):
    async with federation(folder, start=[]) as fed:
        for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            print(repr(await asyncio.to_thread(spoken, fed.address.port, member(fed, folder, newest))))

asyncio.run(main(Path(sys.argv[1])))
"""
LATE = """
import grpc
from hansa.deployment import wire
from hansa.errors import ConfigError
for listen in (lambda: wire.channel("127.0.0.1:1", b"", b"", b""), lambda: wire.server_credentials(lambda: None)):
    try:
        listen()
    except ConfigError as error:
        print(error)
"""


def ran(program: str, *arguments: str, **environment: str) -> list[str]:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), **environment}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_environment_cannot_bring_older_tls_back(tmp_path: Path) -> None:
    assert ran(PROBED, str(tmp_path), GRPC_SSL_CIPHER_SUITES=SUITES[0]) == ["''", "'TLSv1.3'"]


def test_a_process_that_would_speak_older_tls_does_not_start() -> None:
    lines = ran(LATE, GRPC_SSL_CIPHER_SUITES="")
    assert len(lines) == 2
    assert all("import hansa.deployment first" in line for line in lines)


def test_the_log_says_that_a_visitor_was_too_old() -> None:
    line = b"I1 ssl.cc:1] Handshake failed with error SSL_ERROR_SSL: error:100000b8:SSL routines:X:NO_SHARED_CIPHER: x"
    assert reason_of(line) == "it does not speak TLS 1.3"
