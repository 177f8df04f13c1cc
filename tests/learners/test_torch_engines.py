"""Every engine of the torch learner equals the book's loop: a plain ``torch.optim`` loop, written out here."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from hansa.errors import ConfigError
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.learners.optimizers import SGD, Adam, AdamW, Optimizer
from hansa.learners.schedules import Cosine, Exponential, StepDecay
from hansa.learners.torch import Torch
from hansa.learners.torch.engines import EngineName
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Array, Dense
from hansa.update import Update

FEATURES, CLASSES = 12, 4
SIZES = (1, 7, 10, 18, 18, 23, 5)
TOLERANCE = 1e-5
BATCHED: tuple[EngineName, ...] = ("sequential", "low_rank", "vectorized")


class Traced(nn.Module):
    """A chain that is no Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(FEATURES, 9), nn.Linear(9, 7, bias=False), nn.Linear(7, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x.view(x.size(0), -1)))
        logits: torch.Tensor = self.last(torch.tanh(self.second(x)))
        return logits


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.GroupNorm(1, 3),
            nn.Linear(3 * FEATURES, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x.reshape(-1, 1, 3, 4))))
        logits: torch.Tensor = self.out(x.flatten(1))
        return logits


def logistic() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(FEATURES, 8), nn.GELU(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, CLASSES)
    )


def cohort(seed: int = 0, sizes: Sequence[int] = SIZES, dtype: type = np.float32) -> list[Examples]:
    draw = np.random.default_rng(seed)
    x: Array = draw.normal(size=(sum(sizes), FEATURES)).astype(dtype)
    y = draw.integers(0, CLASSES, sum(sizes))
    order = draw.permutation(sum(sizes))
    ends = np.cumsum(sizes)
    return [Examples(x, y, order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def keys(count: int) -> list[Key]:
    return [Key.root(5).child("party", index) for index in range(count)]


def book(learner: Torch, params: Params, data: Examples, work: LocalWork, rng: Key) -> tuple[Array, float, int]:
    """One party's training as a textbook has it, with its model, its optimizer and a penalty added to the loss."""
    assert callable(learner.model)
    model = learner.model()
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in params.tensors().items():
            named[name].copy_(torch.from_numpy(value.copy()))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    kind = learner.optimizer
    if isinstance(kind, SGD):
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(),
            kind.learning_rate,
            kind.momentum,
            nesterov=kind.nesterov,
            weight_decay=kind.weight_decay,
        )
    else:
        made = torch.optim.Adam if isinstance(kind, Adam) else torch.optim.AdamW
        optimizer = made(
            model.parameters(), kind.learning_rate, betas=kind.betas, eps=kind.eps, weight_decay=kind.weight_decay
        )
    n = len(data)
    batch = n if work.full_batch else learner.batch_size
    step, total, epoch, seen = 0, 0.0, 0, 0
    limit = work.steps if work.steps is not None else math.inf
    epochs = work.epochs or learner.epochs
    x = torch.from_numpy(data.x).to(next(model.parameters()).dtype)
    y = torch.from_numpy(data.y)
    while step < limit and (work.steps is not None or epoch < epochs):
        order = torch.from_numpy(rng.permutation(n, epoch))
        for at in range(0, n, batch):
            if step >= limit:
                break
            unit = {"rounds": work.round, "epochs": epoch, "steps": step}[kind.schedule.over]
            for group in optimizer.param_groups:
                group["lr"] = kind.learning_rate * kind.schedule.factor(unit) * work.learning_rate
            rows = order[at : at + batch]
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            total += float(loss.detach()) * len(rows)
            seen += len(rows)
            place = 0
            for name, p in model.named_parameters():
                moved = p - start[name]
                loss = loss + work.proximal / 2 * moved.square().sum()
                if work.linear is not None:
                    term = torch.from_numpy(work.linear[place : place + p.numel()]).view(p.shape)
                    loss = loss + (term * moved).sum()
                place += p.numel()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if learner.clip_gradient is not None:
                nn.utils.clip_grad_norm_(model.parameters(), learner.clip_gradient)
            optimizer.step()
            step += 1
        epoch += 1
    flat = np.concatenate([named[name].detach().numpy().ravel() for name in params.layout.names])
    return flat - params.flat, total / seen, step


def check(learner: Torch, work: LocalWork, datas: list[Examples] | None = None) -> list[Update]:
    """``fit_many`` and ``fit`` against the book, every party, every number."""
    datas = cohort() if datas is None else datas
    params = learner.init(Key.root(3), datas[0])
    rngs = keys(len(datas))
    updates = learner.fit_many(params, datas, [work] * len(datas), rngs)
    for data, rng, update in zip(datas, rngs, updates, strict=True):
        delta, loss, steps = book(learner, params, data, work, rng)
        scale = max(np.abs(delta).max(), 1e-3)
        assert np.abs(update.delta.array - delta).max() <= TOLERANCE * scale + 2e-7
        assert update.scalars["loss"] == pytest.approx(loss, rel=1e-5)
        assert update.scalars["steps"] == steps
        assert update.weight == len(data)
        alone = learner.fit(params, data, work, rng)
        assert np.abs(update.delta.array - alone.delta.array).max() <= TOLERANCE * scale + 2e-7
    return updates


SGDS = [
    SGD(0.3),
    SGD(0.2, momentum=0.9),
    SGD(0.1, momentum=0.8, nesterov=True),
    SGD(0.2, weight_decay=0.1),
    SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.05, schedule=Exponential(0.7, over="steps")),
]
OTHERS: list[Optimizer] = [
    Adam(0.02),
    Adam(0.01, betas=(0.8, 0.9), weight_decay=0.1, schedule=Cosine(3, over="epochs")),
    AdamW(0.02, weight_decay=0.2),
]
LINEAR = np.random.default_rng(9).normal(scale=0.1, size=400).astype(np.float32)
WORKS = {
    "plain": LocalWork(),
    "epochs": LocalWork(epochs=3, learning_rate=0.5, round=2),
    "steps": LocalWork(steps=4, proximal=0.4),
    "full_batch": LocalWork(full_batch=True, epochs=2),
    "proximal": LocalWork(proximal=1.5, epochs=2),
}


def named(optimizer: object) -> str:
    return repr(optimizer)[:60]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
@pytest.mark.parametrize("optimizer", [*SGDS, *OTHERS], ids=named)
def test_sequential_equals_the_book(optimizer: Optimizer, work: LocalWork) -> None:
    check(Torch(model=Traced, optimizer=optimizer, batch_size=10, engine="sequential"), work)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
@pytest.mark.parametrize("optimizer", SGDS, ids=named)
@pytest.mark.parametrize("model", [logistic, deep, Traced])
def test_low_rank_equals_the_book(model: Callable[[], nn.Module], optimizer: SGD, work: LocalWork) -> None:
    check(Torch(model=model, optimizer=optimizer, batch_size=10, engine="low_rank"), work)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
@pytest.mark.parametrize("optimizer", SGDS, ids=named)
@pytest.mark.parametrize("model", [logistic, Conv])
def test_vectorized_equals_the_book(model: Callable[[], nn.Module], optimizer: SGD, work: LocalWork) -> None:
    check(Torch(model=model, optimizer=optimizer, batch_size=10, engine="vectorized"), work)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("clip", [None, 0.05, 100.0])
def test_linear_terms_and_clipping_equal_the_book(engine: EngineName, clip: float | None) -> None:
    learner = Torch(model=logistic, optimizer=SGD(0.3, momentum=0.5), batch_size=4, clip_gradient=clip, engine=engine)
    work = LocalWork(linear=LINEAR[: CLASSES * (FEATURES + 1)], proximal=0.2, epochs=2)
    check(learner, work)


def test_each_party_may_have_work_of_its_own() -> None:
    datas, rngs = cohort(), keys(len(SIZES))
    works = [
        LocalWork(steps=1 + place, learning_rate=1.0 / (1 + place), proximal=0.1 * place, full_batch=place == 3)
        for place in range(len(SIZES))
    ]
    for engine in BATCHED:
        learner = Torch(model=deep, optimizer=SGD(0.4, momentum=0.5), batch_size=6, engine=engine)
        params = learner.init(Key.root(3), datas[0])
        updates = learner.fit_many(params, datas, works, rngs)
        for data, work, rng, update in zip(datas, works, rngs, updates, strict=True):
            delta, loss, steps = book(learner, params, data, work, rng)
            assert np.abs(update.delta.array - delta).max() <= TOLERANCE
            assert update.scalars == pytest.approx({"loss": loss, "steps": steps}, rel=1e-5)


def test_parties_with_arrays_of_their_own_equal_parties_that_share_them() -> None:
    shared = cohort()
    own = [Examples(data.x.copy(), data.y.copy()) for data in shared]
    for engine in BATCHED:
        learner = Torch(model=logistic, batch_size=10, engine=engine)
        params = learner.init(Key.root(0), shared[0])
        work, rngs = [LocalWork()] * len(own), keys(len(own))
        for a, b in zip(
            learner.fit_many(params, shared, work, rngs), learner.fit_many(params, own, work, rngs), strict=True
        ):
            assert np.array_equal(a.delta.array, b.delta.array)


def test_a_party_without_examples_changes_nothing_and_weighs_nothing() -> None:
    datas = cohort()
    datas.insert(2, Examples(*datas[0].base, np.zeros(0, np.int64)))
    for engine in BATCHED:
        learner = Torch(model=logistic, batch_size=10, engine=engine)
        params = learner.init(Key.root(0), datas[0])
        updates = learner.fit_many(params, datas, [LocalWork()] * len(datas), keys(len(datas)))
        assert updates[2].weight == 0
        assert not updates[2].delta.array.any()
        assert all(update.weight > 0 for place, update in enumerate(updates) if place != 2)
        assert learner.fit(params, datas[2], LocalWork(), Key.root(1)).scalars == {"loss": 0.0, "steps": 0.0}


@pytest.mark.parametrize(("work", "optimizer"), [(LocalWork(epochs=2), SGD(0.3)), (LocalWork(proximal=0.5), SGDS[-1])])
def test_factored_rows_keep_the_laws_of_rows(work: LocalWork, optimizer: SGD) -> None:
    updates = check(Torch(model=deep, optimizer=optimizer, batch_size=10, engine="low_rank"), work)
    batches = {id(update.delta.rows): update.delta.rows for update in updates}
    for rows in batches.values():
        assert rows is not None
        eye = np.eye(rows.count)
        dense = Dense(np.stack([rows.weighted_sum(eye[place]) for place in range(rows.count)]))
        assert dense.matrix.dtype == rows.dtype
        some = np.array([0.0, *np.linspace(-1, 2, rows.count - 1)])
        for coefficients in (some, np.linspace(1, 3, rows.count), np.zeros(rows.count)):
            assert np.allclose(rows.weighted_sum(coefficients), coefficients @ dense.matrix, atol=1e-6)
        assert np.allclose(rows.norms(), dense.norms(), rtol=1e-5)
        assert np.allclose(rows.gram(), dense.gram(), rtol=1e-4, atol=1e-6)
        assert np.allclose(np.sqrt(np.diag(rows.gram())), rows.norms(), rtol=1e-5)


def test_float64_models_stay_float64_in_every_engine() -> None:
    datas = cohort(dtype=np.float64)
    for engine in BATCHED:
        learner = Torch(model=lambda: logistic().double(), batch_size=10, engine=engine)
        params = learner.init(Key.root(0), datas[0])
        update = learner.fit(params, datas[3], LocalWork(epochs=2), Key.root(1))
        assert params.layout.dtype == "float64"
        assert update.delta.array.dtype == np.float64
        delta, _, _ = book(learner, params, datas[3], LocalWork(epochs=2), Key.root(1))
        assert np.abs(update.delta.array - delta).max() < 1e-13


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", "bce_with_logits"])
def test_engines_agree_on_losses_over_numbers(loss: str) -> None:
    draw = np.random.default_rng(4)
    y = draw.integers(0, 2, 40)
    x = draw.normal(size=(40, FEATURES)).astype(np.float32)
    datas = [Examples(x, y, np.arange(0, 18)), Examples(x, y, np.arange(18, 40))]
    found = []
    for engine in BATCHED:
        learner = Torch(
            model=lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.Softplus(), nn.Linear(5, 1)),
            loss=loss, batch_size=8, engine=engine,
        )  # fmt: skip
        params = learner.init(Key.root(0), datas[0])
        updates = learner.fit_many(params, datas, [LocalWork(epochs=3)] * 2, keys(2))
        found.append(np.stack([update.delta.array for update in updates]))
    assert np.abs(found[0]).max() > 1e-3
    assert np.abs(found[1] - found[0]).max() < 1e-6
    assert np.abs(found[2] - found[0]).max() < 1e-6


def test_log_softmax_and_nll_run_low_rank_like_cross_entropy() -> None:
    datas = cohort()
    models = [
        (lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.LogSoftmax(dim=1)), "nll"),
        (lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES)), "cross_entropy"),
    ]
    found = []
    for model, loss in models:
        learner = Torch(model=model, loss=loss, batch_size=10, engine="low_rank")
        params = learner.init(Key.root(0), datas[0])
        found.append([u.delta.array for u in learner.fit_many(params, datas, [LocalWork()] * 7, keys(7))])
    for one, other in zip(*found, strict=True):
        assert np.abs(one - other).max() < 1e-6


def test_a_schedule_over_rounds_reads_the_round() -> None:
    learner = Torch(model=logistic, optimizer=SGD(0.3, schedule=StepDecay(5, 0.1)), batch_size=10, engine="low_rank")
    check(learner, LocalWork(round=4))
    check(learner, LocalWork(round=5))
    data = cohort()[3]
    params = learner.init(Key.root(0), data)
    one = [learner.fit(params, data, LocalWork(round=r, steps=1), Key.root(0)).delta.norm() for r in (4, 5)]
    assert one[0] == pytest.approx(10 * one[1], rel=1e-4)


def test_drop_last_leaves_out_a_short_batch_but_never_the_only_one() -> None:
    datas = cohort()
    for engine in BATCHED:
        learner = Torch(model=logistic, batch_size=10, drop_last=True, engine=engine)
        params = learner.init(Key.root(0), datas[0])
        updates = learner.fit_many(params, datas, [LocalWork(epochs=2)] * 7, keys(7))
        assert [update.scalars["steps"] for update in updates] == [2, 2, 2, 2, 2, 4, 2]
        shorter = dataclasses.replace(learner, drop_last=False)
        whole = shorter.fit(params, datas[3], LocalWork(steps=1), keys(7)[3])
        cut = learner.fit(params, datas[3], LocalWork(steps=1), keys(7)[3])
        assert np.array_equal(whole.delta.array, cut.delta.array)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [SGD(0.3), SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.05)], ids=named)
def test_compiled_equals_the_book(optimizer: SGD) -> None:
    learner = Torch(model=Conv, optimizer=optimizer, batch_size=10, engine="compiled")
    for work in (LocalWork(epochs=2), LocalWork(proximal=0.5, steps=3)):
        try:
            check(learner, work)
        except ConfigError as error:
            if "compil" in str(error):
                pytest.skip(str(error))
            raise


@pytest.mark.slow
def test_compiled_models_of_equal_shapes_are_not_taken_for_each_other() -> None:
    datas, rngs = cohort(), keys(len(SIZES))
    for activation in (nn.ReLU, nn.Tanh, nn.Sigmoid):
        learner = Torch(
            model=nn.Sequential(nn.Linear(FEATURES, 6), activation(), nn.Linear(6, CLASSES)),
            batch_size=10,
            engine="compiled",
        )
        params = learner.init(Key.root(3), datas[0])
        try:
            compiled = learner.fit_many(params, datas, [LocalWork()] * len(datas), rngs)
        except ConfigError as error:
            pytest.skip(str(error))
        plain = dataclasses.replace(learner, engine="sequential")
        for one, other in zip(compiled, plain.fit_many(params, datas, [LocalWork()] * len(datas), rngs), strict=True):
            assert np.abs(one.delta.array - other.delta.array).max() < 1e-6


def test_the_book_itself_can_tell_a_difference() -> None:
    learner = Torch(model=logistic, batch_size=10, engine="sequential")
    params = learner.init(Key.root(3), cohort()[0])
    update = learner.fit(params, cohort()[3], LocalWork(), Key.root(1))
    other, _, _ = book(learner, params, cohort()[3], LocalWork(learning_rate=1.001), Key.root(1))
    assert np.abs(update.delta.array - other).max() > TOLERANCE * np.abs(other).max()
    assert copy.deepcopy(learner) == learner
