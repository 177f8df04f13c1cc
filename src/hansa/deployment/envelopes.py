"""A node's sealed letters: whose keys are whose in a run, and which number comes next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import final

from hansa.deployment.host import Work
from hansa.deployment.identity.certificates import read_undated
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.identity.keys import SealingPublic
from hansa.deployment.packets import LARGEST
from hansa.deployment.sealing import Envelope, Sequence, open_sealed, read_header, seal
from hansa.deployment.store import Mailbox, Parcel
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Spool
from hansa.errors import IdentityError, SealError


@final
class Envelopes:
    """Seals what leaves a node for another, and opens what comes.

    Args:
        own: the node's credentials, as they are now.
        mailbox: counts letters, in the transaction of what the letter is part of.
        spool: where large letters are.
        clock: POSIX seconds.
    """

    def __init__(
        self, own: Callable[[], Credentials], mailbox: Mailbox, spool: Spool, clock: Callable[[], float]
    ) -> None:
        self._own = own
        self._mailbox = mailbox
        self._spool = spool
        self._clock = clock
        self._pins = own().pins()
        self._keys: dict[tuple[str, str], SealingPublic] = {}
        self._epochs: dict[tuple[str, str], str] = {}

    def meet(self, certificates: Mapping[str, str], recalled: Collection[str] = ()) -> None:
        """Go on only if everybody in a run is who this node knows, or is new to it; their keys are not kept for the run.

        Args:
            certificates: PEM, by machine; valid now.
            recalled: machines whose certificates were revoked since they were given; they are met by nobody.

        Raises:
            IdentityError: as :meth:`pin`.
        """
        self._met(certificates, recalled, dated=True)

    def pin(self, run: str, certificates: Mapping[str, str], recalled: Collection[str] = ()) -> None:
        """Keep the keys of everybody in a run that begins, as their certificates say them, until :meth:`forget`.

        Args:
            run: it.
            certificates: PEM, by machine; they were valid when they were met, and a run may outlast them.
            recalled: machines whose certificates were revoked since they were given; nothing is kept of them.

        Raises:
            IdentityError: a certificate is not of the machine that it is given for, or its keys are not those that were seen
                when this node first met it.
        """
        self._keys.update({(run, name): keys for name, keys in self._met(certificates, recalled, dated=False).items()})

    def _met(self, certificates: Mapping[str, str], recalled: Collection[str], dated: bool) -> dict[str, SealingPublic]:
        keys: dict[str, SealingPublic] = {}
        for name, pem in certificates.items():
            if name in recalled:
                continue
            certificate = read_undated(pem.encode(), self._own().authority_pem)
            if dated:
                certificate.require_valid(self._clock())
            who = certificate.identity
            if who.name != name or who.kind not in ("node", "hub") or certificate.sealing is None:
                raise IdentityError(f"the certificate given for '{name}' is that of {who}")
            self._pins.pin(name, certificate.sealing)
            keys[name] = certificate.sealing
        return keys

    def bind(self, run: str, epochs: Mapping[str, str]) -> None:
        """Letters of a run are between these epochs of its machines: one that was restored since begins no second past."""
        self._epochs.update({(run, name): epoch for name, epoch in epochs.items()})

    def begun_with(self, name: str, epoch: str) -> frozenset[str]:
        """The runs that began with this epoch of a machine."""
        return frozenset(run for (run, other), known in self._epochs.items() if other == name and known == epoch)

    def recall(self, name: str) -> None:
        """Nothing is sealed for this machine, or opened from it, in the runs that it is in now."""
        for key in [key for key in self._keys if key[1] == name]:
            del self._keys[key]

    def forget(self, run: str) -> None:
        """A run is over."""
        for key in [key for key in self._keys if key[0] == run]:
            del self._keys[key]
        for key in [key for key in self._epochs if key[0] == run]:
            del self._epochs[key]

    def sealed(self, work: Work, sender: str, receiver: str, body: Body) -> Body:
        """A body in an envelope that only the receiver's machine can open.

        Raises:
            SealError: the receiver's keys are not known, or were recalled.
        """
        host = work.hosts[receiver]
        theirs, mine = self._theirs(work, host), self._own().sealing
        label = _label(work)
        bound = f"{label}/{self._mailbox.epoch}/{self._epoch(work, host)}"
        number = self._mailbox.number(label, sender, receiver)
        envelope = self._envelope(bound, self._own().identity.name, host, sender, receiver, body.tag, number)
        if body.inline is not None:
            closed = seal(envelope, body.inline, mine, theirs)
            return Body(body.tag, len(closed), closed)
        name = self._spool.fresh()
        seal(envelope, self._spool.path(body.blob), mine, theirs, to=self._spool.path(name))
        return Body(body.tag, self._spool.path(name).stat().st_size, None, name)

    def opened(self, work: Work, parcel: Parcel) -> Body:
        """What an envelope holds; its number counts as used in this turn's transaction.

        Raises:
            SealError: it is not the next letter of this sender to this receiver in this run, or not of the sender's machine.
        """
        host, body = work.hosts[parcel.sender], parcel.body
        theirs, mine = self._theirs(work, host), self._own().sealing
        label = _label(work)
        number = self._mailbox.last_number(label, parcel.sender, parcel.receiver) + 1
        source = body.inline if body.inline is not None else self._spool.path(body.blob)
        Sequence(number).accept(read_header(source).envelope.sequence)
        me = self._own().identity.name
        bound = f"{label}/{self._epoch(work, host)}/{self._mailbox.epoch}"
        expected = self._envelope(bound, host, me, parcel.sender, parcel.receiver, body.tag, number)
        if isinstance(source, bytes):
            frame = open_sealed(source, expected, mine, theirs)
            found = Body(body.tag, len(frame), frame)
        else:
            name = self._spool.fresh()
            open_sealed(source, expected, mine, theirs, to=self._spool.path(name), limit=LARGEST)
            found = Body(body.tag, self._spool.path(name).stat().st_size, None, name)
        self._mailbox.number(label, parcel.sender, parcel.receiver)
        return found

    def _theirs(self, work: Work, host: str) -> SealingPublic:
        theirs = self._keys.get((work.run, host))
        if theirs is None:
            raise SealError(f"the keys of '{host}' are not known in run {work.run}, or were recalled")
        return theirs

    def _epoch(self, work: Work, host: str) -> str:
        epoch = self._epochs.get((work.run, host))
        if epoch is None:
            raise SealError(f"run {work.run} began without the epoch of '{host}', to which its letters are bound")
        return epoch

    def _envelope(
        self, label: str, sender_host: str, receiver_host: str, sender: str, receiver: str, tag: str, number: int
    ) -> Envelope:
        federation = self._own().identity.federation
        return Envelope(federation, label, sender_host, receiver_host, sender, receiver, tag, number)


def _label(work: Work) -> str:
    """Of what letters are counted: each attempt begins anew."""
    return f"{work.run}/{work.attempt}"
