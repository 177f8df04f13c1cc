"""A whole federation in this process: a hub and its nodes over real mutual TLS on the loopback, on ports that the system picks.

Certificates are made once a session and homes are copied, so a federation stands in a quarter of a second::

    async def scenario() -> None:
        async with federation(tmp_path) as fed:                # four nodes with different shares of iris, inline workers
            run = await fed.submit(PLAN.format(name="fedavg"))  # any field of api.Submit by keyword: least=3, server="a"
            view = await fed.end(run)                           # waits for a terminal state, by events
            assert view.status == "completed", view.cause
            model = fed.model(run)                              # the server's result, wherever the server was

    asyncio.run(scenario())                                     # or `drive(scenario())`, which cannot hang

``federation(..., data=...)`` takes any :class:`~hansa.data.federated.FederatedData`: its names become the nodes' names, so that
``hansa.simulate(plan, data)`` is the oracle. ``processes=True`` runs programs in real workers; the data must then be bindings.

What can be done to it: ``await fed.stop_node(name)`` / ``await fed.start_node(name, settings=...)``, ``await fed.stop_hub()`` /
``await fed.start_hub()`` (the same port again). ``crash=True`` on either stop loses what was not committed, says no farewell and
skips all orderly endings, which in one process is as near to kill -9 as it gets. ``fed.workers[name]`` is what a machine's
programs run on (the hub's is ``"hub"``), ``fed.nodes[name]`` the :class:`Node`, ``fed.hub`` the :class:`Hub`, ``fed.caller`` the
operator. ``fed.person("ada", "submitter")`` makes somebody else and calls the hub as them. ``await fed.until(condition)`` goes on when
the condition holds: it looks at each turn of the loop, and fails with what there is to see when :data:`PATIENCE` is over.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import hansa
from hansa.data import Dirichlet
from hansa.data.federated import FederatedData
from hansa.deployment import api
from hansa.deployment.binding import Binding
from hansa.deployment.dial import Caller, calling
from hansa.deployment.host import Workers as AnyWorkers
from hansa.deployment.hub import Hub, create
from hansa.deployment.identity import Credentials, SealingKeys
from hansa.deployment.identity.authority import Authority
from hansa.deployment.identity.certificates import read
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.names import MemberKind
from hansa.deployment.identity.request import make_request, read_request
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.node import Node
from hansa.deployment.policy import Policy
from hansa.deployment.quantity import Address
from hansa.deployment.service import serving
from hansa.deployment.settings import HubSettings, NodeLimits, NodeSettings
from hansa.deployment.store import TERMINAL, Database, MemberTable
from hansa.deployment.worker.frames import Result
from hansa.deployment.worker.inline import InlineWorkers
from hansa.deployment.worker.process import Workers
from hansa.examples import Examples, Shard
from hansa.message import decode
from hansa.params import Params

PATIENCE = 30.0
"""Seconds after which a test that hangs fails."""
DATA = "iris"
"""The name by which nodes bind their data."""
ANYTHING = Policy(
    protocols=("*",), learners=("*",), submitters=("*",), data=("*",), servers=("*",), least_parties=1,
    approval="automatic",
)  # fmt: skip
PLAN = """
name = "trial"
seed = 7
[protocol]
name = "{name}"
rounds = 3
cohort = 4
[learner]
name = "softmax"
batch_size = 8
optimizer = {{ name = "sgd", learning_rate = 0.1 }}
"""
T = TypeVar("T")


def drive(scenario: Coroutine[Any, Any, T], patience: float = PATIENCE) -> T:
    """Run a scenario to its end; one that hangs fails."""

    async def bounded() -> T:
        async with asyncio.timeout(patience):
            return await scenario

    return asyncio.run(bounded())


def named(data: FederatedData, names: Sequence[str]) -> FederatedData:
    """The same data, of parties with these names."""
    data.names = tuple(names)
    return data


@cache
def iris(parties: int = 4) -> FederatedData:
    """Iris, divided unequally: party ``i`` is the node ``node-i``."""
    divided = hansa.data.load("sklearn:iris").partition(Dirichlet(2.0), parties=parties, seed=3, test=0.2)
    return named(divided, [f"node-{number}" for number in range(parties)])


def bindings(parties: int = 4) -> dict[str, Binding]:
    """What the nodes' files say to mean :func:`iris`, for worker processes."""
    return {
        f"node-{number}": Binding(
            "sklearn:iris", partition=Dirichlet(2.0), parties=parties, party=number, seed=3, test=0.2
        )
        for number in range(parties)
    }


@cache
def _template(federation: str, names: tuple[str, ...]) -> Path:
    """Homes of a hub, its operator and its nodes, all enrolled: made once, copied by each federation."""
    folder = Path(tempfile.mkdtemp(prefix="federation-"))
    atexit.register(shutil.rmtree, folder, True)
    create(folder / "hub", federation, "operator", HubSettings(), time.time())
    for name in names:
        enrol(folder / "hub", folder / name, name, "node")
    return folder


def enrol(hub: Path, home: Path, name: str, kind: MemberKind, seconds: float = 86400.0) -> Credentials:
    """Make ``name`` a member of a hub that is not running, without a network."""
    with contextlib.closing(Database(hub / "hub.db")) as database, database.at_once():
        return certify(hub, MemberTable(database), home, name, kind, seconds)


def certify(
    hub: Path, members: MemberTable, home: Path, name: str, kind: MemberKind, seconds: float = 86400.0
) -> Credentials:
    """Make ``name`` a member, as an enrolment would."""
    authority, now = Authority.open(hub / "authority"), time.time()
    key, sealing = make_tls_key(), SealingKeys.make()
    pem = authority.issue_member(read_request(make_request(name, key, sealing)), kind, name, now, seconds)
    members.certified(name, kind, read(pem, authority.certificate_pem, now).serial, pem, now)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Credentials.save_new(home, authority.certificate_pem, pem, key, sealing, ("127.0.0.1:1",), now)


@dataclass
class Federation:
    """What :func:`federation` gives; see the module's text.

    Args:
        folder: of the homes: ``hub`` and one of each node's name.
        data: of all parties.
        policy, limits: of the nodes.
        hub_settings: of the hub.
        processes: what nodes bind, to run programs in worker processes; None to run them inline.
        clock: POSIX seconds, for everybody.
    """

    folder: Path
    data: FederatedData
    policy: Policy
    limits: NodeLimits
    hub_settings: HubSettings
    processes: Mapping[str, Binding] | None
    clock: Callable[[], float]
    nodes: dict[str, Node] = field(default_factory=dict)
    workers: dict[str, AnyWorkers] = field(default_factory=dict)
    metrics: dict[str, Metrics] = field(default_factory=dict)
    ended: dict[str, BaseException | None] = field(default_factory=dict)
    address: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    _hub: Hub | None = None
    _caller: Caller | None = None
    _open: dict[str, contextlib.AsyncExitStack] = field(default_factory=dict)
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def hub(self) -> Hub:
        """The hub, which runs."""
        assert self._hub is not None
        return self._hub

    @property
    def caller(self) -> Caller:
        """The operator."""
        assert self._caller is not None
        return self._caller

    @property
    def names(self) -> list[str]:
        """The nodes' names, in order."""
        return list(self.data.names)

    # Machines.

    async def start_hub(self, settings: HubSettings | None = None) -> Hub:
        """Start the hub; again on the port that it had."""
        self.hub_settings = settings or self.hub_settings
        self.metrics["hub"] = Metrics()
        hub = Hub(
            self.folder / "hub", self.hub_settings, self._workers("hub"), Log("hub"), self.metrics["hub"], self.clock
        )
        await hub.start()
        stack = self._open["hub"] = contextlib.AsyncExitStack()
        self.address = await stack.enter_async_context(serving(hub, self.address))
        self._hub = hub
        home = self.folder / "hub" / "operator"
        operator = replace(Credentials.load(home, self.clock()), addresses=(str(self.address),))
        self._caller = await stack.enter_async_context(calling(operator))
        return hub

    async def stop_hub(self, crash: bool = False) -> None:
        """End the hub: in order, or as if it was killed."""
        hub, self._hub, self._caller = self.hub, None, None
        if crash:
            hub.draining = True
            _lose(hub.database)
            for stream in list(hub._streams.values()):
                stream.close("")
                await stream.over.wait()
        await self._open.pop("hub").aclose()
        await hub.close()

    async def start_node(self, name: str, settings: NodeSettings | None = None, connect: bool = True) -> Node:
        """Start a node, and wait until it is connected."""
        self.metrics[name] = Metrics()
        node = Node(
            self.folder / name, settings or self.settings(name), self._workers(name), Log(name), self.metrics[name],
            self.clock,
        )  # fmt: skip
        node.credentials = replace(node.credentials, addresses=(str(self.address),))
        self.nodes[name] = node
        await node.start()
        self._running[name] = asyncio.create_task(self._run(node), name=f"node {name}")
        if connect:
            await self.until(lambda: node.connected.is_set() and self.hub.connected(name), f"{name} connects")
        return node

    async def _run(self, node: Node) -> None:
        self.ended.pop(node.name, None)
        try:
            await node.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.ended[node.name] = error

    async def cut(self, name: str) -> None:
        """Cut a node's link; it does not dial again until :meth:`dial`."""
        running = self._running.pop(name)
        running.cancel()
        await asyncio.wait([running])
        if self._hub is not None:
            await self.until(lambda: not self.hub.connected(name), f"{name} is seen to be gone")

    async def dial(self, name: str) -> None:
        """Let a node dial that was cut."""
        node = self.nodes[name]
        node.credentials = replace(node.credentials, addresses=(str(self.address),))
        self._running[name] = asyncio.create_task(self._run(node), name=f"node {name}")
        await self.until(lambda: node.connected.is_set() and self.hub.connected(name), f"{name} connects")

    async def stop_node(self, name: str, crash: bool = False) -> None:
        """End a node: in order, or as if it was killed."""
        node = self.nodes.pop(name)
        if crash:
            _lose(node.database)
        if name in self._running:
            await self.cut(name)
        await node.close()

    def settings(self, name: str, policy: Policy | None = None, limits: NodeLimits | None = None) -> NodeSettings:
        """A node's settings."""
        bound = Binding("sklearn:iris") if self.processes is None else self.processes[name]
        return NodeSettings(data={DATA: bound}, policy=policy or self.policy, limits=limits or self.limits)

    def _workers(self, name: str) -> AnyWorkers:
        if self.processes is not None:
            self.workers[name] = Workers()
        elif name not in self.workers:
            self.workers[name] = InlineWorkers(_loader(self.data, name))
        return self.workers[name]

    # People.

    @contextlib.asynccontextmanager
    async def person(self, name: str, kind: MemberKind) -> AsyncIterator[Caller]:
        """Somebody who calls the hub."""
        home = self.folder / f"home of {name}"
        found = (
            Credentials.load(home, self.clock())
            if home.exists()
            else certify(self.folder / "hub", self.hub.members, home, name, kind)
        )
        self.hub.database.commit()
        async with calling(replace(found, addresses=(str(self.address),))) as caller:
            yield caller

    async def submit(self, plan: str, by: Caller | None = None, **fields: Any) -> str:
        """Submit a run; its name."""
        request = api.Submit(plan, **{"data": DATA, **fields})
        return (await (by or self.caller).ask(request, api.Submitted)).run

    async def view(self, run: str) -> api.RunView:
        """A run, as the operator sees it."""
        found = await self.caller.ask(api.ListRuns(), api.RunList)
        return next(view for view in found.runs if view.run == run)

    async def end(self, run: str) -> api.RunView:
        """Wait until a run has ended."""
        async for _ in self.caller.events(run):
            pass
        view = await self.view(run)
        assert view.status in TERMINAL
        return view

    async def run(self, plan: str, **fields: Any) -> Params:
        """Submit a run, wait for its good end, and give its model."""
        run = await self.submit(plan, **fields)
        view = await self.end(run)
        assert view.status == "completed", (view.status, view.cause, view.party, view.remedy)
        return self.model(run)

    async def events(self, run: str, kind: str = "") -> list[api.Event]:
        """What has happened in a run."""
        return [event async for event in self.caller.events(run, follow=False) if kind in ("", event.kind)]

    def models(self, run: str) -> dict[str, Params]:
        """What the parties that start by themselves ended with, wherever they were."""
        found = {}
        record = self.hub.runs.table.get(run)
        assert record is not None
        if record.result is not None:
            found["server"] = _params(record.result, self.hub)
        for node in self.nodes.values():
            found.update({party: _params(body, node) for party, body in node.works.results(run).items()})
        return found

    def model(self, run: str) -> Params:
        """The model of a run with one result."""
        (model,) = self.models(run).values()
        return model

    async def until(self, condition: Callable[[], object], what: str = "it happens") -> None:
        """Wait until something holds, a turn of the loop at a time."""
        end = time.monotonic() + PATIENCE
        while not condition():
            for name, error in self.ended.items():
                if error is not None and f"{name} ends" not in what:
                    raise AssertionError(f"{name} ended while waiting until {what}") from error
            assert time.monotonic() < end, f"waited {PATIENCE:g} s until {what}"
            # Nobody tells of everything that a test may wait for; this gives the loop a turn and the processor some rest.
            await asyncio.sleep(0.0005)

    async def close(self) -> None:
        """End everything."""
        for name in list(self.nodes):
            await self.stop_node(name)
        if self._hub is not None:
            await self.stop_hub()


@contextlib.asynccontextmanager
async def federation(
    folder: Path,
    data: FederatedData | None = None,
    *,
    policy: Policy = ANYTHING,
    limits: NodeLimits = NodeLimits(runs_at_once=8),  # noqa: B008 - a value
    hub: HubSettings | None = None,
    processes: bool = False,
    start: Sequence[str] | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Federation]:
    """A federation that runs; see the module's text.

    Args:
        folder: an empty one.
        data: of all parties; :func:`iris` if not given.
        policy, limits: of the nodes.
        hub: settings of the hub; its data are the central test set anyway.
        processes: whether programs run in worker processes; then the data are :func:`iris`.
        start: the nodes to start; all, if not given.
        clock: POSIX seconds, for everybody.
    """
    data = data or iris()
    names = tuple(data.names)
    for home in ("hub", *names):
        shutil.copytree(_template("trial", names) / home, folder / home)
    bound = bindings(len(names)) if processes else None
    central = replace(bound[names[0]], party=0) if bound else Binding("sklearn:iris")
    settings = replace(hub or HubSettings(), data={DATA: central})
    made = Federation(folder, data, policy, limits, settings, bound, clock)
    try:
        await made.start_hub()
        await asyncio.gather(*(made.start_node(name) for name in (names if start is None else start)))
        yield made
    finally:
        await made.close()


def _loader(data: FederatedData, name: str) -> Callable[[Mapping[str, Any], bool], Shard]:
    def load(_: Mapping[str, Any], many: bool) -> Shard:
        if many:
            return data.shard(list(data.names).index(name))
        central = data.central_test
        return Shard(Examples(*central.base, np.zeros(0, np.int64)), central)

    return load


def _params(body: Any, machine: Hub | Node) -> Params:
    frame = body.inline if body.inline is not None else bytes(machine.spool.map(body.blob))
    params = decode(frame, Result).params
    assert params is not None
    return params


def _lose(database: Database) -> None:
    """Let go of all that was not committed, and of the file; whatever comes after is done to nothing."""
    if database._open:
        database._connection.execute("ROLLBACK")
    database._open = False
    database._waiting.clear()
    database.failed = lambda _: None
    database._connection.execute("PRAGMA query_only=ON")
