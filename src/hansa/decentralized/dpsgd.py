"""D-PSGD: every peer trains its own model and averages it with its neighbours' each round. There is no server.

Source: Lian, Zhang, Zhang, Hsieh, Zhang and Liu, "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study
for Decentralized Parallel Stochastic Gradient Descent", NeurIPS 2017, algorithm 1.

*Threat model*: semi-honest peers. A peer sees the model of each of its neighbours in each round, and from two rounds it can
tell how a neighbour's model moved; it sees nothing of the peers beyond. The first peer of the roster sees besides the metrics
of all peers after an evaluation and passes them to the owner of the run. Examples never leave a peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import msgspec
import numpy as np

from hansa.decentralized.topology import Graph, Ring, Topology, graph_of, weights_of
from hansa.errors import ConfigError, DeadlineExpired, NonFinite
from hansa.learner import Learner, LocalWork
from hansa.learners import checks
from hansa.learners.distribution import distribution
from hansa.message import Message
from hansa.params import Params
from hansa.party import Party
from hansa.protocol import OBSERVER, Aggregation, Progress, Protocol, Role
from hansa.rng import Key
from hansa.tensor import Array, Tensor
from hansa.update import Update


class PeerModel(Message, frozen=True):
    """A peer's model at the beginning of a round (the algorithm's ``x_{k,i}``), for a neighbour."""

    tag = "hansa.peer-model/1"
    discloses = "one peer's own model in one round, to one of its neighbours"

    round: int
    model: Tensor


class PeerScores(Message, frozen=True):
    """A peer's metrics after a round, for the reporting peer."""

    tag = "hansa.peer-scores/1"
    discloses = "one peer's metrics on its own examples, and how many test examples it has, to the first peer"

    round: int
    metrics: dict[str, float]
    examples: int


class Ahead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A neighbour's model that came before its round."""

    sender: str
    round: int
    model: Tensor


class PeerState(Message, frozen=True):
    """A peer's durable state after a round."""

    tag = "hansa.peer-state/1"
    discloses = "nothing: it stays with the peer"

    round: int
    params: Params
    ahead: list[Ahead] = []
    silent: list[str] = []
    scores: dict[str, PeerScores] = {}


@final
@dataclass(frozen=True, kw_only=True)
class DPSGD(Protocol):
    """Each round a peer sends its model ``x_i`` to its neighbours, trains from it to ``x_i + delta_i``, and goes on from
    ``sum_j W_ij x_j + delta_i``, with Metropolis-Hastings weights ``W``.

    With ``steps=1``, plain SGD and learning rate ``gamma`` that is ``x_{k+1,i} = sum_j W_ij x_{k,j} - gamma * g_i``, the paper's
    line. The plan's aggregation has no part in it: nobody collects.

    *Guarantees*: a neighbour's model counts once, and only in the round it is of; the model of a neighbour that is silent
    past the deadline is replaced by the peer's own for that round, and the peer does not wait for it again until it has been
    heard. No wait is longer than ``deadline``.

    >>> DPSGD(rounds=100).topology
    Ring(reach=1)

    Args:
        rounds: how many rounds.
        topology: who gossips with whom.
        steps: local steps a round; None trains the learner's own epochs.
        deadline: seconds that a round waits for the neighbours' models.
        evaluate_every: rounds between evaluations of all peers on their own test examples; 0 for after the last round only.
        init_seed: public; every peer makes the same first model from it.
    """

    rounds: int
    topology: Topology = field(default_factory=Ring)
    steps: int | None = 1
    deadline: float = 600.0
    evaluate_every: int = 0
    init_seed: int = 0

    def __post_init__(self) -> None:
        checks.count("DPSGD.rounds", self.rounds)
        if self.steps is not None:
            checks.count("DPSGD.steps", self.steps)
        checks.positive("DPSGD.deadline", self.deadline)
        checks.count("DPSGD.evaluate_every", self.evaluate_every, least=0)
        if not isinstance(self.topology, Topology):
            raise ConfigError(f"DPSGD.topology must be a topology, Ring() for example, not {self.topology!r}")

    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        async def peer(me: Party) -> Params:
            return await _gossip(self, learner, me)

        return {"peer": Role(peer, (PeerModel, PeerScores), starts=True, many=True, peers=True, saves=PeerState)}


@dataclass(frozen=True)
class _Place:
    """Where a peer stands: its number, all names, its graph of the round."""

    number: int
    names: Sequence[str]
    graph: Graph

    @property
    def neighbours(self) -> list[str]:
        return [self.names[j] for j in self.graph[self.number]]


async def _gossip(protocol: DPSGD, learner: Learner, me: Party) -> Params:
    names = me.roster["peer"]
    number = names.index(me.name)
    state = me.saved
    if not isinstance(state, PeerState):
        state = PeerState(0, learner.init(Key.root(protocol.init_seed).child("init"), me.data.train))
        await me.save(state)
    while state.round < protocol.rounds:
        round = state.round + 1
        place = _Place(number, names, graph_of(protocol.topology, len(names), round))
        mine = PeerModel(round, Tensor(state.params.flat))
        for neighbour in place.neighbours:
            await me.send(neighbour, mine)
        update: Update | None = None
        if len(me.data.train):
            work = LocalWork(round=round, steps=protocol.steps)
            update = await me.compute(learner.fit, state.params, me.data.train, work, me.rng("fit", round))
        heard, state = await _hear(protocol, me, place, state, round)
        params, apart = _mixed(state.params, heard, place)
        if update is not None:
            params = params + update.delta.array
        if not np.isfinite(params.flat).all():
            raise NonFinite("this peer's model holds NaN or infinity", party=me.name, round=round,
                            remedy="lower the learning rate")  # fmt: skip
        missing = [name for name in place.neighbours if name not in heard]
        metrics = {} if update is None else {f"train_{name}": value for name, value in update.scalars.items()}
        metrics |= {"disagreement": apart, "neighbours": float(len(heard))}
        state = msgspec.structs.replace(state, round=round, params=params, silent=missing)
        state = await _report(protocol, learner, me, names, state, metrics, missing)
        await me.save(state)
    return state.params


async def _hear(
    protocol: DPSGD, me: Party, place: _Place, state: PeerState, round: int
) -> tuple[dict[str, Array], PeerState]:
    """The neighbours' models of this round, and the state with what else came."""
    wanted = set(place.neighbours)
    heard = {one.sender: one.model.array for one in state.ahead if one.round == round and one.sender in wanted}
    ahead = {(one.sender, one.round): one for one in state.ahead if one.round > round}
    scores = dict(state.scores)
    silent = set(state.silent) - {sender for sender, _ in ahead}
    deadline = me.now() + protocol.deadline
    while True:
        waiting = wanted - heard.keys() - silent
        try:
            # Nothing to wait for: take what is there already and go on.
            within = deadline - me.now() if waiting else 0.0
            sender, message = await me.recv((PeerModel, PeerScores), within=within)
        except DeadlineExpired:
            break
        if isinstance(message, PeerScores):
            if round <= message.round <= protocol.rounds and me.name == place.names[0]:
                scores[f"{message.round}/{sender}"] = message
            continue
        silent.discard(sender)
        if message.model.shape != state.params.flat.shape or message.model.dtype != state.params.flat.dtype:
            continue
        if message.round == round and sender in wanted:
            heard.setdefault(sender, message.model.array)
        elif round < message.round <= protocol.rounds and sender in place.names:
            ahead.setdefault((sender, message.round), Ahead(sender, message.round, message.model))
    return heard, msgspec.structs.replace(state, ahead=list(ahead.values()), scores=scores)


def _mixed(params: Params, heard: Mapping[str, Array], place: _Place) -> tuple[Params, float]:
    """The weighted average of the models, and the mean distance of the neighbours' from the own."""
    weights = weights_of(place.graph, place.number)
    own = weights[place.number]
    total = np.zeros_like(params.flat)
    distances = []
    # In the order of the peers' numbers, so that arrival does not change the last bits.
    for neighbour in place.graph[place.number]:
        model = heard.get(place.names[neighbour])
        if model is None or not np.isfinite(model).all():
            own += weights[neighbour]
        else:
            total += model.dtype.type(weights[neighbour]) * model
            distances.append(float(np.linalg.norm(model - params.flat)))
    total += total.dtype.type(own) * params.flat
    return params.replaced(total), float(np.mean(distances)) if distances else 0.0


async def _report(
    protocol: DPSGD,
    learner: Learner,
    me: Party,
    names: Sequence[str],
    state: PeerState,
    metrics: dict[str, float],
    missing: Sequence[str],
) -> PeerState:
    """Evaluate where it is due; the first peer gathers what the others found and tells the observer."""
    round, reporter = state.round, names[0]
    last = round == protocol.rounds
    due = last or (protocol.evaluate_every > 0 and round % protocol.evaluate_every == 0)
    mine = PeerScores(round, {}, 0)
    if due and len(me.data.test):
        found = await me.compute(learner.evaluate, state.params, me.data.test)
        mine = PeerScores(round, dict(found), len(me.data.test))
    if me.name != reporter:
        if due:
            await me.send(reporter, mine)
        return state
    parties: dict[str, dict[str, float]] = {}
    if due:
        state, found_by = await _gather_scores(protocol, me, names, state)
        parties = {
            name: {**one.metrics, "examples": float(one.examples)}
            for name, one in {me.name: mine, **found_by}.items()
            if one.examples > 0
        }
    note = f"no model from {', '.join(missing)}" if missing else ""
    await me.send(OBSERVER, Progress(round, {**metrics, **distribution(parties)}, parties, note))
    return state


async def _gather_scores(
    protocol: DPSGD, me: Party, names: Sequence[str], state: PeerState
) -> tuple[PeerState, dict[str, PeerScores]]:
    """What the other peers found after this round, and the state without it."""
    found = {name.partition("/")[2]: one for name, one in state.scores.items() if one.round == state.round}
    waiting = set(names) - found.keys() - {me.name}
    deadline = me.now() + protocol.deadline
    later: dict[str, PeerScores] = {key: one for key, one in state.scores.items() if one.round > state.round}
    while waiting:
        try:
            sender, message = await me.recv(PeerScores, within=deadline - me.now())
        except DeadlineExpired:
            break
        if state.round < message.round <= protocol.rounds:
            later[f"{message.round}/{sender}"] = message
        elif message.round == state.round and sender in waiting:
            waiting.discard(sender)
            found[sender] = message
    return msgspec.structs.replace(state, scores=later), {name: found[name] for name in names if name in found}
