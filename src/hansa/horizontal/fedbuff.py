"""FedBuff: asynchronous federated averaging with a buffer on the server.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, algorithm 1; the weights by staleness are those of Xie, Koyejo and Gupta, "Asynchronous Federated Optimization",
2019, section 5.2.

*Threat model*: that of :mod:`hansa.horizontal.rounds`. The aggregation's collector knows besides how stale each contribution
is. The parties and their messages are the same as in a synchronous round; the server alone is another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from msgspec.structs import replace as replaced

from hansa.errors import ConfigError, QuorumNotReached
from hansa.horizontal.evaluation import Evaluation, Scores, report
from hansa.horizontal.rounds import Algorithm, TrainTask, finite, participant, plain_mean, share_of
from hansa.horizontal.sampling import Uniform
from hansa.horizontal.stopping import Best, Stop
from hansa.learner import Learner
from hansa.learners import checks
from hansa.learners.server_optimizers import ServerSGD
from hansa.message import Message
from hansa.params import Params
from hansa.party import Party, tell
from hansa.protocol import Aggregation, Collected, Gathering, Protocol, Role, Withdraw
from hansa.tensor import Tensor


class BufferState(Message, frozen=True):
    """The server's durable state after a step: the model, and who was invited at which step and when."""

    tag = "hansa.buffer-state/1"
    discloses = "nothing: it stays with the server"

    round: int
    params: Params
    slots: dict[str, Tensor]
    best: Best
    invited: dict[str, int] = {}
    since: dict[str, float] = {}


@final
@dataclass(frozen=True)
class Staleness:
    """The factor on a contribution whose model is ``tau`` server steps old.

    ==============  ==================================================
    kind            factor
    ==============  ==================================================
    polynomial      ``(1 + tau) ** -a``
    constant        1
    hinge           1 if ``tau <= b``, else ``1 / (a * (tau - b) + 1)``
    ==============  ==================================================

    >>> Staleness().factor(3), Staleness("hinge", a=10, b=4).factor(5)
    (0.5, 0.09090909090909091)

    Args:
        kind: see the table; polynomial with ``a = 0.5`` is the FedBuff paper's.
        a: the exponent or the slope, above 0.
        b: the age up to which nothing is taken off, 0 or above; for hinge only.
    """

    kind: Literal["polynomial", "constant", "hinge"] = "polynomial"
    a: float = 0.5
    b: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in ("polynomial", "constant", "hinge"):
            raise ConfigError(f"Staleness: kind must be 'polynomial', 'constant' or 'hinge', not {self.kind!r}")
        checks.positive("Staleness.a", self.a)
        checks.not_negative("Staleness.b", self.b)

    def factor(self, tau: int) -> float:
        """The factor at age ``tau``, from 0 on."""
        if self.kind == "polynomial":
            return float((1.0 + tau) ** -self.a)
        if self.kind == "hinge" and tau > self.b:
            return 1.0 / (self.a * (tau - self.b) + 1.0)
        return 1.0


@final
@dataclass(frozen=True, kw_only=True)
class FedBuff(Protocol):
    """Parties train at their own pace from the model they were given; every ``buffer`` contributions the server takes a step.

    ``concurrency`` parties are at work when a step begins; those that contributed to it are replaced, by parties drawn
    uniformly among the idle, when it ends. With ``Delta_i`` the change of party ``i`` and ``s`` the factor of its staleness,
    the step is along ``1 / K * sum(s(tau_i) * Delta_i)`` with ``mean("uniform")``, the paper's average, and along
    ``sum(n_i * s(tau_i) * Delta_i) / sum(n_i)`` with the weighted ``mean()``.

    *Guarantees*: a contribution counts at most once, and only if it answers the party's last invitation; one that is older
    than ``max_staleness`` steps or ``deadline`` seconds never counts, and its party's place is given to another.

    >>> FedBuff(rounds=100, concurrency=20, buffer=5).buffer
    5

    Args:
        rounds: how many server steps at most.
        concurrency: how many parties are at work.
        buffer: the paper's K: contributions that make a step, at most ``concurrency``.
        staleness: what a contribution from an old model counts.
        max_staleness: server steps after which an invitation ends; None for never.
        server_learning_rate: above 0.
        server_momentum: in [0, 1).
        deadline: seconds that a step waits at most, and after which an invitation ends.
        quorum: the least share of the buffer that a step needs at its deadline, above 0 and at most 1.
        missed_quorum: ``"stop"`` ends the run, ``"skip"`` keeps the model, invites others and goes on.
        evaluation: when the model is evaluated, and on what; parties at work are not asked.
        stop: when to end before ``rounds``.
    """

    rounds: int
    concurrency: int
    buffer: int
    staleness: Staleness = field(default_factory=Staleness)
    max_staleness: int | None = None
    server_learning_rate: float = 1.0
    server_momentum: float = 0.0
    deadline: float = 600.0
    quorum: float = 0.5
    missed_quorum: Literal["stop", "skip"] = "stop"
    evaluation: Evaluation = field(default_factory=Evaluation)
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        for name in ("rounds", "concurrency", "buffer"):
            checks.count(f"FedBuff.{name}", getattr(self, name))
        if self.buffer > self.concurrency:
            raise ConfigError(
                f"FedBuff: a buffer of {self.buffer} never fills while {self.concurrency} parties are at work;"
                f" lower buffer or raise concurrency"
            )
        if self.max_staleness is not None:
            checks.count("FedBuff.max_staleness", self.max_staleness, least=0)
        checks.positive("FedBuff.deadline", self.deadline)
        checks.in_unit("FedBuff.quorum", self.quorum, zero=False)
        if self.missed_quorum not in ("stop", "skip"):
            raise ConfigError(f"FedBuff: missed_quorum must be 'stop' or 'skip', not {self.missed_quorum!r}")
        self._optimizer()

    def _optimizer(self) -> ServerSGD:
        return ServerSGD(self.server_learning_rate, self.server_momentum)

    def needed_parties(self) -> tuple[int, str]:
        """As many as are at work at once."""
        return self.concurrency, "concurrency"

    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        async def server(me: Party) -> Params:
            return await _serve(self, self._optimizer(), learner, aggregation, me)

        receives: tuple[type[Message], ...] = (*aggregation.messages, Withdraw, Scores)
        return {
            "server": Role(server, receives, starts=True, saves=BufferState, continuous=True),
            "client": participant(_TRAINING, learner, aggregation),
        }


_TRAINING = Algorithm(lambda params, slots, *_: (params.flat, slots))
"""What a party does: FedAvg's local training. The server's step stands in :func:`_serve`."""


async def _serve(
    protocol: FedBuff, optimizer: ServerSGD, learner: Learner, aggregation: Aggregation[Any, Any], me: Party
) -> Params:
    if protocol.needed_parties()[0] > len(me.roster["client"]):
        raise ConfigError(
            f"FedBuff: {protocol.concurrency} parties cannot be at work among {len(me.roster['client'])};"
            f" lower concurrency"
        )
    state = me.saved
    if not isinstance(state, BufferState):
        params = learner.init(me.rng("init"), me.data.test)
        slots = {name: Tensor(value) for name, value in optimizer.init(params.size, params.layout.dtype).items()}
        best = await report(protocol, learner, me, 0, params, Best(), {}, {}, last=False)
        state = BufferState(0, params, slots, best)
        await me.save(state)
    while state.round < protocol.rounds and not protocol.stop.reached(state.best):
        round = state.round + 1
        state, expired = _without_expired(protocol, state, round, me.now())
        state = await _invite(protocol, me, state, round)
        metrics = {"expired": float(expired), "at_work": float(len(state.invited))}
        try:
            collected = await aggregation.collect(me, _gathering(protocol, state, round, me.now()))
        except QuorumNotReached as missed:
            if protocol.missed_quorum == "stop":
                raise
            state, notes = replaced(state, round=round), {"quorum": missed.what}
        else:
            ages = [round - state.invited[party] for party in collected.contributors]
            metrics |= {"staleness_mean": sum(ages) / len(ages), "staleness_max": float(max(ages))}
            metrics["contributors"] = float(len(ages))
            metrics |= {f"train_{name}": value for name, value in plain_mean(collected).scalars.items()}
            state, notes = _stepped(optimizer, state, collected, round, me.name), dict(collected.refused)
        last = round == protocol.rounds
        best = await report(
            protocol, learner, me, round, state.params, state.best, metrics, notes, last, busy=state.invited
        )
        state = replaced(state, best=best)
        await me.save(state)
    return state.params


def _without_expired(protocol: FedBuff, state: BufferState, round: int, now: float) -> tuple[BufferState, int]:
    """The state without the invitations that are too old, and how many these were."""
    oldest = -math.inf if protocol.max_staleness is None else round - protocol.max_staleness
    kept = {
        party: step
        for party, step in state.invited.items()
        if step >= oldest and 0 <= now - state.since[party] < protocol.deadline
    }
    since = {party: state.since[party] for party in kept}
    return replaced(state, invited=kept, since=since), len(state.invited) - len(kept)


async def _invite(protocol: FedBuff, me: Party, state: BufferState, round: int) -> BufferState:
    """Bring the parties at work up to the concurrency."""
    clients, busy = me.roster["client"], state.invited
    wanted = protocol.concurrency - len(busy)
    # Enough names that as many idle ones are among them; the first of these are a uniform draw of the idle.
    drawn = Uniform().draw(me.rng("cohort", round), clients, min(wanted + len(busy), len(clients)))
    chosen = [name for name in drawn if name not in busy][:wanted]
    await tell(me, chosen, TrainTask(round, state.params))
    now = me.now()
    return replaced(
        state, invited={**busy, **dict.fromkeys(chosen, round)}, since={**state.since, **dict.fromkeys(chosen, now)}
    )


def _gathering(protocol: FedBuff, state: BufferState, round: int, now: float) -> Gathering:
    return Gathering(
        # Those who have been at work longest first; a state read back has forgotten its order.
        invited=dict(sorted(state.invited.items(), key=lambda party: (party[1], party[0]))),
        deadline=now + protocol.deadline,
        quorum=share_of(protocol.buffer, protocol.quorum),
        enough=protocol.buffer,
        size=state.params.size,
        dtype=state.params.layout.dtype,
        factor=lambda invited: protocol.staleness.factor(round - invited),
    )


def _stepped(
    optimizer: ServerSGD, state: BufferState, collected: Collected[Any], round: int, server: str
) -> BufferState:
    """The state after a step, without the invitations that were answered."""
    mean = plain_mean(collected)
    arrays = {name: tensor.array for name, tensor in state.slots.items()}
    flat, slots = optimizer.step(state.params.flat, mean.delta, arrays, round)
    answered = {*collected.contributors, *collected.refused}
    return replaced(
        state,
        round=round,
        params=finite(state.params, flat, mean.delta, round, server),
        slots={name: Tensor(value) for name, value in slots.items()},
        invited={party: step for party, step in state.invited.items() if party not in answered},
        since={party: time for party, time in state.since.items() if party not in answered},
    )
