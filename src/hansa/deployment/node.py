"""A node: one party's machine. It dials the hub, decides by its own policy what it takes part in, and runs its programs.

Only what is installed here runs, on data that the node's own file binds; what leaves is written to the party's own audit log
first. The hub can ask, and no more. Here are the machine's life, its stream, its certificate, and what arrives; what it decides is
in `participation.py`, what it takes up in `parts.py`, what leaves in `courier.py`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

from hansa.deployment import api, packets, wire
from hansa.deployment.audit import AuditLog
from hansa.deployment.courier import NodeCourier, Part
from hansa.deployment.diagnosis import diagnose
from hansa.deployment.dial import calling
from hansa.deployment.envelopes import Envelopes
from hansa.deployment.host import Host, Workers
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.names import HUB
from hansa.deployment.identity.request import make_request
from hansa.deployment.link import Link
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.packets import (
    End,
    Offer,
    Recall,
    Refused,
    Sending,
    Start,
    Welcome,
)
from hansa.deployment.participation import Participation
from hansa.deployment.parts import Parts
from hansa.deployment.peers import Peers
from hansa.deployment.retention import Retention
from hansa.deployment.settings import NodeSettings
from hansa.deployment.standing import dialled
from hansa.deployment.store import UNDER_WAY, Database, Journal, Mailbox, Parcel, Power, WorkTable
from hansa.deployment.worker.spool import Spool
from hansa.errors import (
    HansaError,
    IdentityError,
    LinkError,
    MessageError,
    StoreError,
    TrustError,
    Unreachable,
    VersionMismatch,
)
from hansa.message import decode

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds until a lost hub is dialled again, at first and at most."""
AGAIN: Final = 60.0
"""Seconds until a certificate that could not be renewed is tried again."""
CLOCKS: Final = 60.0
"""Seconds that two clocks may differ before the log says so."""
_RESTED: Final = 1.0
"""Seconds after which a stream counts as having stood, so that the next wait is the first again."""


@final
class Node:
    """One party's machine.

    Args:
        home: its home, with an identity that ``hansa join`` made.
        settings: its file.
        workers: where its programs run.
        log, metrics: where what happens is noted.
        clock: POSIX seconds.

    Raises:
        IdentityError: there is no identity, or it counts no more.
        StoreError: the home is in use, or damaged.
    """

    def __init__(
        self,
        home: Path,
        settings: NodeSettings,
        workers: Workers,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.log = log
        self.metrics = metrics
        self.clock = clock
        self.credentials = Credentials.load(home, clock())
        self.name = self.credentials.identity.name
        if self.credentials.identity.kind != "node":
            raise IdentityError(
                f"{home} holds the identity of the {self.credentials.identity.kind} '{self.name}', which is no node; "
                f"a node joins by an invitation of its own"
            )
        self.database = Database(home / "node.db")
        self.spool = Spool(home / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.power = Power(self.database, self.spool)
        self.journal = Journal(self.database, self.mailbox)
        self.works = WorkTable(self.database)
        self.audit = AuditLog(home / "audit.log", clock, key=self.credentials.sealing.sign)
        self.begun: dict[str, Part] = {}
        self.envelopes = Envelopes(lambda: self.credentials, self.mailbox, self.spool, clock)
        self.courier = NodeCourier(
            self.name, self.begun, self.envelopes, self.mailbox, self.works, self.audit, log, metrics
        )
        limits = settings.limits
        self.host = Host(
            self.name, self.database, self.mailbox, self.journal, workers, self.courier, self.spool.folder, log,
            limits.threads, limits.memory,
        )  # fmt: skip
        self.link = Link(HUB, self.database, self.mailbox, self.spool, self, packets.LARGEST, limits.spool, whole=True)
        self.connected = asyncio.Event()
        self._instance = secrets.token_hex(16)
        self.peers = Peers(
            self.database, self.mailbox, self.spool, self, lambda: self.credentials, self._together,
            self.envelopes.begun_with, self._instance, limits.spool, log, clock,
        )  # fmt: skip
        self.participation = Participation(
            self.name, lambda: self.settings, workers, self.works, self.envelopes, self.courier,
            lambda: self.settings.address or self.peers.address, self.audit, log, clock, self._spawn,
        )  # fmt: skip
        self.parts = Parts(
            self.name, lambda: self.settings, self.begun, self.works, self.journal, self.host, self.envelopes,
            self.peers, self.courier, self.audit, log, self._spawn, self._drop, self.participation.look, clock,
        )  # fmt: skip
        self.retention = Retention(
            self.database, self.audit, log, limits.keep, self._due, self._erase,
            lambda run: bool(self.works.state(run)), clock,
        )  # fmt: skip
        self._tasks: set[asyncio.Future[Any]] = set()
        self._broken: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        self.database.failed = self.host.broken = self._break

    # Life.

    async def start(self) -> None:
        """Go on with what was under way."""
        with self.database.at_once():
            for run in self.power.doubtful():
                self.parts.set_back(run)
            self.mailbox.sweep()
        if self.settings.listen is not None:
            await self.peers.listen(self.settings.listen)
        for work in self.works.all(("started",)):
            self.parts.begin(work.run)
        self.participation.look()
        self.retention.look()

    async def run(self) -> None:
        """Stay connected to the hub until it says that this node is not wanted.

        Raises:
            IdentityError, VersionMismatch: the hub refuses this node for good.
            StoreError: the disk failed; the process must end and begin again.
        """
        wait = FIRST_WAIT
        renewing = asyncio.ensure_future(self._renewing())
        try:
            while True:
                began = time.monotonic()
                for address in self.credentials.addresses:
                    try:
                        await self._connect(address)
                    except (IdentityError, VersionMismatch):
                        raise
                    except HansaError as error:
                        if self._broken.done():
                            raise self._broken.result() from None
                        await self._unlinked(address, error)
                self.metrics.reconnects.add()
                if time.monotonic() - began > _RESTED:
                    wait = FIRST_WAIT
                # A share of it by chance, so that all nodes of a hub that comes back do not come at once.
                await asyncio.sleep(wait * (0.5 + secrets.randbelow(1000) / 1000))
                wait = min(LONGEST_WAIT, wait * 1.5)
        finally:
            renewing.cancel()

    async def _unlinked(self, address: str, error: HansaError) -> None:
        """Say why there is no stream.

        Raises:
            IdentityError: this node's own certificate has expired, and no hub will accept it any more.
        """
        found, own = error, self.credentials
        if isinstance(error, Unreachable):
            found = await diagnose(address, own.authority_pem, own.certificate.pem, own.tls_key_pem)
        self.log.warning("no link", peer=HUB, address=address, reason=str(found))
        if isinstance(found, IdentityError):
            own.certificate.require_valid(self.clock())

    async def broken(self) -> StoreError:
        """Wait until the disk fails, after which this process must end and begin again."""
        return await asyncio.shield(self._broken)

    async def close(self) -> None:
        """End in order: programs stop where they stand, and go on from there at the next start."""
        self.retention.close()
        self.parts.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.peers.close()
        await self.host.close()
        self.power.settle()
        self.database.close()
        self.audit.close()

    async def _connect(self, address: str) -> None:
        """One stream to the hub, from its beginning to its end."""
        async with wire.channel_of(self.credentials, address) as channel:
            try:
                reason = await dialled(channel, wire.LINK, address, self._instance, self.link, self._met)
            finally:
                self.connected.clear()
                self.metrics.link_connected.set(0)
            self.log.info("link closed", peer=HUB, reason=reason or None)

    def _met(self, welcome: Welcome) -> None:
        if welcome.federation != self.credentials.identity.federation:
            raise IdentityError(f"that hub is of the federation '{welcome.federation}', not of ours")
        if self.link.meet(welcome.epoch):
            self._left_behind()
        apart = welcome.time - self.clock()
        if abs(apart) > CLOCKS:
            self.log.warning("clocks differ", peer=HUB, seconds=round(apart, 1))
        self.connected.set()
        self.metrics.link_connected.set(1)
        self.log.info("connected", peer=HUB, software=welcome.software)

    def _left_behind(self) -> None:
        """The hub was restored from a backup: it has forgotten what was under way, and goes on with none of it."""
        self.log.warning("the hub was restored from a backup", peer=HUB)
        self.audit.append("restored", peer=HUB)
        for work in self.works.all(UNDER_WAY):
            self.parts.end(End(work.run, self.works.attempt(work.run), "failed", "the hub was restored from a backup"))
        for run in self.journal.runs():
            self.journal.forget(run)
        self.participation.look()

    async def _renewing(self) -> None:
        """Renew the certificate in time, again and again."""
        while True:
            self.metrics.certificate_end.set(self.credentials.certificate.not_after)
            await asyncio.sleep(min(3600.0, max(0.0, self.credentials.renew_at() - self.clock())))
            if not self.credentials.renew_due(self.clock()):
                continue
            try:
                await self.renew()
                continue
            except HansaError as error:
                self.log.warning("certificate not renewed", reason=str(error))
            except Exception as error:
                self.log.failed("certificate not renewed", error)
            await asyncio.sleep(AGAIN)

    async def renew(self) -> None:
        """A new certificate for the same identity; streams made from now on use it.

        Raises:
            HansaError: the hub refuses, or cannot be reached.
        """
        key = make_tls_key()
        async with calling(self.credentials) as hub:
            certified = await hub.ask(api.Renew(make_request(self.name, key, self.credentials.sealing)), api.Certified)
        self.credentials = self.credentials.replace_certificate(certified.certificate, key, self.clock())
        self.audit.append("renewed", serial=f"{self.credentials.certificate.serial:x}")
        self.log.info("certificate renewed", until=self.credentials.certificate.not_after)

    # What arrives.

    def admit(self, peer: str, sending: Sending) -> str:
        """See :class:`hansa.deployment.link.Desk`."""
        if not sending.run:
            return "" if sending.inline is not None and peer == HUB else "control is the hub's, and never large"
        part = self.begun.get(sending.run)
        if part is None and peer != HUB and self.works.state(sending.run) == "accepted":
            raise LinkError(f"run {sending.run} has not begun here yet; say it again")
        hosts = {} if part is None else part.work.hosts
        if part is None or hosts.get(sending.receiver) != self.name or sending.sender not in hosts:
            return "this node takes no part in that run, or has no such party"
        if part.way(self.name, hosts[sending.sender]) != peer:
            return "a message of that party does not come this way"
        if sending.sealed != (hosts[sending.sender] != HUB):
            return "a message of another party must be sealed, and one of the hub must not"
        return ""

    def take(self, peer: str, parcel: Parcel) -> str:
        """See :class:`hansa.deployment.link.Desk`."""
        self.metrics.messages.add("in", parcel.body.tag)
        self.metrics.bytes.add("in", by=parcel.body.size)
        try:
            if not parcel.run:
                self._control(decode(parcel.body.inline or b"", packets.TO_NODE, packets.MAX_PACKET))
                return ""
            part = self.begun.get(parcel.run)
            if part is None:
                return "this node takes no part in that run any more"
            body = self.envelopes.opened(part.work, parcel) if parcel.sealed else parcel.body
        except (TrustError, MessageError) as error:
            self.metrics.refusals.add(type(error).__name__)
            self.log.warning("message refused", peer=peer, run=parcel.run or None, reason=str(error))
            self.audit.append("refused", run=parcel.run, sender=parcel.sender, reason=str(error))
            return str(error)
        except StoreError as error:
            self.database.abandon(error)
            raise
        self.mailbox.pin(body.blob)
        self.host.deliver(parcel.run, parcel.sender, parcel.receiver, body)
        self.mailbox.unpin(body.blob)  # where no program is left to take it, nobody else will remove it
        return ""

    def refused(self, peer: str, refused: Refused) -> None:
        """See :class:`hansa.deployment.link.Desk`."""
        self.metrics.refusals.add("by the hub")
        self.log.warning("the hub refused a message", run=refused.run or None, reason=refused.reason)

    def _control(self, word: Any) -> None:
        if isinstance(word, Offer):
            self.participation.offered(word)
        elif isinstance(word, Start):
            if self.works.attempt(word.run) == word.attempt and self.works.state(word.run) == "accepted":
                self.works.started(word, self.clock())
                self.parts.begin(word.run)
        elif isinstance(word, End):
            if self.works.attempt(word.run) == word.attempt:
                self.parts.end(word)
                self.mailbox.end(word.run)
                self.participation.look()
        elif isinstance(word, Recall):
            for name in word.names:
                self.works.recall(name)
                self.envelopes.recall(name)
                self.audit.append("recalled", name=name)

    # Runs that are over.

    def _due(self, until: float, most: int) -> list[tuple[str, Mapping[str, str]]]:
        told = {"by": f"this node, as [limits] keep is {self.settings.limits.keep / 86400:g} days"}
        return [(run, told) for run in self.works.over(self.clock(), until, most)]

    def _erase(self, run: str) -> None:
        for body in self.works.results(run).values():
            self.mailbox.release(body.blob)
        self.journal.forget(run)
        self.mailbox.end(run)
        self.works.forget(run)

    # Small things.

    def _together(self, other: str) -> bool:
        """Whether another node is in a run with this one."""
        return any(other in part.work.hosts.values() for part in self.begun.values())

    def _drop(self, run: str) -> None:
        """Forget the letters of a run."""
        self.mailbox.drop(run)
        self.link.forget(run)

    def _spawn(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, StoreError):
                self.database.abandon(error)
                self._break(error)
            else:
                self.log.failed("an inner task failed", error)

    def _break(self, error: StoreError) -> None:
        if not self._broken.done():
            self._broken.set_result(error)
