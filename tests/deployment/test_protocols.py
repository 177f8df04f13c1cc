"""Whatever runs in simulation runs unchanged over the network: each protocol that is registered, with the same model at the end.

Bit for bit. One thing alone could stop that: the simulator trains a cohort in one batch and sums rows of it, which may differ from
a sum of vectors in the last bit. So the oracle's learner is wrapped into one that cannot batch; beside it the simulation as it is
must be close. FedNova divides each update before it leaves its party: there a simulated update is still a row and its factor, where
the network's was rounded to float32 on its way. FedBuff acts on arrival; with the buffer as large as the concurrency, and that as
large as the federation, there is no arrival that it could act on before the others.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa
from hansa import plan as plans
from hansa import registry
from hansa.examples import Examples
from hansa.learner import Learner, LocalWork, Metrics
from hansa.learners.optimizers import Optimizer
from hansa.params import Params
from hansa.plan import Plan
from hansa.rng import Key
from hansa.simulation import Run
from hansa.update import Update
from tests.deployment.federation import Federation, drive, federation, iris

PROTOCOLS = sorted(registry.names("protocols"))
CLOSE_ONLY = {"fednova"}
"""Protocols that scale an update before it leaves; see the module's text."""
NEEDED = {"mu": 0.1, "server_learning_rate": 0.1}
"""Values of the settings that have no default."""
SIZES = {"rounds": 3, "cohort": 4, "concurrency": 4, "buffer": 4}
"""Everybody, always; where a protocol has such a setting."""
LEARNER = """
[learner]
name = "softmax"
batch_size = 8
optimizer = { name = "sgd", learning_rate = 0.1 }
"""


def plan_of(name: str, seed: int = 7) -> str:
    """A small plan of a protocol, whichever settings it has."""
    fields = dataclasses.fields(registry.find("protocols", name))
    free = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    settings = {name: value for name, value in NEEDED.items() if name in free}
    settings |= {f.name: SIZES[f.name] for f in fields if f.name in SIZES}
    assert free <= set(settings), f"{name} has a new setting without a default: give it one in NEEDED"
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
    return f'name = "{name}"\nseed = {seed}\n[protocol]\nname = "{name}"\n{lines}\n{LEARNER}'


@dataclass(frozen=True)
class OneByOne:
    """A learner that fits like another, but never many at a time; what protocols ask of the other, it has too."""

    learner: Learner
    optimizer: Optimizer
    epochs: int
    batch_size: int

    def init(self, rng: Key, example: Examples) -> Params:
        return self.learner.init(rng, example)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        return self.learner.fit(params, data, work, rng)

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        return self.learner.evaluate(params, data)


def simulated(text: str, one_by_one: bool = True) -> Run:
    plan: Plan = plans.parse(text, {})[0]
    if one_by_one:
        own: Any = plan.learner
        plan = dataclasses.replace(plan, learner=OneByOne(own, own.optimizer, own.epochs, own.batch_size))
    run = hansa.simulate(plan, iris())
    assert run.status == "completed", run.cause
    return run


def same(run: Run, found: dict[str, Params], name: str) -> None:
    """The run's own results, and nothing else."""
    expected = {party: result for party, result in run.results.items() if isinstance(result, Params)}
    assert expected
    assert set(found) == set(expected)
    for party, params in found.items():
        assert params.layout == expected[party].layout
        if name in CLOSE_ONLY:
            np.testing.assert_allclose(params.flat, expected[party].flat, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(params.flat, expected[party].flat)


async def deployed(fed: Federation, text: str, **fields: Any) -> dict[str, Params]:
    run = await fed.submit(text, **fields)
    view = await fed.end(run)
    assert view.status == "completed", (view.status, view.cause, view.party, view.remedy)
    return fed.models(run)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_ends_with_the_model_of_its_simulation_wherever_its_server_is(name: str, tmp_path: Path) -> None:
    text = plan_of(name)
    oracle = simulated(text)

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            same(oracle, await deployed(fed, text), name)
            # On a node that is a party too: all letters between nodes are sealed, its own go around.
            same(oracle, await deployed(fed, text, server="node-2"), name)

    drive(scenario())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_batched_simulation_is_close_to_it(name: str) -> None:
    text = plan_of(name)
    plain, batched = simulated(text), simulated(text, one_by_one=False)
    for party, result in plain.results.items():
        if isinstance(result, Params):
            np.testing.assert_allclose(batched.results[party].flat, result.flat, rtol=1e-5, atol=1e-6)


def test_the_models_differ_between_protocols_so_that_equality_means_something() -> None:
    models = {name: simulated(plan_of(name)).results for name in PROTOCOLS}
    flats = [
        next(iter(value for value in found.values() if isinstance(value, Params))).flat for found in models.values()
    ]
    different = {flat.tobytes() for flat in flats}
    assert len(different) >= len(PROTOCOLS) - 2


def test_many_runs_at_once_give_the_models_that_each_gives_alone(tmp_path: Path) -> None:
    names = ["fedavg", "scaffold", "dpsgd", "fedbuff", "cyclic"]
    texts = [plan_of(name, seed) for seed, name in enumerate(names)]
    places = ["hub", "node-0", "hub", "node-3", "node-1"]

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            found = await asyncio.gather(
                *(deployed(fed, text, server=place) for text, place in zip(texts, places, strict=True))
            )
            for name, text, models in zip(names, texts, found, strict=True):
                same(simulated(text), models, name)

    drive(scenario())


@pytest.mark.parametrize("asked", [("node-1", "node-3"), ("node-3", "node-1", "node-0")])
def test_a_part_of_the_nodes_is_a_smaller_simulation(asked: Sequence[str], tmp_path: Path) -> None:
    text = plan_of("fedavg").replace("cohort = 4", f"cohort = {len(asked)}")

    async def scenario() -> list[int | None]:
        async with federation(tmp_path) as fed:
            run = await fed.submit(text, parties=tuple(asked))
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            assert [seat.party for seat in view.participants] == ["server", *asked]
            return [event.round for event in await fed.events(run, "round")]

    assert drive(scenario()) == [0, 1, 2, 3]


@pytest.mark.slow
def test_worker_processes_give_the_same_model(tmp_path: Path) -> None:
    text = plan_of("fedavg")

    async def scenario() -> None:
        async with federation(tmp_path, processes=True) as fed:
            found = await deployed(fed, text)
            oracle = simulated(text)
            np.testing.assert_allclose(found["server"].flat, oracle.results["server"].flat, rtol=1e-6, atol=1e-7)

    drive(scenario(), 120.0)
