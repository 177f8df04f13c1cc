"""Visitors whom TLS turns away are in the log, one line a reason, however many come; and nothing else is lost or changed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hansa.deployment.knocks import APART, _Listener, reason_of
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from tests.deployment.adversarial.strangers import book

PROGRAM = """
import asyncio, os, sys, time
from pathlib import Path
from hansa.deployment.knocks import heard
from hansa.deployment.logs import Log, written
from hansa.deployment.metrics import Metrics
from tests.deployment.adversarial.strangers import context, paper, until_closed, visit
from tests.deployment.adversarial.test_before import secure, plain
from tests.deployment.federation import federation
from hansa.deployment.identity import Authority

async def main(folder):
    async with federation(folder, start=[]) as fed:
        other = Authority.create(folder / "other", "trial", time.time())
        port = fed.address.port
        for _ in range(30):
            plain(port, b"GET / HTTP/1.1\\r\\n\\r\\n")
            secure(port, context(None, folder), b"")
            secure(port, context(paper(other, "node-0"), folder), b"")
        secure(port, context(paper(fed.hub.authority, "x", issued=-3000, lifetime=1000), folder), b"")

metrics = Metrics()
with heard(Log("hub"), metrics, lambda: 100.0), written(level="warning"):
    os.write(2, b"another line\\n")
    asyncio.run(main(Path(sys.argv[1])))
    os.write(2, b"and half a ")
    os.write(2, b"line")
    print("python's own", file=sys.stderr)
os.write(2, b"\\nafterwards\\n")
print(metrics.refusals.value("handshake"))
"""


def test_a_crowd_of_strangers_is_a_few_lines(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "GRPC_VERBOSITY": ""}, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "91.0"
    lines = done.stderr.splitlines()
    turned = [line for line in lines if "visitor turned away" in line]
    for reason in ("no certificate was shown", "another authority", "an expired certificate", "does not speak TLS"):
        told = [line for line in turned if reason in line]
        assert len(told) == 1, (reason, told)
    assert "Handshake failed" not in done.stderr
    assert {"another line", "and half a line", "python's own", "afterwards"} <= set(lines)


@pytest.mark.parametrize(
    "line", [b"", b"Handshake", b"hub: node connected", b"\xff\x00", b"x" * 100_000, b"E1 tcp.cc:1] failed"]
)
def test_other_lines_pass(line: bytes) -> None:
    assert reason_of(line) == ""


def test_those_that_came_meanwhile_are_counted_in_the_next_line() -> None:
    now, metrics = [100.0], Metrics()
    listener = _Listener(-1, -1, -1, Log("hub"), metrics, lambda: now[0])
    knock = b"Handshake failed with error x PEER_DID_NOT_RETURN_A_CERTIFICATE"
    with book() as lines:
        for _ in range(500):
            listener._line(knock)
        now[0] += APART
        listener.tell()
        listener.tell()
    assert [line[2] for line in lines] == [
        {"reason": "no certificate was shown", "visitors": 1},
        {"reason": "no certificate was shown", "visitors": 499},
    ]
    assert metrics.refusals.value("handshake") == 500
