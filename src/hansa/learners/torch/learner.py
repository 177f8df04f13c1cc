"""``Torch``: a PyTorch module as a learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import numpy as np
import torch
from torch import nn

from hansa.errors import ConfigError, DataError, nearest
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.learners import checks
from hansa.learners.optimizers import SGD, Adam, AdamW, Optimizer
from hansa.learners.torch.batch import Batch, study
from hansa.learners.torch.course import Course, course
from hansa.learners.torch.engines import ENGINES, EngineName, choose, demand
from hansa.learners.torch.evaluation import evaluate_parties
from hansa.learners.torch.losses import Loss, LossSpec, resolve_loss
from hansa.learners.torch.metrics import Metric, MetricSpec, resolve_metrics
from hansa.learners.torch.resident import ModelSpec, Recent, Resident, build, initial, tensor_of
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Tensor
from hansa.update import Update

_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_RESIDENTS = Recent()
_CHUNK_BYTES, _MOST_A_CALL, _MOST_OF_LARGE, _SMALL = 160 * 2**20, 100, 25, 10_000


@final
@dataclass(frozen=True, kw_only=True)
class Torch:
    """Trains any ``torch.nn.Module``.

    >>> import numpy as np
    >>> from torch import nn
    >>> learner = Torch(model=lambda: nn.Linear(2, 2), batch_size=4)
    >>> data = Examples(np.eye(2, dtype=np.float32), np.array([0, 1]))
    >>> update = learner.fit(learner.init(Key.root(0), data), data, LocalWork(), Key.root(1))
    >>> update.delta.shape, update.weight, update.scalars["steps"]
    ((6,), 2.0, 1.0)

    Guarantees: results depend on the arguments alone, never on what was trained before or on the global generators, which are
    left as they were. The engines agree within float32 rounding: 1e-5 of the largest change for a few dozen steps.

    Features become the model's dtype, whole numbers where the model has an embedding. Floating buffers (running statistics)
    are part of the parameters, after the trained ones; other buffers start each training at the model's own values. A
    party without examples has a zero update of weight 0.

    Args:
        model: a module class or another callable without arguments that makes one; ``"package.module:Name"`` of such; or an
            instance, whose values are then where training starts.
        loss: ``cross_entropy``, ``nll``, ``bce_with_logits``, ``mse``, ``l1``, ``huber``, or a callable
            ``(output, target) -> scalar``.
        optimizer: the local optimizer; what it keeps starts afresh in each training.
        batch_size: examples in a step; the last batch of an epoch may be shorter.
        epochs: local epochs.
        steps: local steps instead of epochs.
        metrics: ``accuracy``, ``top5_accuracy``, ``mae``, ``mse``, ``auc``, or callables ``(output, target) -> number`` over a
            party's whole set; None picks by the loss.
        clip_gradient: the largest L2 norm of a step's gradient, terms of the objective included.
        buffers: ``"average"`` sends the change of the buffers, ``"local"`` sends none.
        engine: ``"auto"``, or one of ``hansa.learners.torch.engines``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` is a GPU where there is one.
        precision: of the forward pass: ``"float32"`` (the model's own), or ``"bfloat16"`` or ``"float16"`` by autocast.
        drop_last: leave out an epoch's last batch where it is short and not the only one.
        expected_fits: how many trainings the whole run will make: whether it pays to compile.

    Raises:
        ConfigError: a value that cannot be used.
    """

    model: ModelSpec
    loss: LossSpec = "cross_entropy"
    optimizer: Optimizer = field(default_factory=lambda: SGD(0.05))
    batch_size: int = 32
    epochs: int = 1
    steps: int | None = None
    metrics: tuple[MetricSpec, ...] | None = None
    clip_gradient: float | None = None
    buffers: Literal["average", "local"] = "average"
    engine: Literal["auto", "sequential", "low_rank", "vectorized", "compiled"] = "auto"
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    drop_last: bool = False
    expected_fits: int = 0
    resolved_loss: Loss = field(init=False, repr=False, compare=False)
    resolved_metrics: tuple[Metric, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.model, str | nn.Module) or callable(self.model)):
            raise ConfigError(
                f"Torch.model must be a module, a callable that makes one or 'package.module:Name', not {self.model!r}"
            )
        if not isinstance(self.optimizer, SGD | Adam | AdamW):
            raise ConfigError(
                f"Torch.optimizer must be SGD, Adam or AdamW from hansa.learners.optimizers, not {self.optimizer!r}"
            )
        if isinstance(self.optimizer, Adam | AdamW):  # a plan's list is a tuple here: a learner is a key of caches
            first, second = self.optimizer.betas
            object.__setattr__(self, "optimizer", replace(self.optimizer, betas=(first, second)))
        checks.count("Torch.batch_size", self.batch_size)
        checks.count("Torch.epochs", self.epochs)
        if self.steps is not None:
            checks.count("Torch.steps", self.steps)
        if self.clip_gradient is not None:
            checks.positive("Torch.clip_gradient", self.clip_gradient)
        checks.count("Torch.expected_fits", self.expected_fits, least=0)
        for name, value, known in (
            ("buffers", self.buffers, ("average", "local")),
            ("engine", self.engine, ("auto", *ENGINES)),
            ("precision", self.precision, tuple(_PRECISIONS)),
        ):
            if value not in known:
                raise ConfigError(f"Torch.{name} {value!r} is unknown; {nearest(str(value), known)}")
        if isinstance(self.metrics, str):
            object.__setattr__(self, "metrics", (self.metrics,))
        elif self.metrics is not None:
            object.__setattr__(self, "metrics", tuple(self.metrics))
        loss = resolve_loss(self.loss)
        object.__setattr__(self, "resolved_loss", loss)
        object.__setattr__(self, "resolved_metrics", resolve_metrics(self.metrics, loss))

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The reduced dtype of the forward pass; None for the model's own."""
        return _PRECISIONS[self.precision]

    def init(self, rng: Key, example: Examples) -> Params:
        """Fresh parameters from ``rng``; an instance's own values where the model is one.

        Raises:
            ConfigError: the model cannot be made, or does not take examples like ``example``.
        """
        params = initial(self.model, _feature_shape(example), rng)
        self._resident(example)
        return params

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Train from ``params`` on ``data``; ``scalars`` holds ``loss`` and ``steps``."""
        return self.fit_many(params, [data], [work], [rng])[0]

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """:meth:`fit` for each party, within float32 rounding.

        Raises:
            ConfigError: the model does not take the features, the loss not the targets, or the engine not the work.
        """
        counts = [len(data) for data in datas]
        if not any(counts):
            return [_nothing(params) for _ in datas]
        example = datas[next(place for place, count in enumerate(counts) if count)]
        resident = self._resident(example)
        self._check(params, resident)
        paths, groups = self._sorted(resident, example, counts, works)
        batch = Batch(self, resident, params, datas, works, paths, rngs)
        results: list[Update | None] = [None] * len(datas)
        for name, members in sorted(groups.items()):
            batch.train(name, members, results)
        return [_nothing(params) if update is None else update for update in results]

    def _sorted(
        self, resident: Resident, example: Examples, counts: Sequence[int], works: Sequence[LocalWork]
    ) -> tuple[list[Course | None], dict[EngineName, list[int]]]:
        """Each party's course, and the parties of each engine; equal parties share one course object."""

        def decide(count: int, work: LocalWork) -> tuple[Course, EngineName]:
            path = course(
                count, work, batch_size=self.batch_size, epochs=self.epochs, steps=self.steps, drop_last=self.drop_last
            )
            return path, self._engine(resident, example, work, path, len(counts))

        if counts.count(counts[0]) == len(counts) and all(work is works[0] for work in works):
            path, engine = decide(counts[0], works[0])
            return [path] * len(counts), {engine: [*range(len(counts))]}
        known: dict[tuple[int, int], tuple[Course, EngineName]] = {}
        groups: dict[EngineName, list[int]] = {}
        paths: list[Course | None] = []
        for place, (count, work) in enumerate(zip(counts, works, strict=True)):
            if not count:
                paths.append(None)
                continue
            key = (count, id(work))
            if key not in known:
                known[key] = decide(count, work)
            path, engine = known[key]
            paths.append(path)
            groups.setdefault(engine, []).append(place)
        return paths, groups

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """Means over ``data``: ``loss`` and the metrics."""
        return self.evaluate_many(params, [data])[0]

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """:meth:`evaluate` for each party, in one forward over all."""
        for place, data in enumerate(datas):
            if not len(data):
                raise DataError(
                    f"party {place} of {len(datas)} in this call has no examples to evaluate on; leave it out"
                )
        if not datas:
            return []
        resident = self._resident(datas[0])
        self._check(params, resident)
        resident.load(tensor_of(params.flat).to(resident.device))
        return evaluate_parties(resident, self.resolved_loss, self.resolved_metrics, datas, self.autocast_dtype)

    def chunk(self, params: Params) -> int:
        """Parties in a call: what about 160 MiB of dense updates hold; at most 100, and fewer where one party is work enough
        that a round's calls are worth dividing among processes."""
        most = _MOST_A_CALL if params.size <= _SMALL else _MOST_OF_LARGE
        return max(1, min(most, _CHUNK_BYTES // max(1, params.flat.nbytes)))

    def _resident(self, example: Examples) -> Resident:
        shape, device = _feature_shape(example), self._device()

        def make() -> Resident:
            return Resident(build(self.model, shape, None), device)

        return _RESIDENTS.get((self.model, device, shape), make)

    def _device(self) -> torch.device:
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"Torch.device {name!r} is not a device; 'cpu', 'cuda' or 'auto' are") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"Torch.device {name!r} needs a GPU, but torch finds none; use 'cpu' or 'auto'")
        return device

    def _engine(self, resident: Resident, example: Examples, work: LocalWork, path: Course, parties: int) -> EngineName:
        if self.engine == "sequential":
            return "sequential"
        facts = study(self, resident, _feature_shape(example)).facts
        if self.engine == "auto":
            return choose(facts, work, path, self.expected_fits, parties)
        return demand(self.engine, facts, work)

    def _check(self, params: Params, resident: Resident) -> None:
        if params.layout != resident.layout:
            raise ConfigError(
                f"these parameters ({len(params.layout.names)} tensors, {params.size} values) are not those of Torch.model"
                f" ({len(resident.layout.names)} tensors, {resident.layout.size} values)"
            )


def _feature_shape(example: Examples) -> tuple[int, ...]:
    return tuple(example.base[0].shape[1:])


def _nothing(params: Params) -> Update:
    return Update(Tensor(np.zeros_like(params.flat)), 0.0, {"loss": 0.0, "steps": 0.0})
