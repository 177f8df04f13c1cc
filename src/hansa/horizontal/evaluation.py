"""How good is the model: on a central test set, and over the parties' own test examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, final

from hansa.errors import ConfigError, DeadlineExpired
from hansa.horizontal.sampling import Uniform
from hansa.horizontal.stopping import Best, Stop
from hansa.learner import Learner
from hansa.learners.distribution import distribution
from hansa.message import Message
from hansa.params import Params
from hansa.party import Party, tell
from hansa.protocol import OBSERVER, Progress


class EvaluateTask(Message, frozen=True):
    """The request to evaluate a model."""

    tag = "hansa.evaluate-task/1"
    discloses = "the current model, to every party that is asked to evaluate it"

    round: int
    params: Params


class Scores(Message, frozen=True):
    """A party's metrics on its own test examples."""

    tag = "hansa.scores/1"
    discloses = "one party's metrics on its own test examples, and how many it has"

    round: int
    metrics: dict[str, float]
    examples: int


@final
@dataclass(frozen=True)
class Evaluation:
    """When and on what the model is evaluated. The first and the last round are always among the due ones.

    Args:
        every: central evaluation every so many rounds; 0 for never.
        parties: how many parties evaluate on their own test examples when it is their turn; 0 for none.
        parties_every: their turn every so many rounds; 0 for after the last round only.
    """

    every: int = 1
    parties: int = 100
    parties_every: int = 0

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("parties", self.parties), ("parties_every", self.parties_every)):
            if value < 0:
                raise ConfigError(f"Evaluation: {name} must not be negative, not {value}")

    def central_due(self, round: int, last: bool) -> bool:
        """Whether the central test set is due after ``round``."""
        return self.every > 0 and (last or round % self.every == 0)

    def parties_due(self, round: int, last: bool) -> bool:
        """Whether the parties' own test examples are due after ``round``."""
        return self.parties > 0 and (last or (self.parties_every > 0 and round % self.parties_every == 0))


class Watched(Protocol):
    """A protocol's settings that say when it looks at its model and when it ends."""

    @property
    def evaluation(self) -> Evaluation:
        """When the model is evaluated, and on what."""
        ...

    @property
    def stop(self) -> Stop:
        """When to end early."""
        ...

    @property
    def deadline(self) -> float:
        """Seconds that the parties have to evaluate."""
        ...


async def report(
    settings: Watched,
    learner: Learner,
    me: Party,
    round: int,
    params: Params,
    best: Best,
    metrics: Mapping[str, float],
    notes: Mapping[str, str],
    last: bool,
    busy: Collection[str] = (),
) -> Best:
    """Evaluate where it is due, tell the observer, and return the best so far.

    Args:
        settings: when and on what.
        learner: evaluates.
        me: the server; its test examples are the central set.
        round: the round that has ended.
        params: the model after it.
        best: the best before it.
        metrics: what else is to be reported.
        notes: what is to be said of single parties.
        last: whether the run ends here whatever the result.
        busy: parties that are at work and not asked.
    """
    metrics = dict(metrics)
    parties: dict[str, dict[str, float]] = {}
    if settings.evaluation.central_due(round, last) and len(me.data.test):
        central = await me.compute(learner.evaluate, params, me.data.test)
        metrics |= {f"test_{name}": value for name, value in central.items()}
    seen = settings.stop.updated(best, round, metrics)
    if settings.evaluation.parties_due(round, last or settings.stop.reached(seen)):
        parties = await _evaluate_parties(settings, me, round, params, busy)
        metrics |= distribution(parties)
        seen = settings.stop.updated(best, round, metrics)
    note = "; ".join(f"{party}: {why}" for party, why in notes.items())
    await me.send(OBSERVER, Progress(round, metrics, parties, note))
    return seen


async def _evaluate_parties(
    settings: Watched, me: Party, round: int, params: Params, busy: Collection[str]
) -> dict[str, dict[str, float]]:
    clients = me.roster["client"]
    wanted = min(settings.evaluation.parties, len(clients))
    chosen = Uniform().draw(me.rng("evaluate", round), clients, min(wanted + len(busy), len(clients)))
    if busy:
        chosen = Uniform().draw(me.rng("evaluate-idle", round), [name for name in chosen if name not in busy], wanted)
    await tell(me, chosen, EvaluateTask(round, params))
    deadline = me.now() + settings.deadline
    waiting = set(chosen)
    scores: dict[str, dict[str, float]] = {}
    while waiting:
        try:
            sender, answer = await me.recv(Scores, within=deadline - me.now())
        except DeadlineExpired:
            break
        if sender not in waiting or answer.round != round:
            continue
        waiting.discard(sender)
        if answer.examples > 0:
            scores[sender] = {**answer.metrics, "examples": float(answer.examples)}
    return {name: scores[name] for name in chosen if name in scores}
