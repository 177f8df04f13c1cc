"""Stages that do not exist yet, typed as they will be: what the planted mistakes and the right pipelines are built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from hansa.aggregation import ClientStage, ServerStage
from hansa.message import Message
from hansa.party import Party
from hansa.pipeline import Form, Stage
from hansa.protocol import Aggregation, Collected, Gathering
from hansa.rng import Key
from hansa.update import Bounded, Mean, Noised, Update

U = TypeVar("U", Update, Bounded)


@dataclass(frozen=True)
class NoisyUpdate:
    """One party's bounded update with noise on it."""

    bounded: Bounded


class Mechanism(ServerStage[Mean[Bounded], Noised]):
    """Central noise, calibrated by the bound that the mean carries."""

    flow: ClassVar[Mapping[Form, Form]] = {"bounded mean": "noised", "bounded sum": "noised"}
    needs: ClassVar[str] = "noise is scaled to the bound of every party's part, so clip before the aggregation"

    def on_server(self, value: Mean[Bounded], rng: Key) -> Noised:
        return Noised(value)


class LocalNoise(ClientStage[Bounded, NoisyUpdate]):
    """Noise before it leaves the party."""

    flow: ClassVar[Mapping[Form, Form]] = {"bounded": "noised update"}
    needs: ClassVar[str] = "noise is scaled to the bound of the update, so clip first"

    def on_client(self, value: Bounded, rng: Key) -> NoisyUpdate:
        return NoisyUpdate(value)


class NoMessages(Stage):
    """What the aggregations here have in common: they never run."""

    @property
    def messages(self) -> tuple[type[Message], ...]:
        return ()

    @property
    def answers(self) -> tuple[type[Message], ...]:
        return ()


class SecureSum(NoMessages, Aggregation[Bounded, Mean[Bounded]]):
    """Nobody sees a single update."""

    flow: ClassVar[Mapping[Form, Form]] = {"bounded": "bounded sum"}
    needs: ClassVar[str] = "what is summed unseen must have a bound, or one party could change everything unnoticed"

    async def contribute(self, me: Party, to: str, round: int, value: Bounded) -> None:
        raise NotImplementedError

    async def collect(self, me: Party, gathering: Gathering) -> Collected[Mean[Bounded]]:
        raise NotImplementedError


class NoisyMean(NoMessages, Aggregation[NoisyUpdate, Noised]):
    """The mean of updates with noise on them."""

    flow: ClassVar[Mapping[Form, Form]] = {"noised update": "noised"}
    needs: ClassVar[str] = "it averages updates that have noise on them"

    async def contribute(self, me: Party, to: str, round: int, value: NoisyUpdate) -> None:
        raise NotImplementedError

    async def collect(self, me: Party, gathering: Gathering) -> Collected[Noised]:
        raise NotImplementedError


class Krum(NoMessages, Aggregation[U, Mean[Update]]):
    """A robust rule: its result has no sensitivity that a clip could tell, so it is a plain mean."""

    flow: ClassVar[Mapping[Form, Form]] = {"update": "mean", "bounded": "mean"}
    needs: ClassVar[str] = "a robust rule compares single updates, so it must be the aggregation that sees them"

    async def contribute(self, me: Party, to: str, round: int, value: U) -> None:
        raise NotImplementedError

    async def collect(self, me: Party, gathering: Gathering) -> Collected[Mean[Update]]:
        raise NotImplementedError


def gaussian() -> ServerStage[Mean[Bounded], Noised]:
    return Mechanism()


def gaussian_each() -> ClientStage[Bounded, NoisyUpdate]:
    return LocalNoise()


def secure_sum() -> Aggregation[Bounded, Mean[Bounded]]:
    return SecureSum()


def noisy_mean() -> Aggregation[NoisyUpdate, Noised]:
    return NoisyMean()


def multi_krum() -> Aggregation[U, Mean[Update]]:
    return Krum()


def private_step(value: Noised) -> None:
    """A server's step that may see only what a mechanism has passed."""


def bounded_only(value: Bounded) -> None:
    """What must not be given an update without a bound."""
