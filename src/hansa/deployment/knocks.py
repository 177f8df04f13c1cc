"""Visitors whom TLS turns away, as lines of the log.

gRPC tells nobody but its standard error of a handshake that failed: one line of its own form for each, without the visitor's address,
as often as a stranger likes. While this is in force, descriptor 2 is a pipe; such lines become a record a reason and
:data:`APART` seconds, with how many there were, and all else passes. Python's own standard error goes past the pipe, so that no
record is lost with the process. A visitor that says nothing until its time is over leaves no trace even there.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, final

from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics

APART: Final = 10.0
"""Seconds between two records of one reason."""
_MARK: Final = b"Handshake failed with error"
_LONGEST: Final = 1 << 16
_REASONS: Final = (
    (b"PEER_DID_NOT_RETURN_A_CERTIFICATE", "no certificate was shown"),
    (b"certificate has expired", "an expired certificate"),
    (b"certificate is not yet valid", "a certificate that is not valid yet"),
    (b"CERTIFICATE_VERIFY_FAILED", "a certificate of another authority"),
    (b"NO_SHARED_CIPHER", "it does not speak TLS 1.3"),
    (b"UNSUPPORTED_PROTOCOL", "it does not speak TLS 1.3"),
    (b"UNKNOWN_CA", "the visitor does not know this hub's authority"),
    (b"ALERT", "the visitor does not accept this hub's certificate"),
)
_ELSE: Final = "it does not speak TLS as a member does"


def reason_of(line: bytes) -> str:
    """Why a visitor was turned away, by what gRPC writes; empty for another line.

    >>> reason_of(b"I1 ssl.cc:1] Handshake failed with error SSL_ERROR_SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE: x")
    'no certificate was shown'
    """
    if _MARK not in line:
        return ""
    return next((reason for sign, reason in _REASONS if sign in line), _ELSE)


@contextlib.contextmanager
def heard(log: Log, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Write visitors that are turned away into ``log``, and count them, while the context lasts.

    For one block of a process at a time, and before the log is given its stream.

    Args:
        log, metrics: of the process that listens.
        clock: seconds.
    """
    past = os.dup(2)
    reading, writing = os.pipe()
    stop, stopping = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    before = sys.stderr
    listener = _Listener(reading, stop, past, log, metrics, clock)
    thread = threading.Thread(target=listener.run, name="knocks", daemon=True)
    thread.start()
    with open(os.dup(past), "w", buffering=1, encoding="utf-8", errors="backslashreplace") as direct:
        sys.stderr = direct
        try:
            yield
        finally:
            sys.stderr = before
            os.dup2(past, 2)
            os.close(stopping)
            thread.join()
            for descriptor in (reading, stop, past):
                os.close(descriptor)


@final
class _Listener:
    """Reads the pipe."""

    def __init__(
        self, reading: int, stop: int, past: int, log: Log, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._reading, self._stop, self._past = reading, stop, past
        self._log, self._metrics, self._clock = log, metrics, clock
        self._counts: dict[str, int] = {}
        self._told: dict[str, float] = {}

    def run(self) -> None:
        rest, ending = b"", False
        while True:
            # When it ends, what is in the pipe is still read; children may hold the other end open.
            watched, patience = ([self._reading], 0.0) if ending else ([self._reading, self._stop], self._patience())
            ready, _, _ = select.select(watched, [], [], patience)
            self.tell()
            if self._reading in ready:
                found = os.read(self._reading, 1 << 16)
                if not found:
                    break
                *lines, rest = (rest + found).split(b"\n")
                for line in lines:
                    self._line(line + b"\n")
                if len(rest) > _LONGEST:
                    self._line(rest)
                    rest = b""
            elif ending:
                break
            elif ready:
                ending = True
        if rest:
            self._line(rest)

    def _patience(self) -> float | None:
        return APART if self._counts else None

    def _line(self, line: bytes) -> None:
        reason = reason_of(line)
        if not reason:
            with contextlib.suppress(OSError):
                while line:
                    line = line[os.write(self._past, line) :]
            return
        self._metrics.refusals.add("handshake")
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self.tell()

    def tell(self) -> None:
        """Say what was counted, of each reason whose last record is long enough ago."""
        now = self._clock()
        for reason in list(self._counts):
            if now - self._told.get(reason, -APART) >= APART:
                self._told[reason] = now
                self._log.warning("visitor turned away", reason=reason, visitors=self._counts.pop(reason))
