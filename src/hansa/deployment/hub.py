"""The hub: one process, one port, to which everybody dials.

It keeps the members and the runs, relays what parties send each other without being able to read it, and runs those programs that
plans place on it, the server's as a rule. All that it must remember is in its home, so it may be killed at any instant.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, final

from hansa.deployment import api, membership, packets
from hansa.deployment.audit import AuditLog
from hansa.deployment.founder import Founder
from hansa.deployment.gate import Gate
from hansa.deployment.host import Host, Workers
from hansa.deployment.identity.authority import Authority
from hansa.deployment.identity.certificates import Certificate, read, read_undated
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.identity.invitation import make_invitation
from hansa.deployment.identity.keys import SealingKeys, make_tls_key
from hansa.deployment.identity.names import HUB, member_kind, party_name
from hansa.deployment.identity.request import make_request, read_request, renewable
from hansa.deployment.link import Link
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.packets import Farewell, Hello, Probe, Refused, Sending
from hansa.deployment.quantity import Address
from hansa.deployment.retention import Retention
from hansa.deployment.runs import Runs
from hansa.deployment.settings import HubSettings
from hansa.deployment.store import Database, Journal, Mailbox, Member, MemberTable, Parcel, Power, Record
from hansa.deployment.worker.spool import Spool
from hansa.errors import ConfigError, IdentityError, MessageError, StoreError
from hansa.message import decode

ALIVE: Final = 2.0
"""Seconds that a connected node has to answer when another process claims to be it."""


def create(home: Path, federation: str, operator: str, settings: HubSettings, now: float) -> None:
    """Make a federation: its authority, the hub's identity, and the operator's, in a folder beside.

    Args:
        home: the hub's home.
        federation, operator: names.
        settings: of the hub.
        now: POSIX seconds.

    Raises:
        IdentityError: there is a federation already, or a name cannot be used.
    """
    party_name(operator, "operator's name")
    authority = Authority.create(
        home / "authority", party_name(federation, "federation"), now, settings.certificates.authority
    )
    with contextlib.closing(Database(home / "hub.db")) as database, database.at_once():
        key, sealing = make_tls_key(), SealingKeys.make()
        request = read_request(make_request(operator, key, sealing))
        pem = authority.issue_member(request, "operator", operator, now, settings.certificates.person)
        certificate = read(pem, authority.certificate_pem, now)
        MemberTable(database).certified(operator, "operator", certificate.serial, pem, now)
        MemberTable(database).found(operator, sealing.public.fingerprint)
    address = str(settings.address or settings.listen)
    Credentials.save_new(home / "operator", authority.certificate_pem, pem, key, sealing, (address,), now)
    # Last, because a home with the hub's identity is a federation: one that nobody can operate must not look like one.
    key, sealing = make_tls_key(), SealingKeys.make()
    pem = authority.issue_hub(key.public_key(), sealing.public, now, settings.certificates.hub)
    Credentials.save_new(home, authority.certificate_pem, pem, key, sealing, (), now)


@final
class Hub:
    """A federation's hub.

    Args:
        home: its home, made by :func:`create`.
        settings: of the hub.
        workers: where its own programs run.
        log, metrics: where what happens is noted.
        clock: POSIX seconds.

    Raises:
        IdentityError: there is no federation in ``home``.
        StoreError: the home is in use, or damaged.
    """

    def __init__(
        self,
        home: Path,
        settings: HubSettings,
        workers: Workers,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not has_identity(home):
            raise IdentityError(f"there is no federation in {home}; make one with: hansa hub --federation NAME")
        self.home = home
        self.settings = settings
        self.log = log
        self.metrics = metrics
        self.clock = clock
        self.authority = Authority.open(home / "authority")
        self.credentials = Credentials.load(home, clock(), even_expired=True)
        self.renew()
        self.database = Database(home / "hub.db")
        self.spool = Spool(home / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.power = Power(self.database, self.spool)
        self.journal = Journal(self.database, self.mailbox)
        self.members = MemberTable(self.database)
        self.audit = AuditLog(home / "audit.log", clock, key=self.credentials.sealing.sign)
        self.founder = Founder(home / "operator", self.database, self.members, self._certify, self.log, clock)
        self.runs = Runs(
            self.database, self.mailbox, self.journal, self.members, workers, settings,
            lambda: self.credentials.certificate.pem, self.connected, log, metrics, clock,
        )  # fmt: skip
        self.host = Host(
            HUB, self.database, self.mailbox, self.journal, workers, self.runs.running, self.spool.folder, log
        )  # fmt: skip
        self.runs.running.host = self.host
        self.runs.over = self._over
        self.retention = Retention(
            self.database, self.audit, log, settings.limits.keep, self._due, self.runs.forget,
            lambda run: self.runs.table.get(run) is not None, clock, home / "runs",
        )  # fmt: skip
        self.address: Address | None = None
        self.draining = False
        self._links: dict[str, Link] = {}
        self._gate = Gate()
        self._streams: dict[str, _Stream] = {}
        self._guests: dict[str, set[Callable[[str], None]]] = {}
        self._broken: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        self.database.failed = self.host.broken = self._break

    async def start(self) -> None:
        """Go on with what was under way."""
        self.founder.renew()
        with self.database.at_once():
            doubtful = self.power.doubtful()
            self.mailbox.sweep()
            self.runs.recover(doubtful)
        self.retention.look()

    async def broken(self) -> StoreError:
        """Wait until the disk fails, after which this process must end and begin again."""
        return await asyncio.shield(self._broken)

    async def drain(self, reason: str = "the hub is going away") -> None:
        """Take nothing new, and say farewell to all nodes."""
        self.draining = True
        await asyncio.gather(*(self._part(name, reason) for name in list(self._streams)))

    async def close(self) -> None:
        """Stop the programs where they stand, and close the files."""
        self.retention.close()
        self.runs.close()
        await self.host.close()
        self.power.settle()
        self.database.close()
        self.audit.close()

    def connected(self, node: str) -> bool:
        """Whether a node's stream stands."""
        return node in self._streams

    def nodes(self) -> int:
        """How many nodes are connected."""
        return len(self._streams)

    def renew(self) -> None:
        """Give the hub itself a new certificate, if it is time."""
        now = self.clock()
        if self.credentials.renew_due(now):
            key = make_tls_key()
            pem = self.authority.issue_hub(
                key.public_key(), self.credentials.sealing.public, now, self.settings.certificates.hub
            )
            self.credentials = self.credentials.replace_certificate(pem, key, now)
            self.log.info("certificate renewed", until=self.credentials.certificate.not_after)
        self.metrics.certificate_end.set(self.credentials.certificate.not_after)

    # Runs that are over.

    def forget(self, run: str, by: str) -> None:
        """Forget a run that has ended: its result, what its programs saved, its events and its files.

        Raises:
            ConfigError: it has not ended.
        """
        self.retention.forget(run, _told(self.runs.require_over(run), by))

    def _due(self, until: float, most: int) -> list[tuple[str, Mapping[str, str]]]:
        by = f"the hub, as [limits] keep is {self.settings.limits.keep / 86400:g} days"
        return [(record.run, _told(record, by)) for record in self.runs.table.over(until, most)]

    # Membership.

    def verified(self, pem: bytes) -> Certificate:
        """Who calls, by the certificate that TLS has seen.

        Raises:
            IdentityError: it does not count, or not any more.
        """
        certificate = read(pem, self.authority.certificate_pem, self.clock())
        if certificate.identity.kind == "hub":
            raise IdentityError("the hub does not call itself; somebody uses its certificate")
        self.require_counts(certificate)
        return certificate

    def require_counts(self, certificate: Certificate) -> None:
        """Go on only if a certificate was issued here and was not revoked since it was read.

        Raises:
            IdentityError: it was.
        """
        who = certificate.identity
        if who.kind == "invited" or self.members.counts(certificate.serial):
            return
        if not membership.adopted(self.members, self.audit, certificate, self.authority.certificate_pem):
            raise IdentityError(membership.unknown(self.members, certificate))

    @contextlib.contextmanager
    def guest(self, who: Certificate, close: Callable[[str], None]) -> Iterator[None]:
        """Somebody who is being told something at length; ``close`` ends it when the certificate counts no more."""
        name = who.identity.name
        guests = self._guests.setdefault(name, set())
        guests.add(close)
        left = max(0.0, who.not_after - self.clock())
        expiry = asyncio.get_running_loop().call_later(left, close, f"the certificate of '{name}' has expired")
        try:
            yield
        finally:
            expiry.cancel()
            guests.discard(close)
            if not guests:
                self._guests.pop(name, None)

    def invite(self, word: api.Invite, by: str) -> api.Invited:
        """A token for a new member.

        Raises:
            IdentityError: the name cannot be used, or belongs to a member.
            ConfigError: it would last too long.
        """
        name, kind = party_name(word.name), member_kind(word.kind)
        member = self.members.get(name)
        if member is not None and self._current(member):
            raise IdentityError(f"'{name}' is a member already; revoke it first, or invite another name")
        longest = 30 * 86400.0
        seconds = word.seconds or self.settings.certificates.invitation
        if not 0 < seconds <= longest:
            raise ConfigError(
                f"an invitation is good for more than 0 and at most {longest:,.0f} seconds, not {seconds:,g}"
            )
        now = self.clock()
        token, serial = make_invitation(
            self.authority,
            (str(self.settings.address or self.address or self.settings.listen),),
            kind,
            name,
            now,
            seconds,
        )
        self.members.invite(serial, name, kind, now + seconds)
        self.audit.append("invited", name=name, member=kind, by=by)
        self.log.info("invited", peer=name, kind=kind, by=by)
        return api.Invited(token, now + seconds)

    def enrol(self, invited: Certificate, word: api.Enrol) -> api.Certified:
        """Make a member of whoever holds an invitation.

        Raises:
            IdentityError: the invitation does not count, or the request is not for its name.
        """
        who, now = invited.identity, self.clock()
        request = read_request(word.request)
        if request.name != who.name:
            raise IdentityError(f"the invitation is for '{who.name}', not for '{request.name}'")
        given = self.members.used(invited.serial, request.fingerprint, now)
        if given is not None:
            return api.Certified(given)
        member = self.members.get(who.name)
        if member is not None and self._current(member):
            raise IdentityError(f"'{who.name}' is a member already; ask the operator to revoke it first")
        before = (
            read_undated(member.certificate, self.authority.certificate_pem).sealing if member is not None else None
        )
        if before is not None and not request.sealing.same_as(before):
            # Another home has the name from now on, and knows nothing of the old one's lanes.
            self.mailbox.forget(who.name)
            self._links.pop(who.name, None)
            self.runs.lost(who.name, f"{who.name} has another home, and its part is lost")
        assert who.admits is not None
        pem = self._certify(request_bytes=word.request, kind=who.admits, name=who.name)
        self.members.burn(invited.serial, request.fingerprint, pem)
        return api.Certified(pem)

    def renewed(self, current: Certificate, word: api.Renew) -> api.Certified:
        """A new certificate for a member, with the sealing keys that it has.

        Raises:
            IdentityError: it asks for another name or other sealing keys.
        """
        renewable(current, read_request(word.request))
        return api.Certified(self._certify(word.request, current.identity.kind, current.identity.name))

    def _current(self, member: Member) -> bool:
        """Whether a member's certificate counts today; one whose certificate ran out joins anew."""
        ends = read_undated(member.certificate, self.authority.certificate_pem).not_after
        return member.revoked is None and self.clock() <= ends

    def _certify(self, request_bytes: bytes, kind: str, name: str) -> bytes:
        times, now = self.settings.certificates, self.clock()
        seconds = times.node if kind == "node" else times.person
        pem = self.authority.issue_member(read_request(request_bytes), member_kind(kind), name, now, seconds)
        certificate = read(pem, self.authority.certificate_pem, now)
        self.members.certified(name, kind, certificate.serial, pem, now)
        sealing = certificate.sealing.fingerprint if certificate.sealing is not None else ""
        self.audit.append("certified", name=name, member=kind, serial=f"{certificate.serial:x}", sealing=sealing)
        self.log.info("certified", peer=name, kind=kind)
        return pem

    async def revoke(self, name: str, by: str) -> None:
        """Nothing of this member counts any more, from now on.

        Raises:
            ConfigError: there is no such member, or it is the only operator.
        """
        membership.revoke(self.members, self.mailbox, self.audit, name, by, self.clock())
        self.log.warning("revoked", peer=name, by=by)
        self.database.commit()
        for close in list(self._guests.get(name, ())):
            close("your certificate was revoked")
        await self._part(name, "your certificate was revoked")

    def member_view(self, member: Member) -> api.MemberView:
        """A member, for those who may see it."""
        certificate = read_undated(member.certificate, self.authority.certificate_pem)
        sealing = certificate.sealing.fingerprint if certificate.sealing is not None else ""
        state = "revoked" if member.revoked is not None else "connected" if self.connected(member.name) else "away"
        if member.kind != "node" and state == "away":
            state = "member"
        return api.MemberView(
            member.name, member.kind, state, sealing, member.since, certificate.not_after, member.seen
        )

    # The standing streams.

    @contextlib.asynccontextmanager
    async def stream(self, node: Certificate, hello: Hello, close: Callable[[str], None]) -> AsyncIterator[Link]:
        """A node's stream, while it stands; there is one for each node. ``close`` ends it and says why.

        Raises:
            IdentityError: another process with this identity is connected, and alive.
        """
        name = node.identity.name
        while (other := self._streams.get(name)) is not None:  # while one waits here, another may come
            if other.instance != hello.instance and await self._alive(name):
                raise IdentityError(
                    f"'{name}' is connected from another process; two nodes must not share one identity: stop one, or if it is "
                    f"not yours, tell the operator to revoke '{name}'"
                )
            if self._streams.get(name) is other:
                await self._part(name, "the node has connected anew", at_once=True)
        self.require_counts(node)
        link = self._links.get(name)
        if link is None:
            link = Link(
                name,
                self.database,
                self.mailbox,
                self.spool,
                self,
                self.settings.limits.message,
                self.settings.limits.spool,
                gate=self._gate,
            )
            self._links[name] = link
        if link.meet(hello.epoch):
            self.log.warning("node was restored from a backup", peer=name)
            self.audit.append("restored", peer=name)
            self.runs.lost(name, f"{name} was restored from a backup, and its part is lost")
        stream = self._streams[name] = _Stream(hello.instance, close)
        left = max(0.0, node.not_after - self.clock())
        expiry = asyncio.get_running_loop().call_later(left, close, f"the certificate of '{name}' has expired")
        self.members.saw(name, self.clock())
        self.metrics.nodes_connected.set(len(self._streams))
        self.log.info("node connected", peer=name, software=hello.software)
        self.runs.running.came(name)
        try:
            yield link
        finally:
            expiry.cancel()
            if self._streams.get(name) is stream:
                del self._streams[name]
            stream.over.set()
            self.metrics.nodes_connected.set(len(self._streams))
            self.log.info("node gone", peer=name)
            if not self.draining:
                with contextlib.suppress(StoreError):
                    self.members.saw(name, self.clock())
                    self.runs.running.left(name)

    async def _alive(self, name: str) -> bool:
        link = self._links[name]
        try:
            async with asyncio.timeout(ALIVE):
                # A word that is said before the stream stands would be lost.
                await link.standing.wait()
                link.probed.clear()
                link.say(Probe(secrets.randbits(63)))
                await link.probed.wait()
        except TimeoutError:
            return False
        return True

    async def _part(self, name: str, reason: str, at_once: bool = False) -> None:
        stream = self._streams.get(name)
        if stream is None:
            return
        if not at_once:
            self._links[name].say(Farewell(reason))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALIVE):
                    await stream.over.wait()
        if not stream.over.is_set():
            stream.close(reason)
            await stream.over.wait()

    # What arrives on them.

    def admit(self, peer: str, sending: Sending) -> str:
        """See :class:`hansa.deployment.link.Desk`."""
        if not sending.run:
            return "" if sending.inline is not None else "control is never large"
        sender = self.runs.running.seat_of(sending.run, sending.sender)
        receiver = self.runs.running.seat_of(sending.run, sending.receiver)
        if not sender or not receiver:
            return _OVER
        if sender != peer:
            self.log.warning("spoke for another", peer=peer, run=sending.run, party=sending.sender)
            self.metrics.refusals.add("another's name")
            return f"'{sending.sender}' is not yours to speak for"
        if sending.sealed != (receiver != HUB):
            self.metrics.refusals.add("sealing")
            return "a message for another party must be sealed, and one for the hub must not"
        return ""

    def take(self, peer: str, parcel: Parcel) -> str:
        """See :class:`hansa.deployment.link.Desk`."""
        self.metrics.messages.add("in", parcel.body.tag)
        self.metrics.bytes.add("in", by=parcel.body.size)
        if not parcel.run:
            try:
                word = decode(parcel.body.inline or b"", packets.TO_HUB, packets.MAX_PACKET)
            except MessageError as error:
                self.log.warning("control refused", peer=peer, reason=str(error))
                return str(error)
            flaw = self.runs.heard(peer, word)  # type: ignore[arg-type]
            if flaw:
                self.log.warning("control refused", peer=peer, reason=flaw)
            return flaw
        receiver = self.runs.running.seat_of(parcel.run, parcel.receiver)
        if receiver == HUB:
            self.host.deliver(parcel.run, parcel.sender, parcel.receiver, parcel.body)
        else:
            self.mailbox.put(receiver, parcel.run, parcel.sender, parcel.receiver, parcel.body, sealed=True)
        return ""

    def refused(self, peer: str, refused: Refused) -> None:
        """See :class:`hansa.deployment.link.Desk`."""
        self.metrics.refusals.add("by a node")
        self.log.warning("a node refused a message", peer=peer, run=refused.run or None, reason=refused.reason)
        self.runs.running.refused(refused.run, peer, refused.reason)

    def _over(self, run: str) -> None:
        for link in self._links.values():
            link.forget(run)

    def _break(self, error: StoreError) -> None:
        if not self._broken.done():
            self._broken.set_result(error)


@final
class _Stream:
    """A node's stream: which process it is of, and how to end it."""

    def __init__(self, instance: str, close: Callable[[str], None]) -> None:
        self.instance = instance
        self.close = close
        self.over = asyncio.Event()


def _told(record: Record, by: str) -> Mapping[str, str]:
    """What the audit log says of a run that is forgotten."""
    return {"name": record.name, "owner": " ".join(record.owner), "status": record.status, "by": by}


_OVER: Final = "the run is not running, or has no such party"
