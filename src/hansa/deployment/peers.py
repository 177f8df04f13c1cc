"""Direct streams between two nodes, where one of them has an address.

What they carry is sealed as if the hub relayed it, so a direct way changes who sees the traffic and not what it means. Of two
nodes the one without an address dials; of two with addresses, the one whose name comes first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, final

import grpc
import grpc.aio

from hansa.deployment import packets, wire
from hansa.deployment.gate import Gate
from hansa.deployment.identity.certificates import Certificate, read, tls_name
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.link import Desk, Link
from hansa.deployment.logs import Log
from hansa.deployment.packets import Welcome
from hansa.deployment.quantity import Address
from hansa.deployment.standing import dialled, greeted, theirs, welcome
from hansa.deployment.store import Database, Mailbox
from hansa.deployment.worker.spool import Spool
from hansa.errors import ConfigError, HansaError, IdentityError
from hansa.message import encode

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds until a lost peer is dialled again, at first and at most."""
PEERS: Final = 1000
"""Nodes that may dial this one."""
_PEER: Final = "/hansa.Peer/Link"

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


@final
class Peers:
    """A node's direct streams.

    Args:
        database, mailbox, spool: of the node.
        desk: takes what arrives.
        own: the node's credentials, as they are now.
        wanted: whether a node takes part in a run with this one.
        begun_with: the runs that began with an epoch of a node.
        instance: of this process.
        room: bytes that the spool may hold.
        log: where what happens is noted.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        database: Database,
        mailbox: Mailbox,
        spool: Spool,
        desk: Desk,
        own: Callable[[], Credentials],
        wanted: Callable[[str], bool],
        begun_with: Callable[[str, str], frozenset[str]],
        instance: str,
        room: int,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._mailbox = mailbox
        self._spool = spool
        self._desk = desk
        self._own = own
        self._wanted = wanted
        self._begun_with = begun_with
        self._instance = instance
        self._room = room
        self._log = log
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._gate = Gate()
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._addresses: dict[str, str] = {}
        self._streams: dict[str, asyncio.Task[str]] = {}
        self._server: grpc.aio.Server | None = None
        self.address: Address | None = None

    async def listen(self, address: Address) -> None:
        """Let peers dial this node, on ``address`` and nowhere else.

        Raises:
            ConfigError: it cannot be listened on.
        """
        server = grpc.aio.server(options=wire.server_options(PEERS))
        method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._answer)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("hansa.Peer", {"Link": method}),))
        try:
            port = server.add_secure_port(str(address), wire.server_credentials(self._own))
        except RuntimeError:
            port = 0
        if port == 0:
            raise ConfigError(f"this node cannot listen on {address}; is another process there?")
        await server.start()
        self._server, self.address = server, Address(address.host, port)

    async def close(self) -> None:
        """End all direct streams."""
        tasks: list[asyncio.Task[None] | asyncio.Task[str]] = [*self._dialling.values(), *self._streams.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(0.5)

    def forget(self, run: str) -> None:
        """A run is over: its large bodies under way stop."""
        for link in self._links.values():
            link.forget(run)

    def meet(self, me: str, addresses: Mapping[str, str], others: set[str]) -> None:
        """Dial those of ``others`` that this node is to dial.

        Args:
            me: this node.
            addresses: of the nodes that have one.
            others: the nodes of a run.
        """
        for other in others - {me}:
            address = addresses.get(other)
            ours = me not in addresses or me < other
            if address is None or not ours:
                continue
            self._addresses[other] = address
            if other not in self._dialling or self._dialling[other].done():
                self._dialling[other] = asyncio.ensure_future(self._dial(other))

    @staticmethod
    def direct(me: str, other: str, addresses: Mapping[str, str]) -> bool:
        """Whether two nodes of a run talk without the hub."""
        return me != other and (me in addresses or other in addresses)

    async def _dial(self, other: str) -> None:
        """Keep a stream to a peer, as long as a run needs it; where the last run said that it is."""
        wait = FIRST_WAIT
        while self._wanted(other):
            address = self._addresses[other]
            try:
                own, options = self._own(), wire.client_options(tls_name(other))
                credentials = grpc.ssl_channel_credentials(own.authority_pem, own.tls_key_pem, own.certificate.pem)
                async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
                    await dialled(channel, _PEER, address, self._instance, self._link(other), self._met(other))
                wait = FIRST_WAIT
            except HansaError as error:
                self._log.warning("no direct link", peer=other, address=address, reason=str(error))
            except Exception as error:
                # Nobody foresaw it, and without this stream the run would wait for ever: it is said, and tried again.
                self._log.failed("no direct link", error, peer=other, address=address)
            await asyncio.sleep(wait * (0.5 + secrets.randbelow(1000) / 1000))
            wait = min(LONGEST_WAIT, wait * 2)

    def _met(self, other: str) -> Callable[[Welcome], None]:
        def met(welcome: Welcome) -> None:
            if welcome.federation != self._own().identity.federation:
                raise IdentityError(f"'{other}' is of the federation '{welcome.federation}', not of ours")
            self._meet(self._link(other), welcome.epoch)
            self._log.info("connected directly", peer=other)

        return met

    def _meet(self, link: Link, epoch: str) -> None:
        # Its parts in runs under way are lost, and the hub says so; here only the lanes with it are counted anew.
        if link.meet(epoch, self._begun_with(link.peer, epoch)):
            self._log.warning("peer was restored from a backup", peer=link.peer)

    async def _answer(self, _: object, context: Context) -> None:
        """A peer has dialled."""
        try:
            peer = self._caller(context)
            name = peer.identity.name
            reader = wire.reader(context.read)
            hello = await greeted(reader)
            while (before := self._streams.get(name)) is not None:  # while one waits here, another may come
                before.cancel()
                await asyncio.gather(before, return_exceptions=True)
                if self._streams.get(name) is before:
                    del self._streams[name]

            async def stood() -> str:
                link = self._link(name)
                self._meet(link, hello.epoch)
                await context.write(encode(welcome(self._own().identity.federation, self._clock(), link)))
                self._log.info("connected directly", peer=name)
                return await link.serve(reader, context.write, theirs(hello, link))

            serving = self._streams[name] = asyncio.ensure_future(stood())
            try:
                await serving
            finally:
                serving.cancel()
                if self._streams.get(name) is serving:
                    del self._streams[name]
        except HansaError as error:
            self._log.warning("peer refused", address=context.peer(), kind=type(error).__name__, reason=str(error))
            await context.abort(grpc.StatusCode.ABORTED, wire.said(error))

    def _caller(self, context: Context) -> Certificate:
        """The peer that calls.

        Raises:
            IdentityError: it is no node of this federation, or of no run with this one.
        """
        pems = list(context.auth_context().get("x509_pem_cert", ()))
        if len(pems) != 1:
            raise IdentityError("no certificate was shown; join the federation first")
        certificate = read(pems[0], self._own().authority_pem, self._clock())
        who = certificate.identity
        if who.kind != "node" or not self._wanted(who.name):
            raise IdentityError(f"{who} takes part in no run with this node")
        return certificate

    def _link(self, other: str) -> Link:
        link = self._links.get(other)
        if link is None:
            link = Link(
                other,
                self._database,
                self._mailbox,
                self._spool,
                self._desk,
                packets.LARGEST,
                self._room,
                gate=self._gate,
            )
            self._links[other] = link
        return link
