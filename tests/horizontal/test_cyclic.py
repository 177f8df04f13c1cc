"""Cyclic weight transfer equals its loop, goes on without those who miss a turn, and ends by name when too many do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from hansa.aggregation import Contribution, clip, mean
from hansa.errors import ConfigError, DeadlineExpired, NonFinite, QuorumNotReached
from hansa.horizontal.cyclic import CycleState, Cyclic
from hansa.horizontal.evaluation import EvaluateTask, Evaluation, Scores
from hansa.horizontal.rounds import TrainTask
from hansa.horizontal.stopping import Stop
from hansa.learners.optimizers import SGD
from hansa.message import decode, encode
from hansa.registry import find
from hansa.rng import Key
from hansa.simulation.network import Crash, FaultPlan, Partition
from tests.protocols import (
    TOLERANCE,
    Data,
    LeastSquares,
    Outcome,
    Vector,
    assert_named_end,
    assert_no_example_travels,
    assert_resumes_identically,
    permutation,
    regression,
    run,
)

SIZES = (7, 16, 4, 11, 9)
QUIET = Evaluation(every=0, parties=0)
DEADLINE = 10.0


def settings(**more: Any) -> dict[str, Any]:
    return {"rounds": 12, "deadline": DEADLINE, "evaluation": QUIET, **more}


@pytest.fixture(scope="module")
def data() -> Data:
    return regression(SIZES)


def first_model(seed: int = 0) -> Vector:
    model: Vector = Key.root(seed).child("server/init").generator().normal(size=3)
    return model


def trained(w: Vector, data: Data, party: str, round: int) -> Vector:
    """A visit: two epochs of SGD at 0.05 with batches of 4."""
    x, y = data[int(party.removeprefix("client-"))]
    for epoch in range(2):
        order = permutation(party, round, len(y), epoch)
        for start in range(0, len(y), 4):
            rows = order[start : start + 4]
            w = w - 0.05 * x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)
    return w


def visited(outcome: Outcome) -> list[str]:
    """Whose turn it was, round after round."""
    tasks = {h.message.round: h.to for h in outcome.timeline if h.what == "sent" and isinstance(h.message, TrainTask)}
    return [tasks[round] for round in sorted(tasks)]


def heard_in_time(outcome: Outcome) -> dict[int, str]:
    """The rounds whose party an outsider saw answer while its turn was open."""
    heard, open_ = dict[int, str](), (0, "")
    for seen in outcome.timeline:
        if seen.what == "sent" and isinstance(seen.message, TrainTask):
            open_ = (seen.message.round, seen.to)
            continue
        answered = seen.what == "delivered" and seen.to == "server" and isinstance(seen.message, Contribution)
        if answered and (seen.message.round, seen.sender) == open_:  # type: ignore[attr-defined]
            heard[seen.message.round] = seen.sender  # type: ignore[attr-defined]
    return heard


def expected(outcome: Outcome, data: Data) -> Vector:
    w = first_model()
    for round, party in sorted(heard_in_time(outcome).items()):
        w = trained(w, data, party, round)
    return w


@pytest.mark.parametrize("rounds", [1, 5, 12])
def test_the_model_goes_round_in_the_order_of_the_roster(data: Data, rounds: int) -> None:
    w = first_model()
    for t in range(rounds):
        w = trained(w, data, f"client-{t % 5}", t + 1)
    outcome = run(Cyclic(**settings(rounds=rounds)), data)
    np.testing.assert_allclose(outcome.model, w, rtol=0, atol=TOLERANCE)
    assert np.abs(w - first_model()).max() > 0.05, "the oracle did not move, so it proves nothing"


def test_shuffled_every_cycle_visits_everybody_once_and_orders_differ(data: Data) -> None:
    outcome = run(Cyclic(**settings(rounds=25, order="shuffled")), data)
    w, turns = first_model(), visited(outcome)
    for t, party in enumerate(turns):
        w = trained(w, data, party, t + 1)
    np.testing.assert_allclose(outcome.model, w, rtol=0, atol=TOLERANCE)
    cycles = [tuple(turns[start : start + 5]) for start in range(0, 25, 5)]
    assert all(sorted(cycle) == [f"client-{i}" for i in range(5)] for cycle in cycles)
    assert len(set(cycles)) >= 4
    assert visited(run(Cyclic(**settings(rounds=25, order="shuffled")), data, seed=1)) != turns


def test_one_party_alone_trains_on(data: Data) -> None:
    w = first_model()
    for t in range(4):
        w = trained(w, data, "client-0", t + 1)
    np.testing.assert_allclose(run(Cyclic(**settings(rounds=4)), data[:1]).model, w, rtol=0, atol=TOLERANCE)


def test_the_plans_clip_bounds_each_turn(data: Data) -> None:
    outcome = run(Cyclic(**settings()), data, aggregation=clip(0.01) | mean())
    deltas = [m.delta.array for _, m in outcome.log.received["server"] if isinstance(m, Contribution)]
    assert len(deltas) == 12
    assert all(np.linalg.norm(delta) <= 0.01 * (1 + 1e-9) for delta in deltas)
    np.testing.assert_allclose(outcome.model, first_model() + np.sum(deltas, axis=0), rtol=0, atol=TOLERANCE)


FAULTS = {
    "drops": FaultPlan(drop=0.2),
    "duplicates": FaultPlan(duplicate=0.7, delay=(0.0, 0.8 * DEADLINE)),
    "delays past the deadline": FaultPlan(delay=(0.0, 1.2 * DEADLINE)),
    "crashes": FaultPlan(delay=(0.1, 1.0), crashes=(Crash("client-1", 0.5), Crash("client-3", 2.0, restart=9.0))),
    "a partition": FaultPlan(delay=(0.1, 2.0), partitions=(Partition(("client-0", "client-4"), 0.0, 15.0),)),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_a_missed_turn_leaves_the_model_and_the_next_party_goes_on(fault: str, order: str, data: Data) -> None:
    outcome = run(Cyclic(**settings(quorum=0.01, order=order, rounds=20)), data, faults=FAULTS[fault])
    assert_named_end(outcome, QuorumNotReached)
    np.testing.assert_allclose(outcome.model, expected(outcome, data), rtol=0, atol=TOLERANCE)
    missed = [report.round for _, _, report in outcome.progress if "missed its turn" in report.note]
    assert 0 < len(missed) < 20
    assert set(missed).isdisjoint(heard_in_time(outcome))
    assert outcome.metric("contributors").count(0.0) == len(missed)


def test_too_many_missed_turns_end_the_run_by_name(data: Data) -> None:
    silent = tuple(Crash(f"client-{i}", at=0.0) for i in (1, 2, 4))
    outcome = run(Cyclic(**settings(quorum=0.5)), data, faults=FaultPlan(delay=(0.1, 0.2), crashes=silent))
    assert isinstance(outcome.error, QuorumNotReached)
    assert outcome.error.party == "server"
    assert outcome.error.round == 5
    for i in (1, 2, 4):
        assert f"client-{i}" in str(outcome.error)
    assert "server" not in outcome.results
    assert outcome.world.clock <= 3 * DEADLINE + 2


def test_at_the_quorum_it_goes_on_cycle_after_cycle(data: Data) -> None:
    silent = tuple(Crash(f"client-{i}", at=0.0) for i in (1, 4))
    outcome = run(Cyclic(**settings(quorum=0.5, rounds=20)), data, faults=FaultPlan(delay=(0.1, 0.2), crashes=silent))
    np.testing.assert_allclose(outcome.model, expected(outcome, data), rtol=0, atol=TOLERANCE)
    assert set(heard_in_time(outcome).values()) == {"client-0", "client-2", "client-3"}
    state = outcome.world.states["server"]
    assert isinstance(state, CycleState)
    assert set(state.missed) == {"client-1", "client-4"}


def test_a_party_that_fails_withdraws_and_costs_no_wait(data: Data) -> None:
    broken = [*data, (np.zeros((0, 3)), np.zeros(0))]
    outcome = run(Cyclic(**settings()), broken)
    assert outcome.error is None
    assert outcome.world.clock == 0.0
    assert {failure.party for failure in outcome.failures} == {"client-5"}
    assert [report.round for _, _, report in outcome.progress if "client-5: ValueError" in report.note] == [6, 12]


def test_views_hold_what_is_declared_and_nothing_else(data: Data) -> None:
    outcome = run(Cyclic(**settings(evaluation=Evaluation(every=3, parties=3, parties_every=3))), data, everyone=True)
    assert {type(m) for _, m in outcome.log.received["server"]} == {Contribution, Scores}
    turns = visited(outcome)
    for party, received in outcome.log.received.items():
        if party == "server":
            continue
        assert {type(m) for _, m in received} <= {TrainTask, EvaluateTask}
        assert {sender for sender, _ in received} == {"server"}
        tasks = [m for _, m in received if isinstance(m, TrainTask)]
        assert [m.round for m in tasks] == [t + 1 for t, name in enumerate(turns) if name == party]
        assert all(not m.shared for m in tasks)
    assert_no_example_travels(outcome, data)


def test_of_two_parties_each_sees_the_others_update_as_declared() -> None:
    outcome = run(Cyclic(**settings(rounds=4)), regression((6, 8)), everyone=True)
    first = [m.params.flat for _, m in outcome.log.received["client-0"] if isinstance(m, TrainTask)]
    sent = [(name, m.delta.array) for name, m in outcome.log.received["server"] if isinstance(m, Contribution)]
    np.testing.assert_allclose(first[1] - first[0] - sent[0][1], sent[1][1], rtol=0, atol=TOLERANCE)
    assert [name for name, _ in sent] == ["client-0", "client-1"] * 2


def test_a_killed_run_resumes_to_the_identical_end(data: Data) -> None:
    loud = Evaluation(every=2, parties=2, parties_every=3)
    protocol = Cyclic(**settings(order="shuffled", evaluation=loud))
    assert_resumes_identically(protocol=protocol, data=data)


def test_what_was_missed_survives_a_restart_of_the_server(data: Data) -> None:
    silent = tuple(Crash(f"client-{i}", at=0.0) for i in (0, 1))
    crashes = (*silent, Crash("server", at=2.1 * DEADLINE, restart=0.5))
    outcome = run(Cyclic(**settings(quorum=0.8)), data, faults=FaultPlan(delay=(0.1, 0.2), crashes=crashes))
    assert isinstance(outcome.error, QuorumNotReached)
    calm = run(Cyclic(**settings(quorum=0.6)), data, faults=FaultPlan(delay=(0.1, 0.2), crashes=crashes))
    assert calm.error is None
    assert [report.round for _, _, report in calm.progress] == list(range(13))


def test_its_state_survives_the_wire(data: Data) -> None:
    silent = (Crash("client-3", at=0.0),)
    outcome = run(Cyclic(**settings(rounds=4)), data, faults=FaultPlan(delay=(0.1, 0.2), crashes=silent))
    state = outcome.world.states["server"]
    assert isinstance(state, CycleState)
    assert set(state.missed) == {"client-3"}
    assert encode(decode(encode(state), [CycleState])) == encode(state)


@examples(max_examples=40)
@given(
    drop=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    duplicate=st.sampled_from([0.0, 0.4, 1.0]),
    latest=st.floats(0.0, 25.0),
    crashes=st.lists(
        st.builds(
            Crash,
            st.sampled_from([f"client-{i}" for i in range(5)]),
            st.floats(0.0, 60.0),
            st.one_of(st.none(), st.floats(0.0, 30.0)),
        ),
        max_size=4,
    ).map(tuple),
    quorum=st.floats(0.01, 1.0),
    order=st.sampled_from(["fixed", "shuffled"]),
    loud=st.booleans(),
)
def test_no_schedule_hangs_and_none_gives_a_wrong_result(
    drop: float, duplicate: float, latest: float, crashes: Any, quorum: float, order: str, loud: bool
) -> None:
    data = regression(SIZES)
    evaluation = Evaluation(every=2, parties=3, parties_every=2) if loud else QUIET
    protocol = Cyclic(**settings(quorum=quorum, order=order, evaluation=evaluation))
    faults = FaultPlan(drop=drop, duplicate=duplicate, delay=(0.0, latest), crashes=crashes)
    outcome = run(protocol, data, faults=faults)
    assert_named_end(outcome, QuorumNotReached, DeadlineExpired)
    assert outcome.world.clock <= 12 * DEADLINE * 2.5
    if outcome.error is None:
        np.testing.assert_allclose(outcome.model, expected(outcome, data), rtol=0, atol=TOLERANCE)


def test_it_stops_at_the_target(data: Data) -> None:
    stop = Stop(metric="test_loss", target=1e9)
    outcome = run(Cyclic(**settings(stop=stop, evaluation=Evaluation(every=1, parties=0))), data)
    assert outcome.error is None
    assert outcome.progress[-1][2].round == 0


def test_a_model_that_diverges_is_refused_by_round(data: Data) -> None:
    outcome = run(Cyclic(**settings(rounds=400)), data, learner=LeastSquares(SGD(50.0)))
    assert isinstance(outcome.error, NonFinite | QuorumNotReached)
    assert outcome.error.round is not None


def test_it_has_a_name_in_plans() -> None:
    assert find("protocols", "cyclic") is Cyclic


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"rounds": 1.5},
        {"order": "random"},
        {"deadline": 0.0},
        {"deadline": float("inf")},
        {"quorum": 0.0},
        {"quorum": 1.1},
        {"quorum": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Cyclic(**settings(**changes))
