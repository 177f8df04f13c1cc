"""A small federation on disk: a hub and three nodes that have joined it, with a table of their own each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hansa as hs
from hansa.deployment import api
from hansa.deployment.binding import Binding, load
from hansa.deployment.binding import read as read_binding
from hansa.deployment.hub import Hub, create
from hansa.deployment.identity import read_invitation
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.identity.enrolment import Enrolment
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.policy import Policy
from hansa.deployment.quantity import Address
from hansa.deployment.settings import HubLimits, HubSettings, NodeSettings
from hansa.deployment.worker.inline import InlineWorkers
from hansa.protocol import Protocol

NAMES = ("ada", "bela", "cleo")
NOWHERE = Address("127.0.0.1", 7)
OWNER = ("operator", "olga")


@dataclass(frozen=True)
class Homes:
    """The folder of a federation, and where its hub is found."""

    folder: Path
    address: Address
    names: Sequence[str] = NAMES

    @property
    def hub(self) -> Path:
        return self.folder / "hub"

    @property
    def operator(self) -> Credentials:
        return Credentials.load(self.hub / "operator", time.time())

    def node(self, name: str) -> Path:
        return self.folder / name

    def of(self, name: str) -> Path:
        return self.hub if name == "hub" else self.node(name)

    def hub_settings(self, **limits: Any) -> HubSettings:
        return HubSettings(
            listen=self.address,
            data={"table": Binding(f"npz:{self.folder / 'table.npz'}")},
            limits=HubLimits(**limits),
        )

    def node_settings(self, name: str) -> NodeSettings:
        binding = Binding(
            f"npz:{self.folder / 'table.npz'}",
            partition=hs.data.IID(),
            parties=len(self.names),
            party=list(self.names).index(name),
        )
        policy = Policy(
            protocols=("*",), learners=("*",), submitters=("*",), data=("*",), servers=("*",), approval="automatic",
            least_parties=1,
        )  # fmt: skip
        return NodeSettings(data={"table": binding}, policy=policy)


def workers() -> InlineWorkers:
    return InlineWorkers(lambda plain, many: load(read_binding(plain), many))


def table(folder: Path, features: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    y = (x[:, :4] @ rng.normal(size=(4, 3))).argmax(axis=1)
    np.savez(folder / "table.npz", x=x, y=y)


def make(
    folder: Path, address: Address = NOWHERE, names: Sequence[str] = NAMES, features: int = 4, rows: int = 60
) -> Homes:
    """A federation whose nodes have joined, without a network."""
    homes = Homes(folder, address, names)
    table(folder, features, rows)
    settings = homes.hub_settings()

    async def join() -> None:
        create(homes.hub, "league", OWNER[1], settings, time.time())
        hub = Hub(homes.hub, settings, workers(), Log("hub"), Metrics())
        try:
            for name in names:
                invitation = read_invitation(hub.invite(api.Invite(name), OWNER[1]).token)
                enrolment = Enrolment.begin(homes.node(name), invitation, time.time())
                invited = hub.verified(invitation.certificate.pem)
                certified = hub.enrol(invited, api.Enrol(enrolment.request()))
                enrolment.finish(certified.certificate, time.time())
        finally:
            await hub.close()

    asyncio.run(join())
    return homes


def plan(protocol: Protocol, **settings: Any) -> str:
    return hs.Plan(
        protocol=protocol,
        learner=hs.learners.Softmax(optimizer=hs.SGD(0.3), batch_size=5, **settings),
        aggregation=hs.clip(5.0) | hs.mean(),
        seed=3,
    ).to_toml()
