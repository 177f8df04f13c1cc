"""Pipelines: what happens to an update between the party that made it and the aggregate.

Three kinds of stages compose with ``|``. A :class:`ClientStage` works on a party's own value before it leaves, an
:class:`~hansa.protocol.Aggregation` moves and combines, a :class:`ServerStage` works on the aggregate::

    ClientStage[A, B]   | ClientStage[B, C]  -> ClientStage[A, C]
    ClientStage[A, B]   | Aggregation[B, C]  -> Aggregation[A, C]
    Aggregation[A, B]   | ServerStage[B, C]  -> Aggregation[A, C]

The letters are the classes of :mod:`hansa.update`, so a type checker refuses a pipeline whose stages do not fit. Plans read
from files are not type-checked; for them each stage also says as data which *form* it turns into which, and :func:`compose`
refuses with a sentence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, TypeVar, final, overload

from hansa.errors import ConfigError
from hansa.message import Message
from hansa.party import Party
from hansa.protocol import Aggregation, Collected, Gathering
from hansa.rng import Key

A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")

Form = Literal["update", "bounded", "noised update", "encoded", "mean", "bounded mean", "bounded sum", "noised"]

FORMS: Final[Mapping[Form, str]] = {
    "update": "one party's update",
    "bounded": "one party's update with a bounded norm",
    "noised update": "one party's update with noise on it",
    "encoded": "one party's compressed update",
    "mean": "an aggregate with no bound on any party's part",
    "bounded mean": "a mean of updates with bounded norms",
    "bounded sum": "a sum of updates with bounded norms that nobody saw singly",
    "noised": "an aggregate with noise on it",
}
"""The forms a value can have on its way, in words."""


class Stage(ABC):
    """What every stage tells about itself.

    Attributes:
        flow: the forms it accepts and what each becomes.
        needs: why it accepts no others; ends the sentence that refuses a pipeline.
        effect: what it does for whom, for ``hansa explain``; its settings stand in braces.
    """

    flow: ClassVar[Mapping[Form, Form]]
    needs: ClassVar[str]
    effect: ClassVar[str] = ""


class ClientStage(Stage, Generic[A, B]):
    """A pure function of a party's own value, run before anything leaves the party.

    Attributes:
        bound: the L2 bound that its results keep, or None; the collector holds every contribution to it.
    """

    bound: float | None = None

    @abstractmethod
    def on_client(self, value: A, rng: Key) -> B:
        """The value that goes on; ``rng`` is public randomness of this party and round."""

    @overload
    def __or__(self: ClientStage[C, D], right: ClientStage[D, E]) -> ClientStage[C, E]: ...
    @overload
    def __or__(self: ClientStage[C, D], right: Aggregation[D, E]) -> Aggregation[C, E]: ...
    def __or__(self, right: Any) -> Any:
        if isinstance(right, ClientStage):
            return _ClientStages(self, right)
        if isinstance(right, Aggregation):
            return _Before(self, right)
        return NotImplemented

    if not TYPE_CHECKING:  # a type checker must see that there is no such pipeline; a user without one gets a sentence

        def __ror__(self, left: Any) -> Any:
            if isinstance(left, Aggregation):
                raise ConfigError(f"{_called(self)} cannot follow {_called(stages(left)[-1])}: {self.needs}")
            return NotImplemented


class ServerStage(Stage, Generic[A, B]):
    """A pure function of an aggregate, run by its collector."""

    @abstractmethod
    def on_server(self, value: A, rng: Key) -> B:
        """The aggregate that goes on."""

    def __ror__(self: ServerStage[D, E], left: Aggregation[C, D]) -> Aggregation[C, E]:
        if isinstance(left, ClientStage):
            raise ConfigError(f"{_called(self)} cannot follow {_called(stages(left)[-1])}: {self.needs}")
        if not isinstance(left, Aggregation):
            return NotImplemented
        return _After(left, self)


@final
@dataclass(frozen=True)
class _ClientStages(ClientStage[Any, Any]):
    first: ClientStage[Any, Any]
    second: ClientStage[Any, Any]

    def on_client(self, value: Any, rng: Key) -> Any:
        return self.second.on_client(self.first.on_client(value, rng), rng)


@final
@dataclass(frozen=True)
class _Before(Aggregation[Any, Any]):
    stage: ClientStage[Any, Any]
    inner: Aggregation[Any, Any]

    @property
    def messages(self) -> tuple[type[Message], ...]:
        return self.inner.messages

    @property
    def answers(self) -> tuple[type[Message], ...]:
        return self.inner.answers

    async def contribute(self, me: Party, to: str, round: int, value: Any) -> None:
        value = self.stage.on_client(value, me.rng("stage", round))
        await self.inner.contribute(me, to, round, value)

    async def collect(self, me: Party, gathering: Gathering) -> Collected[Any]:
        if self.stage.bound is not None and gathering.bound is None:
            gathering = replace(gathering, bound=self.stage.bound)
        return await self.inner.collect(me, gathering)


@final
@dataclass(frozen=True)
class _After(Aggregation[Any, Any]):
    inner: Aggregation[Any, Any]
    stage: ServerStage[Any, Any]

    @property
    def messages(self) -> tuple[type[Message], ...]:
        return self.inner.messages

    @property
    def answers(self) -> tuple[type[Message], ...]:
        return self.inner.answers

    async def contribute(self, me: Party, to: str, round: int, value: Any) -> None:
        await self.inner.contribute(me, to, round, value)

    async def collect(self, me: Party, gathering: Gathering) -> Collected[Any]:
        collected = await self.inner.collect(me, gathering)
        round = max(gathering.invited.values(), default=0)
        value = self.stage.on_server(collected.value, me.rng("stage", round))
        return Collected(value, collected.contributors, collected.refused)


def _called(stage: Any) -> str:
    return f"'{type(stage).__name__}'"


def stages(pipeline: Aggregation[Any, Any] | ClientStage[Any, Any]) -> list[Any]:
    """The single stages of a pipeline, in order; ``compose(stages(p)) == p``."""
    match pipeline:
        case _ClientStages(first, second):
            return [*stages(first), *stages(second)]
        case _Before(stage, inner):
            return [*stages(stage), *stages(inner)]
        case _After(inner, stage):
            return [*stages(inner), stage]
        case _:
            return [pipeline]


def compose(parts: Sequence[Any], names: Sequence[str] = ()) -> Aggregation[Any, Any]:
    """The pipeline of ``parts``, refused where two neighbours do not fit.

    Args:
        parts: the stages, in order.
        names: what to call them in errors; their classes' names otherwise.

    Raises:
        ConfigError: says which stage does not fit, what it would need and why.
    """
    names = list(names) or [type(part).__name__.lower() for part in parts]
    form: Form = "update"
    giver = "the learner"
    for part, name in zip(parts, names, strict=True):
        if form not in part.flow:
            wanted = " or ".join(FORMS[f] for f in part.flow)
            raise ConfigError(
                f"'{name}' cannot follow {giver}: it takes {wanted}, but {giver} gives {FORMS[form]}; {part.needs}"
            )
        form, giver = part.flow[form], f"'{name}'"
    if not any(isinstance(part, Aggregation) for part in parts):
        raise ConfigError("nothing here combines the parties' updates; end with 'mean' or another aggregation")
    pipeline, *rest = list(parts)
    for part in rest:
        pipeline = pipeline | part
    assert isinstance(pipeline, Aggregation)
    return pipeline
