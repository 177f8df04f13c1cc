"""Small federations that the tests of workers run, and what a simulation makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hansa as hs
from hansa.data import FederatedData
from hansa.deployment.worker.inline import InlineWorkers
from hansa.examples import Examples, Shard
from hansa.protocol import Protocol
from hansa.simulation import Device, Devices
from tests.deployment.worker.owner import AnyWorkers, Owner

PARTIES = 3


def federation() -> FederatedData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 3))).argmax(axis=1)
    return hs.data.arrays(x, y).partition(hs.data.QuantitySkew(), parties=PARTIES, seed=0, test=0.25)


DATA = federation()
ALONE = Devices(kinds=((1, Device(latency=0.001)),))
"""Devices by which a simulation treats each update by itself, as a deployment does."""


def load(plain: Mapping[str, Any], many: bool) -> Shard:
    """The data of party ``{"party": n}``, or of the server."""
    if many:
        return DATA.shard(plain["party"])
    central = DATA.central_test
    return Shard(Examples(*central.base, np.zeros(0, np.int64)), central)


def plan(protocol: Protocol, engine: Any = "batched") -> hs.Plan:
    return hs.Plan(
        protocol=protocol,
        learner=hs.learners.Softmax(optimizer=hs.SGD(0.3), batch_size=5, engine=engine),
        aggregation=hs.clip(5.0) | hs.mean(),
        seed=3,
    )


def rosters(plan: hs.Plan) -> dict[str, tuple[str, ...]]:
    roles = plan.protocol.roles(plan.learner, plan.aggregation)
    return {name: tuple(DATA.names) if role.many else (name,) for name, role in roles.items()}


def binding(name: str) -> dict[str, Any]:
    return {"party": list(DATA.names).index(name)} if name in DATA.names else {"server": True}


def deploy(plan: hs.Plan, folder: Path, workers: AnyWorkers | None = None, **settings: Any) -> Owner:
    """Run a plan with a worker a party, to its end."""

    async def run() -> Owner:
        owner = Owner(plan, rosters(plan), workers or InlineWorkers(load), folder, binding, **settings)
        await owner.run()
        return owner

    return asyncio.run(run())
