"""The hub's face to the network: four gRPC methods, each of which first asks who calls and whether it may."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, final

import grpc
import grpc.aio

from hansa.deployment import api, packets, wire
from hansa.deployment.authorization import Object, allow, may, refuse
from hansa.deployment.diagnosis import obstacle
from hansa.deployment.hub import Hub
from hansa.deployment.identity.certificates import Certificate
from hansa.deployment.listing import page
from hansa.deployment.quantity import Address
from hansa.deployment.rates import Rates
from hansa.deployment.report import write_run
from hansa.deployment.standing import SOFTWARE, greeted, theirs, welcome
from hansa.deployment.store import TERMINAL, Record
from hansa.errors import ConfigError, HansaError, IdentityError, LinkError, NotAuthorized, StoreError
from hansa.message import Message, decode, encode

GREETING: Final = 10.0
"""Seconds that whoever opens a stream has for its first packet."""
PART: Final = 1 << 20
"""Bytes of a file that are sent at a time."""
RENEWALS: Final = 10
"""Certificates that one member may have in a minute; an honest one asks once in days."""
RECORDED: Final = 30
"""Refusals of one member that are recorded in a minute; each waits for the disk, and all others wait with it."""

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


@final
class Service:
    """Answers calls to a hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._known: dict[bytes, Certificate] = {}
        self._writing = asyncio.Lock()
        limits = hub.settings.limits
        self._enrolments = Rates(limits.enrolments_per_minute, hub.clock)
        self._streams = Rates(limits.connections_per_minute, hub.clock)
        self._renewals = Rates(RENEWALS, hub.clock, "member")
        self._recorded = Rates(RECORDED, hub.clock, "member")

    def handlers(self) -> grpc.GenericRpcHandler:
        """The four methods, of frames in bytes."""
        return grpc.method_handlers_generic_handler(
            wire.SERVICE,
            {
                "Call": grpc.unary_unary_rpc_method_handler(self.call),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
                "Fetch": grpc.unary_stream_rpc_method_handler(self.fetch),
                "Link": grpc.stream_stream_rpc_method_handler(self.link),
            },
        )

    async def call(self, frame: bytes, context: Context) -> bytes:
        """One request, one answer; a refusal is an answer too."""
        who = None
        try:
            who = self._who(context)
            answer = await self._answer(who, decode(frame, api.REQUESTS, packets.MAX_PACKET), _address(context))
            # What is answered is done: it is on the disk.
            self._hub.database.commit()
        except HansaError as error:
            self._refused(who, context, error)
            kind, _, what = wire.said(error).partition(": ")
            answer = api.Problem(kind, what)
        except Exception as error:
            self._hub.log.failed("a call failed inside", error, peer=None if who is None else who.identity.name)
            answer = api.Problem("LinkError", _INSIDE)
        return encode(answer)

    async def watch(self, frame: bytes, context: Context) -> AsyncIterator[bytes]:
        """A run's events, as they come."""
        who = await self._caller(context)
        async with self._aborting(who, context), self._told(who):
            word = decode(frame, api.ReadEvents, packets.MAX_PACKET)
            record = self._run(who, word.run, "watch")
            logs = may(who.identity.kind, who.identity.name, "see", _object("logs", record))
            after = word.after
            while True:
                news = self._hub.runs.ledger.news(word.run)
                while events := self._hub.runs.table.events(word.run, after):
                    for event in events:
                        after = event.number
                        if logs or event.kind in ("status", "round"):
                            yield encode(event)
                now = self._hub.runs.table.get(word.run)
                if not word.follow or now is None or now.status in TERMINAL:
                    return
                await news.wait()

    async def fetch(self, frame: bytes, context: Context) -> AsyncIterator[bytes]:
        """A run's files, one after another."""
        who = await self._caller(context)
        async with self._aborting(who, context), self._told(who):
            word = decode(frame, api.Fetch, packets.MAX_PACKET)
            record = self._run(who, word.run, "fetch", "metrics")
            model = may(who.identity.kind, who.identity.name, "fetch", _object("model", record))
            with contextlib.ExitStack() as opened:
                # Whoever fetches the same run next writes its folder anew: what is open by then stays as it is.
                async with self._writing:
                    folder = await self._written(record)
                    files = [
                        (path.name, opened.enter_context(path.open("rb")))
                        for path in sorted(folder.iterdir())
                        if model or path.suffix != ".safetensors"
                    ]
                for name, file in files:
                    async for part in _parts(name, file):
                        yield encode(part)

    async def _written(self, record: Record) -> Path:
        """A run's folder, written anew; whoever leaves meanwhile waits for its end, so that nobody writes beside it."""
        rounds = self._rounds(record.run, asyncio.get_running_loop())
        folder, view = self._hub.home / "runs" / record.run, self._hub.runs.view(record)
        writing = asyncio.ensure_future(asyncio.to_thread(write_run, folder, record, view, rounds, self._hub.spool))
        forgotten = False
        try:
            await asyncio.shield(writing)
        except (OSError, StoreError):
            if self._hub.runs.table.get(record.run) is not None:
                raise
        finally:
            await asyncio.wait([writing])
            forgotten = self._hub.runs.table.get(record.run) is None
            if forgotten:
                shutil.rmtree(folder, ignore_errors=True)
        if forgotten:
            raise ConfigError(f"run {record.run} was forgotten while its files were written")
        return folder

    def _rounds(self, run: str, loop: asyncio.AbstractEventLoop) -> Iterator[api.Event]:
        """What was reported of a run's rounds, for another thread than the loop's: never more of it than a page."""

        async def page(after: int) -> list[api.Event]:
            return self._hub.runs.table.events(run, after, kind="round")

        after = 0
        while events := asyncio.run_coroutine_threadsafe(page(after), loop).result():
            yield from events
            after = events[-1].number

    async def link(self, _: object, context: Context) -> None:
        """A node's standing stream."""
        who = await self._caller(context)
        async with self._aborting(who, context):
            allow(who.identity.kind, who.identity.name, "link", Object("link", (who.identity.kind, who.identity.name)))
            if self._hub.draining:
                raise LinkError("the hub is going away; it will be back")
            connected = self._hub.connected(who.identity.name)
            if not connected and self._hub.nodes() >= self._hub.settings.limits.connections:
                raise LinkError(f"the hub has {self._hub.nodes()} nodes connected, which is its limit")
            self._streams.count(_address(context), "streams")
            hello = await greeted(wire.reader(context.read))
            hub, task, closed = self._hub, asyncio.current_task(), ""
            assert task is not None

            def close(reason: str) -> None:
                nonlocal closed
                closed = reason
                task.cancel()

            async with hub.stream(who, hello, close) as link:
                try:
                    await context.write(encode(welcome(hub.authority.federation, hub.clock(), link)))
                    await link.serve(wire.reader(context.read), context.write, theirs(hello, link))
                except asyncio.CancelledError:
                    if not closed:
                        raise  # it was the node that left
                    raise LinkError(closed) from None

    async def _answer(self, who: Certificate, word: Message, address: str) -> Message:
        hub, identity = self._hub, who.identity
        kind, name, owner = identity.kind, identity.name, (identity.kind, identity.name)
        if isinstance(word, api.Greet):
            return api.Greeting(
                identity.federation, SOFTWARE, packets.PROTOCOL, packets.OLDEST, hub.clock(), name, kind
            )
        if isinstance(word, api.Enrol):
            self._enrolments.count(address, "enrolments")
            allow(kind, name, "enrol", Object("invitation", owner))
            return hub.enrol(who, word)
        if isinstance(word, api.Renew):
            allow(kind, name, "renew", Object("member", owner))
            self._renewals.count(name, "renewals")
            return hub.renewed(who, word)
        if isinstance(word, api.Submit):
            allow(kind, name, "submit", Object("run", owner))
            return api.Submitted(await hub.runs.submit(owner, word))
        if isinstance(word, api.ListRuns):
            return page(hub.runs, kind, name, word)
        if isinstance(word, api.StopRun):
            hub.runs.stop(self._run(who, word.run, "stop").run, f"{kind} {name}")
            return api.Done()
        if isinstance(word, api.ResumeRun):
            return api.Submitted(hub.runs.resume(self._run(who, word.run, "resume").run, f"{kind} {name}"))
        if isinstance(word, api.ForgetRun):
            hub.forget(self._run(who, word.run, "forget").run, f"{kind} {name}")
            return api.Done()
        if isinstance(word, api.Invite):
            allow(kind, name, "invite", Object("invitation"))
            return hub.invite(word, name)
        if isinstance(word, api.Revoke):
            allow(kind, name, "revoke", Object("member"))
            await hub.revoke(word.name, name)
            return api.Done()
        if isinstance(word, api.ListMembers):
            allow(kind, name, "see", Object("member"))
            return api.MemberList(tuple(hub.member_view(member) for member in hub.members.all()))
        raise ConfigError(f"{type(word).__name__} is not asked in this way")

    def _run(self, who: Certificate, run: str, verb: str, thing: str = "run") -> Record:
        """A run that the caller may do this to; one that is not there is refused in the same words.

        Raises:
            NotAuthorized: there is none, or it may not.
        """
        record = self._hub.runs.table.get(run)
        if record is None:
            refuse(who.identity.kind, who.identity.name, verb, thing)
        allow(who.identity.kind, who.identity.name, verb, self._of(record, thing))
        return record

    def _of(self, record: Record, thing: str = "run") -> Object:
        parties = frozenset(seat.host for seat in self._hub.runs.table.seats(record.run))
        return Object(thing, record.owner, parties)

    def _who(self, context: Context) -> Certificate:
        """The caller, by the certificate that TLS has verified.

        Raises:
            IdentityError: its certificate does not count.
        """
        pems = list(context.auth_context().get("x509_pem_cert", ()))
        if len(pems) != 1:
            raise IdentityError("no certificate was shown; join the federation first")
        known = self._known.get(pems[0])
        if known is None:
            known = self._hub.verified(pems[0])
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[pems[0]] = known
        elif known.identity.kind != "invited" and not self._hub.members.counts(known.serial):
            return self._hub.verified(pems[0])  # says that it was revoked
        known.require_valid(self._hub.clock())
        return known

    async def _caller(self, context: Context) -> Certificate:
        try:
            return self._who(context)
        except IdentityError as error:
            self._refused(None, context, error)
            await context.abort(grpc.StatusCode.ABORTED, wire.said(error))
            raise

    @contextlib.asynccontextmanager
    async def _aborting(self, who: Certificate, context: Context) -> AsyncIterator[None]:
        """A refusal ends the call and is named to the caller."""
        try:
            yield
        except HansaError as error:
            self._refused(who, context, error)
            await context.abort(grpc.StatusCode.ABORTED, wire.said(error))
        except grpc.aio.BaseError:
            return  # whoever called has gone
        except Exception as error:
            self._hub.log.failed("a call failed inside", error, peer=who.identity.name)
            await context.abort(grpc.StatusCode.ABORTED, f"LinkError: {_INSIDE}")

    @contextlib.asynccontextmanager
    async def _told(self, who: Certificate) -> AsyncIterator[None]:
        """Somebody is told something at length: until then, or until it counts no more.

        Raises:
            IdentityError: it counts no more.
        """
        task, closed = asyncio.current_task(), ""
        assert task is not None

        def close(reason: str) -> None:
            nonlocal closed
            closed = reason
            task.cancel()

        with self._hub.guest(who, close):
            try:
                yield
            except asyncio.CancelledError:
                if not closed:
                    raise  # it was the caller that left
                raise IdentityError(closed) from None

    def _refused(self, who: Certificate | None, context: Context, error: HansaError) -> None:
        peer = who.identity.name if who is not None else None
        self._hub.metrics.refusals.add(type(error).__name__)
        log = self._hub.log.warning if not isinstance(error, ConfigError) else self._hub.log.info
        log("refused", peer=peer, address=_address(context), kind=type(error).__name__, reason=str(error))
        if not isinstance(error, NotAuthorized | IdentityError):
            return
        # Whoever is refused again and again is answered each time, and on record as far as that costs the others nothing.
        left_out = self._recorded.take(peer or _address(context))
        if left_out is not None:
            more = {"left_out": left_out} if left_out else {}
            self._hub.audit.append("refused", peer=peer or "", reason=str(error), **more)


_INSIDE: Final = "the hub failed inside, and nobody foresaw how; its own log says it"


def _object(thing: str, record: Record) -> Object:
    return Object(thing, record.owner)


def _address(context: Context) -> str:
    """Where a call comes from, without its port."""
    return context.peer().rpartition(":")[0]


async def _parts(name: str, file: BinaryIO) -> AsyncIterator[api.FilePart]:
    data = file.read(PART)
    while True:
        following = file.read(PART)
        yield api.FilePart(name, data, last=not following)
        if not following:
            return
        data = following


@contextlib.asynccontextmanager
async def serving(hub: Hub, address: Address) -> AsyncIterator[Address]:
    """Listen on ``address``, and nowhere else, while the context lasts; the address with the real port.

    Raises:
        ConfigError: it cannot be listened on.
    """
    server = grpc.aio.server(options=wire.server_options(hub.settings.limits.connections))
    server.add_generic_rpc_handlers((Service(hub).handlers(),))
    try:
        port = server.add_secure_port(str(address), wire.server_credentials(lambda: hub.credentials))
    except RuntimeError:
        port = 0
    if port == 0:
        why = await asyncio.to_thread(obstacle, address) or os.strerror(errno.EADDRINUSE)
        raise ConfigError(
            f"the hub cannot listen on {address}: {why}; stop what listens there, or give another address of this machine"
        )
    await server.start()
    hub.address = Address(address.host, port)
    try:
        yield hub.address
    finally:
        await hub.drain()
        await server.stop(1.0)
