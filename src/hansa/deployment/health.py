"""Is it alive, is it ready, what has it counted: a listener of its own that answers three questions over HTTP/1.1.

==============  ===  ================================================================
``/healthz``    200  the event loop runs
``/readyz``     200  work can be done
``/readyz``     503  it cannot; the body says why, one reason a line
``/metrics``    200  :mod:`hansa.deployment.metrics`
any other path  404
other methods   405
no HTTP         400
too long        431  more than :data:`LONGEST_REQUEST` bytes before the empty line
no answer       500  the question itself failed; the cause is in the log, not in the answer
==============  ===  ================================================================

It serves one answer a connection and changes nothing, so it asks for no certificate; it is meant for the loopback address or a
network of the operator's own.

*Guarantees*: nothing of a request comes back in an answer. A connection has :data:`PATIENCE` seconds for everything, its request's
last byte and its answer's. At most :data:`CONNECTIONS` are open: a new one takes the place of the oldest, so that whoever holds
connections open keeps nobody from asking.

Source: RFC 9110 and RFC 9112 (HTTP semantics, HTTP/1.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, final

from hansa.deployment.logs import Log, printable
from hansa.deployment.metrics import CONTENT_TYPE
from hansa.errors import ConfigError

PATIENCE: Final = 5.0
"""Seconds that a connection may last."""

CONNECTIONS: Final = 64
"""Connections open at one time."""

LONGEST_REQUEST: Final = 8192
"""Bytes of a request up to the empty line."""

_PLAIN: Final = "text/plain; charset=utf-8"
_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]{1,2048}) HTTP/1\.[01]")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9.]+):([0-9]{1,5})", re.ASCII)


@final
class Health:
    """The listener, while its context lasts.

    Args:
        address: ``"127.0.0.1:9464"`` or ``"[::1]:9464"``; port 0 takes a free one.
        ready: the reasons why no work can be done; none means ready.
        metrics: the text of ``/metrics``.
        patience: seconds that a connection may last.
        connections: connections open at one time.

    Raises:
        ConfigError: on entering: the address is none, or cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        ready: Callable[[], list[str]],
        metrics: Callable[[], str],
        *,
        patience: float = PATIENCE,
        connections: int = CONNECTIONS,
        log: Log | None = None,
    ) -> None:
        self._wanted = address
        self._ready, self._metrics = ready, metrics
        self._patience, self._most = patience, connections
        self._log = Log("health") if log is None else log
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self.address = ""
        """Where it listens, with the real port; empty before and after."""

    async def __aenter__(self) -> Health:
        host, port = _host_and_port(self._wanted)
        try:
            self._server = await asyncio.start_server(
                self._accept, host, port, limit=LONGEST_REQUEST, backlog=self._most
            )
        except OSError as error:
            # asyncio words it with the address once more.
            why = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(
                f"the health listener cannot listen on {self._wanted}: {why}; give another address, "
                f"or port 0 for a free one"
            ) from error
        bound = self._server.sockets[0].getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        server, self._server, self.address = self._server, None, ""
        if server is not None:
            server.close()
            ending = dict(self._open)
            for task, writer in ending.items():
                writer.transport.abort()
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            writer.transport.abort()
            return
        while len(self._open) >= self._most:
            oldest = next(iter(self._open))
            self._open.pop(oldest).transport.abort()
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._log.failed("a health connection failed", error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(self._patience):
                    writer.write(self._answer(await _first_line(reader)))
                    await writer.drain()
                    writer.write_eof()
                    # To close with unread bytes would reset the connection, and the answer might be lost with it.
                    await _until_end(reader)
        finally:
            writer.transport.abort()

    def _answer(self, first: bytes | HTTPStatus) -> bytes:
        if isinstance(first, HTTPStatus):
            return _response(first)
        request = _REQUEST.fullmatch(first)
        if request is None:
            return _response(HTTPStatus.BAD_REQUEST)
        method, path = request[1], request[2].partition(b"?")[0]
        if path not in (b"/healthz", b"/readyz", b"/metrics"):
            return _response(HTTPStatus.NOT_FOUND)
        if method != b"GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return self._ask(path)
        except Exception as error:
            self._log.failed("a health question failed", error, path=path.decode("ascii"))
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _ask(self, path: bytes) -> bytes:
        if path == b"/healthz":
            return _response(HTTPStatus.OK, "alive\n")
        if path == b"/metrics":
            return _response(HTTPStatus.OK, self._metrics(), CONTENT_TYPE)
        reasons = self._ready()
        if reasons:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{printable(reason)}\n" for reason in reasons))
        return _response(HTTPStatus.OK, "ready\n")


def _host_and_port(address: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(address)
    try:
        host = str(ipaddress.ip_address(found[1].strip("[]"))) if found else ""
    except ValueError:
        host = ""
    if found is None or not host or int(found[2]) > 65_535 or (":" in host) != (found[1][0] == "["):
        raise ConfigError(
            f"the health listener has no address {printable(address, 80)!r}: write an IP address and a port, as in "
            f"'127.0.0.1:9464' or '[::1]:9464'; port 0 takes a free one"
        )
    return host, int(found[2])


async def _first_line(reader: asyncio.StreamReader) -> bytes | HTTPStatus:
    """The first line of a request whose end has come, or what to answer instead."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    except asyncio.IncompleteReadError:
        return HTTPStatus.BAD_REQUEST
    return head.partition(b"\r\n")[0]


async def _until_end(reader: asyncio.StreamReader) -> None:
    for _ in range(16):
        if not await reader.read(LONGEST_REQUEST):
            return


def _response(status: HTTPStatus, body: str = "", kind: str = _PLAIN) -> bytes:
    content = (body or f"{status.phrase}\n").encode("utf-8", "backslashreplace")
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *(["Allow: GET"] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + content
