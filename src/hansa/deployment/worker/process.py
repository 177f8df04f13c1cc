"""Workers as processes, from their owner's side.

One process is kept started ahead, with the libraries imported, so that a party's programs begin at once. A worker decides
nothing about durability, so it can be killed at any moment: :meth:`Worker.stop` is as good as a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar, final

from hansa.deployment.shape import DataShape
from hansa.deployment.worker import pipe
from hansa.deployment.worker.frames import (
    FROM_WORKER,
    Describe,
    Described,
    Heard,
    Letter,
    Lost,
    Measure,
    Measured,
    Setup,
    Unusable,
)
from hansa.errors import ConfigError, DataError, MessageError, StoreError
from hansa.message import Message, decode

M = TypeVar("M", bound=Message)

COMMAND: Final = (sys.executable, "-m", "hansa.deployment.worker")
PASSED_ON: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "SSL_CERT_FILE",
)  # fmt: skip
"""The variables of the owner's environment that a worker sees; the others may be secrets."""
READING: Final = 120.0
"""Seconds that reading a plan may take; importing a large library takes some of them."""
_BUFFER: Final = 1 << 20
_AT_ONCE: Final = 64
"""Words heard before the owner's other tasks have a turn: a buffer holds thousands."""
_LAST_BREATH: Final = 0.5
"""Seconds between the end of a pipe and that of its process, before it is killed; they make the difference in its status only."""


@final
class Workers:
    """Starts worker processes and keeps spare ones ready.

    Args:
        command: what to start; the socket's descriptor and ``modules`` are added to it.
        modules: what a process imports ahead, beside Hansa itself: ``("torch",)`` where that is what learners need.
        spares: how many processes wait.
        environment: further variables for the processes.
    """

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        *,
        modules: Sequence[str] = (),
        spares: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._modules = tuple(modules)
        self._spares = spares
        self._environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._environment.update(environment or {})
        self._waiting: list[asyncio.Task[_Child]] = []
        self._started: set[Worker] = set()

    def warm(self) -> None:
        """Start as many spare processes as there should be; they are ready in a moment."""
        self._waiting = [task for task in self._waiting if _useful(task)]
        while len(self._waiting) < self._spares:
            self._waiting.append(asyncio.get_running_loop().create_task(self._spawn()))

    async def describe(self, plan: str) -> Described:
        """What a plan is.

        Raises:
            ConfigError: it cannot be used here; says why.
            StoreError: no process can be started.
        """
        found = await self._asked(Describe(plan), Described)
        if isinstance(found, Described):
            return found
        raise ConfigError(found)

    async def measure(self, data: Mapping[str, Any]) -> DataShape:
        """The shape of the data that a binding means; see :mod:`hansa.deployment.binding`.

        Raises:
            DataError: they cannot be used; says why.
            StoreError: no process can be started.
        """
        found = await self._asked(Measure(dict(data)), Measured)
        if isinstance(found, Measured):
            return found.shape
        raise DataError(found)

    async def _asked(self, question: Message, answer: type[M]) -> M | str:
        """What a spare process says to a question, or why it says nothing of use."""
        child = await self._child()
        try:
            async with asyncio.timeout(READING):
                pipe.write(child.writer, question)
                frame = await pipe.read(child.reader)
            found = None if frame is None else decode(frame, (answer, Unusable))
        except (TimeoutError, MessageError):
            found = None
        except BaseException:
            child.discard()  # whoever asked has gone; nobody else knows of this process
            raise
        if isinstance(found, answer):
            # It has imported what such work needs, so it is the best of spares.
            self._waiting.insert(0, _done(child))
            return found
        child.discard()
        await child.ended()
        if isinstance(found, Unusable):
            return found.reason
        return f"the process that was to read it ended, or took longer than {READING:g} s"

    async def start(self, setup: Setup, heard: Heard) -> Worker:
        """Start one party's programs.

        Args:
            setup: who it is and where it stood.
            heard: called with each word of the worker in order; at last with a :class:`~.frames.Lost`, should it die.

        Raises:
            StoreError: no process can be started.
        """
        child = await self._child()
        worker = Worker(child, setup, heard, self._started.discard)
        self._started.add(worker)
        self.warm()
        return worker

    async def close(self) -> None:
        """Kill them all."""
        waiting, self._waiting = self._waiting, []
        for worker in list(self._started):
            await worker.stop(0.0)
        for child in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(child, _Child):
                child.kill()
                await child.ended()
                child.writer.close()

    async def _child(self) -> _Child:
        """A spare process, or a new one."""
        self._waiting = [task for task in self._waiting if _useful(task)]
        return await (self._waiting.pop(0) if self._waiting else self._spawn())

    async def _spawn(self) -> _Child:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                *self._modules,
                stdin=DEVNULL,
                stdout=2,  # what a library prints belongs with what it complains about
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=self._environment,
            )
            reader, writer = await asyncio.open_connection(sock=ours, limit=_BUFFER)
        except OSError as error:
            ours.close()
            raise StoreError(f"no worker can be started: {error.strerror or error}") from None
        finally:
            theirs.close()
        return _Child(process, reader, writer)


@final
class _Child:
    """A process and its pipe."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer

    def kill(self) -> None:
        """Kill it and whatever it has started: its process group, whose number is its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def discard(self) -> None:
        """Kill it, and let go of its pipe; nobody waits for its end."""
        self.kill()
        self.writer.close()

    async def ended(self) -> int:
        """Wait for its end, and end what it has started: that would hold the pipe open."""
        status = await self.process.wait()
        self.kill()
        return status


@final
class Worker:
    """One worker process that runs one party's programs. Made by :meth:`Workers.start`."""

    def __init__(self, child: _Child, setup: Setup, heard: Heard, forget: Any) -> None:
        self._child = child
        self._heard: Heard | None = heard
        self._forget = forget
        self._lost = ""
        self._patience = _LAST_BREATH
        pipe.write(child.writer, setup)
        self._listening = asyncio.get_running_loop().create_task(self._listen(), name=f"worker {setup.party}")

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.process.pid

    @property
    def status(self) -> int | None:
        """How it ended: its exit status, or minus the number of a signal; None while it lives."""
        return self._child.process.returncode

    def give(self, letter: Letter) -> None:
        """Hand a letter over; one for a process that is gone is forgotten, for the next is given it in its setup."""
        if not self._child.writer.is_closing():
            pipe.write(self._child.writer, letter)

    async def stop(self, grace: float = 0.0) -> None:
        """End it: nothing is heard of it after this is called, not even that it is lost.

        Args:
            grace: seconds that it has to end by itself when its pipe ends, before it is killed.
        """
        self._heard = None
        self._patience = grace
        self._child.writer.close()
        if grace > 0:
            await asyncio.wait([self._listening], timeout=grace)
        self._child.kill()
        if self._listening is not asyncio.current_task():
            await asyncio.wait([self._listening])

    async def _listen(self) -> None:
        ended = asyncio.get_running_loop().create_task(self._child.ended())
        count = 0
        try:
            while (frame := await pipe.read(self._child.reader)) is not None:
                message = decode(frame, FROM_WORKER)
                if self._heard is not None:
                    self._heard(message)
                count += 1
                if count % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        except MessageError as error:
            self._lost = f"it said something that is no word of a worker ({error}), and was killed"
            self._child.kill()
        finally:
            # Its pipe ends a moment before it does, unless it has closed the pipe and lives on.
            await asyncio.wait([ended], timeout=self._patience)
            if not ended.done():
                self._child.kill()
            status = await ended
            self._child.writer.close()
            self._forget(self)
        if self._heard is not None:
            self._heard(Lost(self._lost or _end(status)))


def _end(status: int) -> str:
    if status >= 0:
        return f"its process ended by itself with status {status}"
    try:
        return f"its process was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"its process was ended by signal {-status}"


def _done(child: _Child) -> asyncio.Task[_Child]:
    async def there() -> _Child:
        return child

    return asyncio.get_running_loop().create_task(there())


def _useful(task: asyncio.Task[_Child]) -> bool:
    """Whether a spare is on its way, or there and alive."""
    if not task.done():
        return True
    if task.cancelled() or task.exception() is not None:
        return False
    return task.result().process.returncode is None
