"""Run a plan over simulated parties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from hansa import plan as plans
from hansa.data import FederatedData, load
from hansa.errors import ConfigError, HansaError, PlanError, ResumeError, RunError, nearest
from hansa.examples import Examples, Shard
from hansa.message import Message
from hansa.monitoring.folder import RunFolder
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo, Status, Tracker
from hansa.params import Params
from hansa.party import Named
from hansa.plan import Plan
from hansa.protocol import Progress, Role
from hansa.rng import Key
from hansa.simulation import checkpoint
from hansa.simulation.baselines import baselines
from hansa.simulation.batching import Batching
from hansa.simulation.log import MessageLog
from hansa.simulation.network import Devices, FaultPlan, Network
from hansa.simulation.pool import ProcessPool
from hansa.simulation.run import Run
from hansa.simulation.settings import Simulation
from hansa.simulation.world import Failure, World
from hansa.threads import limit_threads


def simulate(
    plan: Plan | str | Path,
    data: FederatedData | None = None,
    *,
    seed: int | None = None,
    settings: Simulation | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    trackers: Sequence[Tracker] = (),
    **changes: Any,
) -> Run:
    """Run ``plan`` over the parties of ``data``, here and now.

    *Guarantees*: the same plan, data, seed, faults and devices give the same messages and the same model, byte for byte, with
    any number of workers; a run that was killed and resumed ends with the model of one that was not.

    Args:
        plan: a plan, or the path of a TOML plan.
        data: what the parties hold; None takes the plan's own ``[data]``.
        seed: instead of the plan's.
        settings: how to simulate; None takes the TOML file's ``[simulation]``, or the defaults.
        folder: where to write metrics, model, report and checkpoints; None writes nothing.
        resume: go on from the folder's checkpoint.
        trackers: what else follows the run.
        changes: single fields of :class:`Simulation`, such as ``workers=2`` or ``baselines=True``.

    Returns:
        The run, in a terminal state; a failure while it runs is its ``status``, ``cause`` and ``error``.

    Raises:
        ConfigError: the plan, the data or the settings cannot be used; nothing has run.
    """
    if not isinstance(plan, Plan):
        plan, tables = plans.load(plan, {"simulation": Simulation})
        settings = settings or tables.get("simulation")
    settings = _changed(settings or Simulation(), changes)
    plan = plan if seed is None else plan.with_seed(seed)
    if data is None:
        if plan.data is None:
            raise ConfigError("there is no data: pass some, or give the plan a [data] table")
        data = load_data(plan)
    if resume and folder is None:
        raise ResumeError("resume needs the folder of the run to go on with")
    params = check(plan, data)
    session = _Session(
        plan, data, settings, params, RunFolder(Path(folder), resume) if folder is not None else None, trackers
    )
    return session.run(resume)


def load_data(plan: Plan) -> FederatedData:
    """The data that a plan's ``[data]`` table describes.

    Raises:
        ConfigError: there is no such table, or the data cannot be used.
    """
    spec = plan.data
    if spec is None:
        raise ConfigError("the plan has no [data] table")
    source = load(spec.source, **spec.options)
    if isinstance(source, FederatedData):
        return source
    return source.partition(spec.partition, parties=spec.parties, seed=spec.seed, test=spec.test)


def check(plan: Plan, data: FederatedData) -> Params:
    """Fresh parameters of the plan's learner, after everything that can be checked before training has been.

    Raises:
        ConfigError: the cohort exceeds the population, or model and data do not fit.
    """
    cohort = getattr(plan.protocol, "cohort", None)
    if isinstance(cohort, int) and cohort > len(data):
        raise PlanError(
            [f"[protocol.cohort] the cohort of {cohort} is larger than the population of {len(data)} parties"]
        )
    params = plan.learner.init(_key(plan).child("server/init"), data.example)
    plan.learner.evaluate(params, data.example)
    return params


def _changed(settings: Simulation, changes: Mapping[str, Any]) -> Simulation:
    try:
        return replace(settings, **changes)
    except TypeError as error:
        raise ConfigError(f"simulate: {str(error).replace('Simulation.__init__() ', '')}") from None


def _network(settings: Simulation, plan: Plan) -> Network:
    epochs, batch_size = getattr(plan.learner, "epochs", 1), getattr(plan.learner, "batch_size", 0)
    key = _key(plan).child("network")
    return Network(
        settings.faults,
        settings.devices,
        key,
        epochs if isinstance(epochs, int) else 1,
        batch_size if isinstance(batch_size, int) else 0,
    )


def _check_names(settings: Simulation, rosters: Mapping[str, Sequence[str]], roles: Mapping[str, Role]) -> None:
    """Faults and devices are of parties and messages that there are."""
    faults = settings.faults
    parties = {
        "faults: a crash": [crash.party for crash in faults.crashes],
        "faults: a partition": [party for partition in faults.partitions for party in partition.parties],
        "devices: named": list(settings.devices.named or ()),
    }
    for place, named in parties.items():
        for party in named:
            if not any(party in roster for roster in rosters.values()):
                raise ConfigError(f"{place}: no party is named {party!r}")
    kinds = {kind.__name__ for role in roles.values() for kind in role.receives}
    for kind in faults.only:
        if kind not in kinds:
            raise ConfigError(f"faults: only: this protocol has no message {kind!r}; {nearest(kind, kinds)}")


def _key(plan: Plan) -> Key:
    return Key.root(plan.seed)


@dataclass
class _Session:
    """One run from its beginning to its end; the only thing here that changes."""

    plan: Plan
    data: FederatedData
    settings: Simulation
    params: Params
    folder: RunFolder | None
    trackers: Sequence[Tracker]

    def __post_init__(self) -> None:
        self.history: list[RoundRecord] = []
        self.failures: list[Failure] = []
        self.started = self.last = perf_counter()
        self.log = MessageLog(self.settings.record, digest=self.settings.digest)
        self.world: World | None = None
        if self.folder is not None:
            self.trackers = [self.folder, *self.trackers]

    def run(self, resume: bool) -> Run:
        learner = self.plan.learner
        expected = self._expected_fits()
        if expected and "expected_fits" in getattr(learner, "__dataclass_fields__", {}):
            learner = replace(learner, expected_fits=expected)  # type: ignore[type-var]
        roles = self.plan.protocol.roles(learner, self.plan.aggregation)
        settings = self.settings
        threads = settings.threads
        ideal = settings.faults == FaultPlan() and settings.devices == Devices()
        network = None if ideal else _network(settings, self.plan)
        plain = not ideal or any(role.continuous for role in roles.values())
        pool = None
        if settings.processes > 1:
            pool = ProcessPool(settings.processes, learner, self.data, self.params, threads)
        try:
            with limit_threads(threads):
                world = self.world = self._build(roles, Batching(learner, pool, plain=plain), network)
                first = self._restore(world) if resume else 0
                self._begin(first)
                status, cause, error = self._drive(world)
        finally:
            if pool is not None:
                pool.close()
        return self._end(world, status, cause, error)

    def _build(self, roles: Mapping[str, Role], batching: Batching, network: Network | None) -> World:
        plan, settings, data = self.plan, self.settings, self.data
        names = data.names if not isinstance(data.names, list | tuple) else Named(data.names)
        rosters = {name: names if role.many else [name] for name, role in roles.items()}
        unknown = [party for party in settings.record if not any(party in roster for roster in rosters.values())]
        if unknown:
            raise ConfigError(f"record: no party is named {unknown[0]!r}")
        _check_names(settings, rosters, roles)
        empty = np.zeros(0, np.int64)
        central = data.central_test
        at_server = Shard(Examples(*central.base, empty), central)

        def shard(role: str, place: int) -> Shard:
            return data.shard(place) if roles[role].many else at_server

        return World(
            roles=roles,
            rosters=rosters,
            shard=shard,
            key=_key(plan),
            batching=batching,
            network=network,
            log=self.log,
            observe=self._observe,
            on_save=self._saved,
            on_failure=self._failed,
        )

    def _restore(self, world: World) -> int:
        assert self.folder is not None
        frame, self.history = self.folder.checkpoint()
        checkpoint.restore(world, frame, self._digest())
        return self.history[-1].round if self.history else 0

    def _begin(self, first: int) -> None:
        rounds = getattr(self.plan.protocol, "rounds", None)
        settings = {"workers": self.settings.processes, "faults": asdict(self.settings.faults)}
        info = RunInfo(
            self.plan.name,
            self.plan.to_toml(),
            self.plan.digest,
            rounds,
            len(self.data),
            self.params.size,
            first,
            settings,
        )
        for tracker in self.trackers:
            tracker.begin(info)

    def _drive(self, world: World) -> tuple[Status, str, Exception | None]:
        try:
            world.run()
        except KeyboardInterrupt:
            return (
                "interrupted",
                "interrupted from the keyboard"
                + (f"; go on with --resume {self.folder.path}" if self.folder is not None else ""),
                None,
            )
        except HansaError as error:
            return "failed", str(error), error
        return "completed", "", None

    def _end(self, world: World, status: Status, cause: str, error: Exception | None) -> Run:
        results = dict(world.results)
        starting = (name for role, r in world.roles.items() if r.starts for name in world.rosters[role])
        final = next((results[name] for name in starting if isinstance(results.get(name), Params)), None)
        compared: Mapping[str, Mapping[str, float]] = {}
        if self.settings.baselines and status == "completed":
            compared = baselines(self.plan, self.data)
        run = Run(
            self.plan, status, cause, final, results, self.history, self.failures, perf_counter() - self.started,
            world.clock, self.log, world.stale, compared, error,
        )  # fmt: skip
        if self.folder is not None and final is not None:
            self.folder.write_model(final)
        traffic = {name: {"messages": t.messages, "bytes": t.nbytes} for name, t in run.traffic.items()}
        failures = {failure.party: f"{type(failure.error).__name__}: {failure.error}" for failure in self.failures}
        for tracker in self.trackers:
            tracker.end(RunEnd(status, cause, run.seconds, traffic, failures, compared))
        return run

    def _observe(self, sender: str, message: Message) -> None:
        if not isinstance(message, Progress):
            raise RunError(f"sent {type(message).__name__} to the observer, who takes Progress only", party=sender)
        now = perf_counter()
        assert self.world is not None
        record = RoundRecord(
            message.round, message.metrics, message.parties, message.note, self.world.clock, now - self.last
        )
        self.last = now
        self.history.append(record)
        for tracker in self.trackers:
            try:
                tracker.round(record)
            except Exception as error:
                # Called from within the party that reports, whose fault it is not.
                raise RunError(
                    f"the tracker {type(tracker).__name__} raised {type(error).__name__}: {error}",
                    round=message.round,
                    remedy="mend it or run without it; a run in a folder can be resumed",
                ) from error

    def _saved(self, party: str) -> None:
        every = self.settings.checkpoint_every
        if self.folder is None or not every or not self.history or self.history[-1].round % every:
            return
        assert self.world is not None
        # Where several parties start by themselves, one of them sets the pace.
        if party == next(name for role, r in self.world.roles.items() if r.starts for name in self.world.rosters[role]):
            self.folder.write_checkpoint(checkpoint.take(self.world, party, self._digest()), self.history)

    def _failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        if self.settings.on_failure == "stop":
            raise RunError(
                f"{type(failure.error).__name__}: {failure.error}",
                party=failure.party,
                remedy="its traceback is in Run.failures; on_failure='continue' goes on without it",
            ) from failure.error

    def _expected_fits(self) -> int:
        rounds, cohort = getattr(self.plan.protocol, "rounds", 0), getattr(self.plan.protocol, "cohort", len(self.data))
        return int(rounds or 0) * int(cohort or 0)

    def _digest(self) -> str:
        faults, devices = self.settings.faults, self.settings.devices
        return f"{self.plan.digest}/{len(self.data)}/{int(self.data.sizes.sum())}/{faults!r}/{devices!r}"
