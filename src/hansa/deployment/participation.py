"""What a node takes part in: the offers that it was made, what its policy and its owner say to them, and its answers.

Nobody but the owner of a node decides here. An offer is read by the node's own worker, held against its policy and its data, and
where the owner wants to be asked, it waits for the owner.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, final

from hansa.deployment import packets
from hansa.deployment.audit import AuditLog
from hansa.deployment.courier import NodeCourier
from hansa.deployment.envelopes import Envelopes
from hansa.deployment.host import Workers
from hansa.deployment.logs import Log
from hansa.deployment.offers import misfit, require_allowed, untimely
from hansa.deployment.packets import BUSY, Answer, Offer
from hansa.deployment.quantity import Address
from hansa.deployment.settings import NodeSettings
from hansa.deployment.store import WorkTable
from hansa.deployment.worker.frames import Described
from hansa.errors import ConfigError, DataError, HansaError, MessageError


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
class Participation:
    """One node's decisions.

    Args:
        name: the node.
        settings: its file, as it is now.
        workers: read plans and measure data.
        works: what it was asked, and what it answered.
        envelopes: know those whom this node has met.
        courier: takes its answers to the hub.
        address: where other nodes may dial it, if they may.
        audit, log: where what happens is noted.
        clock: POSIX seconds.
        spawn: lets something go on by itself.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], NodeSettings],
        workers: Workers,
        works: WorkTable,
        envelopes: Envelopes,
        courier: NodeCourier,
        address: Callable[[], Address | None],
        audit: AuditLog,
        log: Log,
        clock: Callable[[], float],
        spawn: Callable[[Awaitable[Any]], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._workers = workers
        self._works = works
        self._envelopes = envelopes
        self._courier = courier
        self._address = address
        self._audit = audit
        self._log = log
        self._clock = clock
        self._spawn = spawn

    def offered(self, offer: Offer) -> None:
        """The hub asks.

        Raises:
            MessageError: it may not ask this now.
        """
        if self._works.lapsed(offer.run):
            # Others go on from what they saved, or say again what was sealed to this node in that run.
            reason = f"what it had of run {offer.run} was forgotten, as that was long over; submit the plan anew"
            self._audit.append("refused", run=offer.run, reason=reason)
            self._courier.say(Answer(offer.run, offer.attempt, "refused", reason))
            return
        state, waiting = self._works.state(offer.run), len(self._works.all(("offered", "looked at", "pending")))
        if flaw := untimely(offer, state, self._works.attempt(offer.run), waiting):
            raise MessageError(flaw)
        self._works.offered(offer, self._clock())
        self._audit.append(
            "asked", run=offer.run, plan=offer.digest, submitter=offer.submitter, data=offer.data, attempt=offer.attempt
        )
        self.look()

    def asked(self) -> list[Asked]:
        """The runs that wait for this party's owner."""
        found = []
        for work in self._works.all(("pending",)):
            offer = self._works.offer(work.run)
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
        if self._works.state(run) != "pending":
            raise ConfigError(f"no run {run!r} waits for an answer; see: hansa pending")
        self._audit.append("approved" if verdict == "accepted" else "refused", run=run, by="owner", reason=reason)
        if verdict == "refused":
            self._answer(self._works.offer(run), verdict, reason)
        else:
            self._works.set(run, "approved")
            self.look()

    def look(self) -> None:
        """Consider the offers that have not been, as far as there is room."""
        room = self._settings().limits.runs_at_once - len(self._works.all(("looked at", "accepted", "started")))
        for work in self._works.all(("approved", "offered")):
            if room > 0:
                room -= 1
                if work.state == "approved":
                    self._answer(self._works.offer(work.run), "accepted", "")
                else:
                    self._works.set(work.run, "looked at")
                    self._spawn(self._consider(work.run))
            elif work.state == "offered" and not work.reason:
                # The hub must not take silence for absence.
                reason = f"{BUSY} with another run; it answers when that is over"
                self._works.set(work.run, "offered", reason)
                self._courier.say(Answer(work.run, self._works.attempt(work.run), "pending", reason))

    async def _consider(self, run: str) -> None:
        offer = self._works.offer(run)
        try:
            reason = await self._found(offer)
        except DataError as error:
            # Its sentence may name files, which are nobody's business but the owner's.
            self._log.warning("data cannot be used", run=run, data=offer.data, reason=str(error))
            reason = f"its data {offer.data!r} cannot be used; its own log says why"
        except HansaError as error:
            reason = str(error)
        if not self._stands(offer):
            self.look()
            return
        manual = self._settings().policy.approval == "manual"
        self._audit.append("judged", run=run, plan=offer.digest, refused=bool(reason), reason=reason)
        if reason:
            self._answer(offer, "refused", reason)
        elif manual:
            self._answer(offer, "pending", f"hansa approve {run}")
        else:
            self._answer(offer, "accepted", "")
        self.look()

    async def _found(self, offer: Offer) -> str:
        """Why this node takes no part; nothing if it does. Of an offer that ended meanwhile nothing is kept.

        Raises:
            HansaError: why, too.
        """
        described = await self._workers.describe(offer.plan)
        if not self._stands(offer):
            return ""
        self._works.describe(offer.run, described)
        reason = self._objection(offer, described)
        self._envelopes.meet(offer.certificates, self._works.recalled(offer.run))
        if not reason and self._name in offer.roles[described.many]:
            shape = await self._workers.measure(self._settings().data[offer.data].plain())
            if self._stands(offer):
                self._works.measure(offer.run, shape)
        return reason

    def _stands(self, offer: Offer) -> bool:
        """Whether this is still what is looked at: the hub may have ended it, and offered the run anew."""
        return self._works.attempt(offer.run) == offer.attempt and self._works.state(offer.run) == "looked at"

    def _objection(self, offer: Offer, described: Described) -> str:
        """Why this node takes no part; nothing if it does.

        Raises:
            PolicyRefused: its policy does not allow it.
        """
        if flaw := misfit(offer, described, self._name):
            return flaw
        owners, settings = offer.roles[described.many], self._settings()
        require_allowed(settings.policy, offer, described, owners)
        if self._name in owners and offer.data not in settings.data:
            return f"no data called {offer.data!r} are bound here"
        return ""

    def _answer(self, offer: Offer, verdict: str, reason: str) -> None:
        self._works.set(offer.run, verdict, reason)
        self._log.info("answered", run=offer.run, verdict=verdict, reason=reason or None)
        address = self._address()
        told = "" if address is None else str(address)
        shape = self._works.shape(offer.run) if verdict == "accepted" else None
        self._courier.say(Answer(offer.run, offer.attempt, verdict, packets.sentence(reason), told, shape))
