"""No preparations of gRPC for a fork.

They are skipped in the parent while a call is under way, and run in the child all the same, which then crashes before its first
line: one child in seven, where another thread makes calls. Who forks in a process of Hansa never speaks gRPC in the child (the
simulator's workers compute, every other process is a program of its own), so nothing is lost without them. gRPC reads the
environment when it is imported; who sets the variable otherwise keeps what they set.

Source: gRPC, doc/fork_support.md and doc/environment_variables.md.
"""

from __future__ import annotations

import os
from typing import Final

_NAME: Final = "GRPC_ENABLE_FORK_SUPPORT"

os.environ.setdefault(_NAME, "0")
