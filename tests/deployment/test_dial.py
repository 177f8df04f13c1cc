"""Calling a hub: who is told to end while gRPC waits ends, and by no other error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hansa.deployment import api
from hansa.deployment.dial import Caller
from hansa.errors import IdentityError, LinkError, Unreachable
from hansa.message import encode
from tests.deployment.federation import drive

EVENT = encode(api.Event(1, 0.0, "r", "note", "", None, "x"))
PART = encode(api.FilePart("plan.toml", b"x", last=True))


class Line:
    """A connection whose calls bring some frames, wait, and end in their own way when they are cancelled."""

    def __init__(self, frames: list[bytes], end: BaseException | bytes) -> None:
        self.frames, self.end = frames, end
        self.waits = asyncio.Event()
        self.cancelled = False

    def unary_unary(self, _: str) -> Callable[..., Awaitable[bytes]]:
        return lambda *_, **__: anext(aiter(self))

    def unary_stream(self, _: str) -> Callable[[bytes], Line]:
        return lambda _: self

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for frame in self.frames:
            yield frame
        try:
            self.waits.set()
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if isinstance(self.end, bytes):
                yield self.end
            else:
                raise self.end from None


def broken() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details="gone")


def caller(line: Line) -> Caller:
    channel: Any = line
    return Caller(channel, "hub:1")


async def followed(hub: Caller, _: Path) -> None:
    async for _event in hub.events("r"):
        pass


async def fetched(hub: Caller, folder: Path) -> None:
    await hub.fetch("r", folder)


async def asked(hub: Caller, _: Path) -> None:
    await hub.ask(api.ListRuns(), api.RunList)


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize(
    ("calls", "frames", "more"),
    [(followed, [EVENT], EVENT), (fetched, [PART], PART), (asked, [], encode(api.RunList(())))],
)
def test_who_is_told_to_end_while_it_waits_ends(
    tmp_path: Path,
    calls: Callable[[Caller, Path], Awaitable[None]],
    frames: list[bytes],
    more: bytes,
    swallows: bool,
) -> None:
    """Whatever gRPC makes of it: an error of the call, which ended at that instant, or one more answer."""

    async def scenario() -> None:
        line = Line(frames, more if swallows else broken())
        task = asyncio.ensure_future(calls(caller(line), tmp_path))
        await line.waits.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task
        assert line.cancelled or calls is asked

    drive(scenario())


@pytest.mark.parametrize("calls", [followed, fetched, asked])
def test_a_call_that_breaks_off_by_itself_is_an_error_by_name(
    tmp_path: Path, calls: Callable[[Caller, Path], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        line = Line([], broken())

        async def breaks() -> AsyncIterator[bytes]:
            raise broken()
            yield b""

        line.__class__ = type("Broken", (Line,), {"__aiter__": lambda _: breaks()})
        with pytest.raises(Unreachable, match="gone"):
            await calls(caller(line), tmp_path)

    drive(scenario())


def test_events_that_are_not_wanted_any_more_end_the_call_and_raise_nothing() -> None:
    async def scenario() -> None:
        line = Line([EVENT, EVENT], broken())
        async with contextlib.aclosing(caller(line).events("r")) as events:  # type: ignore[type-var]
            assert (await anext(events)).text == "x"
        assert line.cancelled

    drive(scenario())


def test_who_is_told_to_end_between_two_events_and_goes_on_reads_the_next() -> None:
    """A cancellation that its own task has dealt with is no cancellation of the waits that follow."""

    async def scenario() -> None:
        line, seen = Line([EVENT, EVENT], broken()), 0
        works = asyncio.Event()

        async def reads() -> None:
            nonlocal seen
            with contextlib.suppress(LinkError):
                async for _ in caller(line).events("r"):
                    seen += 1
                    if seen == 1:
                        with contextlib.suppress(asyncio.CancelledError):
                            works.set()
                            await asyncio.get_running_loop().create_future()

        task = asyncio.ensure_future(reads())
        await works.wait()
        task.cancel()
        await line.waits.wait()
        assert seen == 2
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    drive(scenario())


def test_a_file_that_no_run_has_ends_the_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        line = Line([encode(api.FilePart("../x", b"x", last=True))], broken())
        with pytest.raises(IdentityError, match="which no run has"):
            await caller(line).fetch("r", tmp_path)
        assert line.cancelled

    drive(scenario())
    assert not list(tmp_path.iterdir())
