"""What glibc is told about a process that passes large packets on."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Final

_ARENAS: Final = -8


def one_heap() -> None:
    """Let all threads take memory from one heap; to be called before there are any.

    gRPC takes a packet's memory in one thread and gives it back in another. With a heap for each thread, which is glibc's way,
    each grows to the largest that passed through it, and a hub holds a multiple of what is under way. Another C library has
    no such setting, and nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_ARENAS, 1)
