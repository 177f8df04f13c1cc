"""How a process of a federation ends, and how it ends those that it started.

The first SIGTERM or SIGINT asks it to drain: take nothing new, let the running step be saved, tell the peers. The second, or the
end of the time for it, makes it stop at once; what was saved is what is found at the next start. The third does what it does to
any process.

A child has a process group of its own, so that what it started ends with it, and it is killed by the kernel when its parent dies
(Linux; elsewhere it must notice the end of a pipe).

Source: signal(7), prctl(2), kill(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, Literal, final

from hansa.deployment.logs import Log

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a process: those of systemd and of containers, and that of a terminal."""

_PR_SET_PDEATHSIG: Final = 1


@final
@dataclass(frozen=True)
class Ending:
    """How a process came to its end.

    Args:
        how: ``"done"``: its work ended by itself; ``"drained"``: asked once, it ended in order; ``"stopped"``: asked twice, or out
            of time.
        signal: the name of the first signal; empty where there was none.
    """

    how: Literal["done", "drained", "stopped"]
    signal: str = ""


@contextlib.contextmanager
def _caught() -> Iterator[asyncio.Queue[str]]:
    """The names of the first two ending signals, as they come; a third does what it does to any process.

    The earlier dispositions are put back at the end.
    """
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[str] = asyncio.Queue()
    before = {number: signal.getsignal(number) for number in ENDING}
    names: list[str] = []

    def take(name: str) -> None:
        names.append(name)
        came.put_nowait(name)
        if len(names) == 2:
            for number in ENDING:
                loop.remove_signal_handler(number)

    for number in ENDING:
        loop.add_signal_handler(number, take, number.name)
    try:
        yield came
    finally:
        for number, disposition in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, disposition)


async def until_signal() -> str:
    """Wait for SIGTERM or SIGINT: its name. Before and after, the signals do what they did."""
    with _caught() as came:
        return await came.get()


async def run_until_signal(
    work: Callable[[], Awaitable[None]], drain: Callable[[str], Awaitable[None]], *, within: float, log: Log
) -> Ending:
    """Run ``work`` until it ends, or until signals end it.

    Args:
        work: what the process is there for. When it is cancelled it closes what it holds.
        drain: called at the first signal with its name, beside ``work``: takes nothing new, waits until the running step is
            saved, tells the peers. When it returns, ``work`` is cancelled.
        within: seconds for ``drain``.

    Raises:
        Exception: what ``work`` or ``drain`` raised; ``work`` has ended by then.
    """
    with _caught() as came:
        working = asyncio.ensure_future(work())
        first = asyncio.ensure_future(came.get())
        try:
            either: tuple[asyncio.Future[None] | asyncio.Future[str], ...] = (working, first)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return Ending("done")
            name = first.result()
            log.info("draining; a second signal stops at once", signal=name, seconds=within)
            how = await _drained(drain(name), working, came, within, log)
            return Ending(how, name)
        finally:
            await _cancelled(first)
            await _cancelled(working)


async def _drained(
    drain: Awaitable[None], working: asyncio.Future[None], came: asyncio.Queue[str], within: float, log: Log
) -> Literal["drained", "stopped"]:
    draining, second = asyncio.ensure_future(drain), asyncio.ensure_future(came.get())
    pending: tuple[asyncio.Future[None] | asyncio.Future[str], ...] = (draining, second)
    try:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while not (draining.done() or second.done()):
            left = deadline - loop.time()
            if left <= 0:
                log.warning("stopping: draining took too long", seconds=within)
                return "stopped"
            await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            log.warning("stopping at once", signal=second.result())
            return "stopped"
        draining.result()
        if working.done():
            working.result()
        log.info("drained")
        return "drained"
    finally:
        await _cancelled(second)
        await _cancelled(draining)


async def _cancelled(task: asyncio.Future[None] | asyncio.Future[str]) -> None:
    """Cancel and see it end; an error on the way out is the caller's only if the task had ended by itself."""
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()


async def start_child(
    arguments: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = asyncio.subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> asyncio.subprocess.Process:
    """Start a process in a group of its own: the terminal's signals do not reach it, and :func:`end_child` ends its whole group.

    The child calls :func:`die_with` first thing, with the number of this process.
    """
    return await asyncio.create_subprocess_exec(
        *arguments, stdin=stdin, stdout=stdout, pass_fds=pass_fds, env=environment, start_new_session=True
    )


async def end_child(process: asyncio.subprocess.Process, *, within: float) -> int:
    """End a child of :func:`start_child` and all of its group: asked first, killed after ``within`` seconds; its return code.

    The group is killed even where the child itself ended in order: what it started and left behind ends too.
    """
    if process.returncode is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await process.wait()
    _signal_group(process.pid, signal.SIGKILL)
    return await process.wait()


def _signal_group(leader: int, number: signal.Signals) -> None:
    # The group's number stays taken while one member lives; without members there is nothing to signal.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def die_with(parent: int) -> None:
    """In a child: be killed when ``parent``, which started it, dies; end at once if that has happened already.

    The kernel watches the thread that started the child; a process that starts children from threads which end is no parent for
    this. Outside Linux it does nothing.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
