"""Cyclic weight transfer: one model goes from party to party, and each trains it in turn.

Source: Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin and Kalpathy-Cramer, "Distributed deep learning networks among
institutions for medical imaging", Journal of the American Medical Informatics Association 25(8), 2018, cyclical weight transfer.

*Threat model*: semi-honest parties. The server hands the model on and sees each party's single update, whatever the plan's
aggregation: a sum over one party hides nothing, so only noise or a clip protects it. A party sees the model as its
predecessor left it. Between two of its own visits that model moved by the updates of all the others, so with two parties each
sees the other's updates exactly. Nobody sees examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

from msgspec.structs import replace as replaced

from hansa.errors import ConfigError, QuorumNotReached
from hansa.horizontal.evaluation import Evaluation, Scores, report
from hansa.horizontal.rounds import Algorithm, TrainTask, finite, participant, plain_mean, share_of
from hansa.horizontal.stopping import Best, Stop
from hansa.learner import Learner
from hansa.learners import checks
from hansa.message import Message
from hansa.params import Params
from hansa.party import Party
from hansa.protocol import Aggregation, Collected, Gathering, Protocol, Role, Withdraw


class CycleState(Message, frozen=True):
    """The server's durable state after a turn; ``missed`` names the parties whose turns of this cycle were missed, and why."""

    tag = "hansa.cycle-state/1"
    discloses = "nothing: it stays with the server"

    round: int
    params: Params
    best: Best
    missed: dict[str, str] = {}


@final
@dataclass(frozen=True, kw_only=True)
class Cyclic(Protocol):
    """Each round is one party's turn: it trains the model as its predecessor left it. A cycle is a turn of every party.

    With the plan's ``mean()`` the step is ``w <- w_k``, the model that party ``k`` trained. A clip or noise of the plan acts on
    each turn's change.

    *Guarantees*: the server waits for one party at a time, and every party has exactly one turn in each whole cycle. A turn
    that was missed leaves the model as it was and is not made up; an answer after its deadline never counts.

    >>> Cyclic(rounds=12, order="shuffled").order
    'shuffled'

    Args:
        rounds: how many turns at most; with n parties, n make a cycle.
        order: ``"fixed"`` is the roster's order, ``"shuffled"`` another order in every cycle.
        deadline: seconds that a party has for its turn.
        quorum: the least share of a cycle's turns that must not be missed, above 0 and at most 1.
        evaluation: when the model is evaluated, and on what.
        stop: when to end before ``rounds``.
    """

    cohort: ClassVar[int] = 1

    rounds: int
    order: Literal["fixed", "shuffled"] = "fixed"
    deadline: float = 600.0
    quorum: float = 0.5
    evaluation: Evaluation = field(default_factory=Evaluation)
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        checks.count("Cyclic.rounds", self.rounds)
        checks.positive("Cyclic.deadline", self.deadline)
        checks.in_unit("Cyclic.quorum", self.quorum, zero=False)
        if self.order not in ("fixed", "shuffled"):
            raise ConfigError(f"Cyclic: order must be 'fixed' or 'shuffled', not {self.order!r}")

    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        async def server(me: Party) -> Params:
            return await _serve(self, learner, aggregation, me)

        receives: tuple[type[Message], ...] = (*aggregation.messages, Withdraw, Scores)
        return {
            "server": Role(server, receives, starts=True, saves=CycleState),
            "client": participant(_TRAINING, learner, aggregation),
        }


_TRAINING = Algorithm(lambda params, slots, *_: (params.flat, slots))
"""What a party does: plain local training. The server's step stands in :func:`_serve`."""


async def _serve(protocol: Cyclic, learner: Learner, aggregation: Aggregation[Any, Any], me: Party) -> Params:
    clients = me.roster["client"]
    state = me.saved
    if not isinstance(state, CycleState):
        params = learner.init(me.rng("init"), me.data.test)
        best = await report(protocol, learner, me, 0, params, Best(), {}, {}, last=False)
        state = CycleState(0, params, best)
        await me.save(state)
    order: Sequence[int] = ()
    while state.round < protocol.rounds and not protocol.stop.reached(state.best):
        cycle, place = divmod(state.round, len(clients))
        if place == 0 or not order:
            order = _order(protocol, me, cycle, len(clients))
        round, party = state.round + 1, clients[order[place]]
        state = replaced(state, round=round, missed=state.missed if place else {})
        metrics: dict[str, float] = {}
        notes: dict[str, str] = {}
        await me.send(party, TrainTask(round, state.params))
        try:
            collected: Collected[Any] = await aggregation.collect(
                me,
                Gathering(
                    {party: round},
                    me.now() + protocol.deadline,
                    1,
                    1,
                    state.params.size,
                    dtype=state.params.layout.dtype,
                ),
            )
        except QuorumNotReached as failure:
            state = replaced(state, missed={**state.missed, party: failure.what})
            _check(protocol, state, len(clients), me.name)
            notes = {party: f"missed its turn: {failure.what}"}
        else:
            mean = plain_mean(collected)
            flat = state.params.flat + mean.delta
            state = replaced(state, params=finite(state.params, flat, mean.delta, round, me.name))
            metrics = {f"train_{name}": value for name, value in sorted(mean.scalars.items())}
        metrics["contributors"] = float(party not in state.missed)
        last = round == protocol.rounds
        best = await report(protocol, learner, me, round, state.params, state.best, metrics, notes, last)
        state = replaced(state, best=best)
        await me.save(state)
    return state.params


def _order(protocol: Cyclic, me: Party, cycle: int, count: int) -> Sequence[int]:
    """The places of the parties in the order of their turns."""
    if protocol.order == "fixed":
        return range(count)
    order: list[int] = me.rng("order", cycle).permutation(count).tolist()
    return order


def _check(protocol: Cyclic, state: CycleState, count: int, server: str) -> None:
    """Raise where so many turns of this cycle were missed that its quorum is out of reach."""
    wanted = share_of(count, protocol.quorum)
    if len(state.missed) <= count - wanted:
        return
    named = "; ".join(f"{party}: {why}" for party, why in list(state.missed.items())[:5])
    raise QuorumNotReached(
        f"{len(state.missed)} of the cycle's {count} turns were missed, the quorum is {wanted}; {named}",
        party=server,
        round=state.round,
        remedy="raise the deadline, lower the quorum, or leave out the parties that do not answer",
    )
