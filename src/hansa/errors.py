"""Every error Hansa raises on purpose, in one tree.

::

    HansaError
    ├── ConfigError              what the user wrote is wrong; the CLI prints one sentence and exits with 2
    │   ├── PlanError            every mistake of a plan at once, each with its place
    │   ├── DataError            a source, a column, a value or a partition that cannot be used
    │   ├── MissingExtra         an optional library is not installed; names the extra
    │   └── ResumeError          a run folder that cannot be continued
    ├── MessageError             bytes or a value that is not an acceptable message
    │   ├── MalformedMessage     not a frame, or a frame that breaks its schema
    │   ├── UnknownMessage       a tag that the receiver does not accept
    │   └── OversizedMessage     more bytes than the receiver allows
    ├── RunError                 a run that could not go on; names the party, the round and what to do
    │   ├── DeadlineExpired      a bounded wait ended with nothing received
    │   ├── QuorumNotReached     fewer contributions than the round's quorum
    │   ├── Deadlock             every party waits and no message is under way
    │   ├── PartyFailed          a party's own program raised; carries its traceback
    │   ├── WorkerLost           a worker process ended by itself
    │   └── NonFinite            a model or an aggregate holds NaN or infinity
    ├── TrustError               something that does not prove what it must; nothing was done
    │   ├── IdentityError        a certificate, key, name or invitation that is wrong, expired, used or revoked
    │   ├── NotAuthorized        this identity may not do that to this object
    │   ├── PolicyRefused        a party's own policy does not allow a plan; names the line of the policy
    │   ├── SealError            an envelope that was forged, altered, replayed, reordered or meant for another
    │   └── AuditError           an audit log that is not what was written
    ├── LinkError                two parties cannot talk
    │   ├── Unreachable          nobody answers at the address
    │   └── VersionMismatch      the other side is too old or too new
    └── StoreError               durable state that cannot be written or read: a full disk, a damaged file
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class HansaError(Exception):
    """The root of the tree drawn in this module's docstring."""


class ConfigError(HansaError):
    """Something the user wrote cannot be used; the message says what, where, and what to do."""


class PlanError(ConfigError):
    """All mistakes of one plan.

    Args:
        mistakes: one sentence each, with its line where the plan came from a file.
        source: the file's name, or what stands for it.
    """

    def __init__(self, mistakes: Sequence[str], source: str = "plan") -> None:
        self.mistakes = tuple(mistakes)
        self.source = source
        super().__init__("\n".join(f"{source}: {mistake}" for mistake in self.mistakes))


class DataError(ConfigError):
    """A data source, column, value or partition that cannot be used."""


class MissingExtra(ConfigError):
    """An optional library is not installed.

    Args:
        what: the thing that needs it, as the user named it.
        extra: the extra of the ``hansa`` distribution that brings it.
    """

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs the '{extra}' extra: pip install 'hansa[{extra}]'")


class ResumeError(ConfigError):
    """A run folder that cannot be continued."""


class MessageError(HansaError):
    """Bytes or a value that is not an acceptable message."""


class MalformedMessage(MessageError):
    """Not a frame, or a frame whose content breaks its schema."""


class UnknownMessage(MessageError):
    """A well-formed frame whose tag the receiver does not accept."""


class OversizedMessage(MessageError):
    """A frame larger than the receiver's bound."""


class RunError(HansaError):
    """A run that could not go on.

    Args:
        what: what happened.
        party: the party concerned.
        round: the round concerned, if any.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, party: str = "", round: int | None = None, remedy: str = "") -> None:
        self.what = what
        self.party = party
        self.round = round
        self.remedy = remedy
        place = ", ".join(filter(None, [party, "" if round is None else f"round {round}"]))
        super().__init__(f"{place + ': ' if place else ''}{what}{'; ' + remedy if remedy else ''}")


class DeadlineExpired(RunError):
    """A bounded wait ended with nothing received."""


class QuorumNotReached(RunError):
    """A round ended with fewer contributions than its quorum."""


class Deadlock(RunError):
    """Every party waits and no message is under way."""


class PartyFailed(RunError):
    """A party's own program raised; ``traceback`` is that party's."""

    def __init__(self, what: str, *, party: str, round: int | None = None, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(what, party=party, round=round, remedy="its own traceback is kept with this error")


class WorkerLost(RunError):
    """A worker process ended by itself: no party's fault, so the run ends."""


class NonFinite(RunError):
    """A model or an aggregate holds NaN or infinity."""


class TrustError(HansaError):
    """Something that does not prove what it must; nothing was done."""


class IdentityError(TrustError):
    """A certificate, key, name or invitation that is wrong, expired, used or revoked."""


class NotAuthorized(TrustError):
    """This identity may not do that to this object."""


class PolicyRefused(TrustError):
    """A party's own policy does not allow a plan; the sentence names the line of the policy."""


class SealError(TrustError):
    """An envelope that was forged, altered, replayed, reordered or meant for another."""


class AuditError(TrustError):
    """An audit log that is not what was written."""


class LinkError(HansaError):
    """Two parties cannot talk."""


class Unreachable(LinkError):
    """Nobody answers at the address."""


class VersionMismatch(LinkError):
    """The other side is too old or too new."""


class StoreError(HansaError):
    """Durable state that cannot be written or read: a full disk, a damaged file."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown ``name``: a suggestion where one is near, else what is known.

    >>> nearest("fedvag", ["fedavg", "fedprox"])
    "did you mean 'fedavg'?"
    >>> nearest("zzz", ["fedavg", "fedprox"])
    'known: fedavg, fedprox'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
