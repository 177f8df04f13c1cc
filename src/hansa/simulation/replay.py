"""Replay: one party's program again, alone, against the messages that it received in a recorded run.

A party that failed, or sent something odd, is looked at without its federation: the same program with the same data hears the
same messages, in a debugger if need be, and must say the same again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar, final

import numpy as np

from hansa.data import FederatedData
from hansa.errors import ConfigError, DeadlineExpired
from hansa.examples import Examples, Shard
from hansa.message import Message
from hansa.party import Named, Party
from hansa.protocol import View
from hansa.rng import Key
from hansa.simulation.run import Run

R = TypeVar("R")


def replay(run: Run, data: FederatedData, party: str) -> list[tuple[str, Message]]:
    """What ``party`` sends when it hears again what it heard in ``run``: (receiver, message) pairs, in order.

    Its clock stands still; a wait for a message that it never received ends as a deadline does. So the replay of a party that
    waited in vain, or that was cut off, ends where its messages end.

    Args:
        run: a finished run in which the party's view was recorded: ``simulate(..., record=("client-3",))``.
        data: the data of that run.
        party: whose program to run.

    Raises:
        ConfigError: the view was not recorded, or nobody has that name.
        Exception: what the program itself raises, with its own traceback.
    """
    try:
        view = run.view(party)
    except KeyError as error:
        raise ConfigError(f"replay: {error.args[0]}") from None
    roles = run.plan.protocol.roles(run.plan.learner, run.plan.aggregation)
    names = Named(data.names) if isinstance(data.names, list | tuple) else data.names
    rosters = {name: names if role.many else [name] for name, role in roles.items()}
    role = next(role for name, role in roles.items() if party in rosters[name])
    if role.many:
        shard = data.shard(names.index(party))
    else:
        central = data.central_test
        shard = Shard(Examples(*central.base, np.zeros(0, np.int64)), central)
    again = _Again(party, shard, rosters, Key.root(run.plan.seed), view)
    while again.left:
        before = len(again.left)
        coroutine = role.program(again)
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        except DeadlineExpired:
            break
        finally:
            coroutine.close()
        if role.starts or len(again.left) == before:
            break
    return again.sent


@final
class _Given:
    """An effect whose result is there already, or that fails at once."""

    def __init__(self, value: Any, error: Exception | None = None) -> None:
        self.value = value
        self.error = error

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.error is not None:
            raise self.error
        return self.value
        yield


@final
class _Again(Party):
    """A party whose effects come from a recording."""

    def __init__(self, name: str, data: Shard, roster: Any, key: Key, view: View) -> None:
        self.name = name
        self.data = data
        self.roster = roster
        self.saved: Message | None = None
        self.left = list(view.messages)
        self.sent: list[tuple[str, Message]] = []
        self._key = key

    def send(self, to: str, message: Message) -> Awaitable[None]:
        self.sent.append((to, message))
        return _Given(None)

    def recv(self, kind: Any, *, within: float | None, sender: str | None = None) -> Awaitable[Any]:
        for place, (who, message) in enumerate(self.left):
            if isinstance(message, kind) and sender in (None, who):
                del self.left[place]
                return _Given((who, message))
        return _Given(None, DeadlineExpired("the recording holds no further message of that class", party=self.name))

    def compute(self, function: Callable[..., R], *arguments: object) -> Awaitable[R]:
        return _Given(function(*arguments))

    def save(self, state: Message) -> Awaitable[None]:
        self.saved = state
        return _Given(None)

    def now(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> Awaitable[None]:
        return _Given(None)

    def rng(self, label: str, *indices: int) -> Key:
        return self._key.child(f"{self.name}/{label}", *indices)
