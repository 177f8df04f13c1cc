"""The synchronous round: who is invited, who is waited for, when it goes on, and what it says of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hansa.aggregation import Contribution, clip, mean
from hansa.errors import ConfigError, NonFinite, QuorumNotReached
from hansa.examples import Examples
from hansa.horizontal.evaluation import Evaluation
from hansa.horizontal.fedavg import FedAvg
from hansa.horizontal.fednova import FedNova
from hansa.horizontal.fedopt import FedAdam
from hansa.horizontal.rounds import PartyState, RoundState, TrainTask, moved
from hansa.horizontal.sampling import Fixed, Poisson
from hansa.horizontal.scaffold import Scaffold
from hansa.horizontal.stopping import Best, Stop
from hansa.learner import LocalWork
from hansa.learners.distribution import distribution
from hansa.learners.optimizers import SGD
from hansa.params import Params
from hansa.rng import Key
from hansa.simulation.network import Crash, Device, Devices, FaultPlan
from hansa.tensor import Tensor
from hansa.update import Mean, Update
from tests.protocols import Data, LeastSquares, regression, run

QUIET = Evaluation(every=0, parties=0)


@pytest.fixture(scope="module")
def data() -> Data:
    return regression([8, 10, 6, 9, 7, 8, 12, 5])


def fedavg(**more: Any) -> FedAvg:
    return FedAvg(**{"rounds": 3, "cohort": 4, "evaluation": QUIET, "deadline": 10.0, **more})


def stragglers(count: int, slow: set[int]) -> Devices:
    return Devices(
        named={f"client-{i}": Device(examples_per_second=1.0 if i in slow else 1000.0 + i) for i in range(count)}
    )


def test_over_selection_goes_on_with_the_first_that_answer(data: Data) -> None:
    devices = stragglers(8, {1, 4, 6})
    outcome = run(fedavg(over_selection=2.0), data, devices=devices)
    assert outcome.error is None
    assert outcome.world.clock < 1.0, "a straggler was waited for"
    assert outcome.metric("contributors") == [4.0] * 3
    invited = [h.to for h in outcome.timeline if h.what == "sent" and isinstance(h.message, TrainTask)]
    assert len(invited) == 24
    assert not {"client-1", "client-4", "client-6"} & {s for s, _ in outcome.log.received["server"]}


def test_without_over_selection_stragglers_are_waited_for(data: Data) -> None:
    outcome = run(fedavg(rounds=1, cohort=8, deadline=60.0), data, devices=stragglers(8, {1, 4}))
    assert outcome.metric("contributors") == [8.0]
    assert outcome.world.clock >= 10.0, "the slowest party has ten examples and sees one a second"


def test_the_deadline_ends_a_round_with_what_is_there(data: Data) -> None:
    outcome = run(fedavg(rounds=2, cohort=8, deadline=3.0), data, devices=stragglers(8, {0, 6}))
    assert outcome.error is None
    assert outcome.metric("contributors") == [6.0, 6.0]
    assert outcome.world.clock == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("quorum", "dead", "fails"), [(0.5, 4, False), (0.5, 5, True), (1.0, 1, True), (0.125, 7, False)]
)
def test_the_quorum_is_exact(data: Data, quorum: float, dead: int, fails: bool) -> None:
    faults = FaultPlan(delay=(0.2, 0.2), crashes=tuple(Crash(f"client-{i}", 0.1) for i in range(dead)))
    outcome = run(fedavg(cohort=8, quorum=quorum, rounds=1), data, faults=faults)
    assert isinstance(outcome.error, QuorumNotReached) == fails
    if fails:
        assert f"{8 - dead} of 8 invited parties contributed" in str(outcome.error)
        assert "round 1" in str(outcome.error)
        assert "quorum is" in str(outcome.error)


def test_a_skipped_round_keeps_the_model_and_says_so(data: Data) -> None:
    faults = FaultPlan(delay=(0.2, 0.2), crashes=tuple(Crash(f"client-{i}", 0.1, restart=5.0) for i in range(8)))
    calm = run(fedavg(cohort=8, rounds=1), data)
    outcome = run(fedavg(cohort=8, missed_quorum="skip", rounds=2), data, faults=faults)
    assert outcome.error is None
    notes = [report.note for _, _, report in outcome.progress]
    assert "quorum" in notes[1]
    assert "0 of 8" in notes[1]
    skipped = run(fedavg(cohort=8, missed_quorum="skip", rounds=1), data, faults=faults)
    np.testing.assert_array_equal(skipped.model, LeastSquares().init(Key.root(0).child("server/init"), None).flat)  # type: ignore[arg-type]
    assert np.abs(outcome.model - skipped.model).max() > 1e-3
    assert np.abs(calm.model - skipped.model).max() > 1e-3


def test_an_empty_poisson_cohort_keeps_the_model(data: Data) -> None:
    outcome = run(fedavg(cohort=1, sampling=Poisson(), rounds=30, quorum=0.01), data)
    assert outcome.error is None
    empty = [report for _, _, report in outcome.progress[1:] if "contributors" not in report.metrics]
    assert 3 < len(empty) < 20, "about a third of such cohorts are empty"
    assert all("nobody was drawn" in report.note for report in empty)


def test_a_fixed_cohort_is_the_cohort(data: Data) -> None:
    outcome = run(fedavg(sampling=Fixed(("client-6", "client-2"))), data)
    assert [sorted(names) for names in outcome.cohorts().values()] == [["client-2", "client-6"]] * 3


def test_a_cohort_beyond_the_population_is_refused_before_anything_is_sent(data: Data) -> None:
    outcome = run(fedavg(cohort=9), data)
    assert isinstance(outcome.error, ConfigError)
    assert "8 parties" in str(outcome.error)
    assert outcome.timeline == []


class Liar:
    """A learner whose updates are what a test says, for the first party."""

    def __init__(self, update: Update) -> None:
        self.honest = LeastSquares()
        self.update = update
        self.optimizer = SGD(0.05)

    init = property(lambda self: self.honest.init)
    evaluate = property(lambda self: self.honest.evaluate)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        if len(data) == 8 and rng == Key.root(0).child("client-0/fit", work.round):
            return self.update
        return self.honest.fit(params, data, work, rng)


@pytest.mark.parametrize(
    ("delta", "weight", "word"),
    [
        (np.ones(4), 8.0, "shape"),
        (np.ones((3, 1)), 8.0, "shape"),
        (np.array([1, 2, 3]), 8.0, "dtype"),
        (np.array([1.0, np.nan, 0.0]), 8.0, "NaN"),
        (np.array([1.0, np.inf, 0.0]), 8.0, "NaN or infinity"),
        (np.ones(3), 0.0, "weight"),
        (np.ones(3), -1.0, "weight"),
        (np.ones(3), float("inf"), "weight"),
    ],
)
def test_an_unusable_update_is_left_out_and_its_sender_named(data: Data, delta: Any, weight: float, word: str) -> None:
    liar = Liar(Update(Tensor(delta), weight, {"loss": 0.0, "steps": 1.0}))
    outcome = run(fedavg(cohort=8, rounds=1), data, learner=liar)
    assert outcome.metric("contributors") == [7.0]
    assert outcome.progress[-1][2].note.startswith("client-0: ")
    assert word in outcome.progress[-1][2].note
    without = run(fedavg(cohort=8, rounds=1, sampling=Fixed(tuple(f"client-{i}" for i in range(1, 8)))), data)
    np.testing.assert_allclose(outcome.model, without.model, rtol=0, atol=1e-12)


def test_an_update_above_the_plans_clip_is_left_out(data: Data) -> None:
    outcome = run(fedavg(cohort=8, rounds=1), data, aggregation=clip(0.01) | mean())
    norms = [m.delta.norm() for _, m in outcome.log.received["server"] if isinstance(m, Contribution)]
    assert max(norms) <= 0.01 * (1 + 1e-12)
    assert outcome.metric("contributors") == [8.0]


def test_a_model_that_overflows_ends_the_run_by_name(data: Data) -> None:
    huge = Liar(Update(Tensor(np.full(3, 1e150)), 8.0, {"loss": 0.0, "steps": 1.0}))
    with np.errstate(over="ignore"):
        outcome = run(fedavg(cohort=1, sampling=Fixed(("client-0",)), server_learning_rate=1e200), data, learner=huge)
    assert isinstance(outcome.error, NonFinite)


class Statistics:
    """A learner with running statistics beside its weights."""

    optimizer = SGD(0.5)

    def init(self, rng: Key, example: Examples) -> Params:
        return Params.of({"w": np.zeros(2), "mean": np.zeros(2)}, buffers=["mean"], dtype="float64")

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        level = float(len(data))
        return Update(Tensor(np.array([1.0, 1.0, level, level]) - params.flat), level, {"loss": 0.0, "steps": level})

    def evaluate(self, params: Params, data: Examples) -> dict[str, float]:
        return {"loss": 0.0}


@pytest.mark.parametrize(
    "protocol",
    [
        fedavg(cohort=2),
        fedavg(cohort=2, server_learning_rate=0.5),
        FedAdam(rounds=3, cohort=2, server_learning_rate=0.1, evaluation=QUIET),
        FedNova(rounds=3, cohort=2, evaluation=QUIET),
        Scaffold(rounds=3, cohort=2, evaluation=QUIET),
    ],
)
def test_running_statistics_are_averaged_whatever_the_algorithm(protocol: Any) -> None:
    outcome = run(protocol, regression([4, 12], features=2), learner=Statistics())
    expected = 8.0 if isinstance(protocol, Scaffold) else (4 * 4 + 12 * 12) / 16
    np.testing.assert_allclose(outcome.model[2:], [expected, expected])
    if isinstance(protocol, Scaffold):
        state = outcome.world.states["server"]
        assert isinstance(state, RoundState)
        np.testing.assert_array_equal(state.slots["c"].array[2:], [0, 0])


@pytest.mark.parametrize(
    ("dtype", "buffers", "writeable", "over"),
    [
        ("float32", [], True, True),
        ("float64", [], True, False),
        ("float32", ["w"], True, False),
        ("float32", [], False, False),
    ],
)
def test_a_step_by_the_mean_is_written_over_it_where_nobody_needs_it(
    dtype: str, buffers: list[str], writeable: bool, over: bool
) -> None:
    params = Params.of({"w": np.array([1.0, 2.0])}, buffers=buffers, dtype=dtype)
    delta = np.array([0.5, 0.25], np.float32)
    delta.setflags(write=writeable)
    found = moved(params, Mean(delta, 1.0, 1, {}))
    assert (found is delta) == over
    assert found.tolist() == [1.5, 2.25] and found.dtype == dtype
    assert params.flat.tolist() == [1.0, 2.0]
    if not over:
        assert delta.tolist() == [0.5, 0.25]


def test_an_older_task_is_not_taken_up_by_a_party_with_a_memory(data: Data) -> None:
    # Tasks overtake each other; a party that has worked for round 3 must not go back to round 2.
    outcome = run(
        Scaffold(rounds=12, cohort=4, deadline=1.0, quorum=0.01, missed_quorum="skip", evaluation=QUIET),
        data,
        faults=FaultPlan(delay=(0.0, 3.0)),
    )
    assert outcome.error is None
    for i in range(8):
        mine = [h.message for h in outcome.timeline if h.sender == f"client-{i}" and h.what == "sent"]
        worked = [m.round for m in mine if isinstance(m, Contribution)]
        assert worked == sorted(worked)
    state = outcome.world.states["server"]
    assert isinstance(state, RoundState)
    counted = []
    for i in range(8):
        kept = outcome.world.states.get(f"client-{i}", PartyState(0, {}))
        assert isinstance(kept, PartyState)
        own = kept.slots if state.counted.get(f"client-{i}", 0) == kept.round else kept.before
        counted.append(own["c"].array if own else np.zeros(3))
    np.testing.assert_allclose(state.slots["c"].array, np.mean(counted, axis=0), atol=1e-9)


def test_evaluation_comes_when_it_is_due_and_at_the_end(data: Data) -> None:
    plan = Evaluation(every=2, parties=3, parties_every=3)
    outcome = run(fedavg(rounds=5, evaluation=plan), data)
    reports = {report.round: report for _, _, report in outcome.progress}
    assert [round for round, report in reports.items() if "test_loss" in report.metrics] == [0, 2, 4, 5]
    assert [round for round, report in reports.items() if report.parties] == [0, 3, 5]
    assert all(len(report.parties) in (0, 3) for report in reports.values())


def test_a_silent_evaluator_costs_the_deadline_and_no_more(data: Data) -> None:
    faults = FaultPlan(delay=(0.2, 0.2), crashes=(Crash("client-0", 1.5),))
    outcome = run(
        fedavg(rounds=2, cohort=2, sampling=Fixed(("client-1", "client-2")), evaluation=Evaluation(0, parties=8)),
        data,
        faults=faults,
    )
    assert outcome.error is None
    assert sorted(outcome.progress[-1][2].parties) == [f"client-{i}" for i in range(1, 8)] or outcome.world.clock < 1.5


def test_a_target_ends_the_run_and_is_evaluated_over_the_parties(data: Data) -> None:
    whole = run(fedavg(rounds=20, cohort=8, evaluation=Evaluation()), data)
    losses = whole.metric("test_loss")
    target = losses[6]
    outcome = run(
        fedavg(rounds=20, cohort=8, evaluation=Evaluation(), stop=Stop(metric="test_loss", target=target)), data
    )
    first = next(i for i, loss in enumerate(losses) if loss <= target)
    assert outcome.progress[-1][2].round == first < 20
    assert outcome.progress[-1][2].parties
    np.testing.assert_allclose(outcome.metric("test_loss"), losses[: first + 1])


def test_a_target_over_the_parties_ends_the_run(data: Data) -> None:
    plan = Evaluation(every=0, parties=8, parties_every=1)
    whole = run(fedavg(rounds=12, cohort=8, evaluation=plan), data).metric("party_error")
    stop = Stop(metric="party_error", target=whole[4])
    outcome = run(fedavg(rounds=12, cohort=8, evaluation=plan, stop=stop), data)
    assert outcome.progress[-1][2].round == next(i for i, error in enumerate(whole) if error <= whole[4])


def test_patience_counts_reports_without_a_better_one() -> None:
    stop, best = Stop(metric="test_accuracy", patience=2), Best()
    for round, value in enumerate([0.5, 0.6, 0.6]):
        best = stop.updated(best, round, {"test_accuracy": value})
        assert not stop.reached(best)
    best = stop.updated(best, 3, {"other": 1.0})
    assert not stop.reached(best)
    best = stop.updated(best, 4, {"test_accuracy": 0.59})
    assert stop.reached(best)
    assert (best.value, best.round) == (0.6, 1)


@pytest.mark.parametrize(
    ("metric", "mode", "value", "reached"),
    [
        ("test_accuracy", "auto", 0.91, True),
        ("test_accuracy", "auto", 0.89, False),
        ("test_loss", "auto", 0.89, True),
        ("test_rmse", "auto", 0.91, False),
        ("party_error_worst_decile", "auto", 0.89, True),
        ("score", "min", 0.89, True),
        ("loss", "max", 0.91, True),
    ],
)
def test_targets_know_which_way_is_better(metric: str, mode: Any, value: float, reached: bool) -> None:
    stop = Stop(metric=metric, target=0.9, mode=mode)
    assert stop.reached(stop.updated(Best(), 1, {metric: value})) == reached


def test_what_is_not_a_number_is_never_the_best() -> None:
    stop, best = Stop(metric="test_loss", target=0.1, patience=3), Best()
    for round, value in enumerate([float("nan"), 0.5, float("nan")]):
        best = stop.updated(best, round, {"test_loss": value})
    assert (best.value, best.round, best.rounds_since) == (0.5, 1, 1)
    forever = Best()
    for round in range(3):
        forever = stop.updated(forever, round, {"test_loss": float("nan")})
    assert stop.reached(forever)


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"target": float("nan")}, {"target": float("inf")}, {"mode": "up"}])
def test_stop_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Stop(**wrong)


@pytest.mark.parametrize("wrong", [{"every": -1}, {"parties": -1}, {"parties_every": -2}])
def test_evaluation_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Evaluation(**wrong)


def test_the_distribution_over_parties() -> None:
    parties = {f"p{i}": {"accuracy": i / 20, "loss": float(i), "examples": 1.0 + i} for i in range(20)}
    found = distribution(parties)
    weights, values = np.arange(1, 21), np.arange(20)
    assert found["party_count"] == 20
    assert found["party_loss"] == pytest.approx(np.average(values, weights=weights))
    assert found["party_loss_mean"] == pytest.approx(9.5)
    assert found["party_loss_median"] == pytest.approx(9.5)
    assert found["party_loss_worst_decile"] == pytest.approx(18.5)
    assert found["party_accuracy_worst_decile"] == pytest.approx(0.025)
    assert distribution({}) == {}


def test_a_metric_that_some_parties_lack_is_taken_over_those_that_have_it() -> None:
    parties = {"a": {"loss": 1.0, "examples": 1.0}, "b": {"loss": 3.0, "auc": 0.5, "examples": 3.0}}
    found = distribution(parties)
    assert found["party_loss"] == pytest.approx(2.5)
    assert found["party_auc"] == pytest.approx(0.5)
