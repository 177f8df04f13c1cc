"""D-PSGD: equal to the paper's recursion, right without those who are silent, and never waiting for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.aggregation import mean
from hansa.decentralized.dpsgd import DPSGD, PeerModel, PeerScores, PeerState
from hansa.decentralized.topology import (
    Complete,
    ErdosRenyi,
    Exponential,
    Ring,
    Star,
    Topology,
    Torus,
    mixing_matrix,
)
from hansa.errors import ConfigError, PartyFailed
from hansa.examples import Examples
from hansa.learner import Learner, LocalWork
from hansa.learners.optimizers import SGD
from hansa.message import decode, encode
from hansa.params import Params
from hansa.party import Party
from hansa.protocol import Aggregation, Protocol, Role
from hansa.rng import Key
from hansa.simulation.network import Crash, Device, Devices, FaultPlan, Partition
from hansa.tensor import Tensor
from hansa.update import Update
from tests.protocols import (
    TOLERANCE,
    Data,
    LeastSquares,
    Outcome,
    Vector,
    arrays_of,
    assert_named_end,
    assert_no_example_travels,
    assert_resumes_identically,
    permutation,
    regression,
    run,
)

SIZES = (9, 12, 6, 8, 11, 7)
ROUNDS, RATE, BATCH, DEADLINE = 8, 0.05, 4, 10.0


@pytest.fixture(scope="module")
def data() -> Data:
    return regression(SIZES)


def dpsgd(**more: Any) -> DPSGD:
    return DPSGD(**{"rounds": ROUNDS, "deadline": DEADLINE, **more})


def first_model() -> Vector:
    model: Vector = Key.root(0).child("init").generator().normal(size=3)
    return model


def gradient_step(i: int, w: Vector, data: Data, round: int) -> Vector:
    """``-gamma * grad F_i(w; xi)`` on the peer's first minibatch of the round."""
    x, y = data[i]
    rows = permutation(f"peer-{i}", round, len(y), 0)[:BATCH]
    step: Vector = -RATE * x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)
    return step


def oracle(data: Data, topology: Topology) -> Vector:
    """Lian et al. 2017, algorithm 1: ``X <- W X - gamma G(X)``, all peers at once."""
    n = len(data)
    x = np.tile(first_model(), (n, 1))
    for t in range(1, ROUNDS + 1):
        graph = topology.graph(n, t)
        w = np.zeros((n, n))
        for i in range(n):
            for j in graph[i]:
                w[i, j] = 1 / (1 + max(len(graph[i]), len(graph[j])))
            w[i, i] = 1 - w[i].sum()
        x = w @ x + np.array([gradient_step(i, x[i], data, t) for i in range(n)])
    return x


def models(outcome: Outcome) -> Vector:
    if outcome.error is not None:
        raise outcome.error
    return np.array([outcome.results[f"peer-{i}"].flat for i in range(len(outcome.results))])


TOPOLOGIES: Mapping[str, Topology] = {
    "ring": Ring(),
    "torus": Torus(),
    "complete": Complete(),
    "star": Star(),
    "exponential": Exponential(),
    "one peer": Exponential(one_at_a_time=True),
    "redrawn": ErdosRenyi(0.4, redraw=True),
}


@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_it_follows_algorithm_1(name: str, data: Data) -> None:
    outcome = run(dpsgd(topology=TOPOLOGIES[name]), data, record=())
    expected = oracle(data, TOPOLOGIES[name])
    np.testing.assert_allclose(models(outcome), expected, rtol=0, atol=TOLERANCE)
    assert np.abs(expected - first_model()).max() > 0.1
    assert "server" not in outcome.world.rosters


def test_a_fast_neighbours_next_round_waits_its_turn(data: Data) -> None:
    devices = Devices(
        named={f"peer-{i}": Device(examples_per_second=[900, 50, 4, 300, 2, 80][i], latency=0.01 * i) for i in range(6)}
    )
    faults = FaultPlan(duplicate=0.5, delay=(0.0, 1.0))
    outcome = run(dpsgd(topology=Torus(), deadline=1000.0), data, devices=devices, faults=faults, record=())
    np.testing.assert_allclose(models(outcome), oracle(data, Torus()), rtol=0, atol=TOLERANCE)
    seen = [
        (h.to, h.message.round) for h in outcome.timeline if h.what == "delivered" and isinstance(h.message, PeerModel)
    ]
    overtaken = [b for a, b in pairwise(seen) if a[0] == b[0] and b[1] < a[1]]
    assert overtaken, "no model came before its round, so nothing was tested"


def test_whole_epochs_instead_of_single_steps(data: Data) -> None:
    outcome = run(dpsgd(topology=Complete(), steps=None, rounds=1), data, record=())
    learner, start = LeastSquares(), first_model()
    for i, (x, y) in enumerate(data):
        update = learner.fit(
            Params.of({"w": start}, dtype="float64"), Examples(x, y), LocalWork(round=1),
            Key.root(0).child(f"peer-{i}/fit", 1),
        )  # fmt: skip
        np.testing.assert_allclose(models(outcome)[i], start + update.delta.array, atol=TOLERANCE)


def test_peers_agree_and_find_the_common_optimum() -> None:
    data = regression([40] * 8, spread=0.5)
    x, y = np.concatenate([x for x, _ in data]), np.concatenate([y for _, y in data])
    optimum = np.linalg.lstsq(x, y, rcond=None)[0]
    learner = LeastSquares(SGD(0.02), batch_size=40)
    found = models(run(dpsgd(topology=Torus(), rounds=400), data, learner=learner, record=()))
    assert np.abs(found.mean(axis=0) - optimum).max() < 0.03
    alone = np.array([np.linalg.lstsq(x, y, rcond=None)[0] for x, y in data])
    assert np.linalg.norm(found - optimum) < 0.2 * np.linalg.norm(alone - optimum)


def test_a_peer_without_examples_mixes_and_does_not_train() -> None:
    data = [*regression((8, 9, 7)), (np.zeros((0, 3)), np.zeros(0))]
    outcome = run(dpsgd(topology=Complete(), rounds=1), data, record=())
    np.testing.assert_allclose(models(outcome)[3], first_model(), atol=1e-12)
    assert sorted(outcome.progress[-1][2].parties) == ["peer-0", "peer-1", "peer-2"]


def test_one_peer_is_alone() -> None:
    outcome = run(dpsgd(), regression([10]), record=())
    assert outcome.error is None
    assert [h.message for h in outcome.timeline if h.what == "sent"] == []


def replayed(outcome: Outcome, data: Data, topology: Topology, gone: frozenset[str] = frozenset()) -> int:
    """Hold every model that was sent on against what its peer had received by then; returns how many neighbours were missed.

    The peer's own weight takes the place of those that were not there in time.
    """
    n = len(data)
    graph = topology.graph(n, 1)
    matrix = mixing_matrix(graph)
    inbox: dict[tuple[str, str, int], Vector] = {}
    current = {f"peer-{i}": (1, first_model()) for i in range(n)}
    missed = 0

    def expected(name: str) -> Vector:
        nonlocal missed
        i, (round, own) = int(name.removeprefix("peer-")), current[name]
        heard = {j: inbox[key] for j in graph[i] if (key := (name, f"peer-{j}", round)) in inbox}
        missed += len(graph[i]) - len(heard)
        mixed = own * (1 - sum(matrix[i, j] for j in heard))
        for j, model in heard.items():
            mixed = mixed + matrix[i, j] * model
        result: Vector = mixed + gradient_step(i, own, data, round)
        return result

    for h in outcome.timeline:
        if h.what == "delivered" and isinstance(h.message, PeerModel):
            inbox.setdefault((h.to, h.sender, h.message.round), h.message.model.array)
        elif h.what == "sent" and isinstance(h.message, PeerModel) and h.message.round == current[h.sender][0] + 1:
            np.testing.assert_allclose(h.message.model.array, expected(h.sender), rtol=0, atol=TOLERANCE)
            current[h.sender] = (h.message.round, h.message.model.array)
        elif h.what == "sent" and isinstance(h.message, PeerScores):
            np.testing.assert_allclose(outcome.results[h.sender].flat, expected(h.sender), rtol=0, atol=TOLERANCE)
    for name, (round, _) in current.items():
        assert round == ROUNDS or name in gone
    return missed


FAULTS: Mapping[str, tuple[FaultPlan, frozenset[str]]] = {
    "drops": (FaultPlan(drop=0.2), frozenset()),
    "late": (FaultPlan(delay=(0.0, 1.5 * DEADLINE), duplicate=0.3), frozenset()),
    "dead": (
        FaultPlan(delay=(0.1, 1.0), crashes=(Crash("peer-2", 1.5), Crash("peer-5", 0.05))),
        frozenset({"peer-2", "peer-5"}),
    ),
    "the reporter is dead": (FaultPlan(delay=(0.1, 1.0), crashes=(Crash("peer-0", 2.0),)), frozenset({"peer-0"})),
    "cut in two": (
        FaultPlan(delay=(0.1, 1.0), partitions=(Partition(("peer-0", "peer-1", "peer-2"), 1.0, 25.0),)),
        frozenset(),
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("name", ["ring", "complete", "star"])
def test_the_silent_are_left_out_with_the_weight_to_oneself(name: str, fault: str, data: Data) -> None:
    faults, gone = FAULTS[fault]
    # Without test examples nothing happens between a peer's last average and its word that it is done.
    outcome = run(dpsgd(topology=TOPOLOGIES[name]), data, faults=faults, record=(), tested=False)
    assert outcome.error is None
    assert {failure.party for failure in outcome.failures} == gone
    missed = replayed(outcome, data, TOPOLOGIES[name], gone)
    assert missed > 0, "nobody was missed, so nothing was tested"
    if fault != "the reporter is dead":
        assert any("no model from peer-" in report.note for _, _, report in outcome.progress) or name != "complete"
    assert outcome.world.clock <= (ROUNDS + 1) * DEADLINE


def test_the_dead_are_waited_for_once(data: Data) -> None:
    faults = FaultPlan(delay=(0.1, 0.1), crashes=(Crash("peer-3", 0.05),))
    outcome = run(dpsgd(topology=Complete(), rounds=50), data, faults=faults, record=())
    assert outcome.error is None
    # One deadline for its model, one at the end for its scores.
    assert outcome.world.clock < 2 * DEADLINE + 50 * 0.2


def test_a_peer_that_comes_back_is_heard_again(data: Data) -> None:
    faults = FaultPlan(delay=(0.1, 0.2), crashes=(Crash("peer-3", 1.0, restart=2.0),))
    outcome = run(dpsgd(topology=Complete(), rounds=40), data, faults=faults, record=())
    assert outcome.error is None
    assert sorted(outcome.results) == [f"peer-{i}" for i in range(6)]
    notes = [report.note for _, _, report in outcome.progress]
    assert any("peer-3" in note for note in notes)
    found = models(outcome)
    assert np.abs(found - found.mean(axis=0)).max() < 0.5


def test_the_last_peer_may_not_die(data: Data) -> None:
    crashes = tuple(Crash(f"peer-{i}", 0.05 + 0.01 * i) for i in range(6))
    outcome = run(dpsgd(), data, faults=FaultPlan(delay=(0.1, 0.1), crashes=crashes), record=())
    assert isinstance(outcome.error, PartyFailed)
    assert outcome.error.party == "peer-5"
    assert len(outcome.failures) == 5


@dataclass(frozen=True)
class Failing:
    """Least squares that fails for the party with seven examples."""

    optimizer: SGD = field(default_factory=lambda: SGD(RATE))

    def init(self, rng: Key, example: Examples) -> Params:
        return LeastSquares().init(rng, example)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        if len(data) == 7 and work.round == 3:
            raise ValueError("a corrupt disk")
        return LeastSquares().fit(params, data, work, rng)

    def evaluate(self, params: Params, data: Examples) -> Mapping[str, float]:
        return LeastSquares().evaluate(params, data)


def test_a_peer_whose_program_raises_is_named_and_the_others_go_on(data: Data) -> None:
    outcome = run(dpsgd(), data, learner=Failing(), record=())
    assert outcome.error is None
    assert [failure.party for failure in outcome.failures] == ["peer-5"]
    assert "a corrupt disk" in outcome.failures[0].traceback
    assert outcome.results["peer-5"] is None
    assert sum(result is not None for result in outcome.results.values()) == 5


@dataclass(frozen=True)
class Infiltrated(Protocol):
    """D-PSGD in which one peer runs another program: silent, or sending what it must not."""

    inner: DPSGD
    hostile: bool

    def roles(self, learner: Learner, aggregation: Aggregation[Any, Any]) -> Mapping[str, Role]:
        honest = self.inner.roles(learner, aggregation)["peer"]

        async def program(me: Party) -> Any:
            if me.name != "peer-2":
                return await honest.program(me)
            for round in range(-1, 12 if self.hostile else -1):
                for name in me.roster["peer"]:
                    if name != me.name:
                        await me.send(name, PeerModel(round, Tensor(np.full(4, 1e9))))
                        await me.send(name, PeerModel(round, Tensor(np.full(3, 1e9, np.float32))))
                        await me.send(name, PeerModel(round, Tensor(np.full(3, np.nan))))
                        await me.send(name, PeerScores(round + 100, {"loss": -1.0}, 10**9))
            return None

        return {"peer": Role(program, honest.receives, starts=True, many=True, saves=PeerState)}


def test_unusable_models_from_a_neighbour_change_no_model(data: Data) -> None:
    silent = run(Infiltrated(dpsgd(topology=Complete()), hostile=False), data, record=())
    hostile = run(Infiltrated(dpsgd(topology=Complete()), hostile=True), data, record=())
    assert silent.error is None
    assert hostile.error is None
    for i in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(hostile.results[f"peer-{i}"].flat, silent.results[f"peer-{i}"].flat)
    assert "peer-2" not in hostile.progress[-1][2].parties


def test_views_hold_neighbours_models_and_nothing_else(data: Data) -> None:
    outcome = run(dpsgd(topology=Ring(), evaluate_every=3), data, everyone=True)
    assert outcome.error is None
    graph = Ring().graph(6, 1)
    for i in range(6):
        view = outcome.log.view(f"peer-{i}").messages
        neighbours = {f"peer-{j}" for j in graph[i]}
        assert {sender for sender, message in view if isinstance(message, PeerModel)} == neighbours
        others = {type(message) for _, message in view} - {PeerModel}
        assert others == ({PeerScores} if i == 0 else set())
        for _, message in view:
            if isinstance(message, PeerModel):
                assert len(arrays_of(message)) == 1
                assert message.model.shape == (3,)
    assert_no_example_travels(outcome, data)


def test_every_message_survives_the_wire(data: Data) -> None:
    outcome = run(dpsgd(topology=Ring(), evaluate_every=1), data, record=())
    role = outcome.world.roles["peer"]
    kinds = {type(h.message): h.message for h in outcome.timeline if h.what == "sent"}
    assert set(kinds) == {PeerModel, PeerScores}
    for message in kinds.values():
        assert encode(decode(encode(message), role.receives)) == encode(message)
    for state in outcome.world.states.values():
        assert encode(decode(encode(state), [PeerState])) == encode(state)


def test_reports_are_one_a_round_and_hold_every_peer_where_due(data: Data) -> None:
    outcome = run(dpsgd(evaluate_every=3), data, record=())
    assert [(sender, report.round) for _, sender, report in outcome.progress] == [
        ("peer-0", round) for round in range(1, ROUNDS + 1)
    ]
    full = [report.round for _, _, report in outcome.progress if len(report.parties) == 6]
    assert full == [3, 6, 8]
    assert [report.round for _, _, report in outcome.progress if "party_loss" in report.metrics] == full
    apart = outcome.metric("disagreement")
    assert apart[0] == 0.0
    assert all(value > 0 for value in apart[1:])


def test_the_same_seed_gives_the_same_log_and_another_does_not(data: Data) -> None:
    faults = FaultPlan(drop=0.1, duplicate=0.2, delay=(0.0, 5.0))
    logs = [run(dpsgd(), data, faults=faults, seed=seed, digest=True, record=()).log.digest() for seed in (3, 3, 4)]
    assert logs[0] == logs[1] != logs[2]


def test_a_killed_run_resumes_to_the_identical_end(data: Data) -> None:
    devices = Devices(
        named={f"peer-{i}": Device(examples_per_second=3.0 + i, latency=0.01 * (i + 1)) for i in range(len(SIZES))}
    )
    faults = FaultPlan(drop=0.1, delay=(0.0, 3.0))
    protocol = dpsgd(topology=Torus(), evaluate_every=2, rounds=5)
    assert_resumes_identically(protocol=protocol, data=data, devices=devices, faults=faults, record=())


names = st.sampled_from([f"peer-{i}" for i in range(len(SIZES))])


@settings(max_examples=40)
@given(
    drop=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    duplicate=st.sampled_from([0.0, 0.5]),
    delay=st.tuples(st.floats(0, 3), st.floats(3, 25)),
    crashes=st.lists(st.builds(Crash, names, st.floats(0, 40), st.one_of(st.none(), st.floats(0, 30))), max_size=6).map(
        tuple
    ),
    cut=st.lists(st.builds(Partition, st.just(("peer-1", "peer-4")), st.floats(0, 10), st.floats(11, 30)), max_size=1),
    topology=st.sampled_from(list(TOPOLOGIES.values())),
    every=st.integers(0, 3),
)
def test_no_schedule_hangs(
    drop: float, duplicate: float, delay: tuple[float, float], crashes: tuple[Crash, ...], cut: list[Partition],
    topology: Topology, every: int,
) -> None:  # fmt: skip
    faults = FaultPlan(drop=drop, duplicate=duplicate, delay=delay, crashes=crashes, partitions=tuple(cut))
    outcome = run(dpsgd(topology=topology, rounds=4, evaluate_every=every), regression(SIZES), faults=faults, record=())
    assert not any("Error" in failure.traceback for failure in outcome.failures)
    outcome.failures.clear()
    assert_named_end(outcome, PartyFailed)
    longest = 40 + 30 * len(crashes) + (len(crashes) + 1) * 4 * 2 * DEADLINE
    assert outcome.world.clock <= longest
    if outcome.error is None:
        done = [result for result in outcome.results.values() if result is not None]
        assert done
        assert all(np.isfinite(result.flat).all() for result in done)
        forever = {crash.party for crash in crashes}
        assert all(outcome.results[f"peer-{i}"] is not None for i in range(6) if f"peer-{i}" not in forever)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"steps": 0},
        {"steps": 1.5},
        {"deadline": 0.0},
        {"deadline": float("inf")},
        {"evaluate_every": -1},
        {"topology": "ring"},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dpsgd(**changes)


def test_nobody_has_to_collect_anything() -> None:
    roles = dpsgd().roles(LeastSquares(), mean())
    assert list(roles) == ["peer"]
    assert roles["peer"].many
    assert roles["peer"].starts
