"""What the tests of all protocols share: a learner simple enough for oracles, a way to run a world, and the assertions on
what must hold for every protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hansa.aggregation import Contribution, mean
from hansa.errors import HansaError
from hansa.examples import Examples, Shard
from hansa.learner import LocalWork, Metrics
from hansa.learners.optimizers import SGD, learning_rate
from hansa.message import Message
from hansa.params import Params
from hansa.party import Roster
from hansa.protocol import Aggregation, Progress, Protocol
from hansa.rng import Key
from hansa.simulation.batching import Batching
from hansa.simulation.log import MessageLog
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


@dataclass
class Outcome:
    """How a world ended."""

    results: Mapping[str, Any]
    error: HansaError | None
    progress: list[tuple[float, str, Progress]]
    failures: list[Failure]
    world: World
    log: MessageLog

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
        return Shard(
            Examples(x, y), Examples(x, y, np.arange(max(1, len(y) // 4)) if len(y) else np.zeros(0, np.int64))
        )

    key = Key.root(seed)
    network = Network(faults or FaultPlan(), devices or Devices(), key.child("network")) if faults or devices else None
    views = [name for roster in rosters.values() for name in roster] if everyone else record
    outcome = Outcome({}, None, [], [], None, MessageLog(views, keep=200_000))  # type: ignore[arg-type]

    def observe(sender: str, message: Message) -> None:
        assert isinstance(message, Progress)
        outcome.progress.append((outcome.world.clock, sender, message))

    outcome.world = World(
        roles, rosters, shard, key, Batching(learner), network, outcome.log, observe, lambda name: None,
        outcome.failures.append,
    )  # fmt: skip
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
