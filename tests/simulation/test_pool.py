"""Worker processes: laws of rows that live elsewhere, failures that keep their own tracebacks, death, and no leftovers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.errors import ConfigError, WorkerLost
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.learners import Softmax
from hansa.params import Params
from hansa.rng import Key
from hansa.simulation.batching import Batching, Job
from hansa.simulation.pool import ProcessPool
from hansa.tensor import Dense, Tensor
from hansa.update import Update
from tests.simulation.cases import PARTIES, federation

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this platform cannot fork"
)
SOFTMAX = Softmax(optimizer=hs.SGD(0.3), batch_size=5)


@dataclass(frozen=True)
class Odd:
    """Softmax, with something planted for the parties that hold fewest examples."""

    plant: str = ""
    inner: Softmax = SOFTMAX
    size: int = 3

    def init(self, rng: Key, example: Examples) -> Params:
        return self.inner.init(rng, example)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        return self.fit_many(params, [data], [work], [rng])[0]

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        return self.inner.evaluate(params, data)

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        for data in datas:
            if data.ref is not None and data.ref[0] == 5 and multiprocessing.parent_process() is not None:
                self.strike()
            if data.ref is not None and data.ref[0] == 5 and self.plant == "raise everywhere":
                planted_failure()
        return self.inner.fit_many(params, datas, works, rngs)

    def strike(self) -> None:
        match self.plant:
            case "raise":
                planted_failure()
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        return self.inner.evaluate_many(params, datas)

    def chunk(self, params: Params) -> int:
        return self.size


class PlantedError(Exception):
    pass


def planted_failure() -> None:
    raise PlantedError("party five")


DATA = federation()


@dataclass
class Bench:
    """A pool and what batches calls for it."""

    learner: Any
    workers: int = 2
    params: Params = field(init=False)

    def __post_init__(self) -> None:
        self.params = self.learner.init(Key.root(0), DATA.example)
        self.pool = ProcessPool(self.workers, self.learner, DATA, self.params)
        self.batching = Batching(self.learner, self.pool)

    def submit(self, parties: Sequence[int], params: Params | None = None) -> list[Job]:
        return [
            self.batching.submit(
                self.learner.fit, (params or self.params, DATA.shard(p).train, LocalWork(round=1), Key.root(p))
            )
            for p in parties
        ]

    def results(self, jobs: Sequence[Job]) -> list[Any]:
        found: list[Any] = []
        for job in jobs:
            try:
                found.append(self.batching.result(job))
            except Exception as error:
                found.append(error)
        return found


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(getattr(request, "param", Odd()))
    yield made
    made.pool.close()


def here(parties: Sequence[int], params: Params) -> Dense:
    updates = [SOFTMAX.fit(params, DATA.shard(p).train, LocalWork(round=1), Key.root(p)) for p in parties]
    return Dense(np.stack([update.delta.array for update in updates]))


def test_rows_in_a_worker_obey_the_laws_of_rows(bench: Bench) -> None:
    updates = bench.results(bench.submit(range(3)))
    rows = updates[0].delta.rows
    oracle = here(range(3), bench.params)
    assert rows is not None and (rows.count, rows.size, rows.dtype) == (3, oracle.size, oracle.dtype)
    for coefficients in ([1.0, 2.0, 3.0], [0.0, -1.5, 0.0], [0.0, 0.0, 0.0], [1e-3, 0.0, 1e3]):
        found = rows.weighted_sum(np.array(coefficients))
        np.testing.assert_allclose(found, coefficients @ oracle.matrix, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.norms(), oracle.norms(), rtol=1e-5)
    np.testing.assert_allclose(rows.gram(), oracle.gram(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(rows.norms(), np.sqrt(np.diag(rows.gram())), rtol=1e-5)
    for place, update in enumerate(updates):
        assert (update.delta.rows, update.delta.index) == (rows, place)
        np.testing.assert_allclose(update.delta.array, oracle.matrix[place], rtol=1e-5, atol=1e-7)
        assert update.weight == len(DATA.shard(place).train)
    assert updates[0].scalars.keys() == {"loss", "steps"}


def test_a_sum_is_a_copy(bench: Bench) -> None:
    rows = bench.results(bench.submit(range(3)))[0].delta.rows
    first = rows.weighted_sum(np.ones(3))
    kept = first.copy()
    rows.weighted_sum(np.array([5.0, 5.0, 5.0]))
    np.testing.assert_array_equal(first, kept)


def test_many_models_are_under_way_at_once(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    models = [bench.params.replaced(rng.normal(size=bench.params.size)) for _ in range(9)]
    jobs = [bench.submit([n % PARTIES, (n + 1) % PARTIES], model) for n, model in enumerate(models)]
    for n in reversed(range(9)):
        found = bench.results(jobs[n])
        oracle = here([n % PARTIES, (n + 1) % PARTIES], models[n])
        for place, update in enumerate(found):
            np.testing.assert_allclose(update.delta.array, oracle.matrix[place], rtol=1e-4, atol=1e-6)


def test_only_calls_on_one_model_are_batched() -> None:
    """Without workers: calls on two models, waiting together, give what each gives alone."""
    rng = np.random.default_rng(0)
    learner = Odd(size=8)
    first = learner.init(Key.root(0), DATA.example)
    models = [first.replaced(rng.normal(size=first.size)) for _ in range(2)]
    batching = Batching(learner)
    calls = [(models[n % 2], DATA.shard(n).train, LocalWork(round=1), Key.root(n)) for n in range(6)]
    jobs = [batching.submit(learner.fit, call) for call in calls]
    tests = [batching.submit(learner.evaluate, (models[n % 2], DATA.shard(n).test)) for n in range(6)]
    for n in (5, 0, 3, 1, 2, 4):
        expected = learner.fit(*calls[n])
        found = batching.result(jobs[n])
        np.testing.assert_allclose(found.delta.array, expected.delta.array, rtol=1e-5, atol=1e-6)
        alone = learner.evaluate(models[n % 2], DATA.shard(n).test)
        assert batching.result(tests[n]) == pytest.approx(dict(alone), rel=1e-5)


@pytest.mark.parametrize("bench", [Odd("raise")], indirect=True)
def test_a_failure_in_a_worker_keeps_its_name_and_traceback_and_costs_nobody_else(bench: Bench) -> None:
    found = bench.results(bench.submit(range(9)))
    failed = [place for place, outcome in enumerate(found) if isinstance(outcome, Exception)]
    assert failed == [5]
    error = found[5]
    assert type(error).__name__ == "PlantedError" and str(error) == "party five"
    assert "planted_failure" in "".join(error.__notes__)
    oracle = here(range(9), bench.params)
    for place in (3, 4, 6):
        np.testing.assert_allclose(found[place].delta.array, oracle.matrix[place], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plant", ["exit", "kill"])
def test_a_worker_that_dies_ends_the_run_by_name(plant: str) -> None:
    plan = hs.Plan(protocol=hs.FedAvg(rounds=3, cohort=PARTIES), learner=Odd(plant))
    run = hs.simulate(plan, DATA, workers=2)
    assert run.status == "failed" and isinstance(run.error, WorkerLost)
    assert "worker process" in run.cause and "fewer workers" in run.cause
    assert not multiprocessing.active_children()


def test_a_worker_killed_from_outside_between_rounds_ends_the_run() -> None:
    def kill(record: Any) -> None:
        if record.round == 1:
            for child in multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)

    from tests.simulation.cases import Follower

    plan = hs.Plan(protocol=hs.FedAvg(rounds=3, cohort=PARTIES), learner=Odd())
    run = hs.simulate(plan, DATA, workers=2, trackers=[Follower(kill)])
    assert run.status == "failed" and isinstance(run.error, WorkerLost)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_party_is_named_with_its_traceback_whatever_the_workers(workers: int) -> None:
    protocol = hs.FedAvg(rounds=2, cohort=PARTIES)
    plan = hs.Plan(protocol=protocol, learner=Odd("raise everywhere"))
    run = hs.simulate(plan, DATA, workers=workers).raise_if_failed()
    assert {failure.party for failure in run.failures} == {DATA.names[5]}
    assert "PlantedError" in run.failures[0].traceback and "in planted_failure" in run.failures[0].traceback
    assert run.history[1].metrics["contributors"] == PARTIES - 1
    assert run.history[1].note == f"{DATA.names[5]}: PlantedError"
    stopped = hs.simulate(plan, DATA, workers=workers, on_failure="stop")
    assert stopped.status == "failed" and "PlantedError: party five" in stopped.cause
    assert DATA.names[5] in stopped.cause


def test_no_process_is_left_behind_however_a_run_ends() -> None:
    def interrupt(record: Any) -> None:
        raise KeyboardInterrupt

    def fail(record: Any) -> None:
        raise OSError("the disk is full")

    from tests.simulation.cases import Follower

    plan = hs.Plan(protocol=hs.FedAvg(rounds=2, cohort=4), learner=Odd())
    assert hs.simulate(plan, DATA, workers=3).status == "completed"
    assert not multiprocessing.active_children()
    assert hs.simulate(plan, DATA, workers=3, trackers=[Follower(interrupt)]).status == "interrupted"
    assert not multiprocessing.active_children()
    with pytest.raises(ConfigError):
        hs.simulate(plan, DATA, workers=3, record=("nobody",))
    assert not multiprocessing.active_children()
    hs.simulate(plan, DATA, workers=3, trackers=[Follower(fail)])
    assert not multiprocessing.active_children()


def test_a_batch_is_forgotten_when_nobody_refers_to_it() -> None:
    bench = Bench(Odd(), workers=1)
    try:
        sizes = []
        for round in range(6):
            bench.results(bench.submit(range(3), bench.params.replaced(bench.params.flat + np.float32(round))))
            gc.collect()
            sizes.append(len(bench.pool._batches))
        assert max(sizes) == 0
        # A sum over a batch that the worker has forgotten cannot be had.
        rows = bench.results(bench.submit(range(3)))[0].delta.rows
        bench.pool.forget(0, rows.ticket)
        with pytest.raises(WorkerLost):
            rows.weighted_sum(np.ones(3))
    finally:
        bench.pool.close()


def test_a_pool_needs_a_learner_of_batches() -> None:
    @dataclass(frozen=True)
    class Plain:
        inner: Softmax = SOFTMAX

        def init(self, rng: Key, example: Examples) -> Params:
            return self.inner.init(rng, example)

        def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
            return self.inner.fit(params, data, work, rng)

        def evaluate(self, params: Params, data: Examples) -> Metrics:
            return self.inner.evaluate(params, data)

    plan = hs.Plan(protocol=hs.FedAvg(rounds=1, cohort=4), learner=Plain())
    assert hs.simulate(plan, DATA).status == "completed"
    with pytest.raises(ConfigError, match="workers = 1"):
        hs.simulate(plan, DATA, workers=2)


def test_rows_laws_of_the_book() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    rows = Dense(matrix)
    for coefficients in (np.array([1.0, 0, 0, 2]), np.zeros(4), np.array([0, 0, 3.0, 0]), np.ones(4)):
        np.testing.assert_allclose(rows.weighted_sum(coefficients), coefficients @ matrix, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows.gram(), matrix.astype(float) @ matrix.T.astype(float))
    np.testing.assert_allclose(rows.norms() ** 2, np.diag(rows.gram()))
    scaled = Tensor(None, rows, 2).scaled(-0.5).scaled(3.0)
    assert scaled.norm() == pytest.approx(1.5 * rows.norms()[2])
    np.testing.assert_allclose(scaled.array, -1.5 * matrix[2], rtol=1e-6)
