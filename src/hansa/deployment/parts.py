"""A node's parts in runs that have begun: taken up, from the beginning or from where they stood, and laid down again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, final

from hansa.deployment import packets
from hansa.deployment.audit import AuditLog
from hansa.deployment.courier import NodeCourier, Part
from hansa.deployment.envelopes import Envelopes
from hansa.deployment.host import Host, Work
from hansa.deployment.identity.names import HUB
from hansa.deployment.logs import Log
from hansa.deployment.offers import deviation, require_allowed
from hansa.deployment.packets import End, Offer, Trouble
from hansa.deployment.peers import Peers
from hansa.deployment.settings import NodeSettings
from hansa.deployment.store import Journal, WorkTable
from hansa.deployment.worker.frames import Failed
from hansa.errors import HansaError, MessageError, StoreError


@final
class Parts:
    """One node's parts.

    Args:
        name: the node.
        settings: its file, as it is now.
        begun: its part in each run that has begun; kept here, read by others.
        works, journal: what it was asked, and how far its programs are.
        host: where its programs run.
        envelopes, peers: the keys of the others in a run, and the direct streams to them.
        courier: takes its words to the hub.
        audit, log: where what happens is noted.
        spawn: lets something go on by itself.
        drop: forgets the letters of a run.
        freed: called when the place of a run is free that the hub has not ended.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], NodeSettings],
        begun: MutableMapping[str, Part],
        works: WorkTable,
        journal: Journal,
        host: Host,
        envelopes: Envelopes,
        peers: Peers,
        courier: NodeCourier,
        audit: AuditLog,
        log: Log,
        spawn: Callable[[Awaitable[Any]], None],
        drop: Callable[[str], None],
        freed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._settings = settings
        self._begun = begun
        self._works = works
        self._journal = journal
        self._host = host
        self._envelopes = envelopes
        self._peers = peers
        self._courier = courier
        self._audit = audit
        self._log = log
        self._spawn = spawn
        self._drop = drop
        self._freed = freed
        self._clock = clock
        self._limits: dict[str, asyncio.TimerHandle] = {}

    def begin(self, run: str) -> None:
        """Take up this node's part in a run that it accepted, and that the hub has begun."""
        offer, start, described = self._works.offer(run), self._works.start(run), self._works.described(run)
        if start is None or described is None:
            return
        settings = self._settings()
        try:
            if flaw := deviation(start, offer, self._name):
                raise MessageError(flaw)
            # It may begin with fewer than were asked, and the policy has a word about how few.
            require_allowed(settings.policy, offer, described, start.roles[described.many])
            self._envelopes.pin(run, offer.certificates, self._works.recalled(run))
            self._envelopes.bind(run, start.epochs)
        except HansaError as error:
            self._envelopes.forget(run)
            self._works.set(run, "ended", packets.sentence(str(error)))
            self._decline(offer, error)
            self._freed()
            return
        parties = {party for names in start.roles.values() for party in names}
        bound = settings.data.get(offer.data)
        work = Work(
            run, offer.attempt, described.plan, start.roles,
            frozenset(name for name, role in described.roles.items() if role.starts),
            {party: host for party, host in offer.hosts.items() if party in parties},
            {} if bound is None else bound.plain(), start.shape,
        )  # fmt: skip
        self._begun[run] = Part(work, start.addresses, described.classes)
        self._host.begin(work)
        self._peers.meet(self._name, start.addresses, set(offer.certificates) - {HUB})
        now = self._clock()
        began = self._works.began(run)
        spent = max(0.0, now - (now if began is None else began))  # a clock may be set back
        left = max(0.0, settings.limits.run - spent)
        self._limits[run] = asyncio.get_running_loop().call_later(left, self._overdue, work)

    def end(self, word: End) -> None:
        """Lay it down: the run is over, or goes on without this node."""
        run = word.run
        self._spawn(self._host.end(run))
        self._begun.pop(run, None)
        self._envelopes.forget(run)
        timer = self._limits.pop(run, None)
        if timer is not None:
            timer.cancel()
        self._works.set(run, "ended", word.cause)
        self._audit.append("ended", run=run, status=word.status, cause=word.cause)
        self._log.info("run ended", run=run, status=word.status, cause=word.cause or None)
        self._drop(run)
        self._peers.forget(run)
        if word.status == "completed":
            self._journal.forget(run)
        else:
            self._journal.rewind(run)

    def set_back(self, run: str) -> None:
        """The machine lost its power, and with it letters of this run.

        Where the node's parties only answer the hub, they await its next word, as if they had not heard the last. Otherwise others
        count on what is lost, and have to hear that it will not come.
        """
        offer, described = self._works.offer(run), self._works.described(run)
        self._drop(run)
        self._journal.rewind(run)
        cause = "the node's machine lost its power, and with it letters under way"
        alone = not set(offer.certificates) - {HUB}
        starts = described is not None and any(
            described.roles[role].starts for role, names in offer.roles.items() if self._here(offer, names)
        )
        if alone and not starts:
            self._log.warning("letters lost", run=run, reason=cause)
            self._audit.append("set-back", run=run, cause=cause)
            return
        self._works.set(run, "ended", cause)
        self._decline(offer, StoreError(cause))

    def close(self) -> None:
        """Forget all timers."""
        for timer in self._limits.values():
            timer.cancel()

    def _here(self, offer: Offer, names: Sequence[str]) -> bool:
        return any(offer.hosts.get(name) == self._name for name in names)

    def _decline(self, offer: Offer, error: HansaError) -> None:
        """Say that this node's parties take no part after all."""
        self._log.warning("run refused", run=offer.run, kind=type(error).__name__, reason=str(error))
        self._audit.append("refused", run=offer.run, reason=str(error))
        for party, host in offer.hosts.items():
            if host == self._name:
                why = packets.sentence(str(error))
                self._courier.say(Trouble(offer.run, offer.attempt, party, type(error).__name__, why, fatal=True))

    def _overdue(self, work: Work) -> None:
        """Its time is over, and its place is another's: the hub may never say that it has ended."""
        cause = f"the run took longer than this node's limit of {self._settings().limits.run:g} s"
        failed = Failed("Overdue", cause, "", 0.0)
        for party, host in work.hosts.items():
            if host == self._name:
                self._courier.trouble(work, party, failed, fatal=True)
        self.end(End(work.run, work.attempt, "failed", cause))
        self._freed()
