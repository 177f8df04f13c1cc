"""gRPC as Hansa uses it: four methods, frames of our own codec for bytes, mutual TLS and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from hansa.deployment.identity.certificates import HUB_TLS_NAME
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.logs import printable
from hansa.deployment.packets import MAX_PACKET
from hansa.deployment.tls import require_newest
from hansa.errors import (
    ConfigError,
    HansaError,
    IdentityError,
    LinkError,
    MessageError,
    NotAuthorized,
    StoreError,
    Unreachable,
    VersionMismatch,
)

SERVICE: Final = "hansa.Hub"
CALL, WATCH, FETCH, LINK = (f"/{SERVICE}/{name}" for name in ("Call", "Watch", "Fetch", "Link"))

ERRORS: Final[dict[str, type[HansaError]]] = {
    kind.__name__: kind
    for kind in (ConfigError, IdentityError, NotAuthorized, MessageError, LinkError, VersionMismatch, StoreError)
}
"""The errors that one side may name to the other; anything else arrives as a LinkError."""

_SHARED: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MAX_PACKET),
    ("grpc.max_send_message_length", MAX_PACKET),
    ("grpc.max_metadata_size", 8192),
    # Large frames: of 100 MB through TLS, seven thousand frames of 16 KiB cost more than the cipher.
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.http2.write_buffer_size", 1 << 20),
    # A dead machine answers no ping; a slow one does, so nothing here cuts off work.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 1),
)
SERVER_OPTIONS: Final = (
    *_SHARED,
    # What a node may send before the hub has read it, whatever the line could take: so the hub's memory has a bound.
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_concurrent_streams", 16),
    # Two hubs on one port would share its connections, silently.
    ("grpc.so_reuseport", 0),
    # A visitor that never finishes its handshake is shown out.
    ("grpc.server_handshake_timeout_ms", 10_000),
)
VISITORS: Final = 1000
"""Connections beyond those of nodes: of people, and of those who have not shown who they are."""
OWN_FILES: Final = 512
"""Open files that a process needs for itself, its database and its workers."""


def server_options(nodes: int) -> tuple[tuple[str, Any], ...]:
    """The options of whoever listens for so many nodes.

    Connections are counted from their first packet on, and those above the limit are closed at once: visitors cannot take the
    files away that the process needs for itself.
    """
    wanted = nodes + VISITORS + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = (
        nodes + VISITORS if soft == resource.RLIM_INFINITY else min(nodes + VISITORS, max(soft // 2, soft - OWN_FILES))
    )
    return (*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", allowed))


_CLIENT: Final = (
    *_SHARED,
    # The caller decides when to dial again, and is told at once that nobody answers.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def client_options(name: str) -> tuple[tuple[str, Any], ...]:
    """The options of whoever dials the machine that is called ``name`` in TLS."""
    return (*_CLIENT, ("grpc.ssl_target_name_override", name))


def channel(address: str, authority_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> grpc.aio.Channel:
    """A connection to a hub, made when it is first used.

    Args:
        address: ``host:port``.
        authority_pem: whom the hub's certificate must be of.
        certificate_pem, key_pem: who calls.

    Raises:
        ConfigError: this process would speak more than TLS 1.3.
    """
    require_newest()
    credentials = grpc.ssl_channel_credentials(authority_pem, key_pem, certificate_pem)
    return grpc.aio.secure_channel(address, credentials, options=client_options(HUB_TLS_NAME))


def channel_of(credentials: Credentials, address: str) -> grpc.aio.Channel:
    """A connection to a hub as the holder of ``credentials``."""
    return channel(address, credentials.authority_pem, credentials.certificate.pem, credentials.tls_key_pem)


def server_credentials(own: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """Mutual TLS with a certificate that is renewed without a restart: handshakes that begin later show the new one.

    gRPC is given a configuration only when there is another one. To put one in the place of an equal one costs each handshake a
    context of its own, and takes the old one from under handshakes that are under way, which ended the whole process.

    Raises:
        ConfigError: this process would speak more than TLS 1.3.
    """
    require_newest()
    shown = own()

    def configuration(now: Credentials) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(now.tls_key_pem, now.certificate.pem)], root_certificates=now.authority_pem
        )

    def renewed() -> Any:
        nonlocal shown
        now = own()
        if now is shown:
            return None
        shown = now
        return configuration(now)

    return grpc.dynamic_ssl_server_credentials(configuration(shown), renewed, require_client_authentication=True)


Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


def reader(read: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[bytes | None]]:
    """The packets of a gRPC stream; None at its end."""

    async def packet() -> bytes | None:
        found = await read()
        return None if found is grpc.aio.EOF else bytes(found)

    return packet


@contextlib.contextmanager
def cancellable() -> Iterator[None]:
    """Whoever cancels this task while it waits for gRPC ends it.

    Until a call has begun gRPC waits for a task of its own, which takes a cancellation to itself; if the call ended at that instant for
    another reason, only that reason is raised, and who waits for the end of this task would wait for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


def said(error: HansaError) -> str:
    """An error as it is named to the other side: its class if that is one of :data:`ERRORS`, and its sentence."""
    kind = next((name for name, kind in reversed(ERRORS.items()) if isinstance(error, kind)), "LinkError")
    return f"{kind}: {error}"


def named(text: str) -> HansaError:
    """The error that the other side named.

    >>> named("IdentityError: the invitation was used already")
    IdentityError('the invitation was used already')
    """
    kind, colon, what = text.partition(": ")
    # It may go to a terminal, and whoever said it may be no friend.
    lines = [printable(line, 1000) for line in what.splitlines()[:100]]
    return ERRORS[kind]("\n".join(lines)) if colon and kind in ERRORS else LinkError(printable(text, 1000))


def translated(error: grpc.aio.AioRpcError, address: str) -> HansaError:
    """A failed call as an error of Hansa's."""
    code, details = error.code(), error.details() or ""
    if code is not grpc.StatusCode.ABORTED:
        details = printable(details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(f"{address} cannot be reached: {_plainly(details)}")
    if code is grpc.StatusCode.ABORTED:
        return named(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LinkError(f"{address} has no room for this now: {details}")
    return LinkError(f"{address} broke off: {code.name.lower().replace('_', ' ')}: {details}")


def _plainly(details: str) -> str:
    lower = details.lower()
    if "certificate" in lower or "handshake" in lower or "ssl" in lower:
        return (
            "it does not accept our certificate or we do not accept its own (hansa doctor says which): " + details[:300]
        )
    return details[:300]
