"""Quantities as people write them in a settings file: an address, bytes, seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, final

from hansa.errors import ConfigError

BYTES: Final[Mapping[str, int]] = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
SECONDS: Final[Mapping[str, int]] = {"s": 1, "min": 60, "h": 3600, "d": 86400}

_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")


@final
@dataclass(frozen=True)
class Address:
    """A host and a port, exactly as said: no name is looked up here and no wildcard is meant unless it is written.

    >>> Address.of("[::1]:7400")
    Address(host='::1', port=7400)
    >>> str(Address("::1", 7400)), Address.of("0.0.0.0:7400").wildcard
    ('[::1]:7400', True)

    Args:
        host: an IP address, or a name of the DNS.
        port: 0 to 65535; 0 lets the system choose where one listens, which then says what was chosen.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"a port is a number from 0 to 65535, not {self.port}")
        if self.ip is None:
            labels = self.host.removesuffix(".").split(".")
            if len(self.host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
                raise ConfigError(f"{self.host!r} is neither an IP address nor a host's name")
            # Resolvers read 127.1, 0x7f000001 and 0 as addresses, the last as the wildcard.
            if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", labels[-1]):
                raise ConfigError(f"{self.host!r} is no complete IP address; write all of it, such as 127.0.0.1")

    @staticmethod
    def of(text: str) -> Address:
        """Read ``host:port``; an IPv6 address stands in brackets.

        Raises:
            ConfigError: it is anything else.
        """
        host, colon, port = text.rpartition(":")
        if not colon or not _PORT.fullmatch(port):
            raise ConfigError(f"{text!r} is no address; write host:port, such as 127.0.0.1:7400")
        if host in ("", "*"):
            raise ConfigError(f"{text!r} does not say where; to listen everywhere write 0.0.0.0:{port} or [::]:{port}")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed != (":" in host):
            raise ConfigError(f"{text!r} is no address; an IPv6 address stands in brackets, such as [::1]:{port}")
        return Address(host[1:-1] if bracketed else host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The IP address; None for a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def wildcard(self) -> bool:
        """Whether listening there is listening on every interface."""
        ip = self.ip
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return ip is not None and ip.is_unspecified

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it. A name never counts: a resolver could say anything."""
        return self.ip is not None and self.ip.is_loopback


def in_bytes(text: str) -> int:
    """Bytes of ``"8GB"`` (powers of 1000) or ``"8GiB"`` (powers of 1024).

    >>> in_bytes("8GB"), in_bytes("1.5 KiB")
    (8000000000, 1536)

    Raises:
        ConfigError: it is no such text.
    """
    return math.ceil(_read(text, BYTES, "bytes, such as 8GB or 512MiB"))


def in_seconds(text: str) -> float:
    """Seconds of ``"90s"``, ``"15min"``, ``"12h"``, ``"7d"``.

    >>> in_seconds("15min")
    900.0

    Raises:
        ConfigError: it is no such text.
    """
    return _read(text, SECONDS, "a time, such as 90s, 15min, 12h or 7d")


def _read(text: str, units: Mapping[str, int], wanted: str) -> float:
    found = _NUMBER.fullmatch(text.strip())
    unit = {name.lower(): size for name, size in units.items()}.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ConfigError(f"expected {wanted}, not {text!r}; units: {', '.join(units)}")
    return float(found[1]) * unit
