"""FedBuff equals its paper's loop, weighs by staleness, bounds every wait, and is quicker than rounds where parties differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hansa.aggregation import Contribution, mean
from hansa.errors import ConfigError, QuorumNotReached
from hansa.horizontal.evaluation import Evaluation
from hansa.horizontal.fedavg import FedAvg
from hansa.horizontal.fedbuff import BufferState, FedBuff, Staleness
from hansa.horizontal.rounds import TrainTask
from hansa.horizontal.stopping import Stop
from hansa.learners.optimizers import SGD
from hansa.rng import Key
from hansa.simulation.network import Crash, Device, Devices, FaultPlan
from tests.protocols import TOLERANCE, Data, LeastSquares, Outcome, Vector, permutation, regression, run

QUIET = Evaluation(every=0, parties=0)
SLOW = Device(examples_per_second=10.0)


def fleet(count: int, slow: int, factor: float = 20.0) -> Devices:
    """Parties of clearly different, all unequal speeds; the last ``slow`` of them ``factor`` times slower."""
    named = {}
    for i in range(count):
        speed = 100.0 * (1 + 0.013 * i) / (factor if i >= count - slow else 1.0)
        named[f"client-{i}"] = Device(examples_per_second=speed, latency=0.01)
    return Devices(named=named)


def settings(**more: Any) -> dict[str, Any]:
    return {"rounds": 12, "concurrency": 4, "buffer": 2, "evaluation": QUIET, **more}


def oracle(
    data: Data, outcome: Outcome, staleness: Any, buffer: int, weighted: bool, rate: float, momentum: float
) -> Vector:
    """Nguyen et al. 2022, algorithm 1. Who was given which model and in which order they answered is read off the record."""
    w = Key.root(0).child("server/init").generator().normal(size=3)
    models, velocity = [w], np.zeros(3)
    arrived = [(name, m) for name, m in outcome.log.received["server"] if isinstance(m, Contribution)]
    last: dict[str, int] = {}
    total, weight, count = np.zeros(3), 0.0, 0
    for name, message in arrived:
        if len(models) > outcome.progress[-1][2].round:
            break
        assert last.get(name, -1) < message.round, "an invitation was answered twice"
        last[name] = message.round
        x, y = data[int(name.removeprefix("client-"))]
        start = models[message.round - 1]
        v = start.copy()
        for epoch in range(2):
            order = permutation(name, message.round, len(y), epoch)
            for first in range(0, len(y), 4):
                rows = order[first : first + 4]
                v = v - 0.05 * x[rows].T @ (x[rows] @ v - y[rows]) / len(rows)
        share = float(len(y)) if weighted else 1.0
        total, weight, count = (
            total + share * staleness(len(models) - message.round) * (v - start),
            weight + share,
            count + 1,
        )
        if count == buffer:
            velocity = momentum * velocity + total / weight
            models.append(models[-1] + rate * velocity)
            total, weight, count = np.zeros(3), 0.0, 0
    return models[-1]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (0.5, 0.4)])
def test_it_follows_algorithm_1(weighted: bool, rate: float, momentum: float) -> None:
    data = regression([8, 12, 9, 7, 16, 10, 6, 11])
    protocol = FedBuff(**settings(server_learning_rate=rate, server_momentum=momentum))
    aggregation = mean() if weighted else mean("uniform")
    outcome = run(protocol, data, aggregation=aggregation, devices=fleet(8, slow=3))
    expected = oracle(data, outcome, lambda tau: (1 + tau) ** -0.5, 2, weighted, rate, momentum)
    np.testing.assert_allclose(outcome.model, expected, rtol=0, atol=TOLERANCE)
    assert max(outcome.metric("staleness_max")) >= 3, "nobody was stale, so the weights are not tested"


def test_without_stragglers_and_with_a_full_buffer_it_is_fedavg() -> None:
    data = regression([8, 12, 9])
    buffered = run(FedBuff(rounds=5, concurrency=3, buffer=3, evaluation=QUIET), data).model
    rounds = run(FedAvg(rounds=5, cohort=3, evaluation=QUIET), data).model
    np.testing.assert_allclose(buffered, rounds, rtol=0, atol=TOLERANCE)


def test_it_reaches_the_target_sooner_than_synchronous_rounds() -> None:
    data = regression([10] * 20, spread=0.3, seed=3)
    everything = np.concatenate([x for x, _ in data]), np.concatenate([y for _, y in data])
    learner = LeastSquares(SGD(0.02), epochs=1)
    best = learner.evaluate(
        run(FedAvg(rounds=80, cohort=20, evaluation=QUIET), data, learner=learner).results["server"],
        run(FedAvg(rounds=1, cohort=1, evaluation=QUIET), data, test=everything).world.shard("server", 0).test,
    )["loss"]
    stop = Stop(metric="test_loss", target=1.1 * best)
    evaluation = Evaluation(every=1, parties=0)
    devices = fleet(20, slow=4)
    synchronous = run(
        FedAvg(rounds=400, cohort=8, evaluation=evaluation, stop=stop),
        data,
        learner=learner,
        test=everything,
        devices=devices,
    )
    buffered = run(
        FedBuff(rounds=2000, concurrency=8, buffer=3, evaluation=evaluation, stop=stop),
        data, learner=learner, test=everything, devices=devices,
    )  # fmt: skip
    for outcome in (synchronous, buffered):
        assert outcome.error is None
        assert outcome.metric("test_loss")[-1] <= 1.1 * best
    assert buffered.progress[-1][0] < 0.6 * synchronous.progress[-1][0]


def test_an_invitation_older_than_the_bound_never_counts() -> None:
    data = regression([10] * 8)
    outcome = run(FedBuff(**settings(max_staleness=1, rounds=30)), data, devices=fleet(8, slow=2, factor=40.0))
    assert outcome.error is None
    assert max(outcome.metric("staleness_max")) <= 1
    assert sum(outcome.metric("expired")) >= 2, "nobody was that stale, so the bound is not tested"
    assert all(at_work == 4 for at_work in outcome.metric("at_work"))


def test_places_of_the_dead_are_given_to_others() -> None:
    data = regression([10] * 8)
    crashes = tuple(Crash(f"client-{i}", at=0.05) for i in range(3))
    protocol = FedBuff(**settings(deadline=5.0, quorum=0.5, rounds=20))
    outcome = run(protocol, data, devices=fleet(8, slow=0), faults=FaultPlan(crashes=crashes))
    assert outcome.error is None
    assert outcome.progress[-1][2].round == 20
    assert outcome.world.clock <= 20 * 5.0


def test_nobody_left_is_named_within_the_deadline() -> None:
    data = regression([10] * 4)
    crashes = tuple(Crash(f"client-{i}", at=0.05) for i in range(4))
    outcome = run(FedBuff(**settings(deadline=5.0)), data, devices=fleet(4, slow=0), faults=FaultPlan(crashes=crashes))
    assert isinstance(outcome.error, QuorumNotReached)
    assert "silent: client-" in str(outcome.error)
    assert outcome.world.clock <= 10.0


def test_with_skip_the_run_goes_on_after_an_outage() -> None:
    data = regression([10] * 4)
    crashes = tuple(Crash(f"client-{i}", at=0.05, restart=12.0) for i in range(4))
    outcome = run(
        FedBuff(**settings(deadline=5.0, missed_quorum="skip", rounds=8)), data, devices=fleet(4, slow=0),
        faults=FaultPlan(crashes=crashes),
    )  # fmt: skip
    assert outcome.error is None
    assert [("quorum" in report.note) for _, _, report in outcome.progress[1:4]] == [True, True, True]
    assert outcome.progress[-1][2].metrics["contributors"] == 2


def test_a_server_that_crashes_goes_on_from_its_last_step() -> None:
    data = regression([10] * 6)
    devices = fleet(6, slow=2)
    calm = run(FedBuff(**settings(deadline=20.0)), data, devices=devices)
    end = calm.world.clock
    crashed = run(
        FedBuff(**settings(deadline=20.0)), data, devices=devices,
        faults=FaultPlan(crashes=(Crash("server", at=end / 2, restart=0.5),)),
    )  # fmt: skip
    assert crashed.error is None
    rounds = [report.round for _, _, report in crashed.progress]
    assert rounds == sorted(set(rounds)) == list(range(13))
    state = crashed.world.states["server"]
    assert isinstance(state, BufferState)
    assert state.round == 12


def test_nobody_at_work_is_invited_again_or_asked_to_evaluate() -> None:
    data = regression([10] * 9)
    protocol = FedBuff(**settings(evaluation=Evaluation(every=0, parties=3, parties_every=2)))
    outcome = run(protocol, data, devices=fleet(9, slow=4), everyone=True)
    assert outcome.error is None
    for i in range(9):
        tasks = [m.round for _, m in outcome.log.received[f"client-{i}"] if isinstance(m, TrainTask)]
        assert tasks == sorted(set(tasks))
    scored = [report.parties for _, _, report in outcome.progress if report.parties]
    assert len(scored) >= 5
    assert all(len(parties) == 3 for parties in scored)


@pytest.mark.parametrize(
    ("staleness", "tau", "factor"),
    [
        (Staleness(), 0, 1.0),
        (Staleness(a=1.0), 4, 0.2),
        (Staleness("constant"), 99, 1.0),
        (Staleness("hinge", a=2.0, b=3.0), 3, 1.0),
        (Staleness("hinge", a=2.0, b=3.0), 5, 0.2),
    ],
)
def test_staleness_factors(staleness: Staleness, tau: int, factor: float) -> None:
    assert staleness.factor(tau) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"concurrency": 0},
        {"buffer": 0},
        {"buffer": 5},
        {"buffer": 1.5},
        {"max_staleness": -1},
        {"deadline": float("inf")},
        {"deadline": 0.0},
        {"quorum": 0.0},
        {"quorum": 2.0},
        {"missed_quorum": "wait"},
        {"server_learning_rate": 0.0},
        {"server_momentum": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FedBuff(**settings(**changes))


@pytest.mark.parametrize(
    "arguments", [{"kind": "linear"}, {"a": 0.0}, {"a": float("nan")}, {"kind": "hinge", "b": -1.0}]
)
def test_staleness_settings_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Staleness(**arguments)


def test_more_at_work_than_there_are_is_refused() -> None:
    outcome = run(FedBuff(**settings()), regression([5, 5]))
    assert isinstance(outcome.error, ConfigError)
    assert "concurrency" in str(outcome.error)
