"""Protocols: who tells whom what.

A :class:`Protocol` gives each role a program. An :class:`Aggregation` is the small protocol inside most of them: n parties each
hold an X, one ends with a Y. Both are values; a simulator and a network run them alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from hansa.learner import Learner
from hansa.message import Message
from hansa.party import Party

X = TypeVar("X")
Y = TypeVar("Y")
X_in = TypeVar("X_in", contravariant=True)
Y_out = TypeVar("Y_out", covariant=True)

OBSERVER: Final = "observer"
"""The party of the run's owner: it receives :class:`Progress` and sends nothing."""


class Progress(Message, frozen=True):
    """What a protocol tells the owner of the run after each round.

    Args:
        round: which one; 0 before the first.
        metrics: averaged over parties, or of a central test set.
        parties: for each party that was evaluated, its own metrics.
        note: for people.
    """

    tag = "hansa.progress/1"
    discloses = "a round's averaged metrics, and the metrics of each party that was evaluated, to the owner of the run"

    round: int
    metrics: dict[str, float]
    parties: dict[str, dict[str, float]] = {}
    note: str = ""


class Withdraw(Message, frozen=True):
    """A party's word that it will not contribute to a round."""

    tag = "hansa.withdraw/1"
    discloses = "that this party could not take part in this round, and the kind of the error"

    round: int
    reason: str


@dataclass(frozen=True)
class Role:
    """A program and what the interpreter must know about it.

    Args:
        program: the coroutine function.
        receives: every message class that it accepts; anything else is refused before the program sees it.
        starts: it runs from the beginning. Otherwise a message of ``invitations`` starts it, and it runs once for each.
        invitations: the classes that start it; a message of another class that finds no running program is stale, and dropped.
        many: the parties that own the data have this role; otherwise one party, named as the role, has it.
        peers: its parties write to each other, and not only to those of other roles. Over a network, parties that do not cannot.
        saves: the class of its saved state, or None.
        continuous: it may save while contributions to it are under way or unread, as an asynchronous server does. A simulator
            then keeps each update for itself instead of as a row of its batch, so that a run resumed there sums alike.
    """

    program: Callable[[Party], Coroutine[Any, Any, Any]]
    receives: tuple[type[Message], ...]
    starts: bool = False
    invitations: tuple[type[Message], ...] = ()
    many: bool = False
    peers: bool = False
    saves: type[Message] | None = None
    continuous: bool = False


class Protocol(ABC):
    """What a federation does. A frozen dataclass that names its settings and gives each role its program."""

    @abstractmethod
    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        """The programs by role, for a plan's learner and aggregation.

        Raises:
            PlanError: this protocol cannot run with them; says why.
        """

    def needed_parties(self) -> tuple[int, str]:
        """How many parties that own data there must be, and the setting that says so: with fewer, its programs refuse to begin.

        Whoever gathers the parties asks; a protocol that runs with any number need not say so.
        """
        return 1, ""


@dataclass(frozen=True)
class Gathering:
    """One round's wait for contributions.

    Args:
        invited: the parties that may contribute, each with the number of the round it was invited to; in the order in which
            their contributions are added up.
        deadline: when the wait ends, on the collector's clock.
        quorum: the least number of contributions; fewer raise.
        enough: the number at which the wait ends early.
        factor: the factor on a contribution invited to a round (staleness), 1 by default.
        size: the length that every contributed vector must have.
        bound: the L2 bound that every contribution must keep; set by the pipeline's own clip, never by what was received.
        dtype: the dtype that every contributed vector must have; None takes float32 and float64.
    """

    invited: Mapping[str, int]
    deadline: float
    quorum: int
    enough: int
    size: int
    factor: Callable[[int], float] | None = None
    bound: float | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Collected(Generic[Y]):
    """An aggregate and who is in it.

    Args:
        value: the aggregate.
        contributors: the parties in it, in the order of arrival.
        refused: parties that answered with something unusable, or withdrew, and why.
    """

    value: Y
    contributors: Sequence[str]
    refused: Mapping[str, str] = field(default_factory=dict)


class Aggregation(ABC, Generic[X_in, Y_out]):
    """n parties each hold an X, one party ends with a Y. Composes with ``|`` (see ``hansa.pipeline``)."""

    @property
    @abstractmethod
    def messages(self) -> tuple[type[Message], ...]:
        """The classes that travel from contributor to collector."""

    @property
    @abstractmethod
    def answers(self) -> tuple[type[Message], ...]:
        """The classes that travel from collector to contributor."""

    @abstractmethod
    async def contribute(self, me: Party, to: str, round: int, value: X_in) -> None:
        """The contributor's program."""

    @abstractmethod
    async def collect(self, me: Party, gathering: Gathering) -> Collected[Y_out]:
        """The collector's program.

        Raises:
            QuorumNotReached: the wait ended with fewer than the quorum.
        """


@dataclass(frozen=True)
class View:
    """What one party has seen: its own data and the messages it received, in order.

    A privacy claim is a statement about a view; tests assert on it.
    """

    party: str
    messages: Sequence[tuple[str, Message]]

    def of(self, kind: type[Message]) -> list[Message]:
        """The received messages of one class."""
        return [message for _, message in self.messages if type(message) is kind]
