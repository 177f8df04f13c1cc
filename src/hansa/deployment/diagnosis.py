"""Why a hub cannot be reached, or cannot listen: the reason by name, where gRPC says only that a connection broke, or nothing.

The handshake is made again, by hand. What is wrong with the way, or with the hub, this side sees for itself. Of a refusal of its own
certificate it hears at most an alert, and from a hub of Hansa's only that the connection closes; but the hub has shown by then
that it is of the same federation, so that what may be wrong with a certificate of this federation's authority is little.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
import time
from pathlib import Path
from typing import Final

from hansa.deployment.identity.certificates import HUB_TLS_NAME, Certificate, date, read_undated
from hansa.deployment.quantity import Address
from hansa.errors import ConfigError, HansaError, IdentityError, StoreError, Unreachable

PATIENCE: Final = 5.0
"""Seconds for each step, unless told otherwise."""

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_EXPIRED, _EARLY, _NAME = 10, 9, 62
"""What OpenSSL calls an expired certificate, one that is not valid yet, and one of another name (its x509_vfy.h)."""
_ALERTS: Final = {
    "CERTIFICATE_EXPIRED": "the hub says that our certificate has expired",
    "CERTIFICATE_REVOKED": "the hub says that our certificate was revoked",
    "CERTIFICATE_REQUIRED": "the hub did not see our certificate",
    "UNKNOWN_CA": "the hub does not know the authority of our certificate",
    "BAD_CERTIFICATE": "the hub cannot use our certificate",
    "CERTIFICATE_UNKNOWN": "the hub does not accept our certificate",
}


async def diagnose(
    address: str, authority_pem: bytes, certificate_pem: bytes, key_pem: bytes, patience: float = PATIENCE
) -> HansaError:
    """What stands between this side and a hub that gRPC could not reach, as an error to raise.

    Args:
        address: ``host:port``.
        authority_pem: the certificate of the federation's authority.
        certificate_pem, key_pem: who calls.
        patience: seconds for each step.

    Returns:
        IdentityError: certificates do not fit, and which. ConfigError: ``address`` is none. Unreachable: anything else.
    """
    try:
        where = Address.of(address)
    except ConfigError as error:
        return error
    return await asyncio.to_thread(_diagnose, where, authority_pem, certificate_pem, key_pem, patience)


def _diagnose(
    where: Address, authority_pem: bytes, certificate_pem: bytes, key_pem: bytes, patience: float
) -> HansaError:
    try:
        own = read_undated(certificate_pem, authority_pem)
        context = _context(authority_pem, certificate_pem, key_pem)
        with _dialled(where, patience) as plain, _shaken(context, plain, where) as secure:
            found = _heard(secure, own, where)
        with _dialled(where, patience):  # a hub that went away meanwhile refused nobody
            return found
    except HansaError as error:
        return error


def _context(authority_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=authority_pem.decode("ascii"))
        with tempfile.TemporaryDirectory(prefix="hansa-") as folder:  # the library reads keys from files alone
            file = Path(folder) / "tls.pem"
            file.touch(mode=0o600)
            file.write_bytes(key_pem + certificate_pem)
            context.load_cert_chain(file)
    except (ssl.SSLError, ValueError):
        raise IdentityError("our own certificate does not fit the key beside it; join again") from None
    except OSError as error:
        raise StoreError(f"no temporary file can be written: {error.strerror}") from None
    return context


def _dialled(where: Address, patience: float) -> socket.socket:
    try:
        return socket.create_connection((where.host, where.port), timeout=patience)
    except socket.gaierror:
        why = f"there is no machine called {where.host}, or no name server answers"
    except TimeoutError:
        why = f"nothing answers within {patience:g} s; a firewall may be in the way, or the machine is down"
    except ConnectionRefusedError:
        why = "connection refused: the machine is there, and nothing listens on that port"
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
    raise Unreachable(f"the hub at {where} cannot be reached: {why}")


def _shaken(context: ssl.SSLContext, plain: socket.socket, where: Address) -> ssl.SSLSocket:
    """The connection after the handshake, as far as this side alone decides about it."""
    try:
        return context.wrap_socket(plain, server_hostname=HUB_TLS_NAME)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_EXPIRED, _EARLY):
            which = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
            raise IdentityError(
                f"the certificate of the hub at {where} {which}; it is {date(time.time())} here: compare the clocks of both machines"
            ) from None
        if error.verify_code == _NAME:
            raise IdentityError(f"who answers at {where} is no hub: its certificate is of somebody else") from None
        raise IdentityError(
            f"the certificate of the hub at {where} is of another authority than ours: another federation listens there, "
            f"or this one was set up anew, or somebody stands between"
        ) from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise _closed(where) from None
    except ssl.SSLError as error:
        said = _alert(error)
        if said:
            raise IdentityError(f"{said}, at {where}") from None
        raise Unreachable(f"what listens at {where} does not speak TLS 1.3 as a hub does; is the port right?") from None
    except TimeoutError:
        raise Unreachable(
            f"what listens at {where} takes connections and says nothing; is it a hub, and alive?"
        ) from None
    except OSError:
        raise _closed(where) from None


def _closed(where: Address) -> Unreachable:
    return Unreachable(
        f"what listens at {where} closes connections before it says anything: a hub that is full or going away, or no hub"
    )


def _heard(secure: ssl.SSLSocket, own: Certificate, where: Address) -> HansaError:
    """What the hub makes of our certificate, which in TLS 1.3 it looks at after our side is done."""
    try:
        secure.sendall(_PREFACE)
        answered = secure.recv(9)
    except TimeoutError:
        return Unreachable(f"the hub at {where} accepts connections and does not answer; is it overloaded or stopped?")
    except ssl.SSLError as error:
        said = _alert(error)
        return IdentityError(f"{said}, at {where}") if said else Unreachable(f"the hub at {where} broke off")
    except OSError:
        answered = b""
    if answered:
        return Unreachable(f"the hub at {where} could not be reached before, and accepts us now; try again")
    try:
        own.require_valid(time.time())
    except HansaError as error:
        return error
    return IdentityError(
        f"the hub at {where} closes the connection on seeing our certificate, that of {own.identity}, though it is of the hub's own "
        f"authority and valid here from {date(own.not_before)} to {date(own.not_after)}: compare the clocks of both machines, "
        f"and ask the operator for the hub's log"
    )


def _alert(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    return next((said for name, said in _ALERTS.items() if reason.endswith(name)), "")


def obstacle(address: Address) -> str:
    """Why nobody can listen at an address now, in the system's words; nothing if somebody can."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except socket.gaierror as error:
        return str(error.strerror or error)
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""
