"""A party and its effects: everything that a role's program can do to the world.

A role is a coroutine that takes a :class:`Party`. The simulator and the deployment each implement these effects; a program
cannot tell which one runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar, final, overload

from hansa.examples import Shard
from hansa.message import Message
from hansa.rng import Key

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)
R = TypeVar("R")


class Party(ABC):
    """One member of a federation, as its own program sees it.

    Attributes:
        name: unique in the federation.
        data: this party's own examples.
        roster: the names of all parties by role; lazy sequences, so a million names cost nothing.
        saved: what this party saved last, or None; not None means the program runs again after a restart.
    """

    __slots__ = ()

    name: str
    data: Shard
    roster: Mapping[str, Sequence[str]]
    saved: Message | None

    @abstractmethod
    def send(self, to: str, message: Message) -> Awaitable[None]:
        """Send one message to the party named ``to``."""

    @overload
    def recv(self, kind: type[M], *, within: float | None, sender: str | None = None) -> Awaitable[tuple[str, M]]: ...
    @overload
    def recv(
        self, kind: tuple[type[M], type[N]], *, within: float | None, sender: str | None = None
    ) -> Awaitable[tuple[str, M | N]]: ...
    @abstractmethod
    def recv(
        self, kind: type[Message] | tuple[type[Message], ...], *, within: float | None, sender: str | None = None
    ) -> Awaitable[tuple[str, Message]]:
        """The oldest waiting message of ``kind`` and its sender; others stay where they are.

        Args:
            kind: a message class, or two of them.
            within: seconds to wait. None waits for ever, which is right only where the interpreter itself ends the wait
                (the message that starts a role is there already).
            sender: only messages of this party.

        Raises:
            DeadlineExpired: nothing came within the time.
        """

    @abstractmethod
    def compute(self, function: Callable[..., R], *arguments: object) -> Awaitable[R]:
        """``function(*arguments)``, a pure one; it may run elsewhere, later, or batched with equal calls of other parties."""

    @abstractmethod
    def save(self, state: Message) -> Awaitable[None]:
        """A durable point: after a restart the program runs again with ``state`` in ``saved``."""

    @abstractmethod
    def now(self) -> float:
        """Seconds on this party's clock (virtual in simulation)."""

    @abstractmethod
    def sleep(self, seconds: float) -> Awaitable[None]:
        """Wait on this party's clock."""

    @abstractmethod
    def rng(self, label: str, *indices: int) -> Key:
        """The key of this party's public randomness for ``label`` and ``indices``."""


async def tell(me: Party, parties: Iterable[str], message: Message) -> None:
    """Send the same message to each of ``parties``."""
    for party in parties:
        await me.send(party, message)


@final
class Roster(Sequence[str]):
    """The names ``prefix-0`` to ``prefix-(total-1)``, made when asked for.

    >>> names = Roster("client", 1_000_000)
    >>> names[7], names.index("client-999999"), "client-1000000" in names
    ('client-7', 999999, False)
    """

    __slots__ = ("prefix", "total")

    def __init__(self, prefix: str, total: int) -> None:
        self.prefix = prefix
        self.total = total

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [f"{self.prefix}-{i}" for i in range(*index.indices(self.total))]
        if not -self.total <= index < self.total:
            raise IndexError(index)
        return f"{self.prefix}-{index % self.total}"

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._number(name) is not None

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """The place of a name, in constant time."""
        number = self._number(value)
        if number is None or number < start or (stop is not None and number >= stop):
            raise ValueError(f"{value!r} is not in this roster")
        return number

    def _number(self, name: str) -> int | None:
        tail = name[len(self.prefix) + 1 :]
        if not tail.isdecimal():
            return None
        number = int(tail)
        # Written back, it must be the same text: one name a party, whatever digits there are.
        return number if number < self.total and name == f"{self.prefix}-{number}" else None


@final
class Named(Sequence[str]):
    """Given names, found in constant time.

    >>> Named(["cleveland", "hungary"]).index("hungary")
    1
    """

    __slots__ = ("_names", "_places")

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._places = {name: place for place, name in enumerate(self._names)}

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._names[index]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """The place of a name, in constant time."""
        place = self._places.get(value)
        if place is None or place < start or (stop is not None and place >= stop):
            raise ValueError(f"{value!r} is not in this roster")
        return place
