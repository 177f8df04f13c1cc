"""Workers that are no processes: the party's programs run in the owner's own loop.

For tests, and for many light parties in one process. A program that fails cannot hurt the owner; one that computes long, or
takes all memory, does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, final

from hansa.deployment.shape import DataShape
from hansa.deployment.worker.duty import Load, describe, duty, measured, unusable
from hansa.deployment.worker.frames import Described, Heard, Letter, Setup, Unusable
from hansa.deployment.worker.party import Resident, Surroundings
from hansa.errors import ConfigError, DataError
from hansa.message import Message


@final
class InlineWorkers:
    """Starts workers in this loop. See :class:`hansa.deployment.worker.process.Workers`, which has the same face.

    Args:
        load: the data that a binding means.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._started: set[InlineWorker] = set()

    async def describe(self, plan: str) -> Described:
        """What a plan is.

        Raises:
            ConfigError: it cannot be used here; says why.
        """
        found = describe(plan)
        if isinstance(found, Unusable):
            raise ConfigError(found.reason)
        return found

    async def measure(self, data: Mapping[str, Any]) -> DataShape:
        """The shape of the data that a binding means.

        Raises:
            DataError: they cannot be used; says why.
        """
        found = measured(data)
        if isinstance(found, Unusable):
            raise DataError(found.reason)
        return found.shape

    async def start(self, setup: Setup, heard: Heard) -> InlineWorker:
        """Start one party's programs."""
        worker = InlineWorker(setup, self._load, heard)
        self._started.add(worker)
        return worker

    async def close(self) -> None:
        """Stop them all."""
        for worker in list(self._started):
            await worker.stop()
        self._started.clear()


@final
class InlineWorker:
    """One party's programs in this loop; see :class:`hansa.deployment.worker.process.Worker`."""

    def __init__(self, setup: Setup, load: Load, heard: Heard) -> None:
        self._heard: Heard | None = heard
        self._resident: Resident | None = None
        self._early: list[Letter] = []
        self._task = asyncio.get_running_loop().create_task(self._run(setup, load), name=f"worker {setup.party}")

    def give(self, letter: Letter) -> None:
        """Hand a letter over."""
        if self._heard is None:
            return
        if self._resident is None:
            self._early.append(letter)
        else:
            self._resident.deliver(letter)

    async def stop(self, grace: float = 0.0) -> None:
        """End it; nothing is heard of it after this is called."""
        self._heard = None
        if self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, setup: Setup, load: Load) -> None:
        around = Surroundings(self._say, _at_once, _in_place)
        try:
            self._resident = duty(setup, load).resident(around)
        except Exception as error:
            self._say(unusable(setup, error))
            return
        for letter in self._early:
            self._resident.deliver(letter)
        await self._resident.run()

    def _say(self, message: Message) -> None:
        if self._heard is not None:
            self._heard(message)


async def _in_place(function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


async def _at_once() -> None:
    return None
