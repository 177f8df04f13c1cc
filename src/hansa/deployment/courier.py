"""What leaves a node: letters of its programs, sealed and on record, and its words to the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from hansa.deployment import packets
from hansa.deployment.audit import AuditLog
from hansa.deployment.envelopes import Envelopes
from hansa.deployment.host import Work
from hansa.deployment.identity.names import HUB
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.packets import Answer, Finished, Report, Trouble
from hansa.deployment.peers import Peers
from hansa.deployment.running import MAX_PROGRESS
from hansa.deployment.store import Mailbox, WorkTable
from hansa.deployment.worker.frames import Body, Failed
from hansa.errors import SealError
from hansa.protocol import Progress


@final
@dataclass(frozen=True)
class Part:
    """A node's part in a run that has begun.

    Args:
        work: it.
        addresses: where the machines that have one may be dialled.
        discloses: for each class of message of the run, what it discloses.
    """

    work: Work
    addresses: Mapping[str, str]
    discloses: Mapping[str, str]

    def way(self, me: str, host: str) -> str:
        """To whom a message for another machine is given, and from whom one of it comes: that machine, or the hub."""
        return host if host != HUB and Peers.direct(me, host, self.addresses) else HUB


@final
class NodeCourier:
    """Takes what leaves a node's programs; see :class:`hansa.deployment.host.Courier`.

    Args:
        name: the node.
        begun: its part in each run that has begun.
        envelopes: seals what is not for the hub.
        mailbox, works: where everything is kept.
        audit: what leaves is written there first.
        log, metrics: where what happens is noted.
    """

    def __init__(
        self,
        name: str,
        begun: Mapping[str, Part],
        envelopes: Envelopes,
        mailbox: Mailbox,
        works: WorkTable,
        audit: AuditLog,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._name = name
        self._begun = begun
        self._envelopes = envelopes
        self._mailbox = mailbox
        self._works = works
        self._audit = audit
        self._log = log
        self._metrics = metrics

    def say(self, word: Answer | Report | Trouble | Finished) -> None:
        """A word to the hub."""
        self._mailbox.put(HUB, "", "", "", packets.control(word))

    def send(self, work: Work, sender: str, receiver: str, body: Body) -> None:
        """To a party on another machine, sealed unless that is the hub."""
        host, part = work.hosts[receiver], self._begun[work.run]
        kept = body
        if host != HUB:
            try:
                kept = self._envelopes.sealed(work, sender, receiver, body)
            except SealError as error:
                # The program goes on without this receiver, as it does without one that is away.
                self._log.warning("message withheld", run=work.run, party=sender, receiver=receiver, reason=str(error))
                self._audit.append("withheld", run=work.run, receiver=receiver, reason=str(error))
                return
            self._mailbox.pin(kept.blob)
        self._audit.sent(
            run=work.run, receiver=receiver, tag=body.tag, discloses=part.discloses.get(body.tag, ""), bytes=kept.size
        )
        self._metrics.messages.add("out", body.tag)
        self._metrics.bytes.add("out", by=kept.size)
        self._mailbox.put(part.way(self._name, host), work.run, sender, receiver, kept, sealed=host != HUB)
        if kept is not body:
            self._mailbox.unpin(kept.blob)

    def report(self, work: Work, party: str, body: Body) -> None:
        """To the owner of the run, by the hub."""
        frame = self._mailbox.frame(body)
        if len(frame) > MAX_PROGRESS:  # the hub would refuse it, and one that no packet holds would close the lane
            why = f"a report of {len(frame)} bytes, where {MAX_PROGRESS} are allowed; it is not sent"
            self.trouble(work, party, Failed("OversizedMessage", why, "", 0.0), fatal=False)
            return
        self._audit.sent(
            run=work.run, receiver="observer", tag=body.tag, discloses=Progress.discloses, bytes=len(frame)
        )
        self.say(Report(work.run, party, frame))

    def finished(self, work: Work, party: str, result: Body) -> None:
        """A party of this node that started by itself has ended; its result stays here."""
        before = self._works.results(work.run).get(party)
        self._mailbox.hold(result)
        self._works.keep_result(work.run, party, result)
        if before is not None:  # of an earlier attempt
            self._mailbox.release(before.blob)
        self.say(Finished(work.run, work.attempt, party))

    def trouble(self, work: Work, party: str, failed: Failed, fatal: bool) -> None:
        """A program failed; its traceback stays in this node's log."""
        what, remedy = packets.sentence(failed.what), packets.sentence(failed.remedy)
        self.say(Trouble(work.run, work.attempt, party, failed.kind[:64], what, failed.round, remedy, fatal))
