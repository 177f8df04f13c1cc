"""The torch learner beyond its engines: models, randomness, buffers, evaluation, refusals, the choice of an engine."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch
from torch import nn

from hansa.errors import ConfigError, DataError
from hansa.examples import Examples
from hansa.learner import BatchLearner, LocalWork
from hansa.learners.optimizers import SGD, Adam
from hansa.learners.torch import Torch
from hansa.learners.torch.course import Course, batches, course, padded_batches
from hansa.learners.torch.engines import EngineName, Facts, choose
from hansa.learners.torch.vectorized import has_compiler
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Array

LINEAR = "torch.nn:Linear"


def linear(inputs: int = 6, outputs: int = 3) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def data(count: int = 20, features: int = 6, classes: int = 3, seed: int = 0) -> Examples:
    draw = np.random.default_rng(seed)
    return Examples(draw.normal(size=(count, features)).astype(np.float32), draw.integers(0, classes, count))


def fitted(learner: Torch, examples: Examples, work: LocalWork | None = None, seed: int = 1) -> Array:
    params = learner.init(Key.root(0), examples)
    return learner.fit(params, examples, work or LocalWork(), Key.root(seed)).delta.array


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.norm(self.first(x)))
        return logits


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(nn.functional.dropout(x, 0.5, self.training))
        return logits


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))


# Models ---------------------------------------------------------------------------------------------------------------------


def test_it_is_a_batch_learner_and_a_value() -> None:
    model = linear()
    assert isinstance(Torch(model=model), BatchLearner)
    assert Torch(model=model) == Torch(model=model)
    assert hash(Torch(model=model, epochs=2)) != hash(Torch(model=model))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Torch(model=model).epochs = 3  # type: ignore[misc]


def test_init_depends_on_the_key_alone_and_leaves_the_global_generator() -> None:
    learner = Torch(model=dropping)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = learner.init(Key.root(1), data())
    torch.rand(5)
    again, other = learner.init(Key.root(1), data()), learner.init(Key.root(2), data())
    assert np.array_equal(first.flat, again.flat)
    assert not np.array_equal(first.flat, other.flat)
    torch.manual_seed(0)
    learner.init(Key.root(1), data())
    learner.fit(first, data(), LocalWork(), Key.root(1))
    learner.evaluate(first, data())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_instance_starts_from_its_own_values_and_is_never_changed() -> None:
    module = nn.Linear(6, 3)
    values = module.weight.detach().clone()
    learner = Torch(model=module)
    params = learner.init(Key.root(1), data())
    assert np.array_equal(params["weight"], values.numpy())
    assert np.array_equal(params.flat, learner.init(Key.root(2), data()).flat)
    assert learner.fit(params, data(), LocalWork(), Key.root(0)).delta.array.any()
    assert torch.equal(module.weight, values)


def test_names_and_layout_are_those_of_the_state_dict() -> None:
    params = Torch(model=Normed).init(Key.root(0), data())
    assert set(params.layout.names) == set(Normed().state_dict()) - {"norm.num_batches_tracked"}
    assert params.layout.buffers == {"norm.running_mean", "norm.running_var"}
    assert params.layout.names[-2:] == ("norm.running_mean", "norm.running_var")


def test_a_lazy_model_takes_its_shape_from_the_example() -> None:
    learner = Torch(model=lambda: nn.LazyLinear(3))
    assert learner.init(Key.root(0), data())["weight"].shape == (3, 6)
    assert fitted(learner, data()).shape == (21,)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("nn.Linear", "'package.module:Name'"),
        ("no_such_package:Net", "cannot be imported"),
        ("torch.nn:Liner", "did you mean 'Linear'"),
        (LINEAR, "no arguments"),
        (lambda: 3, "must make a torch.nn.Module, not int"),
        (nn.ReLU, "no parameters to train"),
        (lambda: nn.Linear(6, 3).half(), "float16"),
        (lambda: nn.LSTM(6, 3), "one tensor, not tuple"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_a_sentence(model: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Torch(model=model).init(Key.root(0), data())


def test_a_shape_mismatch_names_both_shapes() -> None:
    with pytest.raises(ConfigError, match=r"shape \(n, 6\).*Linear\(in_features=7.*was given shape \(n, 6\)"):
        Torch(model=linear(7)).init(Key.root(0), data())
    good = Torch(model=linear())
    with pytest.raises(ConfigError, match=r"\(n, 5\)"):
        good.fit(good.init(Key.root(0), data()), data(features=5), LocalWork(), Key.root(0))


def test_parameters_of_another_model_are_refused() -> None:
    learner = Torch(model=linear())
    with pytest.raises(ConfigError, match="are not those of"):
        learner.fit(Params.of({"w": np.zeros(21, np.float32)}), data(), LocalWork(), Key.root(0))


# What the user writes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("loss", "cross_entrpy", "did you mean 'cross_entropy'"),
        ("loss", 3, "a name or a callable"),
        ("metrics", ("acuracy",), "did you mean 'accuracy'"),
        ("metrics", ("mae", "mae"), "twice"),
        ("metrics", (7,), "names or callables"),
        ("engine", "lowrank", "did you mean 'low_rank'"),
        ("buffers", "averaged", "did you mean 'average'"),
        ("precision", "float8", "float"),
        ("optimizer", 0.05, "SGD, Adam or AdamW"),
        ("batch_size", 0, "at least 1"),
        ("batch_size", 2.5, "whole number"),
        ("epochs", -1, "at least 1"),
        ("steps", 0, "at least 1"),
        ("clip_gradient", 0.0, "above 0"),
        ("clip_gradient", float("nan"), "finite"),
        ("model", 5, "must be a module"),
    ],
)
def test_a_wrong_setting_is_refused_at_once(field: str, value: Any, sentence: str) -> None:
    settings_: dict[str, Any] = {"model": linear(), field: value}
    with pytest.raises(ConfigError, match=sentence):
        Torch(**settings_)


@pytest.mark.parametrize("device", ["tpu9", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises((ConfigError, RuntimeError)):
        Torch(model=linear(), device=device).init(Key.root(0), data())


@pytest.mark.parametrize("engine", ["sequential", "low_rank", "vectorized"])
@pytest.mark.parametrize(
    ("loss", "outputs", "target", "sentence"),
    [
        ("cross_entropy", 3, np.array([0, 1, 3]), "label 3 is out of range.*0 to 2"),
        ("cross_entropy", 3, np.array([0, -1, 2]), "label -1 is out of range"),
        ("cross_entropy", 3, np.array([0.0, 1.0, 2.0]), "whole-number class labels"),
        ("cross_entropy", 3, np.zeros((3, 2), np.int64), r"needs labels of shape \(n\), not \(n, 2\)"),
        ("bce_with_logits", 1, np.array([0, 1, 2]), "between 0 and 1"),
        ("bce_with_logits", 1, np.array([0, 1, np.nan]), "between 0 and 1"),
        ("bce_with_logits", 3, np.array([0, 1, 1]), r"output of shape \(n, 3\)"),
        ("mse", 2, np.zeros((3, 4)), r"\(n, 2\).*\(n, 4\)"),
        ("mse", 1, np.array(["a", "b", "c"]), "must be numbers"),
    ],
)
def test_targets_that_do_not_fit_the_loss_are_refused(
    engine: EngineName, loss: str, outputs: int, target: Array, sentence: str
) -> None:
    examples = Examples(np.ones((3, 6), np.float32), target)
    learner = Torch(model=linear(6, outputs), loss=loss, engine=engine)
    params = learner.init(Key.root(0), data())
    with pytest.raises(ConfigError, match=sentence):
        learner.fit(params, examples, LocalWork(), Key.root(0))
    with pytest.raises(ConfigError, match=sentence):
        learner.evaluate(params, examples)


def test_targets_may_be_a_column_or_flat() -> None:
    x = data().x
    y = (x[:, 0] > 0).astype(np.int64)
    for loss in ("bce_with_logits", "mse"):
        learner = Torch(model=linear(6, 1), loss=loss)
        flat, column = fitted(learner, Examples(x, y)), fitted(learner, Examples(x, y[:, None].astype(np.float64)))
        squeezed = fitted(Torch(model=lambda: nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), loss=loss), Examples(x, y))
        assert np.array_equal(flat, column)
        assert np.allclose(flat, squeezed, atol=1e-6)


@pytest.mark.parametrize("engine", ["sequential", "low_rank", "vectorized"])
def test_a_party_whose_examples_have_another_shape_is_refused(engine: EngineName) -> None:
    learner = Torch(model=linear(), engine=engine)
    params = learner.init(Key.root(0), data())
    with pytest.raises(ConfigError, match="shape"):
        learner.fit_many(params, [data(), data(features=5)], [LocalWork()] * 2, [Key.root(0)] * 2)


def test_betas_given_as_a_list_are_no_matter() -> None:
    listed: Any = [0.8, 0.9]
    learner = Torch(model=MODEL, optimizer=Adam(betas=listed))
    assert np.array_equal(fitted(learner, data()), fitted(Torch(model=MODEL, optimizer=Adam(betas=(0.8, 0.9))), data()))


def test_arrays_that_may_not_be_written_are_read_without_a_warning() -> None:
    examples = data()
    for array in examples.base:
        array.setflags(write=False)
    learner = Torch(model=linear())
    params = learner.init(Key.root(0), examples)
    params.flat.setflags(write=False)
    for engine in ("sequential", "low_rank", "vectorized"):
        dataclasses.replace(learner, engine=engine).fit(params, examples, LocalWork(), Key.root(0))
    learner.evaluate(params, examples)


# Engines refuse and are chosen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "settings_", "work", "sentence"),
    [
        ("low_rank", {"model": Normed}, LocalWork(), "buffers"),
        ("low_rank", {"model": dropping}, LocalWork(), "Dropout"),
        ("low_rank", {"model": Dropping}, LocalWork(), "neither a dense layer"),
        ("low_rank", {"model": linear(), "clip_gradient": 1.0}, LocalWork(), "clipping"),
        ("low_rank", {"model": linear(), "optimizer": Adam()}, LocalWork(), "Adam, not SGD"),
        ("low_rank", {"model": linear(), "precision": "bfloat16"}, LocalWork(), "precision"),
        ("low_rank", {"model": linear()}, LocalWork(linear=np.zeros(21, np.float32)), "linear term"),
        ("low_rank", {"model": linear(), "loss": lambda o, t: (o.sum(1) - t).abs().mean()}, LocalWork(), "callable"),
        ("vectorized", {"model": Normed}, LocalWork(), "buffers"),
        ("vectorized", {"model": dropping}, LocalWork(), "cannot be batched"),
        ("vectorized", {"model": Dropping}, LocalWork(), "cannot be batched"),
        ("vectorized", {"model": linear(), "optimizer": Adam()}, LocalWork(), "Adam, not SGD"),
        ("compiled", {"model": linear()}, LocalWork(full_batch=True), "full batch|compiler"),
    ],
)
def test_a_named_engine_that_cannot_do_the_work_says_why(
    engine: EngineName, settings_: dict[str, Any], work: LocalWork, sentence: str
) -> None:
    learner = Torch(engine=engine, **settings_)
    params = learner.init(Key.root(0), data())
    with pytest.raises(ConfigError, match=sentence):
        learner.fit(params, data(), work, Key.root(0))
    update = dataclasses.replace(learner, engine="auto").fit(params, data(), work, Key.root(0))
    assert np.isfinite(update.delta.array).all()


DENSE = Facts(1_606_390, 5_014, convolves=False, gpu=False, compiler=True, no_chain="", no_vmap="")
CONV = Facts(98_950, 0, convolves=True, gpu=False, compiler=True, no_chain="a convolution", no_vmap="")


@pytest.mark.parametrize(
    ("facts", "steps", "fits", "engine"),
    [
        (DENSE, 2, 0, "low_rank"),
        (DENSE, 32, 0, "low_rank"),
        (DENSE, 33, 0, "sequential"),
        (dataclasses.replace(DENSE, no_chain="why"), 2, 10**6, "sequential"),
        (dataclasses.replace(DENSE, size=650, widths=74), 12, 0, "low_rank"),
        (dataclasses.replace(DENSE, size=650, widths=74), 13, 0, "vectorized"),
        (dataclasses.replace(DENSE, size=650, widths=74, no_vmap="why"), 13, 0, "sequential"),
        (CONV, 2, 0, "sequential"),
        (CONV, 2, 19_999, "sequential"),
        (CONV, 2, 20_000, "compiled"),
        (dataclasses.replace(CONV, compiler=False), 2, 20_000, "sequential"),
        (dataclasses.replace(CONV, no_vmap="why"), 2, 20_000, "sequential"),
        (dataclasses.replace(CONV, size=300_001), 2, 20_000, "sequential"),
        (dataclasses.replace(CONV, size=30_000), 2, 0, "vectorized"),
        (dataclasses.replace(CONV, gpu=True), 2, 20_000, "vectorized"),
    ],
)
def test_the_choice_of_an_engine(facts: Facts, steps: int, fits: int, engine: str) -> None:
    assert choose(facts, LocalWork(), Course(10 * steps, 10, steps, steps), fits, 10) == engine


def test_the_choice_regards_the_work() -> None:
    path = Course(18, 10, 2, 2)
    assert choose(DENSE, LocalWork(linear=np.zeros(3)), path, 0, 10) == "sequential"
    assert choose(CONV, LocalWork(full_batch=True), path, 10**6, 10) == "sequential"


def test_few_parties_are_not_stacked() -> None:
    small = dataclasses.replace(CONV, size=30_000)
    found = [choose(small, LocalWork(), Course(20, 10, 2, 2), 0, parties) for parties in (1, 3, 4)]
    assert found == ["sequential", "sequential", "vectorized"]


def test_auto_equals_sequential_whatever_it_chooses() -> None:
    for model in (linear(), Normed, dropping, Dropping):
        auto = Torch(model=model, batch_size=4)
        slow = dataclasses.replace(auto, engine="sequential")
        assert np.allclose(fitted(auto, data()), fitted(slow, data()), atol=1e-6)


# Courses --------------------------------------------------------------------------------------------------------------------


@given(
    examples=st.integers(1, 40), batch=st.integers(1, 15), epochs=st.integers(1, 3),
    steps=st.none() | st.integers(1, 12), drop=st.booleans(), full=st.booleans(),
)  # fmt: skip
def test_a_course_is_what_its_batches_are(
    examples: int, batch: int, epochs: int, steps: int | None, drop: bool, full: bool
) -> None:
    path = course(examples, LocalWork(full_batch=full), batch_size=batch, epochs=epochs, steps=steps, drop_last=drop)
    found = batches(path, Key.root(3))
    assert len(found) == path.steps
    assert [len(rows) for rows in found] == path.sizes()
    assert sum(path.sizes()) == path.seen
    epoch = np.concatenate(found[: path.per_epoch])
    assert len(set(epoch.tolist())) == len(epoch)
    if steps is None and not drop:
        assert path.seen == examples * epochs
    table = padded_batches([path, path], [Key.root(3), Key.root(4)], path.batch)
    for row, rows in zip(table[0], found, strict=True):
        assert np.array_equal(row[row >= 0], rows)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=9), batch=st.integers(1, 12),
    engine=st.sampled_from(["sequential", "low_rank", "vectorized"]), steps=st.none() | st.integers(1, 5),
)  # fmt: skip
def test_fit_many_is_fit_of_each(sizes: list[int], batch: int, engine: Any, steps: int | None) -> None:
    whole = data(sum(sizes) + 1)
    ends = np.cumsum(sizes)
    parties = [Examples(*whole.base, np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    learner = Torch(model=MODEL, batch_size=batch, engine=engine, optimizer=SGD(0.2, momentum=0.5))
    params = learner.init(Key.root(0), whole)
    works = [LocalWork(steps=steps, proximal=0.1)] * len(sizes)
    keys = [Key.root(7).child("p", place) for place in range(len(sizes))]
    together = learner.fit_many(params, parties, works, keys)
    again = learner.fit_many(params, parties, works, keys)
    for party, work, key, update, same in zip(parties, works, keys, together, again, strict=True):
        alone = learner.fit(params, party, work, key)
        assert np.allclose(update.delta.array, alone.delta.array, atol=1e-6)
        assert np.array_equal(update.delta.array, same.delta.array)
        assert update.weight == alone.weight == len(party)
        assert update.scalars == pytest.approx(alone.scalars, rel=1e-5, abs=1e-7)


MODEL = linear()


# Buffers, randomness, precision ---------------------------------------------------------------------------------------------


def test_running_statistics_are_averaged_or_stay_local() -> None:
    average = Torch(model=Normed, batch_size=5)
    local = dataclasses.replace(average, buffers="local")
    params = average.init(Key.root(0), data())
    module = Normed()
    module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in params.tensors().items()}, strict=False)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    order = torch.from_numpy(Key.root(1).permutation(20))
    for rows in torch.split(order, 5):
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(module(torch.from_numpy(data().x)[rows]), torch.from_numpy(data().y)[rows])
        torch.autograd.backward(value)
        optimizer.step()
    delta = params.layout.views(average.fit(params, data(), LocalWork(), Key.root(1)).delta.array)
    kept = params.layout.views(local.fit(params, data(), LocalWork(), Key.root(1)).delta.array)
    for name, moved in delta.items():
        assert np.allclose(moved, module.state_dict()[name].numpy() - params[name], atol=1e-6)
        if name in params.layout.buffers:
            assert moved.any()
            assert not kept[name].any()
        else:
            assert np.array_equal(moved, kept[name])


def test_frozen_parameters_do_not_move() -> None:
    def frozen() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)
        return model

    learner = Torch(model=frozen)
    params = learner.init(Key.root(0), data())
    delta = params.layout.views(learner.fit(params, data(), LocalWork(), Key.root(0)).delta.array)
    assert not delta["0.weight"].any()
    assert delta["2.weight"].any()


def test_dropout_is_drawn_from_the_partys_key() -> None:
    for model in (dropping, Dropping):
        learner = Torch(model=model, batch_size=20)
        one, same, other = (fitted(learner, data(), seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.allclose(one, other, atol=1e-6)
        params = learner.init(Key.root(0), data())
        assert learner.evaluate(params, data()) == learner.evaluate(params, data())


def test_what_was_trained_before_does_not_matter() -> None:
    learners = [
        Torch(model=model, batch_size=4) for model in (Normed, dropping, linear(), linear(6, 4), Dropping, Normed)
    ]
    first = [fitted(learner, data()) for learner in learners]
    second = [fitted(learner, data()) for learner in reversed(learners)]
    for one, other in zip(first, reversed(second), strict=True):
        assert np.array_equal(one, other)


def _child(results: Any) -> None:
    results.put(fitted(Torch(model=Normed, batch_size=4), data()))


def test_a_forked_process_computes_the_same() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    here = fitted(Torch(model=Normed, batch_size=4), data())
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_child, args=(results,))
    child.start()
    there = results.get()
    child.join()
    assert np.array_equal(here, there)


def _compiling_child(results: Any) -> None:
    learner = Torch(
        model=nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)), batch_size=4, engine="compiled"
    )
    results.put(fitted(learner, data()) - fitted(dataclasses.replace(learner, engine="sequential"), data()))


@pytest.mark.slow
def test_a_forked_process_compiles_after_its_parent_did() -> None:
    if "fork" not in multiprocessing.get_all_start_methods() or not has_compiler():
        pytest.skip("no fork or no compiler on this system")
    fitted(Torch(model=MODEL, batch_size=4, engine="compiled"), data())
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_compiling_child, args=(results,), daemon=True)
    child.start()
    try:
        assert np.abs(results.get(timeout=120)).max() < 1e-6
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_near_full_precision(precision: Any) -> None:
    full = fitted(Torch(model=linear(), batch_size=5), data())
    reduced = fitted(Torch(model=linear(), batch_size=5, precision=precision), data())
    assert reduced.dtype == np.float32
    assert not np.array_equal(full, reduced)
    assert np.abs(full - reduced).max() < 0.03 * np.abs(full).max()


def test_an_overflowing_half_precision_gradient_is_scaled_down() -> None:
    examples = Examples(np.full((4, 6), 100.0, np.float32), np.full(4, 300.0, np.float32))
    full = fitted(Torch(model=linear(6, 1), loss="mse", optimizer=SGD(1e-6)), examples)
    half = fitted(Torch(model=linear(6, 1), loss="mse", optimizer=SGD(1e-6), precision="float16"), examples)
    assert np.isfinite(half).all()
    assert np.allclose(half, full, rtol=0.02)


def test_whole_numbers_reach_an_embedding_as_they_are() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(self.table(x).mean(1))
            return logits

    draw = np.random.default_rng(0)
    examples = Examples(draw.integers(0, 9, (20, 5)).astype(np.int32), draw.integers(0, 3, 20))
    auto, slow = (fitted(Torch(model=Bag, batch_size=4, engine=engine), examples) for engine in ("auto", "sequential"))
    assert np.allclose(auto, slow, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("engine", ["sequential", "low_rank", "vectorized"])
def test_a_gpu_computes_what_the_cpu_does(engine: EngineName) -> None:
    cpu = fitted(Torch(model=MODEL, batch_size=5, engine=engine), data())
    gpu = fitted(Torch(model=MODEL, batch_size=5, engine=engine, device="cuda"), data())
    assert np.allclose(cpu, gpu, atol=1e-5)


# Evaluation -----------------------------------------------------------------------------------------------------------------


def test_evaluation_is_the_plain_mean_and_the_same_alone_or_together() -> None:
    learner = Torch(model=linear(), metrics=("accuracy", "top5_accuracy"))
    whole = data(9000)
    params = learner.init(Key.root(0), whole)
    parties = [Examples(*whole.base, rows) for rows in (np.arange(1), np.arange(5, 5000), np.arange(17, 40))]
    together = learner.evaluate_many(params, parties)
    own = learner.evaluate_many(params, [Examples(party.x, party.y) for party in parties])
    for party, found, other in zip(parties, together, own, strict=True):
        logits = torch.from_numpy(party.x) @ torch.from_numpy(params["weight"]).T + torch.from_numpy(params["bias"])
        assert [*found] == ["loss", "accuracy", "top5_accuracy"]
        assert found["loss"] == pytest.approx(
            float(nn.functional.cross_entropy(logits, torch.from_numpy(party.y))), rel=1e-5
        )
        assert found["accuracy"] == pytest.approx(float((logits.argmax(1).numpy() == party.y).mean()))
        assert found["top5_accuracy"] == 1.0
        assert found == pytest.approx(other)
        assert found == pytest.approx(dict(learner.evaluate(params, party)))


def test_metrics_of_the_users_own_see_a_partys_whole_set() -> None:
    def spread(output: torch.Tensor, target: torch.Tensor) -> float:
        return float(output.max() - output.min()) + len(target)

    def distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.squeeze(1) - target).abs().mean()

    learner = Torch(model=linear(6, 1), loss=distance, metrics=("mae", spread))
    whole = data()
    examples = Examples(whole.x, whole.y.astype(np.float32))
    params = learner.init(Key.root(0), examples)
    found = learner.evaluate(params, examples)
    assert found["loss"] == pytest.approx(found["mae"], rel=1e-6)
    assert found["spread"] > 20
    assert learner.fit(params, examples, LocalWork(), Key.root(0)).scalars["loss"] > 0


def test_accuracy_and_auc_of_a_single_logit() -> None:
    examples = Examples(np.array([[-2.0], [-1.0], [1.0], [3.0]], np.float32), np.array([0, 1, 0, 1]))
    for outputs in (1, 2):
        learner = Torch(
            model=linear(1, outputs),
            loss="bce_with_logits" if outputs == 1 else "cross_entropy",
            metrics=("accuracy", "auc"),
        )
        weight = [[1.0]] if outputs == 1 else [[-0.5], [0.5]]
        params = Params.of({"weight": np.array(weight), "bias": np.zeros(outputs)})
        found = learner.evaluate(params, examples)
        assert found["accuracy"] == 0.5
        assert found["auc"] == 0.75


def test_nothing_to_evaluate_on_is_an_error_and_no_parties_is_none() -> None:
    learner = Torch(model=linear())
    params = learner.init(Key.root(0), data())
    assert learner.evaluate_many(params, []) == []
    with pytest.raises(DataError, match="party 1 of 2"):
        learner.evaluate_many(params, [data(), data(0)])


def test_a_chunk_bounds_the_memory_of_large_models() -> None:
    learner = Torch(model=linear())
    sizes = (10, 10**5, 10**6, 10**9)
    chunks = [learner.chunk(Params(np.empty(1), Params.of({"w": np.zeros(1)}).layout)) if size == 0 else _chunk(learner, size)
              for size in sizes]  # fmt: skip
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] > 10
    assert chunks[-1] == 1


def _chunk(learner: Torch, size: int) -> int:
    return learner.chunk(Params(np.broadcast_to(np.float32(0), (size,)), Params.of({"w": np.zeros(1)}).layout))
