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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace as replaced

from hansa.errors import ConfigError, NonFinite, QuorumNotReached
from hansa.horizontal.evaluation import EvaluateTask, Evaluation, Scores, report
from hansa.horizontal.sampling import Fixed, Sampling, Uniform
from hansa.horizontal.stopping import Best, Stop
from hansa.learner import Learner, LocalWork
from hansa.message import Message
from hansa.params import Params
from hansa.party import Party, tell
from hansa.protocol import Aggregation, Collected, Gathering, Protocol, Role, Withdraw
from hansa.tensor import Array, Tensor, all_finite
from hansa.update import Mean, Noised, Update

_NAMED = 8
"""Silent parties that a round's note names; of more it says how many."""

Slots = Mapping[str, Array]
"""An algorithm's vectors beside the model, by name; each of shape (size,)."""


class TrainTask(Message, frozen=True):
    """The invitation to a round: the current model, and what else the algorithm shares.

    ``counted`` is the last round in which the receiver's own contribution was in the aggregate, 0 for none; only algorithms
    with :attr:`Algorithm.confirmed` set it.
    """

    tag = "hansa.train-task/1"
    discloses = "the current model and the algorithm's shared vectors, to every party of the cohort"

    round: int
    params: Params
    shared: dict[str, Tensor] = {}
    counted: int = 0


class RoundState(Message, frozen=True):
    """The server's durable state after a round."""

    tag = "hansa.round-state/1"
    discloses = "nothing: it stays with the server"

    round: int
    params: Params
    slots: dict[str, Tensor]
    best: Best
    counted: dict[str, int] = {}


class PartyState(Message, frozen=True):
    """A party's durable state between its rounds (a control variate, a personal layer): it never leaves the party.

    ``before`` is what ``slots`` was before ``round``, for the case that the round did not count.
    """

    tag = "hansa.party-state/1"
    discloses = "nothing: it stays with the party"

    round: int
    slots: dict[str, Tensor]
    before: dict[str, Tensor] = {}


class Local(msgspec.Struct, frozen=True, gc=False):
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
        confirmed: what a party keeps from a round stands only if the server counted its contribution. Needed where the
            server's vectors must agree with the parties': a contribution that is lost or late must leave both as they were.
    """

    step: Callable[[Params, Slots, Mean[Any], int, float], tuple[Array, Slots]]
    slots: Callable[[Params], Slots] = _no_slots
    shared: Sequence[str] = ()
    work: Callable[[Local], LocalWork] = _default_work
    report: Callable[[Local, Update], tuple[Update, Slots]] = _default_report
    width: int = 1
    confirmed: bool = False


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

    def needed_parties(self) -> tuple[int, str]:
        """Every cohort is drawn from more, or as many; parties that are named are not drawn."""
        return (1, "") if isinstance(self.sampling, Fixed) else (self.cohort, "cohort")

    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        algorithm = self.algorithm(learner)

        async def server(me: Party) -> Params:
            return await _serve(self, algorithm, learner, aggregation, me)

        return {
            "server": Role(server, (*aggregation.messages, Withdraw, Scores), starts=True, saves=RoundState),
            "client": participant(algorithm, learner, aggregation),
        }


def participant(algorithm: Algorithm, learner: Learner, aggregation: Aggregation[Any, Any]) -> Role:
    """The role of a party that trains and evaluates when it is asked to."""

    def client(me: Party) -> Coroutine[Any, Any, None]:
        return _take_part(algorithm, learner, aggregation, me)

    return Role(
        client,
        (TrainTask, EvaluateTask, *aggregation.answers),
        invitations=(TrainTask, EvaluateTask),
        many=True,
        saves=PartyState,
    )


async def _serve(
    protocol: Synchronous, algorithm: Algorithm, learner: Learner, aggregation: Aggregation[Any, Any], me: Party
) -> Params:
    clients = me.roster["client"]
    if protocol.needed_parties()[0] > len(clients):
        raise ConfigError(
            f"{type(protocol).__name__}: a cohort of {protocol.cohort} cannot be drawn from {len(clients)} parties;"
            f" lower cohort to {len(clients)} or less"
        )
    state = me.saved
    if not isinstance(state, RoundState):
        state = _first(algorithm, learner.init(me.rng("init"), me.data.test))
        best = await report(protocol, learner, me, 0, state.params, state.best, {}, {}, last=False)
        state = await _saved(me, replaced(state, best=best))
    while state.round < protocol.rounds and not protocol.stop.reached(state.best):
        round = state.round + 1
        metrics: dict[str, float] = {}
        try:
            gathered = await _gather(protocol, algorithm, aggregation, me, clients, state, round)
        except QuorumNotReached as missed:
            if protocol.missed_quorum == "stop":
                raise
            state, notes = replaced(state, round=round), {"quorum": missed.what}
        else:
            if gathered is None:
                state, notes = replaced(state, round=round), {"cohort": "nobody was drawn, the model stays"}
            else:
                collected, notes = gathered
                state = _stepped(algorithm, state, collected, round, len(clients), me.name)
                mean = plain_mean(collected)
                metrics = {f"train_{name}": value for name, value in sorted(mean.scalars.items())}
                metrics["contributors"] = mean.count
                del gathered, collected, mean  # as large as the model, which the next round needs room for
        last = round == protocol.rounds
        best = await report(protocol, learner, me, round, state.params, state.best, metrics, notes, last)
        state = await _saved(me, replaced(state, best=best))
    return state.params


def _first(algorithm: Algorithm, params: Params) -> RoundState:
    return RoundState(0, params, {name: Tensor(value) for name, value in algorithm.slots(params).items()}, Best())


async def _saved(me: Party, state: RoundState) -> RoundState:
    """Save ``state``; what the party has of it afterwards, which may lie in a file instead of in memory."""
    await me.save(state)
    return me.saved if isinstance(me.saved, RoundState) else state


async def _gather(
    protocol: Synchronous,
    algorithm: Algorithm,
    aggregation: Aggregation[Any, Any],
    me: Party,
    clients: Sequence[str],
    state: RoundState,
    round: int,
) -> tuple[Collected[Any], dict[str, str]] | None:
    """What the round's cohort sent, and what is to be said of those who did not; None where nobody was drawn."""
    invited = protocol.sampling.draw(
        me.rng("cohort", round), clients, share_of(protocol.cohort, protocol.over_selection)
    )
    if not invited:
        return None
    shared = {name: state.slots[name] for name in algorithm.shared}
    if algorithm.confirmed:
        for name in invited:
            await me.send(name, TrainTask(round, state.params, shared, state.counted.get(name, 0)))
    else:
        await tell(me, invited, TrainTask(round, state.params, shared))
    wanted = min(protocol.cohort, len(invited)) if protocol.over_selection > 1 else len(invited)
    collected: Collected[Any] = await aggregation.collect(
        me,
        Gathering(
            invited=dict.fromkeys(invited, round),
            deadline=me.now() + protocol.deadline,
            quorum=share_of(wanted, protocol.quorum),
            enough=wanted,
            size=state.params.size * algorithm.width,
            dtype=state.params.layout.dtype,
        ),
    )
    notes = dict(collected.refused)
    if len(collected.contributors) < wanted:
        silent = [name for name in invited if name not in notes and name not in set(collected.contributors)]
        notes |= dict.fromkeys(silent[:_NAMED], "no answer in time")
        if len(silent) > _NAMED:
            notes["others"] = f"no answer in time from {len(silent) - _NAMED} more"
    return collected, notes


def _stepped(
    algorithm: Algorithm, state: RoundState, collected: Collected[Any], round: int, population: int, server: str
) -> RoundState:
    """The server's state after a round that reached its quorum."""
    mean = plain_mean(collected)
    arrays = {name: tensor.array for name, tensor in state.slots.items()}
    flat, slots = algorithm.step(state.params, arrays, mean, round, mean.count / population)
    params = finite(state.params, flat, mean.delta, round, server)
    counted = state.counted
    if algorithm.confirmed:
        counted = {**counted, **dict.fromkeys(collected.contributors, round)}
    return replaced(
        state, round=round, params=params, slots={name: Tensor(value) for name, value in slots.items()}, counted=counted
    )


def share_of(count: int, share: float) -> int:
    """``share`` of ``count``, rounded up, at least 1; the last bits of a product like ``0.07 * 100`` do not count as more.

    >>> share_of(100, 0.07), share_of(100, 1.1), share_of(3, 0.5), share_of(1, 0.1)
    (7, 110, 2, 1)
    """
    return max(1, math.ceil(round(count * share, 9)))


def plain_mean(collected: Collected[Any]) -> Mean[Any]:
    """The mean inside what an aggregation gave, with noise on it or not."""
    value = collected.value
    mean: Mean[Any] = value.mean if isinstance(value, Noised) else value
    return mean


def moved(params: Params, mean: Mean[Any]) -> Array:
    """The model's values after a step by the mean itself, written over the mean, so that no third vector of the model's size is needed.

    A mean that is still needed, for the plain average of running statistics, stays as it is.
    """
    delta = mean.delta
    over = delta.dtype == params.flat.dtype and delta.flags.writeable and not params.layout.buffers
    total: Array = np.add(params.flat, delta, out=delta if over else None)
    return total


def finite(params: Params, flat: Array, delta: Array, round: int, server: str) -> Params:
    """The model with the values ``flat``, its running statistics moved to their plain average.

    Running statistics (:attr:`~hansa.params.Layout.buffers`) are no parameters: no optimizer steps them.

    Raises:
        NonFinite: a value is NaN or infinite.
    """
    if params.layout.buffers:
        mask = buffer_mask(params)
        flat = np.where(mask, params.flat + delta[: params.size].astype(params.flat.dtype, copy=False), flat)
    if not all_finite(flat):
        raise NonFinite(
            "the model after this round holds NaN or infinity",
            party=server,
            round=round,
            remedy="lower the learning rate or clip the updates",
        )
    return params.replaced(flat)


def buffer_mask(params: Params) -> Array:
    """True where the flat model holds running statistics: shape (size,)."""
    layout = params.layout
    mask = np.zeros(params.size, bool)
    for name, start, end in zip(layout.names, layout.offsets[:-1], layout.offsets[1:], strict=True):
        mask[start:end] = name in layout.buffers
    return mask


async def _take_part(algorithm: Algorithm, learner: Learner, aggregation: Aggregation[Any, Any], me: Party) -> None:
    server, task = await me.recv((TrainTask, EvaluateTask), within=None)
    if isinstance(task, EvaluateTask):
        await _evaluate(learner, me, server, task)
        return
    saved = me.saved if isinstance(me.saved, PartyState) else _UNSAVED
    # A server that asked this party for a later round has closed this one.
    if task.round < saved.round:
        return
    own = saved.slots
    if algorithm.confirmed and task.counted != saved.round:
        own = saved.before
    try:
        local = Local(task.round, task.params, _arrays(task.shared), _arrays(own))
        work = algorithm.work(local)
        update: Update = await me.compute(learner.fit, task.params, me.data.train, work, me.rng("fit", task.round))
        update, kept = algorithm.report(local, update)
        if kept:
            before = own if algorithm.confirmed else {}
            await me.save(PartyState(task.round, {name: Tensor(value) for name, value in kept.items()}, before))
        await aggregation.contribute(me, server, task.round, update)
    except Exception as error:
        # The server must not wait for a party that cannot answer; the interpreter keeps the traceback for its owner.
        await me.send(server, Withdraw(task.round, type(error).__name__))
        raise


async def _evaluate(learner: Learner, me: Party, server: str, task: EvaluateTask) -> None:
    try:
        metrics = await me.compute(learner.evaluate, task.params, me.data.test) if len(me.data.test) else {}
    except Exception:
        await me.send(server, Scores(task.round, {}, 0))
        raise
    await me.send(server, Scores(task.round, dict(metrics), len(me.data.test)))


def _arrays(tensors: Mapping[str, Tensor]) -> Slots:
    return {name: tensor.array for name, tensor in tensors.items()} if tensors else _NONE


_NONE: Slots = {}
_UNSAVED = PartyState(0, {})
