"""The mean equals the weighted mean, and refuses by name what would spoil it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hansa as hs
from hansa.aggregation import Averaging, Clip, Contribution
from hansa.errors import ConfigError, NonFinite, QuorumNotReached
from hansa.examples import Examples, Shard
from hansa.learner import LocalWork
from hansa.message import Message
from hansa.party import Party, Roster
from hansa.protocol import Aggregation, Collected, Gathering, Role, Withdraw
from hansa.rng import Key
from hansa.simulation.batching import Batching
from hansa.simulation.log import MessageLog
from hansa.simulation.world import World
from hansa.tensor import Dense, Rows, Tensor
from hansa.update import Bounded, Mean, Update
from tests.protocols import LeastSquares

EMPTY = Examples(np.zeros((0, 1)), np.zeros(0))
SIZE = 4


class Go(Message, frozen=True):
    tag = "test.go/1"
    discloses = "nothing"


Answer = Contribution | Withdraw | Update


def collect(
    answers: Mapping[int, Sequence[Answer]],
    aggregation: Aggregation[Any, Any] | None = None,
    clients: int = 3,
    **settings: Any,
) -> Collected[Mean[Any]]:
    """One round: each party sends its answers in turn, an update through the pipeline and anything else as it is."""
    pipeline: Aggregation[Any, Any] = hs.mean() if aggregation is None else aggregation
    names = Roster("client", clients)
    gathering = {
        "invited": dict.fromkeys(names, 1), "deadline": 10.0, "quorum": 1, "enough": clients, "size": SIZE, **settings
    }  # fmt: skip

    async def server(me: Party) -> Any:
        for name in Roster("client", 6):
            await me.send(name, Go())
        return await pipeline.collect(me, Gathering(**gathering))

    async def client(me: Party) -> None:
        await me.recv(Go, within=None)
        for answer in answers.get(int(me.name.removeprefix("client-")), ()):
            if isinstance(answer, Update):
                await pipeline.contribute(me, "server", 1, answer)
            else:
                await me.send("server", answer)

    roles = {
        "server": Role(server, pipeline.messages, starts=True),
        "client": Role(client, (Go,), invitations=(Go,), many=True),
    }
    world = World(
        roles, {"server": ["server"], "client": Roster("client", 6)}, lambda role, place: Shard(EMPTY, EMPTY), Key.root(0),
        Batching(LeastSquares()), None, MessageLog(), lambda s, m: None, lambda n: None, lambda f: None,
    )  # fmt: skip
    result: Collected[Mean[Any]] = world.run()["server"]
    return result


def word(
    values: Any = (1, 1, 1, 1), weight: float = 1.0, round: int = 1, dtype: str = "float32", **scalars: float
) -> Contribution:
    return Contribution(round, Tensor(np.array(values, dtype)), weight, scalars)


def update(values: Any, weight: float = 1.0, **scalars: float) -> Update:
    return Update(Tensor(np.array(values, np.float32)), weight, scalars)


floats = st.floats(-1e3, 1e3, width=32)


@given(
    st.lists(st.tuples(st.lists(floats, min_size=SIZE, max_size=SIZE), st.floats(0.5, 1e4)), min_size=1, max_size=6),
    st.sampled_from(["examples", "uniform"]),
    st.booleans(),
)
def test_it_is_the_weighted_mean(parties: list[tuple[list[float], float]], weights: Any, batched: bool) -> None:
    matrix = np.array([values for values, _ in parties], np.float32)
    rows = Dense(matrix)
    updates = [
        Update(Tensor(None, rows, place) if batched else Tensor(matrix[place]), weight, {"loss": float(place)})
        for place, (_, weight) in enumerate(parties)
    ]
    w = np.array([weight for _, weight in parties]) if weights == "examples" else np.ones(len(parties))
    found = collect({k: [u] for k, u in enumerate(updates)}, hs.mean(weights), clients=len(parties))
    oracle = w @ matrix.astype(np.float64) / w.sum()
    np.testing.assert_allclose(found.value.delta, oracle, rtol=1e-5, atol=1e-3)
    assert found.value.delta.dtype == np.float32
    assert found.value.weight == pytest.approx(w.sum()) and found.value.count == len(parties)
    assert found.value.scalars["loss"] == pytest.approx(float(w @ np.arange(len(parties)) / w.sum()))
    assert list(found.contributors) == [f"client-{k}" for k in range(len(parties))] and not found.refused


def test_float64_stays_float64() -> None:
    values = [[1 / 3, 1e-17, 1.0, -1.0], [1e17, 0.1, 2.0, 5.0]]
    found = collect({k: [word(v, k + 1, dtype="float64")] for k, v in enumerate(values)}, clients=2)
    np.testing.assert_allclose(found.value.delta, np.average(values, axis=0, weights=[1, 2]), rtol=1e-15)


def test_staleness_takes_off_the_change_and_not_the_weight() -> None:
    invited = {"client-0": 1, "client-1": 3}
    answers = {0: [word([4, 4, 4, 4], 1, round=1)], 1: [word([8, 8, 8, 8], 3, round=3)]}
    found = collect(answers, clients=2, invited=invited, factor=lambda round: 0.5 if round == 1 else 1.0)
    np.testing.assert_allclose(found.value.delta, np.full(4, (0.5 * 4 * 1 + 8 * 3) / 4))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (word([1, 1, 1]), r"shape \(3,\), expected \(4,\)"),
        (word([1, 1, 1, 1, 1]), r"shape \(5,\)"),
        (word([[1, 1, 1, 1]]), r"shape \(1, 4\)"),
        (word([1, 1, math.nan, 1]), "NaN"),
        (word([1, math.inf, 1, 1]), "infinity"),
        (word([1, 1, 1, 1], dtype="int64"), "dtype int64"),
        (word([1, 1, 1, 1], dtype="float16"), "dtype float16"),
        (word([1, 1, 1, 1], dtype="bool"), "dtype bool"),
        (word([1, 1, 1, 1], dtype="float64"), "dtype float64"),
        (word(weight=0.0), "weight of 0"),
        (word(weight=-1.0), "weight of -1"),
        (word(weight=math.nan), "weight of nan"),
        (word(weight=math.inf), "weight of inf"),
        (word(weight=1e300), "weight of 1e"),
        (word(steps=math.nan), "'steps'"),
        (word(loss=math.inf), "'loss'"),
        (Withdraw(1, "ran out of battery"), "battery"),
    ],
)
def test_a_bad_contribution_is_refused_by_name_and_changes_nothing(bad: Answer, why: str) -> None:
    good = [word([1, 2, 3, 4], 2), word([5, 6, 7, 8], 6)]
    found = collect({0: [good[0]], 1: [bad], 2: [good[1]]}, dtype="float32")
    np.testing.assert_allclose(found.value.delta, np.average([[1, 2, 3, 4], [5, 6, 7, 8]], axis=0, weights=[2, 6]))
    assert list(found.contributors) == ["client-0", "client-2"]
    with pytest.raises(AssertionError, match=why):
        assert found.refused == {}, found.refused["client-1"]
    assert list(found.refused) == ["client-1"]


def test_a_party_above_the_plans_clip_is_refused_whatever_it_says() -> None:
    answers: dict[int, list[Answer]] = {
        0: [update([3, 4, 0, 0])],  # clipped on its way to norm 1
        1: [word([0.6, 0.8, 0, 0])],  # at the bound
        2: [word([0.7, 0.8, 0, 0])],  # goes around the clip
    }
    found = collect(answers, hs.clip(1.0) | hs.mean())
    np.testing.assert_allclose(found.value.delta, [0.6, 0.8, 0, 0], rtol=1e-6)
    assert found.value.bound == 1.0
    assert "client-2" in found.refused and "above the bound 1" in found.refused["client-2"]


def test_a_bound_does_not_refuse_honest_rounding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        honest = rng.normal(size=SIZE).astype(np.float32) * 1e4
        found = collect({0: [update(honest)]}, hs.clip(0.37) | hs.mean(), clients=1)
        assert not found.refused
        assert np.linalg.norm(found.value.delta) == pytest.approx(0.37, rel=1e-5)


def test_only_the_first_answer_of_a_party_counts() -> None:
    found = collect({0: [word(), word([9, 9, 9, 9])], 1: [word()], 2: [word()]})
    np.testing.assert_allclose(found.value.delta, np.ones(4))
    refused_first = collect({0: [word(weight=-1), word([9, 9, 9, 9])], 1: [word()], 2: [word()]})
    np.testing.assert_allclose(refused_first.value.delta, np.ones(4))
    withdrawn_first = collect({0: [Withdraw(1, "no"), word([9, 9, 9, 9])], 1: [word()], 2: [word()]})
    assert list(withdrawn_first.contributors) == ["client-1", "client-2"]


def test_strangers_and_other_rounds_change_nothing() -> None:
    answers: dict[int, list[Answer]] = {
        0: [word([9, 9, 9, 9], round=0), word([9, 9, 9, 9], round=2), Withdraw(0, "late"), word()],
        1: [word()],
        2: [word()],
        3: [word([9, 9, 9, 9]), Withdraw(1, "no"), word([9, 9, 9, 9], weight=math.nan)],
    }
    found = collect(answers)
    np.testing.assert_allclose(found.value.delta, np.ones(4))
    assert list(found.contributors) == [f"client-{k}" for k in range(3)] and not found.refused


def test_what_a_party_says_is_not_passed_on_without_end() -> None:
    found = collect({0: [Withdraw(1, "x" * 1_000_000)], 1: [word()], 2: [word()]})
    assert len(found.refused["client-0"]) <= 200


def test_the_wait_ends_when_enough_have_come() -> None:
    found = collect({k: [word([k, k, k, k])] for k in range(5)}, clients=5, enough=2)
    assert list(found.contributors) == ["client-0", "client-1"]
    np.testing.assert_allclose(found.value.delta, np.full(4, 0.5))


@pytest.mark.parametrize("quorum", [2, 3])
def test_too_few_raise_and_say_who_and_why(quorum: int) -> None:
    with pytest.raises(QuorumNotReached) as caught:
        collect({0: [word()], 1: [word(weight=-3)]}, quorum=quorum)
    for part in ("server, round 1", "1 of 3", f"quorum is {quorum}", "silent: client-2", "client-1: a weight of -3"):
        assert part in str(caught.value)


def test_nobody_at_all_never_is_a_mean() -> None:
    with pytest.raises(QuorumNotReached):
        collect({}, quorum=0)


def test_a_scalar_that_some_lack_is_averaged_over_those_who_sent_it() -> None:
    found = collect(
        {0: [word(weight=1, loss=2.0)], 1: [word(weight=3, loss=6.0, extra=8.0)], 2: [word(weight=4, loss=1.0)]}
    )
    assert found.value.scalars == {"loss": (2 + 18 + 4) / 8, "extra": 8.0}


@pytest.mark.filterwarnings("error")
def test_a_sum_that_overflows_is_an_error_and_not_a_warning() -> None:
    with pytest.raises(NonFinite):
        collect({0: [word([3e38] * 4, 1e6)], 1: [word([3e38] * 4, 1e6)]}, clients=2)


class Counted(Rows):
    """Rows that count how often they were summed and how many of them are alive."""

    alive = 0

    def __init__(self, matrix: npt.NDArray[np.float32], log: list[str]) -> None:
        self.inner = Dense(matrix)
        self.count, self.size, self.dtype = self.inner.count, self.inner.size, self.inner.dtype
        self.log = log
        Counted.alive += 1

    def __del__(self) -> None:
        Counted.alive -= 1

    def weighted_sum(self, coefficients: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        self.log.append(f"sum of {np.count_nonzero(coefficients)}, {Counted.alive} alive")
        return self.inner.weighted_sum(coefficients)

    def norms(self) -> npt.NDArray[np.float64]:
        return self.inner.norms()

    def gram(self) -> npt.NDArray[np.float64]:
        return self.inner.gram()

    def finite(self) -> npt.NDArray[np.bool_]:
        return self.inner.finite()


def test_a_batch_is_summed_once_and_let_go() -> None:
    """Batches arrive one after the other; never is more than one of them kept."""
    log: list[str] = []
    parties, most = 24, 4
    matrix = np.random.default_rng(0).normal(size=(parties, SIZE)).astype(np.float32)
    pipeline = hs.clip(100.0) | hs.mean()
    names = Roster("client", parties)

    async def server(me: Party) -> Any:
        for name in names:
            await me.send(name, Go())
        return await pipeline.collect(me, Gathering(dict.fromkeys(names, 1), 1000.0, 1, parties, SIZE))

    open_batch: dict[int, Counted] = {}

    async def client(me: Party) -> None:
        await me.recv(Go, within=None)
        number = int(me.name.removeprefix("client-"))
        await me.sleep(float(number))
        batch = number // most
        rows = open_batch.get(batch) or Counted(matrix[batch * most : (batch + 1) * most], log)
        open_batch[batch] = rows
        if number % most == most - 1:
            del open_batch[batch]
        await pipeline.contribute(me, "server", 1, Update(Tensor(None, rows, number % most), float(number + 1), {}))

    roles = {
        "server": Role(server, pipeline.messages, starts=True),
        "client": Role(client, (Go,), invitations=(Go,), many=True),
    }
    world = World(
        roles, {"server": ["server"], "client": names}, lambda role, place: Shard(EMPTY, EMPTY), Key.root(0),
        Batching(LeastSquares()), None, MessageLog(), lambda s, m: None, lambda n: None, lambda f: None,
    )  # fmt: skip
    found = world.run()["server"].value
    np.testing.assert_allclose(
        found.delta, np.average(matrix, axis=0, weights=np.arange(parties) + 1), rtol=1e-4, atol=1e-6
    )
    assert len(log) == parties // most
    assert all(line.startswith(f"sum of {most},") for line in log)
    assert all(int(line.split()[3]) <= 2 for line in log), log


def test_clip_is_what_its_table_says() -> None:
    key = Key.root(0)
    for values, expected in (
        ([3, 4, 0, 0], [0.6, 0.8, 0, 0]),
        ([0.3, 0.4, 0, 0], [0.3, 0.4, 0, 0]),
        ([0] * 4, [0] * 4),
    ):
        bounded = Clip(1.0).on_client(update(values, 7.0, loss=2.0), key)
        assert isinstance(bounded, Bounded) and bounded.bound == 1.0
        np.testing.assert_allclose(bounded.update.delta.array, expected, rtol=1e-6)
        assert (bounded.update.weight, bounded.update.scalars) == (7.0, {"loss": 2.0})
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NonFinite):
            Clip(1.0).on_client(update([1, bad, 0, 0]), key)
    for bound in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="clip"):
            hs.clip(bound)


@given(st.lists(floats, min_size=1, max_size=20), st.floats(1e-3, 1e3), st.booleans())
def test_clip_bounds_and_keeps_the_direction(values: list[float], bound: float, as_row: bool) -> None:
    array = np.array(values, np.float32)
    tensor = Tensor(None, Dense(array[None]), 0) if as_row else Tensor(array)
    clipped = Clip(bound).on_client(Update(tensor, 1.0, {}), Key.root(0)).update.delta
    norm = float(np.linalg.norm(array.astype(np.float64)))
    assert clipped.norm() <= bound * (1 + 1e-6)
    np.testing.assert_allclose(clipped.array, array * min(1.0, bound / norm if norm else 1.0), rtol=1e-5, atol=1e-30)


def test_weights_are_checked() -> None:
    with pytest.raises(ConfigError, match="'examples' or 'uniform'"):
        Averaging("size")  # type: ignore[arg-type]


def test_a_run_with_a_party_of_lies_goes_on() -> None:
    """A whole run: two parties whose learner returns nonsense are named in every round's note."""
    from tests.protocols import regression, run

    class Liar(LeastSquares):
        def fit(self, params: Any, data: Examples, work: LocalWork, rng: Key) -> Update:
            honest = LeastSquares.fit(self, params, data, work, rng)
            match len(data):
                case 5:
                    return Update(Tensor(np.full(3, math.nan)), 1.0, {})
                case 6:
                    return Update(honest.delta, -1.0, {})
                case _:
                    return honest

    protocol = hs.FedAvg(rounds=3, cohort=4, evaluation=hs.Evaluation(every=0, parties=0))
    outcome = run(protocol, regression([9, 5, 6, 10]), learner=Liar())
    assert outcome.error is None and np.isfinite(outcome.model).all()
    notes = [report.note for _, _, report in outcome.progress[1:]]
    assert all("client-1: " in note and "client-2: a weight" in note for note in notes)
