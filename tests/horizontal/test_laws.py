"""What holds for every protocol that trains through a server: right results from those who answered or an end by name,
messages that hold what is declared, and no schedule that hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.aggregation import Contribution, clip, mean
from hansa.errors import DeadlineExpired, QuorumNotReached, RunError
from hansa.examples import Examples
from hansa.horizontal.evaluation import EvaluateTask, Evaluation, Scores
from hansa.horizontal.fedavg import FedAvg
from hansa.horizontal.fedbuff import FedBuff
from hansa.horizontal.fednova import FedNova
from hansa.horizontal.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from hansa.horizontal.fedprox import FedProx
from hansa.horizontal.fedsgd import FedSGD
from hansa.horizontal.rounds import Local, Synchronous, TrainTask
from hansa.horizontal.scaffold import Scaffold
from hansa.learner import LocalWork
from hansa.message import decode, encode
from hansa.params import Params
from hansa.protocol import Progress, Withdraw
from hansa.rng import Key
from hansa.simulation.network import Crash, Device, Devices, FaultPlan, Partition
from hansa.update import Mean
from tests.protocols import (
    Data,
    LeastSquares,
    Outcome,
    Vector,
    arrays_of,
    assert_named_end,
    assert_no_example_travels,
    assert_resumes_identically,
    regression,
    run,
)

QUIET = Evaluation(every=0, parties=0)
LOUD = Evaluation(every=2, parties=4, parties_every=2)
SIZES = (6, 9, 5, 8, 7, 10, 4, 12)
DEADLINE = 10.0
LEARNER = LeastSquares(epochs=1)

Make = Callable[..., Any]


def rounds(kind: type[Synchronous], **own: Any) -> Make:
    def make(cohort: int = 4, **more: Any) -> Synchronous:
        given_ = {"rounds": 6, "deadline": DEADLINE, "evaluation": QUIET, **own, **more}
        return kind(cohort=cohort, **given_)

    return make


def fedbuff(cohort: int = 4, over_selection: float = 1.0, **more: Any) -> FedBuff:
    given_ = {"rounds": 6, "deadline": DEADLINE, "evaluation": QUIET, "max_staleness": 3, **more}
    return FedBuff(concurrency=cohort, buffer=max(1, cohort // 2), **given_)


SYNCHRONOUS: Mapping[str, Make] = {
    "fedsgd": rounds(FedSGD),
    "fedavg": rounds(FedAvg),
    "fedprox": rounds(FedProx, mu=0.1),
    "fedavgm": rounds(FedAvgM),
    "fedadagrad": rounds(FedAdagrad, server_learning_rate=0.1),
    "fedadam": rounds(FedAdam, server_learning_rate=0.1),
    "fedyogi": rounds(FedYogi, server_learning_rate=0.1),
    "scaffold": rounds(Scaffold),
    "fednova": rounds(FedNova),
}
ALL: Mapping[str, Make] = {**SYNCHRONOUS, "fedbuff": fedbuff}
every_protocol = pytest.mark.parametrize("name", sorted(ALL))


@pytest.fixture(scope="module")
def data() -> Data:
    return regression(SIZES, seed=5)


def reference(protocol: Any, data: Data, outcome: Outcome, restart: float = float("inf")) -> Vector:
    """The model that follows from who was heard in time, by a loop without parties, messages or clock.

    The algorithms' pure functions, which the oracle tests hold against the papers, are run on the contributions that an
    outsider would count: the first answer of an invited party to its invitation, while the step is open.
    """
    params = LEARNER.init(Key.root(0).child("server/init"), None)  # type: ignore[arg-type]
    replay = _Buffered(protocol, data, params) if isinstance(protocol, FedBuff) else _Rounds(protocol, data, params)
    for seen in outcome.timeline:
        if seen.time >= restart:
            # What the server had heard since its last save is lost with it.
            replay.heard, restart = [], float("inf")
        if seen.what == "sent" and isinstance(seen.message, TrainTask):
            replay.invited[seen.to] = seen.message.round
            replay.since[seen.to] = seen.time
        elif seen.what == "delivered" and seen.to == "server" and isinstance(seen.message, Contribution):
            if replay.invited.get(seen.sender) == seen.message.round and len(replay.heard) < replay.enough:
                replay.heard.append((seen.sender, replay.invited.pop(seen.sender)))
        elif isinstance(seen.message, Progress) and seen.message.round > 0:
            assert seen.message.metrics.get("contributors", 0) == (
                0 if "quorum" in seen.message.note else len(replay.heard)
            )
            if "quorum" not in seen.message.note:
                replay.step(seen.message.round)
            replay.close(seen.message.round, seen.time)
    return replay.params.flat


class _Replay:
    """Who is invited and who was heard since the last step."""

    enough: int

    def __init__(self, protocol: Any, data: Data, params: Params) -> None:
        self.protocol, self.data, self.params = protocol, data, params
        self.invited: dict[str, int] = {}
        self.since: dict[str, float] = {}
        self.heard: list[tuple[str, int]] = []

    def fit(self, name: str, params: Params, round: int, work: LocalWork) -> Any:
        x, y = self.data[int(name.removeprefix("client-"))]
        key = Key.root(0).child(f"{name}/fit", round)
        return LEARNER.fit(params, Examples(x, y), work, key)


class _Rounds(_Replay):
    def __init__(self, protocol: Synchronous, data: Data, params: Params) -> None:
        _Replay.__init__(self, protocol, data, params)
        self.algorithm = protocol.algorithm(LEARNER)
        self.slots = dict(self.algorithm.slots(params))
        self.own: dict[str, Any] = {}
        self.enough = protocol.cohort

    def step(self, round: int) -> None:
        shared = {name: self.slots[name] for name in self.algorithm.shared}
        total, weight, scalars = np.zeros(self.params.size * self.algorithm.width), 0.0, dict[str, float]()
        for name, _ in self.heard:
            local = Local(round, self.params, shared, self.own.get(name, {}))
            update = self.fit(name, self.params, round, self.algorithm.work(local))
            update, self.own[name] = self.algorithm.report(local, update)
            total, weight = total + update.weight * update.delta.array, weight + update.weight
            for key, value in update.scalars.items():
                scalars[key] = scalars.get(key, 0.0) + update.weight * value
        averaged: Mean[Any] = Mean(total / weight, weight, len(self.heard), {k: v / weight for k, v in scalars.items()})
        flat, self.slots = self.algorithm.step(  # type: ignore[assignment]
            self.params, self.slots, averaged, round, len(self.heard) / len(self.data)
        )
        self.params = self.params.replaced(flat)

    def close(self, round: int, time: float) -> None:
        self.heard, self.invited = [], {}


class _Buffered(_Replay):
    def __init__(self, protocol: FedBuff, data: Data, params: Params) -> None:
        _Replay.__init__(self, protocol, data, params)
        self.enough = protocol.buffer
        self.models = [params]

    def step(self, round: int) -> None:
        total, weight = 0.0, 0.0
        for name, invited in self.heard:
            update = self.fit(name, self.models[invited - 1], invited, LocalWork(round=invited))
            factor = (1.0 + round - invited) ** -0.5
            total, weight = total + update.weight * factor * update.delta.array, weight + update.weight
        self.params = self.params.replaced(self.params.flat + total / weight)

    def close(self, round: int, time: float) -> None:
        self.models.append(self.params)
        self.heard = []
        bound = self.protocol.max_staleness
        self.invited = {
            name: step
            for name, step in self.invited.items()
            if round + 1 - step <= bound and time < self.since[name] + self.protocol.deadline
        }


def assert_right(protocol: Any, data: Data, outcome: Outcome, restart: float = float("inf")) -> None:
    assert_named_end(outcome, QuorumNotReached, DeadlineExpired)
    if outcome.error is None:
        np.testing.assert_allclose(outcome.model, reference(protocol, data, outcome, restart), rtol=0, atol=1e-9)
    else:
        assert isinstance(outcome.error, RunError)
        assert outcome.error.party == "server"
        assert outcome.error.round is not None


FAULTS: Mapping[str, FaultPlan] = {
    "drops": FaultPlan(drop=0.25),
    "duplicates": FaultPlan(duplicate=0.6, delay=(0.0, 2 * DEADLINE)),
    "delays past the deadline": FaultPlan(delay=(0.0, 1.3 * DEADLINE)),
    "all at once": FaultPlan(drop=0.1, duplicate=0.3, delay=(0.0, 0.8 * DEADLINE)),
    "crashes": FaultPlan(
        delay=(0.1, 1.0),
        crashes=(Crash("client-1", 0.5), Crash("client-2", 3.0, restart=2.0), Crash("client-3", 1.2, restart=20.0)),
    ),
    "a partition": FaultPlan(delay=(0.1, 3.0), partitions=(Partition(("client-0", "client-4"), 0.0, 15.0),)),
}


@every_protocol
@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("over", [1.0, 2.0])
def test_the_result_is_of_those_who_answered_in_time_each_once(name: str, fault: str, over: float, data: Data) -> None:
    protocol = ALL[name](over_selection=over, quorum=0.25, missed_quorum="skip")
    outcome = run(protocol, data, learner=LEARNER, faults=FAULTS[fault])
    assert outcome.error is None
    assert_right(protocol, data, outcome)
    sent, delivered = (
        Counter((h.sender, h.to, id(h.message)) for h in outcome.timeline if h.what == what)
        for what in ("sent", "delivered")
    )
    assert sent != delivered, "nothing was lost or doubled, so nothing was tested"


@every_protocol
def test_below_the_quorum_the_run_ends_by_name(name: str, data: Data) -> None:
    silent = tuple(Crash(f"client-{i}", at=0.5) for i in range(5))
    protocol = ALL[name](cohort=8, quorum=1.0)
    outcome = run(protocol, data, learner=LEARNER, faults=FaultPlan(delay=(0.6, 1.0), crashes=silent))
    assert isinstance(outcome.error, QuorumNotReached)
    for i in range(5):
        assert f"client-{i}" in str(outcome.error)
    assert "server" not in outcome.results
    assert outcome.world.clock <= DEADLINE * 2


@every_protocol
def test_a_party_that_fails_withdraws_and_costs_no_wait(name: str) -> None:
    broken = [*regression((6, 8, 9)), (np.zeros((0, 3)), np.zeros(0))]
    outcome = run(ALL[name](cohort=4, quorum=0.25), broken, learner=LEARNER)
    assert outcome.error is None
    assert {failure.party for failure in outcome.failures} == {"client-3"}
    assert "nothing to train on" in outcome.failures[0].traceback
    assert outcome.world.clock == 0.0
    noted = [report.note for _, _, report in outcome.progress if "client-3: ValueError" in report.note]
    assert len(noted) >= 3


@every_protocol
def test_views_hold_what_is_declared_and_nothing_else(name: str, data: Data) -> None:
    protocol = ALL[name](evaluation=LOUD)
    outcome = run(protocol, data, learner=LEARNER, everyone=True)
    assert outcome.error is None
    server = outcome.log.received["server"]
    assert {type(message) for _, message in server} == {Contribution, Scores}
    shared = set(protocol.algorithm(LEARNER).shared) if isinstance(protocol, Synchronous) else set()
    width = 2 if name == "scaffold" else 1
    contributed: dict[str, list[Vector]] = {}
    for sender, message in server:
        if isinstance(message, Contribution):
            assert set(message.scalars) <= {"loss", "steps", "reach"}
            assert message.delta.shape == (3 * width,)
            contributed.setdefault(sender, []).append(message.delta.array)
        else:
            assert isinstance(message, Scores)
            assert set(message.metrics) == {"loss", "error"}
    for party, received in outcome.log.received.items():
        if party == "server":
            continue
        assert {type(message) for _, message in received} <= {TrainTask, EvaluateTask}
        assert {sender for sender, _ in received} <= {"server"}
        others = [delta for name_, deltas in contributed.items() if name_ != party for delta in deltas]
        for _, message in received:
            if isinstance(message, TrainTask):
                assert set(message.shared) == shared
            for array in arrays_of(message):
                assert not any(np.array_equal(array, part) for delta in others for part in np.split(delta, width))
    assert_no_example_travels(outcome, data)


@every_protocol
def test_every_message_survives_the_wire(name: str, data: Data) -> None:
    outcome = run(ALL[name](evaluation=LOUD), data, learner=LEARNER, aggregation=clip(5.0) | mean())
    roles = outcome.world.roles
    sent = {(type(h.message), h.to == "server"): h.message for h in outcome.timeline if h.what == "sent"}
    assert len(sent) == 4
    for (_, to_server), message in sent.items():
        again = decode(encode(message), roles["server" if to_server else "client"].receives)
        assert encode(again) == encode(message)
    states = outcome.world.states
    for party, state in states.items():
        kind = roles["server" if party == "server" else "client"].saves
        assert kind is not None
        again = decode(encode(state), [kind])
        assert encode(again) == encode(state)


@every_protocol
def test_the_same_seed_gives_the_same_log_and_another_does_not(name: str, data: Data) -> None:
    faults = FaultPlan(drop=0.1, duplicate=0.2, delay=(0.0, 5.0))
    logs = [
        run(
            ALL[name](quorum=0.1, missed_quorum="skip"), data, learner=LEARNER, faults=faults, seed=seed, digest=True
        ).log.digest()
        for seed in (3, 3, 4)
    ]
    assert logs[0] == logs[1] != logs[2]


@every_protocol
def test_a_killed_run_resumes_to_the_identical_end(name: str, data: Data) -> None:
    devices = Devices(
        named={f"client-{i}": Device(examples_per_second=3.0 + i, latency=0.01 * (i + 1)) for i in range(len(SIZES))}
    )
    assert_resumes_identically(
        protocol=ALL[name](evaluation=LOUD, over_selection=1.5, rounds=4), data=data, learner=LEARNER, devices=devices
    )


@every_protocol
def test_a_server_that_restarts_ends_with_a_right_result(name: str, data: Data) -> None:
    faults = FaultPlan(delay=(0.1, 1.0), crashes=(Crash("server", 2.2, restart=0.7),))
    protocol = ALL[name](quorum=0.25)
    outcome = run(protocol, data, learner=LEARNER, faults=faults)
    assert_named_end(outcome, QuorumNotReached)
    assert [report.round for _, _, report in outcome.progress] == list(range(7))
    assert_right(protocol, data, outcome, restart=2.9)


fault_plans = st.builds(
    FaultPlan,
    drop=st.sampled_from([0.0, 0.05, 0.3, 0.9]),
    duplicate=st.sampled_from([0.0, 0.3, 1.0]),
    delay=st.tuples(st.floats(0, 3), st.floats(3, 25)),
    crashes=st.lists(
        st.builds(
            Crash,
            st.sampled_from([f"client-{i}" for i in range(len(SIZES))]),
            st.floats(0.0, 40.0),
            st.one_of(st.none(), st.floats(0.0, 30.0)),
        ),
        max_size=4,
    ).map(tuple),
    partitions=st.lists(
        st.builds(Partition, st.just(("client-1", "client-2", "client-5")), st.floats(0, 10), st.floats(11, 30)),
        max_size=1,
    ).map(tuple),
)


@every_protocol
@settings(max_examples=20)
@given(
    faults=fault_plans,
    cohort=st.integers(1, len(SIZES)),
    over=st.sampled_from([1.0, 1.3, 3.0]),
    quorum=st.floats(0.01, 1.0),
    missed=st.sampled_from(["stop", "skip"]),
    loud=st.booleans(),
)
def test_no_schedule_hangs_and_none_gives_a_wrong_result(
    name: str, faults: FaultPlan, cohort: int, over: float, quorum: float, missed: str, loud: bool
) -> None:
    data = regression(SIZES, seed=5)
    protocol = ALL[name](
        cohort=cohort,
        over_selection=over,
        quorum=quorum,
        missed_quorum=missed,
        evaluation=LOUD if loud else QUIET,
        rounds=4,
    )
    outcome = run(protocol, data, learner=LEARNER, faults=faults)
    assert outcome.world.clock <= 4 * DEADLINE * 2.5
    if not loud:
        assert_right(protocol, data, outcome)
    else:
        assert_named_end(outcome, QuorumNotReached, DeadlineExpired)


def test_withdrawing_names_the_kind_of_error_only() -> None:
    broken = [*regression((6, 8, 9)), (np.zeros((0, 3)), np.zeros(0))]
    outcome = run(FedAvg(rounds=1, cohort=4), broken, learner=LEARNER)
    reasons = [m.reason for _, m in outcome.log.received["server"] if isinstance(m, Withdraw)]
    assert reasons == ["ValueError"]
