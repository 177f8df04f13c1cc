"""Server optimizers: how an averaged change moves the global model.

Each is a pure pair: ``init(size, dtype)`` makes the slots, ``step(params, delta, slots, round)`` gives new parameters and
new slots and changes neither argument. The averaged change ``delta`` is the paper's pseudo-gradient with its sign: parameters
move along it, not against it.

Source of all but :class:`ServerSGD`: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar and McMahan, "Adaptive federated
optimization", ICLR 2021, algorithm 2. With ``x`` the parameters and ``Delta_t`` the averaged change of round ``t``::

    m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t
    v_t = v_{t-1} + Delta_t^2                                              FedAdagrad
    v_t = v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2)       FedYogi
    v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2                          FedAdam
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

``m_{-1} = 0``. The paper asks for ``v_{-1} >= tau^2``; here ``v_{-1} = tau^2`` exactly. There is no bias correction, as in the
paper. ``eta`` is ``learning_rate``; the defaults of ``beta_1``, ``beta_2`` and ``tau`` are those of the paper's experiments
(section 5 and appendix C), and the learning rate has no default because the paper tunes it for every task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, final

import numpy as np

from hansa.errors import ConfigError
from hansa.learners import checks
from hansa.tensor import Array

Slots: TypeAlias = Mapping[str, Array]
"""A server optimizer's memory: name -> flat array of shape (size,)."""


class ServerOptimizer(Protocol):
    """An extension point: a pure pair of functions."""

    def init(self, size: int, dtype: str) -> Slots:
        """Slots for a model of ``size`` elements of ``dtype``."""
        ...

    def step(self, params: Array, delta: Array, slots: Slots, round: int) -> tuple[Array, Slots]:
        """Parameters and slots after the averaged change ``delta``, each of shape (size,)."""
        ...


@final
@dataclass(frozen=True, slots=True)
class ServerSGD:
    """``b = momentum * b + delta``, then ``x += learning_rate * b``: FedAvg at its defaults, FedAvgM with momentum.

    >>> optimizer = ServerSGD(momentum=0.5)
    >>> x, slots = np.zeros(1), optimizer.init(1, "float64")
    >>> for t in range(2):
    ...     x, slots = optimizer.step(x, np.ones(1), slots, t)
    >>> x.tolist()
    [2.5]

    Args:
        learning_rate: above 0.
        momentum: in [0, 1).

    Source: Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019, section 4.3.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        checks.positive("ServerSGD.learning_rate", self.learning_rate)
        checks.in_unit("ServerSGD.momentum", self.momentum, one=False)

    def init(self, size: int, dtype: str) -> Slots:
        """One slot, ``momentum``, of zeros; none without momentum."""
        return {"momentum": np.zeros(size, dtype)} if self.momentum else {}

    def step(self, params: Array, delta: Array, slots: Slots, round: int) -> tuple[Array, Slots]:
        """One step along ``delta``."""
        _check("ServerSGD", params, delta, slots, ("momentum",) if self.momentum else ())
        change = delta.astype(params.dtype, copy=False)
        if not self.momentum:
            return params + self.learning_rate * change, {}
        buffer = self.momentum * slots["momentum"] + change
        return params + self.learning_rate * buffer, {"momentum": buffer}


@final
@dataclass(frozen=True, slots=True)
class ServerAdagrad:
    """FedAdagrad; the module's docstring has its lines.

    Args:
        learning_rate: the paper's eta, above 0.
        beta_1: in [0, 1).
        tau: adaptivity, above 0; the larger, the nearer to plain averaging.
    """

    learning_rate: float
    beta_1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive("ServerAdagrad", self.learning_rate, self.beta_1, self.tau)

    def init(self, size: int, dtype: str) -> Slots:
        """``m`` of zeros and ``v`` of ``tau ** 2``."""
        return _slots(size, dtype, self.tau)

    def step(self, params: Array, delta: Array, slots: Slots, round: int) -> tuple[Array, Slots]:
        """One round of algorithm 2."""

        def second(v: Array, square: Array) -> Array:
            total: Array = v + square
            return total

        _check("ServerAdagrad", params, delta, slots, ("m", "v"))
        return _adaptive(params, delta, slots, self.learning_rate, self.beta_1, self.tau, second)


@final
@dataclass(frozen=True, slots=True)
class ServerAdam:
    """FedAdam; the module's docstring has its lines.

    Args:
        learning_rate: the paper's eta, above 0.
        beta_1, beta_2: in [0, 1).
        tau: adaptivity, above 0; the larger, the nearer to plain averaging.
    """

    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive("ServerAdam", self.learning_rate, self.beta_1, self.tau)
        checks.in_unit("ServerAdam.beta_2", self.beta_2, one=False)

    def init(self, size: int, dtype: str) -> Slots:
        """``m`` of zeros and ``v`` of ``tau ** 2``."""
        return _slots(size, dtype, self.tau)

    def step(self, params: Array, delta: Array, slots: Slots, round: int) -> tuple[Array, Slots]:
        """One round of algorithm 2."""

        def second(v: Array, square: Array) -> Array:
            total: Array = self.beta_2 * v + (1.0 - self.beta_2) * square
            return total

        _check("ServerAdam", params, delta, slots, ("m", "v"))
        return _adaptive(params, delta, slots, self.learning_rate, self.beta_1, self.tau, second)


@final
@dataclass(frozen=True, slots=True)
class ServerYogi:
    """FedYogi; the module's docstring has its lines.

    Args:
        learning_rate: the paper's eta, above 0.
        beta_1, beta_2: in [0, 1).
        tau: adaptivity, above 0; the larger, the nearer to plain averaging.
    """

    learning_rate: float
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive("ServerYogi", self.learning_rate, self.beta_1, self.tau)
        checks.in_unit("ServerYogi.beta_2", self.beta_2, one=False)

    def init(self, size: int, dtype: str) -> Slots:
        """``m`` of zeros and ``v`` of ``tau ** 2``."""
        return _slots(size, dtype, self.tau)

    def step(self, params: Array, delta: Array, slots: Slots, round: int) -> tuple[Array, Slots]:
        """One round of algorithm 2."""

        def second(v: Array, square: Array) -> Array:
            total: Array = v - (1.0 - self.beta_2) * square * np.sign(v - square)
            return total

        _check("ServerYogi", params, delta, slots, ("m", "v"))
        return _adaptive(params, delta, slots, self.learning_rate, self.beta_1, self.tau, second)


def _slots(size: int, dtype: str, tau: float) -> Slots:
    return {"m": np.zeros(size, dtype), "v": np.full(size, tau**2, dtype)}


def _adaptive(
    params: Array,
    delta: Array,
    slots: Slots,
    learning_rate: float,
    beta_1: float,
    tau: float,
    second: Callable[[Array, Array], Array],
) -> tuple[Array, Slots]:
    change = delta.astype(params.dtype, copy=False)
    m = beta_1 * slots["m"] + (1.0 - beta_1) * change
    v = second(slots["v"], np.square(change))
    return params + learning_rate * m / (np.sqrt(v) + tau), {"m": m, "v": v}


def _check_adaptive(name: str, learning_rate: float, beta_1: float, tau: float) -> None:
    checks.positive(f"{name}.learning_rate", learning_rate)
    checks.in_unit(f"{name}.beta_1", beta_1, one=False)
    checks.positive(f"{name}.tau", tau)


def _check(name: str, params: Array, delta: Array, slots: Slots, names: tuple[str, ...]) -> None:
    if params.ndim != 1 or delta.shape != params.shape:
        raise ConfigError(
            f"{name} got parameters of shape {params.shape} and a change of shape {delta.shape}; both must be flat, (size,)"
        )
    shapes = {slot: array.shape for slot, array in slots.items()}
    if shapes != dict.fromkeys(names, params.shape):
        raise ConfigError(
            f"{name} needs the slots {list(names)} of shape {params.shape} but got {shapes};"
            f" make them with init({params.size}, {params.dtype.name!r})"
        )
