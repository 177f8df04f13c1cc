"""A node: one party's machine. It dials the hub, decides by its own policy what it takes part in, and runs its programs.

Only what is installed here runs, on data that the node's own file binds; what leaves is written to the party's own audit log
first. The hub can ask, and no more.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

from hansa.deployment import api, packets, wire
from hansa.deployment.audit import AuditLog
from hansa.deployment.diagnosis import diagnose
from hansa.deployment.dial import calling
from hansa.deployment.envelopes import Envelopes
from hansa.deployment.host import Host, Work, Workers
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.request import make_request
from hansa.deployment.link import Link
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.offers import deviation, misfit, untimely
from hansa.deployment.packets import (
    BUSY,
    Answer,
    End,
    Finished,
    Offer,
    Recall,
    Refused,
    Report,
    Sending,
    Start,
    Trouble,
    Welcome,
)
from hansa.deployment.peers import Peers
from hansa.deployment.policy import RunRequest, check
from hansa.deployment.settings import NodeSettings
from hansa.deployment.standing import dialled
from hansa.deployment.store import Database, Journal, Mailbox, Parcel, WorkTable
from hansa.deployment.worker.frames import Body, Described, Failed
from hansa.deployment.worker.spool import Spool
from hansa.errors import (
    ConfigError,
    DataError,
    HansaError,
    IdentityError,
    MessageError,
    SealError,
    StoreError,
    TrustError,
    Unreachable,
    VersionMismatch,
)
from hansa.message import decode, encode
from hansa.protocol import Progress

HUB: Final = "hub"
SOFTWARE: Final = version("hansa")
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds until a lost hub is dialled again, at first and at most."""
CLOCKS: Final = 60.0
"""Seconds that two clocks may differ before the log says so."""
_RESTED: Final = 30.0
"""Seconds after which a stream counts as having stood, so that the next wait is the first again."""


@final
@dataclass(frozen=True)
class Asked:
    """A run that this node was asked to take part in, for its owner's eyes."""

    run: str
    name: str
    submitter: str
    data: str
    state: str
    reason: str
    plan: str


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
        self._workers = workers
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
        self.journal = Journal(self.database, self.mailbox)
        self.works = WorkTable(self.database)
        self.audit = AuditLog(home / "audit.log", clock, key=self.credentials.sealing.sign)
        limits = settings.limits
        self.host = Host(
            self.name, self.database, self.mailbox, self.journal, workers, self, self.spool.folder, log,
            limits.threads, limits.memory,
        )  # fmt: skip
        self.link = Link(HUB, self.database, self.mailbox, self.spool, self, packets.LARGEST, limits.spool)
        self.connected = asyncio.Event()
        self._instance = secrets.token_hex(16)
        self.envelopes = Envelopes(lambda: self.credentials, self.mailbox, self.spool, clock)
        self.peers = Peers(
            self.database, self.mailbox, self.spool, self, lambda: self.credentials, self._together, self._instance,
            limits.spool, log, clock,
        )  # fmt: skip
        self._seats: dict[str, Work] = {}
        self._offers: dict[str, Offer] = {}
        self._addresses: dict[str, Mapping[str, str]] = {}
        self._discloses: dict[str, dict[str, str]] = {}
        self._limits: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._broken: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        self.database.failed = self.host.broken = self._break

    # Life.

    async def start(self) -> None:
        """Go on with what was under way."""
        with self.database.at_once():
            self.mailbox.sweep()
        if self.settings.listen is not None:
            await self.peers.listen(self.settings.listen)
        for work in self.works.all(("started",)):
            self._begin(work.run)
        self._look()

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
                wait = min(LONGEST_WAIT, wait * 2)
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
        for timer in self._limits.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.peers.close()
        await self.host.close()
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
        apart = welcome.time - self.clock()
        if abs(apart) > CLOCKS:
            self.log.warning("clocks differ", peer=HUB, seconds=round(apart, 1))
        self.connected.set()
        self.metrics.link_connected.set(1)
        self.log.info("connected", peer=HUB, software=welcome.software)

    async def _renewing(self) -> None:
        """Renew the certificate in time, again and again."""
        while True:
            self.metrics.certificate_end.set(self.credentials.certificate.not_after)
            await asyncio.sleep(min(3600.0, max(0.0, self.credentials.renew_at() - self.clock())))
            if not self.credentials.renew_due(self.clock()):
                continue
            try:
                await self.renew()
            except HansaError as error:
                self.log.warning("certificate not renewed", reason=str(error))
                await asyncio.sleep(60.0)

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
        work = self._seats.get(sending.run)
        if work is None and peer != HUB and self.works.state(sending.run) == "accepted":
            raise LinkError(f"run {sending.run} has not begun here yet; say it again")
        if work is None or work.hosts.get(sending.receiver) != self.name or sending.sender not in work.hosts:
            return "this node takes no part in that run, or has no such party"
        if self._way(sending.run, work.hosts[sending.sender]) != peer:
            return "a message of that party does not come this way"
        if sending.sealed != (work.hosts[sending.sender] != HUB):
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
            work = self._seats.get(parcel.run)
            if work is None:
                return "this node takes no part in that run any more"
            body = self.envelopes.opened(work, parcel) if parcel.sealed else parcel.body
        except (TrustError, MessageError) as error:
            self.metrics.refusals.add(type(error).__name__)
            self.log.warning("message refused", peer=peer, run=parcel.run or None, reason=str(error))
            self.audit.append("refused", run=parcel.run, sender=parcel.sender, reason=str(error))
            return str(error)
        except StoreError as error:
            self.database.abandon(error)
            raise
        self.host.deliver(parcel.run, parcel.sender, parcel.receiver, body)
        return ""

    def refused(self, peer: str, refused: Refused) -> None:
        """See :class:`hansa.deployment.link.Desk`."""
        self.metrics.refusals.add("by the hub")
        self.log.warning("the hub refused a message", run=refused.run or None, reason=refused.reason)

    def _control(self, word: Any) -> None:
        if isinstance(word, Offer):
            state, waiting = self.works.state(word.run), len(self.works.all(("offered", "looked at", "pending")))
            if flaw := untimely(word, state, self._attempt(word.run), waiting):
                raise MessageError(flaw)
            self.works.offered(word.run, encode(word), self.clock())
            self._offers[word.run] = word
            self.audit.append(
                "asked", run=word.run, plan=word.digest, submitter=word.submitter, data=word.data, attempt=word.attempt
            )
            self._look()
        elif isinstance(word, Start):
            if self._attempt(word.run) == word.attempt and self.works.state(word.run) == "accepted":
                self.works.started(word.run, encode(word))
                self._begin(word.run)
        elif isinstance(word, End):
            if self._attempt(word.run) == word.attempt:
                self._end(word)
        elif isinstance(word, Recall):
            for name in word.names:
                self.envelopes.recall(name)
            self.audit.append("recalled", names=list(word.names))

    # Taking part.

    def asked(self) -> list[Asked]:
        """The runs that wait for this party's owner."""
        found = []
        for work in self.works.all(("pending",)):
            offer = self._offer(work.run)
            found.append(Asked(work.run, offer.name, offer.submitter, offer.data, work.state, work.reason, offer.plan))
        return found

    def approve(self, run: str) -> None:
        """The owner says yes.

        Raises:
            ConfigError: no such run waits.
        """
        self._settle(run, "accepted", "")

    def refuse(self, run: str, reason: str) -> None:
        """The owner says no.

        Raises:
            ConfigError: no such run waits.
        """
        self._settle(run, "refused", reason or "its owner refused")

    def _settle(self, run: str, verdict: str, reason: str) -> None:
        if self.works.state(run) != "pending":
            raise ConfigError(f"no run {run!r} waits for an answer; see: hansa pending")
        self.audit.append("approved" if verdict == "accepted" else "refused", run=run, by="owner", reason=reason)
        if verdict == "refused":
            self._answer(self._offer(run), verdict, reason)
        else:
            self.works.set(run, "approved")
            self._look()

    def _look(self) -> None:
        """Consider the offers that have not been, as far as there is room."""
        room = self.settings.limits.runs_at_once - len(self.works.all(("looked at", "accepted", "started")))
        for work in self.works.all(("approved", "offered")):
            if room > 0:
                room -= 1
                if work.state == "approved":
                    self._answer(self._offer(work.run), "accepted", "")
                else:
                    self.works.set(work.run, "looked at")
                    self._spawn(self._consider(work.run))
            elif work.state == "offered" and not work.reason:
                # The hub must not take silence for absence.
                reason = f"{BUSY} with another run; it answers when that is over"
                self.works.set(work.run, "offered", reason)
                self._say(Answer(work.run, self._attempt(work.run), "pending", reason))

    async def _consider(self, run: str) -> None:
        offer = self._offer(run)
        try:
            described = await self._workers.describe(offer.plan)
            self.works.describe(run, described)
            reason = self._objection(offer, described)
            self.envelopes.pin(run, offer.certificates)
            if not reason and self.name in offer.roles[described.many]:
                self.works.measure(run, await self._workers.measure(self.settings.data[offer.data].plain()))
        except DataError as error:
            # Its sentence may name files, which are nobody's business but the owner's.
            self.log.warning("data cannot be used", run=run, data=offer.data, reason=str(error))
            reason = f"its data {offer.data!r} cannot be used; its own log says why"
        except HansaError as error:
            reason = str(error)
        if self._attempt(run) != offer.attempt or self.works.state(run) != "looked at":
            self._look()  # it ended meanwhile
            return
        manual = self.settings.policy.approval == "manual"
        self.audit.append("judged", run=run, plan=offer.digest, refused=bool(reason), reason=reason)
        if reason:
            self._answer(offer, "refused", reason)
        elif manual:
            self._answer(offer, "pending", f"hansa approve {run}")
        else:
            self._answer(offer, "accepted", "")
        self._look()

    def _objection(self, offer: Offer, described: Described) -> str:
        """Why this node takes no part; nothing if it does.

        Raises:
            PolicyRefused: its policy does not allow it.
        """
        if flaw := misfit(offer, described, self.name):
            return flaw
        owners = offer.roles[described.many]
        self._check(offer, described, owners)
        if self.name in owners and offer.data not in self.settings.data:
            return f"no data called {offer.data!r} are bound here"
        return ""

    def _check(self, offer: Offer, described: Described, owners: tuple[str, ...]) -> None:
        """Ask the policy about a run of these owners of data.

        Raises:
            PolicyRefused: it does not allow it.
        """
        server = next((offer.hosts[role] for role in offer.roles if role != described.many), "")
        request = RunRequest(offer.run, offer.digest, offer.submitter, offer.data, owners, server)
        check(self.settings.policy, described.terms, request)

    def _answer(self, offer: Offer, verdict: str, reason: str) -> None:
        self.works.set(offer.run, verdict, reason)
        self.log.info("answered", run=offer.run, verdict=verdict, reason=reason or None)
        address = self.settings.address or self.peers.address
        told = "" if address is None else str(address)
        shape = self.works.shape(offer.run) if verdict == "accepted" else None
        self._say(Answer(offer.run, offer.attempt, verdict, packets.sentence(reason), told, shape))

    def _begin(self, run: str) -> None:
        """Take up this node's part, from the beginning or from where it stood."""
        offer, start, described = self._offer(run), self.works.start(run), self.works.described(run)
        if start is None or described is None:
            return
        try:
            if flaw := deviation(start, offer, self.name):
                raise MessageError(flaw)
            # It may begin with fewer than were asked, and the policy has a word about how few.
            self._check(offer, described, start.roles[described.many])
            # They were valid when this node took part; a run may outlast them.
            self.envelopes.pin(run, offer.certificates, dated=False)
        except HansaError as error:
            self.log.warning("run refused", run=run, kind=type(error).__name__, reason=str(error))
            self.audit.append("refused", run=run, reason=str(error))
            for party, host in offer.hosts.items():
                if host == self.name:
                    why = packets.sentence(str(error))
                    self._say(Trouble(run, offer.attempt, party, type(error).__name__, why, fatal=True))
            return
        self._discloses[run] = described.classes
        parties = {party for names in start.roles.values() for party in names}
        bound = self.settings.data.get(offer.data)
        work = Work(
            run, offer.attempt, described.plan, start.roles,
            frozenset(name for name, role in described.roles.items() if role.starts),
            {party: host for party, host in offer.hosts.items() if party in parties},
            {} if bound is None else bound.plain(), start.shape,
        )  # fmt: skip
        self._seats[run], self._addresses[run] = work, start.addresses
        self.host.begin(work)
        self.peers.meet(self.name, start.addresses, set(offer.certificates) - {HUB})
        seconds = self.settings.limits.run
        self._limits[run] = asyncio.get_running_loop().call_later(seconds, self._overdue, work)

    def _end(self, word: End) -> None:
        run = word.run
        self._spawn(self.host.end(run))
        self._seats.pop(run, None)
        self._addresses.pop(run, None)
        self.envelopes.forget(run)
        timer = self._limits.pop(run, None)
        if timer is not None:
            timer.cancel()
        self.works.set(run, "ended", word.cause)
        self.audit.append("ended", run=run, status=word.status, cause=word.cause)
        self.log.info("run ended", run=run, status=word.status, cause=word.cause or None)
        self.mailbox.drop(run)
        self.link.forget(run)
        self.peers.forget(run)
        if word.status == "completed":
            self.journal.forget(run)
        else:
            self.journal.rewind(run)
        self._look()

    def _overdue(self, work: Work) -> None:
        failed = Failed(
            "Overdue", f"the run took longer than this node's limit of {self.settings.limits.run:g} s", "", 0.0
        )
        for party, host in work.hosts.items():
            if host == self.name:
                self.trouble(work, party, failed, fatal=True)
        self._spawn(self.host.end(work.run))

    # The courier of this node's programs.

    def send(self, work: Work, sender: str, receiver: str, body: Body) -> None:
        """To a party on another machine, sealed unless that is the hub."""
        host = work.hosts[receiver]
        kept = body
        if host != HUB:
            try:
                kept = self.envelopes.sealed(work, sender, receiver, body)
            except SealError as error:
                # The program goes on without this receiver, as it does without one that is away.
                self.log.warning("message withheld", run=work.run, party=sender, receiver=receiver, reason=str(error))
                self.audit.append("withheld", run=work.run, receiver=receiver, reason=str(error))
                return
            self.mailbox.pin(kept.blob)
        self.audit.sent(
            run=work.run,
            receiver=receiver,
            tag=body.tag,
            discloses=self._discloses.get(work.run, {}).get(body.tag, ""),
            bytes=kept.size,
        )
        self.metrics.messages.add("out", body.tag)
        self.metrics.bytes.add("out", by=kept.size)
        self.mailbox.put(self._way(work.run, host), work.run, sender, receiver, kept, sealed=host != HUB)
        if kept is not body:
            self.mailbox.unpin(kept.blob)

    def report(self, work: Work, party: str, body: Body) -> None:
        """To the owner of the run, by the hub."""
        frame = body.inline if body.inline is not None else bytes(self.spool.map(body.blob))
        self.audit.sent(run=work.run, receiver="observer", tag=body.tag, discloses=Progress.discloses, bytes=len(frame))
        self._say(Report(work.run, party, frame))

    def finished(self, work: Work, party: str, result: Body) -> None:
        """A party of this node that started by itself has ended; its result stays here."""
        self.mailbox.hold(result)
        self.works.keep_result(work.run, party, result)
        self._say(Finished(work.run, work.attempt, party))

    def trouble(self, work: Work, party: str, failed: Failed, fatal: bool) -> None:
        """A program failed; its traceback stays in this node's log."""
        what, remedy = packets.sentence(failed.what), packets.sentence(failed.remedy)
        self._say(Trouble(work.run, work.attempt, party, failed.kind[:64], what, failed.round, remedy, fatal))

    # Small things.

    def _way(self, run: str, host: str) -> str:
        """To whom a message for another machine is given: to that machine, or to the hub."""
        return host if host != HUB and Peers.direct(self.name, host, self._addresses.get(run, {})) else HUB

    def _together(self, other: str) -> bool:
        """Whether another node is in a run with this one."""
        return any(other in work.hosts.values() for work in self._seats.values())

    def _say(self, word: Answer | Report | Trouble | Finished) -> None:
        self.mailbox.put(HUB, "", "", "", packets.control(word))

    def _offer(self, run: str) -> Offer:
        if run not in self._offers:
            self._offers[run] = decode(self.works.offer(run), Offer, packets.MAX_PACKET)
        return self._offers[run]

    def _attempt(self, run: str) -> int:
        return self._offer(run).attempt if self.works.state(run) else 0

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
