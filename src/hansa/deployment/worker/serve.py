"""The inside of a worker process.

It is started before its party is known, so that the libraries are there when the setup comes. It lives as long as its owner:
the kernel kills it when the owner dies, and the end of the pipe ends it at once. It keeps nothing: whatever matters was told.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import queue
import resource
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, final

from hansa.deployment.signals import die_with
from hansa.deployment.worker import pipe
from hansa.deployment.worker.duty import EMPTY, Load, describe, duty, measured, unusable
from hansa.deployment.worker.frames import TO_WORKER, Describe, Letter, Measure, Setup
from hansa.deployment.worker.party import Surroundings
from hansa.errors import ConfigError, MessageError
from hansa.examples import Shard
from hansa.message import Message, decode
from hansa.threads import limit_threads

_BAD_PIPE, _USAGE = 3, 2
_BUFFER: Final = 1 << 20


def main(arguments: Sequence[str], load: Load | None = None) -> NoReturn:
    """Serve the owner at the other end of an inherited socket, until it is gone.

    Args:
        arguments: the socket's descriptor, then the modules to import ahead.
        load: the data that a binding means; :mod:`hansa.deployment.binding` if not given.
    """
    if not arguments or not arguments[0].isdecimal():
        _leave(_USAGE, "expected the number of a socket's descriptor")
    die_with(os.getppid())
    os.umask(0o077)
    _allow_files()
    for module in ("hansa.plan", "hansa.horizontal", "hansa.decentralized", *arguments[1:]):
        importlib.import_module(module)
    link = socket.socket(fileno=int(arguments[0]))
    link.set_inheritable(False)
    try:
        asyncio.run(_serve(link, load or _bound))
    except KeyboardInterrupt:
        pass
    except MessageError as error:
        _leave(_BAD_PIPE, f"the owner's word cannot be read: {error}")
    os._exit(0)


async def _serve(link: socket.socket, load: Load) -> None:
    reader, writer = await asyncio.open_connection(sock=link, limit=_BUFFER)

    def say(message: Message) -> None:
        pipe.write(writer, message)

    while isinstance(first := await _next(reader), Describe | Measure):
        say(describe(first.plan) if isinstance(first, Describe) else measured(first.data))
    if not isinstance(first, Setup):
        raise MessageError("a letter came before the setup")

    with limit_threads(first.threads):
        try:
            _limit(first)
            worked = _Thread(first.threads)
            resident = (await worked.run(duty, first, load)).resident(Surroundings(say, writer.drain, worked.run))
        except Exception as error:
            say(unusable(first, error))
            await writer.drain()
            await _next(reader)  # the owner's turn
            return
        running = asyncio.get_running_loop().create_task(resident.run())
        running.add_done_callback(_broken)
        while True:
            message = await _next(reader)
            if not isinstance(message, Letter):
                raise MessageError("a second setup came")
            resident.deliver(message)


async def _next(reader: asyncio.StreamReader) -> Message:
    frame = await pipe.read(reader)
    if frame is None:
        os._exit(0)  # nothing here is worth an orderly end, and a computation could take long
    return decode(frame, TO_WORKER)


def _broken(running: asyncio.Task[None]) -> None:
    """The party's own task ended by an error: no program's, for those are told."""
    error = None if running.cancelled() else running.exception()
    if isinstance(error, ConnectionError):
        os._exit(0)
    if error is not None:
        _leave(1, f"{type(error).__name__}: {error}")


def _bound(plain: Mapping[str, Any], many: bool) -> Shard:
    from hansa.deployment import binding

    return binding.load(binding.read(plain), many) if plain else EMPTY


def _limit(setup: Setup) -> None:
    # A library that is imported later reads its number of threads here.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(setup.threads)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the party's data
    if setup.memory:
        taken = _address_space()
        if setup.memory <= taken:
            raise ConfigError(
                f"the limit of {setup.memory} bytes of memory is below the {taken} bytes of address space that a worker has"
                " before it begins; raise it"
            )
        resource.setrlimit(resource.RLIMIT_AS, (setup.memory, setup.memory))


def _address_space() -> int:
    """Bytes of address space of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _allow_files() -> None:
    """A mapped letter holds a descriptor; a cohort of letters may be mapped at a time."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _leave(status: int, why: str) -> NoReturn:
    sys.stderr.write(f"hansa worker: {why}\n")
    sys.stderr.flush()
    os._exit(status)


@final
class _Thread:
    """One thread that computes, so that the pipe is read meanwhile; the libraries' own threads are limited in it too."""

    def __init__(self, threads: int) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(threads,), daemon=True, name="compute").start()

    async def run(self, function: Callable[..., Any], *arguments: object) -> Any:
        """``function(*arguments)``, after what was asked for before."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._asked.put((lambda: function(*arguments), answer))
        return await answer

    def _work(self, threads: int) -> None:
        with limit_threads(threads):
            while True:
                function, answer = self._asked.get()
                result: Any = None
                failure: BaseException | None = None
                try:
                    result = function()
                except BaseException as error:
                    failure = error
                self._loop.call_soon_threadsafe(_answer, answer, result, failure)
                # The next may come late: until then nothing of this one may stay.
                del function, answer, result, failure


def _answer(answer: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if answer.cancelled():
        return
    if failure is None:
        answer.set_result(result)
    else:
        answer.set_exception(failure)
