"""One thread a process: small models train slower on several, and sums would depend on how many there are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Hold the BLAS and OpenMP libraries of this process, and PyTorch where it is loaded, to ``count`` threads."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(count)
    try:
        with threadpool_limits(limits=count):
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)
