"""The synchronous round: sample a cohort, send the model, collect what it learned, take a step, look how good it is.

All algorithms that train in rounds share these two programs and these messages; what an algorithm adds is an
:class:`Algorithm`, a handful of pure functions, in a file of its own.

*Threat model*: semi-honest parties. The server sees what the plan's aggregation shows it (with the plain mean: every party's
update) and each evaluated party's metrics; a party sees the models that it is sent; nobody sees examples. A party that lies
about its update is not detected here: that is the aggregation's part.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hansa.errors import ConfigError, DeadlineExpired, NonFinite, QuorumNotReached
from hansa.horizontal.evaluation import Evaluation, Scores, EvaluateTask, distribution
from hansa.horizontal.sampling import Sampling, Uniform
from hansa.horizontal.stopping import Best, Stop
from hansa.learner import Learner, LocalWork
from hansa.message import Message
from hansa.params import Params
from hansa.party import Party, tell
from hansa.protocol import OBSERVER, Aggregation, Gathering, Progress, Protocol, Role, Withdraw
from hansa.tensor import Array, Tensor
from hansa.update import Mean, Update

Slots = Mapping[str, Array]
"""An algorithm's vectors beside the model, by name; each of shape (size,)."""


class TrainTask(Message):
    """The invitation to a round: the current model, and what else the algorithm shares."""

    tag = "hansa.train-task/1"
    discloses = "the current model and the algorithm's shared vectors, to every party of the cohort"

    round: int
    params: Params
    shared: dict[str, Tensor] = {}


class RoundState(Message):
    """The server's durable state after a round."""

    tag = "hansa.round-state/1"
    discloses = "nothing: it stays with the server"

    round: int
    params: Params
    slots: dict[str, Tensor]
    best: Best


class PartyState(Message):
    """A party's durable state between its rounds (a control variate, a personal layer): it never leaves the party."""

    tag = "hansa.party-state/1"
    discloses = "nothing: it stays with the party"

    round: int
    slots: dict[str, Tensor]


@dataclass(frozen=True)
class Local:
    """What a party has at hand in a round.

    Args:
        round: the round.
        params: the model received.
        shared: the algorithm's shared vectors, received.
        own: this party's own vectors from its last round, empty at first.
    """

    round: int
    params: Params
    shared: Slots
    own: Slots


def _default_work(local: Local) -> LocalWork:
    return LocalWork(round=local.round)


def _default_report(local: Local, update: Update) -> tuple[Update, Slots]:
    return update, local.own


def _no_slots(params: Params) -> Slots:
    return {}


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm adds to the round: pure functions.

    Args:
        step: the server's step: (model, slots, mean, round, cohort share) to the next flat model and slots.
        slots: the server's vectors at the start.
        shared: the names of the slots that travel with the model.
        work: what a party is asked to do.
        report: what a party sends of its update, and the vectors that it keeps for itself.
        width: how many vectors of the model's size a party sends (SCAFFOLD sends two, one after the other).
    """

    step: Callable[[Params, Slots, Mean[Any], int, float], tuple[Array, Slots]]
    slots: Callable[[Params], Slots] = _no_slots
    shared: Sequence[str] = ()
    work: Callable[[Local], LocalWork] = _default_work
    report: Callable[[Local, Update], tuple[Update, Slots]] = _default_report
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class Synchronous(Protocol):
    """The settings of every algorithm that trains in rounds.

    Args:
        rounds: how many rounds at most.
        cohort: how many parties a round wants.
        sampling: how the cohort is drawn.
        over_selection: invite this many times the cohort and go on with the first ``cohort`` that answer; 1 or more.
        deadline: seconds until a round goes on with what it has. All inner waits follow from it.
        quorum: the least share of the cohort that must contribute, above 0 and at most 1.
        missed_quorum: ``"stop"`` ends the run, ``"skip"`` keeps the model and goes on to the next round.
        evaluation: when the model is evaluated, and on what.
        stop: when to end before ``rounds``.
    """

    rounds: int
    cohort: int
    sampling: Sampling = field(default_factory=Uniform)
    over_selection: float = 1.0
    deadline: float = 600.0
    quorum: float = 0.5
    missed_quorum: Literal["stop", "skip"] = "stop"
    evaluation: Evaluation = field(default_factory=Evaluation)
    stop: Stop = field(default_factory=Stop)

    @abstractmethod
    def algorithm(self, learner: Learner) -> Algorithm:
        """The paper's own part."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for what in ("rounds", "cohort"):
            value = getattr(self, what)
            if value < 1:
                raise ConfigError(f"{name}: {what} must be at least 1, not {value}")
        if not 1 <= self.over_selection < math.inf:
            raise ConfigError(f"{name}: over_selection must be at least 1, not {self.over_selection}")
        if not 0 < self.quorum <= 1:
            raise ConfigError(f"{name}: quorum is a share of the cohort, above 0 and at most 1, not {self.quorum}")
        if not 0 < self.deadline < math.inf:
            raise ConfigError(f"{name}: deadline must be a positive number of seconds, not {self.deadline}")
        if self.missed_quorum not in ("stop", "skip"):
            raise ConfigError(f"{name}: missed_quorum must be 'stop' or 'skip', not {self.missed_quorum!r}")

    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        algorithm = self.algorithm(learner)

        async def server(me: Party) -> Params:
            return await _serve(self, algorithm, learner, aggregation, me)

        async def client(me: Party) -> None:
            await _take_part(algorithm, learner, aggregation, me)

        return {
            "server": Role(server, (*aggregation.messages, Withdraw, Scores), starts=True, saves=RoundState),
            "client": Role(
                client,
                (TrainTask, EvaluateTask, *aggregation.answers),
                invitations=(TrainTask, EvaluateTask),
                many=True,
                saves=PartyState,
            ),
        }


async def _serve(
    protocol: Synchronous, algorithm: Algorithm, learner: Learner, aggregation: Aggregation[Any, Any], me: Party
) -> Params:
    clients = me.roster["client"]
    state = me.saved
    if not isinstance(state, RoundState):
        params = learner.init(me.rng("init"), me.data.test)
        slots = {name: Tensor(value) for name, value in algorithm.slots(params).items()}
        state = RoundState(0, params, slots, Best())
        await _report(protocol, learner, me, state, {}, {}, last=False)
        await me.save(state)
    while state.round < protocol.rounds and not protocol.stop.reached(state.best):
        round = state.round + 1
        metrics: dict[str, float] = {}
        notes: dict[str, str] = {}
        params, slots = state.params, state.slots
        try:
            mean, notes = await _gather(protocol, algorithm, aggregation, me, clients, state, round)
        except QuorumNotReached as missed:
            if protocol.missed_quorum == "stop":
                raise
            notes = {"quorum": missed.what}
        else:
            arrays = {name: tensor.array for name, tensor in slots.items()}
            flat, stepped = algorithm.step(params, arrays, mean, round, mean.count / len(clients))
            if not np.isfinite(flat).all():
                raise NonFinite("the model after this round holds NaN or infinity", party=me.name, round=round,
                                remedy="lower the learning rate or clip the updates")  # fmt: skip
            params = params.replaced(flat)
            slots = {name: Tensor(value) for name, value in stepped.items()}
            metrics = {f"train_{name}": value for name, value in mean.scalars.items()}
            metrics["contributors"] = mean.count
        state = RoundState(round, params, slots, state.best)
        last = round == protocol.rounds
        state = await _report(protocol, learner, me, state, metrics, notes, last)
        await me.save(state)
    return state.params


async def _gather(
    protocol: Synchronous,
    algorithm: Algorithm,
    aggregation: Aggregation[Any, Any],
    me: Party,
    clients: Sequence[str],
    state: RoundState,
    round: int,
) -> tuple[Mean[Any], dict[str, str]]:
    invited = protocol.sampling.draw(me.rng("cohort", round), clients, math.ceil(protocol.cohort * protocol.over_selection))
    shared = {name: state.slots[name] for name in algorithm.shared}
    await tell(me, invited, TrainTask(round, state.params, shared))
    wanted = min(protocol.cohort, len(invited)) if protocol.over_selection > 1 else len(invited)
    collected = await aggregation.collect(
        me,
        Gathering(
            invited=dict.fromkeys(invited, round),
            deadline=me.now() + protocol.deadline,
            quorum=max(1, math.ceil(protocol.quorum * wanted)),
            enough=wanted,
            size=state.params.size * algorithm.width,
        ),
    )
    return collected.value, dict(collected.refused)


async def _report(
    protocol: Synchronous,
    learner: Learner,
    me: Party,
    state: RoundState,
    metrics: dict[str, float],
    notes: Mapping[str, str],
    last: bool,
) -> RoundState:
    """Evaluate where it is due, tell the observer, and note the best so far."""
    plan = protocol.evaluation
    parties: dict[str, dict[str, float]] = {}
    if plan.central_due(state.round, last) and len(me.data.test):
        central = await me.compute(learner.evaluate, state.params, me.data.test)
        metrics |= {f"test_{name}": value for name, value in central.items()}
    best = protocol.stop.updated(state.best, state.round, metrics)
    last = last or protocol.stop.reached(best)
    if plan.parties_due(state.round, last):
        parties = await _evaluate_parties(protocol, me, state)
        metrics |= distribution(parties)
    note = "; ".join(f"{party}: {why}" for party, why in notes.items())
    await me.send(OBSERVER, Progress(state.round, metrics, parties, note))
    return RoundState(state.round, state.params, state.slots, best)


async def _evaluate_parties(protocol: Synchronous, me: Party, state: RoundState) -> dict[str, dict[str, float]]:
    clients = me.roster["client"]
    chosen = Uniform().draw(me.rng("evaluate", state.round), clients, min(protocol.evaluation.parties, len(clients)))
    await tell(me, chosen, EvaluateTask(state.round, state.params))
    deadline = me.now() + protocol.deadline
    waiting = set(chosen)
    scores: dict[str, dict[str, float]] = {}
    while waiting:
        try:
            sender, answer = await me.recv((Scores, Withdraw), within=deadline - me.now())
        except DeadlineExpired:
            break
        if sender not in waiting or answer.round != state.round:
            continue
        waiting.discard(sender)
        if isinstance(answer, Scores) and answer.examples > 0:
            scores[sender] = {**answer.metrics, "examples": float(answer.examples)}
    return {name: scores[name] for name in chosen if name in scores}


async def _take_part(
    algorithm: Algorithm, learner: Learner, aggregation: Aggregation[Any, Any], me: Party
) -> None:
    server, task = await me.recv((TrainTask, EvaluateTask), within=None)
    try:
        if isinstance(task, EvaluateTask):
            metrics = await me.compute(learner.evaluate, task.params, me.data.test) if len(me.data.test) else {}
            await me.send(server, Scores(task.round, dict(metrics), len(me.data.test)))
            return
        own = me.saved.slots if isinstance(me.saved, PartyState) else {}
        local = Local(
            task.round,
            task.params,
            {name: tensor.array for name, tensor in task.shared.items()},
            {name: tensor.array for name, tensor in own.items()},
        )
        work = algorithm.work(local)
        update: Update = await me.compute(learner.fit, task.params, me.data.train, work, me.rng("fit", task.round))
        update, kept = algorithm.report(local, update)
        if kept:
            await me.save(PartyState(task.round, {name: Tensor(value) for name, value in kept.items()}))
        await aggregation.contribute(me, server, task.round, update)
    except Exception as error:
        # The server must not wait for a party that cannot answer; the interpreter keeps the traceback for its owner.
        await me.send(server, Withdraw(task.round, type(error).__name__))
        raise


def with_rounds(protocol: Synchronous, rounds: int) -> Synchronous:
    """The same protocol for another number of rounds."""
    return replace(protocol, rounds=rounds)
