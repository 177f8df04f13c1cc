"""What the tests of all protocols share: a learner simple enough for oracles, a way to run a world, and the assertions on
what must hold for every protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from hansa.aggregation import Contribution, mean
from hansa.errors import Deadlock, HansaError
from hansa.examples import Examples, Shard
from hansa.learner import LocalWork, Metrics
from hansa.learners.optimizers import SGD, learning_rate
from hansa.message import Message
from hansa.params import Params
from hansa.party import Roster
from hansa.protocol import OBSERVER, Aggregation, Progress, Protocol
from hansa.rng import Key
from hansa.simulation.batching import Batching
from hansa.simulation.checkpoint import restore, take
from hansa.simulation.log import MessageLog, Traffic
from hansa.simulation.network import Devices, FaultPlan, Network
from hansa.simulation.world import Failure, World
from hansa.tensor import Tensor
from hansa.update import Update

Vector = npt.NDArray[np.float64]
Data = Sequence[tuple[Vector, Vector]]

TOLERANCE = 1e-9
"""Everything is computed in float64 over at most some hundred steps: what is left is the order of additions."""


@dataclass(frozen=True)
class LeastSquares:
    """Linear regression by SGD in float64, one plain loop; no batching, so a world runs each call by itself."""

    optimizer: SGD = field(default_factory=lambda: SGD(0.05))
    batch_size: int = 4
    epochs: int = 2
    features: int = 3

    def init(self, rng: Key, example: Examples) -> Params:
        return Params.of({"w": rng.generator().normal(size=self.features)}, dtype="float64")

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        if not len(data):
            raise ValueError("nothing to train on")
        start, x, y = params.flat, data.x, data.y
        w, velocity, losses = start.copy(), np.zeros_like(start), []
        steps = 0
        for epoch, rows in self._batches(len(y), work, rng):
            residual = x[rows] @ w - y[rows]
            losses.append(0.5 * float(np.mean(residual**2)))
            gradient = x[rows].T @ residual / len(rows) + work.proximal * (w - start)
            gradient = gradient + self.optimizer.weight_decay * w
            if work.linear is not None:
                gradient = gradient + work.linear
            velocity = self.optimizer.momentum * velocity + gradient
            direction = gradient + self.optimizer.momentum * velocity if self.optimizer.nesterov else velocity
            w = w - learning_rate(self.optimizer, work, epoch, steps) * direction
            steps += 1
        return Update(Tensor(w - start), float(len(y)), {"loss": float(np.mean(losses)), "steps": float(steps)})

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        residual = data.x @ params.flat - data.y
        return {"loss": 0.5 * float(np.mean(residual**2)), "error": float(np.mean(np.abs(residual)))}

    def _batches(self, count: int, work: LocalWork, rng: Key) -> Iterator[tuple[int, Any]]:
        size = count if work.full_batch else self.batch_size
        epochs = work.epochs or self.epochs
        steps, epoch = 0, 0
        while (epoch < epochs) if work.steps is None else (steps < work.steps):
            order = rng.permutation(count, epoch)
            for start in range(0, count, size):
                if work.steps is not None and steps == work.steps:
                    return
                yield epoch, order[start : start + size]
                steps += 1
            epoch += 1


def regression(
    sizes: Sequence[int], features: int = 3, seed: int = 0, spread: float = 1.0
) -> list[tuple[Vector, Vector]]:
    """One regression problem a party, each around a solution of its own: heterogeneous data."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=features)
    data = []
    for size in sizes:
        own = common + spread * rng.normal(size=features)
        x = rng.normal(size=(size, features))
        data.append((x, x @ own + 0.1 * rng.normal(size=size)))
    return data


@dataclass(frozen=True)
class Happening:
    """Something that an outsider sees: a message sent or delivered, or a report to the observer."""

    time: float
    what: Literal["sent", "delivered", "reported"]
    sender: str
    to: str
    message: Message


@final
class Witness:
    """A message log that also tells what happened in which order."""

    def __init__(self, log: MessageLog, outcome: Outcome) -> None:
        self.log = log
        self.outcome = outcome
        # The world hands over what is delivered only where somebody's view is kept.
        self.received: dict[str, list[tuple[str, Message]]] = {"witness": []}

    def note(self, time: float, sender: str, to: str, message: Message, nbytes: int) -> None:
        self.log.note(time, sender, to, message, nbytes)
        what: Literal["sent", "reported"] = "reported" if to == OBSERVER else "sent"
        self.outcome.timeline.append(Happening(time, what, sender, to, message))

    def traffic(self) -> dict[str, Traffic]:
        return self.log.traffic()

    def delivered(self, to: str, letter: tuple[str, Message]) -> None:
        self.log.delivered(to, letter)
        self.outcome.timeline.append(Happening(self.outcome.world.clock, "delivered", letter[0], to, letter[1]))


@dataclass
class Outcome:
    """How a world ended."""

    results: Mapping[str, Any]
    error: HansaError | None
    progress: list[tuple[float, str, Progress]]
    failures: list[Failure]
    world: World
    log: MessageLog
    timeline: list[Happening] = field(default_factory=list)
    snapshots: list[bytes] = field(default_factory=list)

    @property
    def model(self) -> Vector:
        """The server's final model."""
        if self.error is not None:
            raise self.error
        flat: Vector = self.results["server"].flat
        return flat

    def metric(self, name: str) -> list[float]:
        """A metric in every report that has it."""
        return [report.metrics[name] for _, _, report in self.progress if name in report.metrics]

    def cohorts(self) -> dict[int, list[str]]:
        """Who contributed to each round, from the server's view; only where nothing is lost, late or doubled."""
        found: dict[int, list[str]] = {}
        for sender, message in self.log.received["server"]:
            if isinstance(message, Contribution):
                found.setdefault(message.round, []).append(sender)
        return found


def run(
    protocol: Protocol,
    data: Data,
    *,
    learner: Any = None,
    aggregation: Aggregation[Any, Any] | None = None,
    seed: int = 0,
    faults: FaultPlan | None = None,
    devices: Devices | None = None,
    test: tuple[Vector, Vector] | None = None,
    record: Sequence[str] = ("server",),
    everyone: bool = False,
    tested: bool = True,
    digest: bool = False,
    snapshots: bool = False,
    resume: bytes = b"",
) -> Outcome:
    """Run a protocol over one party for each entry of ``data``, whose test examples are its first quarter.

    Args:
        protocol: what runs.
        data: (x, y) a party.
        learner: :class:`LeastSquares` if not given.
        aggregation: the plain mean if not given.
        seed: of the public randomness.
        faults, devices: what goes wrong and how fast the parties are; neither gives an ideal network.
        test: the server's examples; the first party's if not given.
        record: whose views are kept.
        everyone: keep every party's view.
        tested: whether the parties have test examples.
        digest: hash the whole log.
        snapshots: take a snapshot at each save of the first party that starts.
        resume: go on from this snapshot.
    """
    learner = learner or LeastSquares()
    roles = protocol.roles(learner, aggregation or mean())
    many = next(name for name, role in roles.items() if role.many)
    rosters: dict[str, Sequence[str]] = {name: [name] for name in roles}
    rosters[many] = Roster(many, len(data))
    central = Examples(*(test or data[0]))

    def shard(role: str, place: int) -> Shard:
        if role != many:
            return Shard(Examples(central.x, central.y, np.zeros(0, np.int64)), central)
        x, y = data[place]
        return Shard(Examples(x, y), Examples(x, y, np.arange(-(-len(y) // 4) if tested else 0)))

    key = Key.root(seed)
    network = Network(faults or FaultPlan(), devices or Devices(), key.child("network")) if faults or devices else None
    views = [name for roster in rosters.values() for name in roster] if everyone else record
    log = MessageLog(views, keep=200_000, digest=digest)
    outcome = Outcome({}, None, [], [], None, log)  # type: ignore[arg-type]
    starter = next(name for role, r in roles.items() if r.starts for name in rosters[role])

    def observe(sender: str, message: Message) -> None:
        assert isinstance(message, Progress)
        outcome.progress.append((outcome.world.clock, sender, message))

    def saved(name: str) -> None:
        if snapshots and name == starter:
            outcome.snapshots.append(take(outcome.world, starter, "plan"))

    witness: Any = Witness(log, outcome)
    outcome.world = World(
        roles, rosters, shard, key, Batching(learner), network, witness, observe, saved, outcome.failures.append
    )
    if resume:
        restore(outcome.world, resume, "plan")
    try:
        outcome.results = outcome.world.run()
    except HansaError as error:
        outcome.error = error
    return outcome


def permutation(name: str, round: int, count: int, epoch: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The minibatch order that a party draws in a round: all that an oracle takes from the system."""
    return Key.root(seed).child(f"{name}/fit", round).permutation(count, epoch)


def arrays_of(message: Message) -> list[npt.NDArray[Any]]:
    """Every array inside a message."""
    found: list[npt.NDArray[Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, Params):
            found.append(value.flat)
        elif isinstance(value, Tensor):
            found.append(value.array)
        elif isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif hasattr(value, "__struct_fields__"):
            for name in value.__struct_fields__:
                walk(getattr(value, name))

    walk(message)
    return found


def numbers_of(message: Message) -> list[float]:
    """Every single number inside a message, the arrays' elements too."""
    found: list[float] = [float(v) for array in arrays_of(message) for v in array.ravel()]

    def walk(value: Any) -> None:
        if isinstance(value, float):
            found.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)
        elif hasattr(value, "__struct_fields__"):
            for name in value.__struct_fields__:
                walk(getattr(value, name))

    walk(message)
    return found


def assert_no_example_travels(outcome: Outcome, data: Data) -> None:
    """No number of any party's examples is in any message, not even one."""
    raw = {float(v) for x, y in data for v in (*x.ravel(), *y.ravel())}
    assert len(raw) > 10
    for seen in outcome.timeline:
        leaked = raw.intersection(numbers_of(seen.message))
        assert not leaked, (
            f"{seen.sender} sent {type(seen.message).__name__} with {leaked} of its examples to {seen.to}"
        )


def assert_named_end(outcome: Outcome, *allowed: type[HansaError]) -> None:
    """The run ended in a result or in one of the errors by name; never in a deadlock, never without an end."""
    assert not isinstance(outcome.error, Deadlock), outcome.error
    assert outcome.error is None or isinstance(outcome.error, allowed), repr(outcome.error)
    assert not outcome.failures, outcome.failures[0].traceback


def assert_resumes_identically(**arguments: Any) -> None:
    """A run that is killed at any save and goes on from its snapshot ends with the same models, bit for bit."""
    whole = run(**arguments, snapshots=True)
    assert whole.error is None
    assert len(whole.snapshots) >= 3
    for snapshot in whole.snapshots[1:-1]:
        again = run(**arguments, resume=snapshot)
        assert again.error is None
        assert again.results.keys() == whole.results.keys()
        for name, params in whole.results.items():
            np.testing.assert_array_equal(again.results[name].flat, params.flat)
        known = {report.round: report for _, _, report in whole.progress}
        for _, _, report in again.progress:
            assert report == known[report.round]
