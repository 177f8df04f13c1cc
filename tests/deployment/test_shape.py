"""The shape of data: a server without any makes the model, and parties that do not fit are left out by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hansa
from hansa.data import IID, arrays, load
from hansa.data.federated import FederatedData
from hansa.deployment.binding import Binding, measure
from hansa.deployment.shape import DataShape, shape_of
from hansa.errors import DataError
from hansa.learner import Learner
from hansa.learners import MLP, Linear, Softmax
from hansa.plan import parse
from hansa.rng import Key
from tests.deployment.federation import DATA, PLAN, drive, federation, iris


def whole(name: str) -> FederatedData:
    return load(name).partition(IID(), parties=1)


@pytest.mark.parametrize(
    ("learner", "source"),
    [(Softmax(), "sklearn:iris"), (MLP(hidden=(5,)), "sklearn:digits"), (Linear(), "sklearn:diabetes")],
    ids=["softmax", "mlp", "linear"],
)
def test_a_model_made_for_the_shape_is_the_one_made_for_the_data(learner: Learner, source: str) -> None:
    data, key = whole(source), Key.root(3)
    made = learner.init(key, shape_of(data).example())
    assert made.layout == learner.init(key, data.example).layout
    assert np.array_equal(made.flat, learner.init(key, data.example).flat)


def test_an_example_of_a_shape_is_nobodys() -> None:
    example = shape_of(whole("sklearn:iris")).example()
    assert len(example) == 0 and not example.base[0].any()


def test_a_binding_is_measured_as_its_data_are() -> None:
    assert measure(Binding("sklearn:wine")) == shape_of(whole("sklearn:wine"))


@given(
    x=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), classes=st.integers(2, 9), tokens=st.booleans()
)
def test_a_shape_travels_and_says_the_arrays(x: tuple[int, ...], classes: int, tokens: bool) -> None:
    features = np.zeros((classes, *x), np.int64 if tokens else np.float32)
    shape = shape_of(arrays(features, np.arange(classes)).partition(IID(), parties=1, test=0.0))
    assert msgspec.json.decode(msgspec.json.encode(shape), type=DataShape) == shape
    assert (shape.features, shape.classes, shape.tokens) == (x, classes, tokens)
    assert shape.example().base[0].dtype == features.dtype


@pytest.mark.parametrize(
    "said",
    [
        {"features": [0]}, {"features": [-4]}, {"features": [1 << 40]}, {"features": [1] * 9}, {"classes": -1},
        {"classes": 1 << 40}, {"names": "x" * 65}, {"tokens": 1}, {"more": 1},
    ],
)  # fmt: skip
def test_no_other_shape_can_be_said(said: dict[str, object]) -> None:
    sound = {"features": [4], "tokens": False, "targets": [], "classes": 3, "names": ""}
    msgspec.convert(sound, DataShape)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**sound, **said}, DataShape)


def test_a_shape_that_would_fill_the_memory_makes_no_example() -> None:
    with pytest.raises(DataError, match="more than any model takes"):
        DataShape((1 << 20, 1 << 20), False, (), 1 << 20, "").example()


def test_parties_see_what_differs() -> None:
    iris_, wine = measure(Binding("sklearn:iris")), measure(Binding("sklearn:wine"))
    assert "features of shape (13,)" in wine.differs(iris_) and not iris_.differs(iris_)
    renamed = msgspec.structs.replace(iris_, names="0" * 64)
    assert "other names" in renamed.differs(iris_)


def test_a_hub_without_data_trains_the_model_of_the_simulation(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            fed.hub.runs.running._settings = replace(fed.hub.settings, data={})
            run = await fed.submit(PLAN.format(name="fedavg"))
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            assert not any("test_accuracy" in str(event.text) for event in await fed.events(run))
            oracle = hansa.simulate(parse(PLAN.format(name="fedavg"), {})[0], iris()).raise_if_failed()
            assert oracle.params is not None
            np.testing.assert_allclose(fed.model(run).flat, oracle.params.flat, atol=1e-6)

    drive(scenario())


@pytest.mark.parametrize("least", [0, 3])
def test_a_party_with_other_features_is_left_out_by_name(tmp_path: Path, least: int) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            odd = fed.nodes["node-2"]
            odd.settings = replace(odd.settings, data={DATA: Binding("sklearn:wine")})
            run = await fed.submit(PLAN.format(name="fedavg").replace("cohort = 4", "cohort = 3"), least=least)
            view = await fed.end(run)
            said = " ".join(event.text for event in await fed.events(run))
            assert "node-2 is left out: its data have features of shape (13,)" in said
            if least:
                assert view.status == "completed", view.cause
            else:
                assert (view.status, view.party) == ("failed", "node-2") and "features" in view.cause

    drive(scenario())


def test_data_that_cannot_be_read_are_a_refusal_that_names_no_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            odd = fed.nodes["node-1"]
            odd.settings = replace(odd.settings, data={DATA: Binding("csv:/nowhere/secret.csv")})
            view = await fed.end(await fed.submit(PLAN.format(name="fedavg")))
            assert (view.status, view.party) == ("failed", "node-1")
            assert "cannot be used" in view.cause and "secret" not in view.cause

    drive(scenario())
