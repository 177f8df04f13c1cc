"""Children that are forked from a process in which gRPC is at work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("grpc")

FORKS = """
import asyncio, os, threading
import hansa.deployment
import grpc, grpc.aio

over, under_way = threading.Event(), threading.Event()

async def calls():
    async def echo(request, context):
        return request
    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(echo)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        while not over.is_set():
            await channel.unary_unary("/echo")(b"x" * 1000)
            under_way.set()
    await server.stop(0)

thread = threading.Thread(target=lambda: asyncio.run(calls()))
thread.start()
under_way.wait()
ends = []
for _ in range(100):
    child = os.fork()
    if not child:
        os._exit(7)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
over.set()
thread.join()
print(sorted(set(ends)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forking with threads is for Linux alone")
def test_a_child_forked_while_calls_are_under_way_runs() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS], capture_output=True, text=True, timeout=60, check=True,
        env=environment,
    )  # fmt: skip
    assert done.stdout.split() == ["[7]"]
