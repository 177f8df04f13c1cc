"""The built-in learners as values: what the user writes, checked, and the learner's methods over the engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

import numpy as np

from hansa.errors import ConfigError, DataError
from hansa.examples import Examples
from hansa.learner import LocalWork, Metrics
from hansa.learners import checks
from hansa.learners.numpy import book, reading
from hansa.learners.numpy.network import Activation, Layer, Loss, Network, forward, loss_and_slope
from hansa.learners.numpy.training import Pool, Recipe, train
from hansa.learners.optimizers import SGD, Adam, AdamW, Optimizer
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Array, Dense, Tensor
from hansa.update import Update

Engine: TypeAlias = Literal["batched", "book"]
Precision: TypeAlias = Literal["float32", "float64"]

_CACHE_BYTES = 1 << 20
_MOST_PARTIES = 128
_EVALUATION_ROWS = 8192


@final
@dataclass(frozen=True, slots=True)
class Linear:
    """Linear least squares: the mean squared error of ``x @ weight.T + bias``, started at zero.

    *Guarantees*: ``fit_many`` equals ``fit`` of each within 1e-5 relative at float32. A party without examples gives a zero
    update of weight 0. ``scalars["loss"]`` is the mean loss over the examples as they were trained on, penalties left out.

    >>> data = Examples(np.array([[1.0], [2.0]]), np.array([2.0, 4.0]))
    >>> learner = Linear(optimizer=SGD(0.1), epochs=200)
    >>> start = learner.init(Key.root(0), data)
    >>> trained = start + learner.fit(start, data, LocalWork(), Key.root(0)).delta.array
    >>> bool(learner.evaluate(trained, data)["mse"] < 1e-3)
    True

    Args:
        optimizer: the local optimizer.
        batch_size: examples a step, at least 1.
        epochs: local epochs, at least 1.
        l2: the factor of ``l2 / 2 * ||weight||^2``; the bias is left out.
        engine: ``batched``, or ``book`` for the plain loop that it is tested against.
        dtype: of the parameters and of all arithmetic.

    Raises:
        ConfigError: a setting out of its range.
        DataError: examples that do not fit the model, or that hold NaN or infinity.
    """

    optimizer: Optimizer = field(default_factory=lambda: SGD(0.01))
    batch_size: int = 32
    epochs: int = 1
    l2: float = 0.0
    engine: Engine = "batched"
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        _check("Linear", self.optimizer, self.batch_size, self.epochs, self.engine, self.dtype)
        checks.not_negative("Linear.l2", self.l2)

    def init(self, rng: Key, example: Examples) -> Params:
        """Zeros, for the features and outputs of ``example``."""
        outputs = _outputs(example)
        return _initial("Linear", _network((_width(example), outputs), "mse", l2=self.l2), self.dtype, rng, example)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Train one party."""
        return self.fit_many(params, [data], [work], [rng])[0]

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """Train many parties together."""
        recipe = Recipe(_of("Linear", params, "mse", l2=self.l2), self.optimizer, self.batch_size, self.epochs)
        return _fit("Linear", recipe, self.engine, params, datas, works, rngs)

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """``loss``, ``mse`` (the same number) and ``mae``."""
        return self.evaluate_many(params, [data])[0]

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """``evaluate`` for each party, in one pass."""
        return _evaluate("Linear", _of("Linear", params, "mse"), params, datas)

    def chunk(self, params: Params) -> int:
        """Parties whose weights and gradients stay in a core's cache."""
        return _chunk(params)


@final
@dataclass(frozen=True, slots=True)
class Softmax:
    """Multinomial logistic regression: the cross-entropy of ``softmax(x @ weight.T + bias)``, started at zero.

    *Guarantees*: as :class:`Linear`.

    >>> data = Examples(np.array([[0.0], [1.0]]), np.array([0, 1]))
    >>> learner = Softmax(optimizer=SGD(1.0), epochs=50)
    >>> start = learner.init(Key.root(0), data)
    >>> trained = start + learner.fit(start, data, LocalWork(), Key.root(0)).delta.array
    >>> learner.evaluate(trained, data)["accuracy"]
    1.0

    Args:
        classes: number of classes, at least 2; None takes the largest label of the arrays that ``init`` sees, plus 1.
        optimizer: the local optimizer.
        batch_size: examples a step, at least 1.
        epochs: local epochs, at least 1.
        l2: the factor of ``l2 / 2 * ||weight||^2``; the bias is left out.
        engine: ``batched``, or ``book`` for the plain loop that it is tested against.
        dtype: of the parameters and of all arithmetic.

    Raises:
        ConfigError: a setting out of its range.
        DataError: examples that do not fit the model, labels out of range, NaN or infinity.
    """

    classes: int | None = None
    optimizer: Optimizer = field(default_factory=lambda: SGD(0.1))
    batch_size: int = 32
    epochs: int = 1
    l2: float = 0.0
    engine: Engine = "batched"
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        _check("Softmax", self.optimizer, self.batch_size, self.epochs, self.engine, self.dtype)
        checks.not_negative("Softmax.l2", self.l2)
        if self.classes is not None:
            checks.count("Softmax.classes", self.classes, least=2)

    def init(self, rng: Key, example: Examples) -> Params:
        """Zeros, for the features of ``example`` and the classes."""
        classes = _classes("Softmax", self.classes, example)
        network = _network((_width(example), classes), "cross_entropy", l2=self.l2)
        return _initial("Softmax", network, self.dtype, rng, example)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Train one party."""
        return self.fit_many(params, [data], [work], [rng])[0]

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """Train many parties together."""
        network = _of("Softmax", params, "cross_entropy", l2=self.l2)
        recipe = Recipe(network, self.optimizer, self.batch_size, self.epochs)
        return _fit("Softmax", recipe, self.engine, params, datas, works, rngs)

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """``loss`` and ``accuracy``."""
        return self.evaluate_many(params, [data])[0]

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """``evaluate`` for each party, in one pass."""
        return _evaluate("Softmax", _of("Softmax", params, "cross_entropy"), params, datas)

    def chunk(self, params: Params) -> int:
        """Parties whose weights and gradients stay in a core's cache."""
        return _chunk(params)


@final
@dataclass(frozen=True, slots=True)
class MLP:
    """A dense network for classification or regression.

    Weights start uniform in ``+-sqrt(6 / fan_in)`` for ``relu`` (He et al., ICCV 2015) and ``+-sqrt(6 / (fan_in + fan_out))``
    for ``tanh`` (Glorot and Bengio, AISTATS 2010); biases at zero.

    *Guarantees*: as :class:`Linear`.

    >>> data = Examples(np.zeros((4, 3)), np.array([0, 1, 2, 1]))
    >>> MLP(hidden=(8,)).init(Key.root(0), data)["layers.0.weight"].shape
    (8, 3)

    Args:
        hidden: the widths of the hidden layers, each at least 1.
        activation: ``relu`` or ``tanh``.
        loss: ``cross_entropy`` over classes, or ``mse`` over numbers.
        classes: as for :class:`Softmax`; only with ``cross_entropy``.
        optimizer: the local optimizer.
        batch_size: examples a step, at least 1.
        epochs: local epochs, at least 1.
        engine: ``batched``, or ``book`` for the plain loop that it is tested against.
        dtype: of the parameters and of all arithmetic.

    Raises:
        ConfigError: a setting out of its range.
        DataError: examples that do not fit the model, labels out of range, NaN or infinity.
    """

    hidden: tuple[int, ...] = (32,)
    activation: Activation = "relu"
    loss: Loss = "cross_entropy"
    classes: int | None = None
    optimizer: Optimizer = field(default_factory=lambda: SGD(0.1))
    batch_size: int = 32
    epochs: int = 1
    engine: Engine = "batched"
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        _check("MLP", self.optimizer, self.batch_size, self.epochs, self.engine, self.dtype)
        if not isinstance(self.hidden, tuple | list) or not self.hidden:
            raise ConfigError(
                f"MLP.hidden must be the widths of at least one hidden layer, (32,) for example, not {self.hidden!r}"
            )
        for place, width in enumerate(self.hidden):
            checks.count(f"MLP.hidden[{place}]", width)
        checks.choice("MLP.activation", self.activation, ("relu", "tanh"))
        checks.choice("MLP.loss", self.loss, ("cross_entropy", "mse"))
        if self.classes is not None:
            checks.count("MLP.classes", self.classes, least=2)
            if self.loss == "mse":
                raise ConfigError("MLP.classes has no meaning with loss 'mse'; leave one of the two out")

    def init(self, rng: Key, example: Examples) -> Params:
        """Random weights from ``rng``, for the features of ``example`` and its outputs or classes."""
        last = _outputs(example) if self.loss == "mse" else _classes("MLP", self.classes, example)
        network = _network((_width(example), *self.hidden, last), self.loss, self.activation)
        return _initial("MLP", network, self.dtype, rng, example)

    def fit(self, params: Params, data: Examples, work: LocalWork, rng: Key) -> Update:
        """Train one party."""
        return self.fit_many(params, [data], [work], [rng])[0]

    def fit_many(
        self, params: Params, datas: Sequence[Examples], works: Sequence[LocalWork], rngs: Sequence[Key]
    ) -> list[Update]:
        """Train many parties together."""
        network = _of("MLP", params, self.loss, self.activation, hidden=tuple(self.hidden))
        recipe = Recipe(network, self.optimizer, self.batch_size, self.epochs)
        return _fit("MLP", recipe, self.engine, params, datas, works, rngs)

    def evaluate(self, params: Params, data: Examples) -> Metrics:
        """``loss`` and ``accuracy``, or ``loss``, ``mse`` and ``mae``."""
        return self.evaluate_many(params, [data])[0]

    def evaluate_many(self, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
        """``evaluate`` for each party, in one pass."""
        return _evaluate(
            "MLP", _of("MLP", params, self.loss, self.activation, hidden=tuple(self.hidden)), params, datas
        )

    def chunk(self, params: Params) -> int:
        """Parties whose weights and gradients stay in a core's cache."""
        return _chunk(params)


def _check(name: str, optimizer: object, batch_size: object, epochs: object, engine: object, dtype: object) -> None:
    if not isinstance(optimizer, SGD | Adam | AdamW):
        raise ConfigError(f"{name}.optimizer must be SGD, Adam or AdamW, not {optimizer!r}")
    checks.count(f"{name}.batch_size", batch_size)
    checks.count(f"{name}.epochs", epochs)
    checks.choice(f"{name}.engine", engine, ("batched", "book"))
    checks.choice(f"{name}.dtype", dtype, ("float32", "float64"))


def _network(widths: tuple[int, ...], loss: Loss, activation: Activation = "relu", l2: float = 0.0) -> Network:
    return Network(widths, activation, loss, l2)


def _of(
    name: str,
    params: Params,
    loss: Loss,
    activation: Activation = "relu",
    l2: float = 0.0,
    hidden: tuple[int, ...] = (),
) -> Network:
    """The network whose parameters these are."""
    weights = params.layout.shapes[0::2]
    if len(weights) == len(hidden) + 1 and all(len(shape) == 2 for shape in weights):
        network = Network((weights[0][1], *hidden, weights[-1][0]), activation, loss, l2)
        if network.layout(params.layout.dtype) == params.layout:
            return network
    tensors = ", ".join(f"{n} {shape}" for n, shape in zip(params.layout.names, params.layout.shapes, strict=True))
    raise ConfigError(f"these parameters are not those of this {name}: {tensors}; make them with its init")


def _width(example: Examples) -> int:
    return int(np.prod(example.base[0].shape[1:], dtype=np.int64))


def _outputs(example: Examples) -> int:
    return max(int(np.prod(example.base[1].shape[1:], dtype=np.int64)), 1)


def _classes(name: str, classes: int | None, example: Examples) -> int:
    if classes is not None:
        return classes
    labels = example.base[1]
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    reading.check_labels(name, labels, None)
    return max(int(labels.max(initial=0)) + 1, 2)


def _initial(name: str, network: Network, dtype: Precision, rng: Key, example: Examples) -> Params:
    if network.widths[0] == 0:
        raise DataError(f"{name} needs at least one feature; the examples have none")
    reading.check_finite(name, reading.pool(name, network, [example]))
    layout = network.layout(dtype)
    params = Params(np.zeros(layout.size, dtype), layout)
    if len(network.widths) == 2:
        return params
    generator = rng.generator()
    for inner, out, weight in zip(
        network.widths[:-1], network.widths[1:], list(params.tensors().values())[0::2], strict=True
    ):
        limit = (6.0 / (inner if network.activation == "relu" else inner + out)) ** 0.5
        weight[...] = generator.uniform(-limit, limit, weight.shape)
    return params


def _fit(
    name: str,
    recipe: Recipe,
    engine: Engine,
    params: Params,
    datas: Sequence[Examples],
    works: Sequence[LocalWork],
    rngs: Sequence[Key],
) -> list[Update]:
    if not datas:
        return []
    for work in works:
        if work.linear is not None and work.linear.shape != params.flat.shape:
            raise ConfigError(
                f"the linear term of a local work has shape {work.linear.shape};"
                f" the parameters of {name} have shape {params.flat.shape}"
            )
    pool = reading.pool(name, recipe.network, datas)
    if engine == "book":
        rows = zip(pool.rows, works, rngs, strict=True)
        results = [book.train(recipe, params, pool.x[r], pool.y[r], work, rng) for r, work, rng in rows]
        matrix, losses, steps = np.stack([r[0] for r in results]), [r[1] for r in results], [r[2] for r in results]
    else:
        trained = train(recipe, params.flat, pool, works, rngs)
        matrix, losses, steps = trained.delta, trained.loss.tolist(), trained.steps.tolist()
    if not (np.isfinite(losses).all() and np.isfinite(matrix).all()):
        # Bad examples are the owner's to mend; a training that diverged is the protocol's to see in the update.
        reading.check_finite(name, pool)
    dense = Dense(matrix)
    return [
        Update(Tensor(None, dense, i), float(len(pool.rows[i])), {"loss": losses[i], "steps": float(steps[i])})
        for i in range(len(datas))
    ]


def _evaluate(name: str, network: Network, params: Params, datas: Sequence[Examples]) -> list[Metrics]:
    if not datas:
        return []
    pool = reading.pool(name, network, datas)
    if not all(len(rows) for rows in pool.rows):
        raise DataError(f"{name} cannot evaluate on no examples; leave out the parties whose test part is empty")
    layers = network.layers(params.flat[None])
    everything = np.concatenate(pool.rows)
    starts = range(0, len(everything), _EVALUATION_ROWS)
    with np.errstate(over="ignore", invalid="ignore"):
        blocks = [
            _measure(name, network, layers, pool, everything[s : s + _EVALUATION_ROWS], params.flat.dtype)
            for s in starts
        ]
    columns = np.concatenate(blocks, axis=1)
    sizes = np.array([len(rows) for rows in pool.rows])
    means = np.add.reduceat(columns, np.cumsum(sizes) - sizes, axis=1) / sizes
    if not np.isfinite(means).all():
        reading.check_finite(name, pool)
    if network.loss == "mse":
        return [{"loss": loss, "mse": loss, "mae": mae} for loss, mae in means.T.tolist()]
    return [{"loss": loss, "accuracy": accuracy} for loss, accuracy in means.T.tolist()]


def _measure(
    name: str, network: Network, layers: Sequence[Layer], pool: Pool, rows: Array, dtype: np.dtype[np.generic]
) -> Array:
    """The loss and the other metric of each of ``rows``: float64 of shape (2, rows)."""
    x = pool.x[rows].astype(dtype, copy=False)
    if not np.isfinite(x).all():
        reading.check_finite(name, pool)
    output = forward(network, layers, x[None])[-1]
    target = pool.y[rows]
    regression = network.loss == "mse"
    second = np.abs(output[0] - target).mean(axis=1) if regression else output[0].argmax(axis=1) == target
    losses, _ = loss_and_slope(network.loss, output, target[None])
    return np.stack([losses[0].astype(np.float64), second.astype(np.float64)])


def _chunk(params: Params) -> int:
    return max(1, min(_MOST_PARTIES, _CACHE_BYTES // max(params.flat.nbytes, 1)))
