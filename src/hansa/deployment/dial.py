"""Calling a hub: one request, a run's events, its files."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar, final

import grpc
import grpc.aio

from hansa.deployment import api, packets, wire
from hansa.deployment.diagnosis import diagnose
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.identity.enrolment import Enrolment, joined
from hansa.deployment.identity.invitation import Invitation
from hansa.errors import ConfigError, HansaError, IdentityError, NotAuthorized, Unreachable
from hansa.message import Message, decode, encode

M = TypeVar("M", bound=Message)

PATIENCE: Final = 30.0
"""Seconds that a hub has for one answer."""


@final
class Caller:
    """A hub, as those who call it see it. Made by :func:`calling`."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._channel = channel
        self.address = address

    async def ask(self, request: Message, answer: type[M], seconds: float = PATIENCE) -> M:
        """One request, one answer.

        Raises:
            HansaError: the hub refused, under the name that it gave; or could not be reached.
        """
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(wire.CALL)
        try:
            with wire.cancellable():
                frame = await method(encode(request), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise wire.translated(error, self.address) from None
        found = decode(frame, (answer, api.Problem), packets.MAX_PACKET)
        if isinstance(found, api.Problem):
            raise wire.named(f"{found.kind}: {found.what}")
        assert isinstance(found, answer)
        return found

    async def events(self, run: str, after: int = 0, follow: bool = True) -> AsyncIterator[api.Event]:
        """A run's events after a number, as they come.

        Raises:
            HansaError: as :meth:`ask`.
        """
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(wire.WATCH)
        call = method(encode(api.ReadEvents(run, after, follow)))
        frames = aiter(call)
        try:
            while (frame := await self._next(frames)) is not None:
                yield decode(frame, api.Event, packets.MAX_PACKET)
        finally:
            call.cancel()

    async def fetch(self, run: str, folder: Path) -> list[Path]:
        """Write a run's files into ``folder``, which is there.

        Raises:
            HansaError: as :meth:`ask`; or a file's name is none.
        """
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(wire.FETCH)
        written: list[Path] = []
        call = method(encode(api.Fetch(run)))
        frames = aiter(call)
        try:
            while (frame := await self._next(frames)) is not None:
                part = decode(frame, api.FilePart, packets.MAX_PACKET)
                if part.name not in FILES:
                    raise IdentityError(f"the hub sent a file called {part.name[:80]!r}, which no run has")
                path = folder / part.name
                with path.open("ab" if written and written[-1] == path else "wb") as file:
                    file.write(part.data)
                if not written or written[-1] != path:
                    written.append(path)
        finally:
            call.cancel()
        return written

    async def _next(self, frames: AsyncIterator[bytes]) -> bytes | None:
        """What a call brings next; None at its end.

        Each wait is guarded by itself: between two of them the task is the caller's, which may be cancelled there and go on.

        Raises:
            HansaError: as :meth:`ask`.
        """
        try:
            with wire.cancellable():
                return await anext(frames, None)
        except grpc.aio.AioRpcError as error:
            raise wire.translated(error, self.address) from None


FILES: Final = frozenset(
    ("model.safetensors", "metrics.jsonl", "metrics.csv", "parties.csv", "messages.json", "report.html", "plan.toml",
     "status.json", "environment.json")
)  # fmt: skip
"""The files of a run; a hub can name no other."""


@contextlib.asynccontextmanager
async def calling(credentials: Credentials) -> AsyncIterator[Caller]:
    """The hub of whoever these credentials are, at the first of its addresses that answers.

    Raises:
        Unreachable: none does; says why of the last.
        IdentityError: its certificate or the hub's is not accepted.
    """
    last: HansaError = IdentityError("these credentials name no address of a hub")
    for address in credentials.addresses:
        async with wire.channel_of(credentials, address) as channel:
            caller = Caller(channel, address)
            try:
                await caller.ask(api.Greet(version("hansa"), packets.PROTOCOL), api.Greeting, 10.0)
            except Unreachable:
                last = await diagnose(
                    address, credentials.authority_pem, credentials.certificate.pem, credentials.tls_key_pem
                )
                continue
            yield caller
            return
    raise last


async def join(home: Path, invitation: Invitation, now: float) -> Credentials:
    """Become who the invitation says, with keys that are made here and stay here; or be who has by this very one.

    *Guarantees*: where it ends before the hub's answer is on the disk, it can be repeated; where the hub refuses, no key is left
    that it cannot have certified.

    Raises:
        IdentityError: the invitation or what it is used for is refused.
        Unreachable: the hub does not answer.
    """
    known = joined(home, invitation, now)
    if known is not None:
        return known
    enrolment = Enrolment.begin(home, invitation, now)
    doubt = enrolment.again
    last: HansaError = IdentityError("the invitation names no address")
    for address in invitation.addresses:
        async with wire.channel(
            address, invitation.authority_pem, invitation.certificate.pem, invitation.key_pem
        ) as channel:
            hub = Caller(channel, address)
            try:
                certified = await hub.ask(api.Enrol(enrolment.request()), api.Certified)
            except (IdentityError, NotAuthorized, ConfigError):
                if not doubt or await _admitted(hub):
                    enrolment.give_up()
                raise
            except Unreachable:
                doubt = True  # it may have been the answer that was lost
                last = await diagnose(address, invitation.authority_pem, invitation.certificate.pem, invitation.key_pem)
                continue
            return enrolment.finish(certified.certificate, now)
    raise last


async def _admitted(hub: Caller) -> bool:
    """Whether a hub that refused something lets its caller in at all: then it was that which it refused, and not the caller.

    A hub whose clock is wrong lets nobody in, and may yet give the certificate that it gave before.
    """
    try:
        await hub.ask(api.Greet(version("hansa"), packets.PROTOCOL), api.Greeting, 10.0)
    except HansaError:
        return False
    return True
