"""The bytes of a round through TLS and nothing else: Python's ssl over loopback, one process for each node.

A round sends so many bytes to all nodes at once and takes as many from each; a thread a connection, as TLS releases Python's
lock. Processes are started, connected and warm before the clock runs.

python -m bench.rawtls PORT FOLDER BYTES ROUNDS    a node
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT: Final = Path(__file__).resolve().parent.parent
COMMAND: Final = (sys.executable, "-m", "bench.rawtls")
_PIECE: Final = 1 << 20


def raw_rounds(nodes: int, size: int, rounds: int) -> list[float]:
    """Seconds of each round: ``size`` bytes to each of the nodes and as many back, over mutual TLS."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _identity(folder)
        server = _context(folder, ssl.PROTOCOL_TLS_SERVER)
        with socket.create_server(("127.0.0.1", 0), backlog=nodes) as listener:
            given = (str(listener.getsockname()[1]), name, str(size), str(rounds))
            children = [subprocess.Popen([*COMMAND, *given], cwd=ROOT) for _ in range(nodes)]
            links = [server.wrap_socket(listener.accept()[0], server_side=True) for _ in children]
        for link in links:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _take(link, 1)
        seconds = [_round(links, size) for _ in range(rounds)]
        for link in links:
            link.close()
        for child in children:
            child.wait()
    return seconds


def _round(links: list[ssl.SSLSocket], size: int) -> float:
    def serve(link: ssl.SSLSocket) -> None:
        _give(link, size)
        _take(link, size)

    threads = [threading.Thread(target=serve, args=(link,)) for link in links]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _node(port: int, folder: Path, size: int, rounds: int) -> None:
    context = _context(folder, ssl.PROTOCOL_TLS_CLIENT)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost") as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(b"!")
        for _ in range(rounds):
            _take(link, size)
            _give(link, size)
        link.recv(1)


def _give(link: ssl.SSLSocket, size: int) -> None:
    piece = memoryview(bytes(min(size, _PIECE)))
    while size:
        part = piece[:size]
        link.sendall(part)
        size -= len(part)


def _take(link: ssl.SSLSocket, size: int) -> None:
    room = memoryview(bytearray(min(size, _PIECE)))
    while size:
        got = link.recv_into(room[:size])
        if not got:
            raise ConnectionError("the other side is gone")
        size -= got


def _identity(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    path = folder / "key.pem"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def _context(folder: Path, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    context.load_verify_locations(folder / "certificate.pem")
    return context


if __name__ == "__main__":
    _node(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
