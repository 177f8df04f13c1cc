"""The built-in learners: the batched engine against the book, against PyTorch's formulas, and on bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import ConfigError, DataError
from hansa.examples import Examples
from hansa.learner import BatchLearner, LocalWork
from hansa.learners.numpy import MLP, Linear, Softmax, book, stepping
from hansa.learners.numpy.training import Recipe
from hansa.learners.optimizers import SGD, Adam, AdamW, Optimizer
from hansa.learners.schedules import Cosine, StepDecay, Warmup
from hansa.params import Params
from hansa.rng import Key

OPTIMIZERS: list[Optimizer] = [
    SGD(0.1),
    SGD(0.1, momentum=0.9),
    SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(0.1, schedule=StepDecay(1, 0.5, over="epochs")),
    SGD(0.1, schedule=Warmup(3, then=Cosine(9, over="steps"), over="steps")),
    Adam(0.05, weight_decay=0.01),
    AdamW(0.05, weight_decay=0.1),
]


def classification(sizes: Sequence[int], seed: int = 0, features: int = 5, classes: int = 3) -> list[Examples]:
    g = np.random.default_rng(seed)
    n = sum(sizes) + 4
    x, y = g.normal(size=(n, features)).astype(np.float32), g.integers(0, classes, n)
    y[0] = classes - 1
    rows, start = g.permutation(n), 0
    datas = []
    for size in sizes:
        datas.append(Examples(x, y, rows[start : start + size]))
        start += size
    return datas


def keys(count: int) -> list[Key]:
    return [Key.root(1).child("party", i) for i in range(count)]


def deltas(learner: BatchLearner, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork]) -> np.ndarray:
    return np.stack([u.delta.array for u in learner.fit_many(params, datas, works, keys(len(datas)))])


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("make", [Softmax, MLP])
def test_batched_equals_the_book(make: type[Softmax] | type[MLP], optimizer: Optimizer) -> None:
    datas = classification([7, 1, 0, 12, 5, 12])
    learner = make(classes=3, optimizer=optimizer, batch_size=4, epochs=3, dtype="float64")
    params = learner.init(Key.root(0), datas[0])
    g = np.random.default_rng(5)
    params = params + g.normal(size=params.size) * 0.1
    works = [
        LocalWork(round=1),
        LocalWork(round=2, proximal=0.3, epochs=1),
        LocalWork(steps=2),
        LocalWork(steps=11, linear=g.normal(size=params.size), learning_rate=0.5),
        LocalWork(full_batch=True, proximal=1.0, linear=g.normal(size=params.size)),
        LocalWork(epochs=2),
    ]
    plain = dataclasses.replace(learner, engine="book")
    fast, slow = (one.fit_many(params, datas, works, keys(6)) for one in (learner, plain))
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a.delta.array, b.delta.array, rtol=1e-9, atol=1e-12)
        assert a.scalars == pytest.approx(b.scalars, rel=1e-9)
        assert a.weight == b.weight
    assert [u.scalars["steps"] for u in fast] == [6, 1, 0, 11, 3, 6]
    assert not fast[2].delta.array.any()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_batched_equals_the_book(activation: str, outputs: int) -> None:
    g = np.random.default_rng(0)
    x, y = g.normal(size=(20, 3)), g.normal(size=(20, outputs))
    datas = [Examples(x[:7], y[:7]), Examples(x[7:8], y[7:8]), Examples(x[8:], y[8:])]
    for learner in (
        Linear(l2=0.1, batch_size=4, epochs=2, dtype="float64"),
        MLP((4, 3), activation=activation, loss="mse", batch_size=4, dtype="float64"),  # type: ignore[arg-type]
    ):
        params = learner.init(Key.root(0), datas[0])
        plain = dataclasses.replace(learner, engine="book")
        works = [LocalWork()] * 3
        np.testing.assert_allclose(
            deltas(learner, params, datas, works), deltas(plain, params, datas, works), rtol=1e-9, atol=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(1, 5),
    st.lists(st.one_of(st.none(), st.integers(0, 7)), min_size=6, max_size=6),
)
def test_fit_many_is_map_fit(sizes: list[int], batch: int, steps: list[int | None]) -> None:
    datas = classification(sizes)
    learner = Softmax(classes=3, batch_size=batch, optimizer=SGD(0.1, momentum=0.5), epochs=2)
    params = learner.init(Key.root(0), datas[0])
    works = [LocalWork(steps=s) for s in steps[: len(sizes)]]
    many = learner.fit_many(params, datas, works, keys(len(sizes)))
    for update, data, work, key in zip(many, datas, works, keys(len(sizes)), strict=True):
        alone = learner.fit(params, data, work, key)
        np.testing.assert_allclose(update.delta.array, alone.delta.array, rtol=1e-5, atol=1e-6)
        assert update.scalars == pytest.approx(alone.scalars, rel=1e-5)
        assert update.weight == alone.weight == len(data)


def test_the_same_batch_gives_the_same_bits() -> None:
    datas = classification([7, 3, 12])
    learner = MLP(classes=3, batch_size=4)
    params = learner.init(Key.root(0), datas[0])
    works = [LocalWork()] * 3
    assert deltas(learner, params, datas, works).tobytes() == deltas(learner, params, datas, works).tobytes()


def test_shared_and_separate_arrays_agree() -> None:
    datas = classification([7, 3, 12])
    own = [Examples(d.x, d.y) for d in datas]
    learner = Softmax(classes=3, batch_size=4)
    params = learner.init(Key.root(0), datas[0])
    works = [LocalWork()] * 3
    np.testing.assert_array_equal(deltas(learner, params, datas, works), deltas(learner, params, own, works))
    assert learner.evaluate_many(params, datas) == learner.evaluate_many(params, own)


@pytest.mark.parametrize("network", [(4, 3), (4, 5, 3), (4, 5, 2, 3)], ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_books_gradient_is_the_slope(network: tuple[int, ...], loss: str) -> None:
    from hansa.learners.numpy.network import Network

    shape = Network(network, "tanh", loss, 0.2)  # type: ignore[arg-type]
    g = np.random.default_rng(1)
    layout = shape.layout("float64")
    params = Params(g.normal(size=layout.size), layout)
    x = g.normal(size=(6, 4))
    y = g.integers(0, 3, 6) if loss == "cross_entropy" else g.normal(size=(6, 3))

    def objective(flat: np.ndarray) -> float:
        at = params.replaced(flat)
        losses, _ = book.value_and_gradient(shape, at, x, y)
        weights = [t for name, t in at.tensors().items() if name.endswith("weight")]
        return float(losses.mean() + 0.1 * sum(float((w**2).sum()) for w in weights))

    _, slope = book.value_and_gradient(shape, params, x, y)
    for place in range(layout.size):
        nudge = np.zeros(layout.size)
        nudge[place] = 1e-6
        numeric = (objective(params.flat + nudge) - objective(params.flat - nudge)) / 2e-6
        assert slope[place] == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_stepping_equals_torch(optimizer: Optimizer) -> None:
    torch = pytest.importorskip("torch")
    g = np.random.default_rng(0)
    start, slopes = g.normal(size=5), g.normal(size=(6, 5))
    w = torch.tensor(start, requires_grad=True)
    if isinstance(optimizer, SGD):
        theirs = torch.optim.SGD(
            [w], 0.1, optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=optimizer.weight_decay
        )
    else:
        kind = torch.optim.Adam if isinstance(optimizer, Adam) else torch.optim.AdamW
        theirs = kind([w], 0.1, optimizer.betas, optimizer.eps, optimizer.weight_decay)
    mine = start[None].copy()
    state = stepping.start(optimizer, mine)
    for index, slope in enumerate(slopes):
        w.grad = torch.tensor(slope)
        theirs.step()
        stepping.step(optimizer, mine, slope[None].copy(), state, 0.1, index)
    np.testing.assert_allclose(mine[0], w.detach().numpy(), rtol=1e-10)


def test_one_full_batch_step_is_the_gradient_formula() -> None:
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, -1.0])
    learner = Linear(optimizer=SGD(0.5), dtype="float64")
    data = Examples(x, y)
    update = learner.fit(learner.init(Key.root(0), data), data, LocalWork(full_batch=True, steps=1), Key.root(0))
    np.testing.assert_allclose(update.delta.array, [-0.5 * 2.0, -0.5 * 2.0, 0.0])
    assert update.scalars == {"loss": 1.0, "steps": 1.0}


def test_images_are_flattened_and_integers_accepted() -> None:
    g = np.random.default_rng(0)
    x = g.integers(0, 255, size=(12, 2, 3), dtype=np.uint8)
    data = Examples(x, np.arange(12) % 3)
    learner = Softmax(optimizer=SGD(0.001))
    params = learner.init(Key.root(0), data)
    assert params["weight"].shape == (3, 6)
    flat = Examples(x.reshape(12, 6).astype(np.float32), data.y)
    one, two = (learner.fit(params, d, LocalWork(), Key.root(0)).delta.array for d in (data, flat))
    np.testing.assert_array_equal(one, two)


def test_classes_come_from_the_whole_arrays() -> None:
    x, y = np.zeros((4, 2)), np.array([0, 1, 1, 6])
    assert Softmax().init(Key.root(0), Examples(x, y, np.array([0, 1])))["bias"].shape == (7,)


def test_init_is_the_keys() -> None:
    data = classification([5])[0]
    one, same, other = (MLP().init(Key.root(seed), data).flat for seed in (0, 0, 1))
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_metrics_are_means() -> None:
    datas = classification([7, 3, 12])
    learner = Softmax(classes=3, dtype="float64")
    params = learner.init(Key.root(0), datas[0]) + np.random.default_rng(0).normal(size=18)
    for data, got in zip(datas, learner.evaluate_many(params, datas), strict=True):
        z = data.x.astype(np.float64) @ params["weight"].T + params["bias"]
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        assert got["accuracy"] == pytest.approx(np.mean(z.argmax(1) == data.y))
        assert got["loss"] == pytest.approx(-np.mean(np.log(p[np.arange(len(data)), data.y])))
        assert learner.evaluate(params, data) == pytest.approx(got)


def test_received_parameters_and_data_stay_unchanged() -> None:
    data = classification([9])[0]
    learner = MLP(classes=3, optimizer=SGD(0.1, momentum=0.9))
    params = learner.init(Key.root(0), data)
    before = params.flat.copy(), data.base[0].copy(), data.base[1].copy()
    learner.fit(params, data, LocalWork(proximal=1.0), Key.root(0))
    learner.evaluate(params, data)
    for old, new in zip(before, (params.flat, *data.base), strict=True):
        assert old.tobytes() == new.tobytes()


BAD = [
    (np.ones((3, 2)), np.array([0, 1, 3]), "label 3"),
    (np.ones((3, 2)), np.array([0, -1, 2]), "label -1"),
    (np.ones((3, 2)), np.array([0, 0.5, 2]), "label 0.5"),
    (np.ones((3, 2)), np.array([0, np.nan, 2]), "label nan"),
    (np.ones((3, 2)), np.array(["a", "b", "c"]), "class numbers"),
    (np.ones((3, 2)), np.zeros((3, 2), int), "class numbers"),
    (np.ones((3, 3)), np.array([0, 1, 2]), "2 features but the examples have 3"),
    (np.array([[1, 1], [np.nan, 1], [1, 1]]), np.array([0, 1, 2]), "feature 0 of example 1"),
    (np.array([[1, 1], [1, 1], [1, np.inf]]), np.array([0, 1, 2]), "feature 1 of example 2"),
    (np.array([["a", "b"]] * 3), np.array([0, 1, 2]), "numbers as features"),
]


@pytest.mark.parametrize(("x", "y", "sentence"), BAD, ids=[b[2] for b in BAD])
@pytest.mark.parametrize("engine", ["batched", "book"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_examples_are_named(x: np.ndarray, y: np.ndarray, sentence: str, engine: str) -> None:
    good = Examples(np.ones((3, 2)), np.array([0, 1, 2]))
    for learner in (Softmax(classes=3, engine=engine), MLP(classes=3, activation="tanh", engine=engine)):  # type: ignore[arg-type]
        params = learner.init(Key.root(0), good)
        bad = Examples(x, y)
        with pytest.raises(DataError, match=sentence):
            learner.fit_many(params, [good, bad], [LocalWork()] * 2, keys(2))
        with pytest.raises(DataError, match=sentence):
            learner.evaluate(params, bad)


def test_bad_targets_of_a_regression_are_named() -> None:
    learner = Linear()
    good = Examples(np.ones((2, 1)), np.ones(2))
    params = learner.init(Key.root(0), good)
    for y, sentence in ((np.ones((2, 2)), "predicts 1 numbers"), (np.array([1, np.nan]), "target 0 of example 1")):
        with pytest.raises(DataError, match=sentence):
            learner.fit(params, Examples(np.ones((2, 1)), y), LocalWork(), Key.root(0))


def test_evaluating_nothing_is_refused() -> None:
    data = classification([3, 0])
    learner = Softmax(classes=3)
    with pytest.raises(DataError, match="no examples"):
        learner.evaluate(learner.init(Key.root(0), data[0]), data[1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Softmax(classes=1), "Softmax.classes"),
        (lambda: Softmax(batch_size=0), "batch_size"),
        (lambda: Softmax(batch_size=True), "batch_size"),
        (lambda: Softmax(epochs=0), "epochs"),
        (lambda: Softmax(epochs=1.5), "epochs"),  # type: ignore[arg-type]
        (lambda: Softmax(l2=-1.0), "l2"),
        (lambda: Softmax(optimizer=0.1), "SGD, Adam or AdamW"),  # type: ignore[arg-type]
        (lambda: Softmax(engine="bok"), "did you mean 'book'"),  # type: ignore[arg-type]
        (lambda: Linear(dtype="float16"), "dtype"),  # type: ignore[arg-type]
        (lambda: MLP(hidden=()), "hidden"),
        (lambda: MLP(hidden=(0,)), "hidden"),
        (lambda: MLP(activation="rleu"), "did you mean 'relu'"),  # type: ignore[arg-type]
        (lambda: MLP(loss="mse", classes=3), "no meaning"),
    ],
)
def test_bad_settings_are_named(make: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()  # type: ignore[operator]


def test_parameters_of_another_learner_are_refused() -> None:
    data = classification([5])[0]
    params = MLP(hidden=(4,)).init(Key.root(0), data)
    for learner, foreign in (
        (Softmax(), params),
        (MLP(hidden=(5,)), params),
        (MLP(hidden=(4, 4)), params),
        (Softmax(), Params.of({"weight": np.zeros((3, 4, 5)), "bias": np.zeros(3)})),
        (Softmax(), Params.of({})),
    ):
        with pytest.raises(ConfigError, match="not those of"):
            learner.fit(foreign, data, LocalWork(), Key.root(0))
        with pytest.raises(ConfigError, match="not those of"):
            learner.evaluate(foreign, data)


def test_a_linear_term_of_another_size_is_refused() -> None:
    data = classification([5])[0]
    for engine in ("batched", "book"):
        learner = Softmax(engine=engine)
        with pytest.raises(ConfigError, match="linear term"):
            learner.fit(learner.init(Key.root(0), data), data, LocalWork(linear=np.zeros(1)), Key.root(0))


def test_recipe_is_a_value() -> None:
    assert dataclasses.is_dataclass(Recipe)
    assert Softmax(3) == Softmax(3)
    assert isinstance(Softmax(), BatchLearner)
