"""gRPC in a process of tests: imported by Hansa first, and kept for the life of the process.

Each test has an event loop of its own, and a call may end with its loop. When the last of gRPC's objects in a process is collected,
it waits for all calls, and for such a one it would wait for ever; so one stays.
"""

from __future__ import annotations

# isort: off
import hansa.deployment  # noqa: F401 - before gRPC, which it tells what to speak
from grpc.aio import init_grpc_aio

init_grpc_aio()
