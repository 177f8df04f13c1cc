"""Server optimizers against the paper's lines, written out for one scalar at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hansa.errors import ConfigError
from hansa.learners.server_optimizers import ServerAdagrad, ServerAdam, ServerSGD, ServerYogi

ALL = [
    ServerSGD(),
    ServerSGD(0.5, 0.9),
    ServerAdagrad(0.1),
    ServerAdagrad(0.1, beta_1=0.5, tau=0.1),
    ServerAdam(0.1),
    ServerYogi(0.1, beta_1=0.8, beta_2=0.9, tau=0.01),
]


def paper(optimizer: Any, x: float, deltas: list[float]) -> float:
    """One coordinate through all rounds, as the papers write it."""
    if isinstance(optimizer, ServerSGD):
        b = 0.0
        for delta in deltas:
            b = optimizer.momentum * b + delta
            x = x + optimizer.learning_rate * b
        return x
    m, v = 0.0, optimizer.tau**2
    for delta in deltas:
        m = optimizer.beta_1 * m + (1 - optimizer.beta_1) * delta
        if isinstance(optimizer, ServerAdagrad):
            v = v + delta**2
        elif isinstance(optimizer, ServerYogi):
            v = v - (1 - optimizer.beta_2) * delta**2 * math.copysign(v != delta**2, v - delta**2)
        else:
            v = optimizer.beta_2 * v + (1 - optimizer.beta_2) * delta**2
        x = x + optimizer.learning_rate * m / (math.sqrt(v) + optimizer.tau)
    return x


@pytest.mark.parametrize("optimizer", ALL, ids=str)
def test_rounds_follow_the_paper(optimizer: Any) -> None:
    g = np.random.default_rng(0)
    start, deltas = g.normal(size=7), g.normal(size=(12, 7)) * 10.0 ** g.integers(-4, 2, (12, 7))
    deltas[3] = 0.0
    x, slots = start, optimizer.init(7, "float64")
    for t, delta in enumerate(deltas):
        x, slots = optimizer.step(x, delta, slots, t)
    expected = [paper(optimizer, start[j], deltas[:, j].tolist()) for j in range(7)]
    np.testing.assert_allclose(x, expected, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ALL, ids=str)
def test_a_step_changes_no_argument_and_keeps_dtype(optimizer: Any) -> None:
    params, delta = np.ones(3, np.float32), np.full(3, 2.0)
    slots = optimizer.init(3, "float32")
    first, after = optimizer.step(params, delta, slots, 0)
    again, _ = optimizer.step(params, delta, slots, 0)
    assert params.tolist() == [1.0] * 3 and delta.tolist() == [2.0] * 3
    assert first.tobytes() == again.tobytes()
    assert first.dtype == np.float32 and all(s.dtype == np.float32 for s in after.values())
    assert set(after) == set(slots)


def test_defaults_of_sgd_are_plain_averaging() -> None:
    x, slots = ServerSGD().step(np.ones(2), np.array([0.5, -1.0]), {}, 0)
    assert x.tolist() == [1.5, 0.0] and slots == {}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ServerSGD(0.0), "ServerSGD.learning_rate"),
        (lambda: ServerSGD(1.0, 1.0), "ServerSGD.momentum"),
        (lambda: ServerAdagrad(-1.0), "ServerAdagrad.learning_rate"),
        (lambda: ServerAdagrad(0.1, tau=0.0), "ServerAdagrad.tau"),
        (lambda: ServerAdam(0.1, beta_1=1.0), "ServerAdam.beta_1"),
        (lambda: ServerAdam(0.1, beta_2=-0.1), "ServerAdam.beta_2"),
        (lambda: ServerYogi(math.nan), "ServerYogi.learning_rate"),
        (lambda: ServerYogi(0.1, beta_2=1.5), "ServerYogi.beta_2"),
    ],
)
def test_bad_settings_are_named(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


@pytest.mark.parametrize("optimizer", ALL, ids=str)
def test_foreign_slots_and_shapes_are_refused(optimizer: Any) -> None:
    slots = optimizer.init(3, "float64")
    for params, delta, memory in (
        (np.zeros(3), np.zeros(1), slots),
        (np.zeros((3, 1)), np.zeros((3, 1)), slots),
        (np.zeros(3), np.zeros(3), {**slots, "extra": np.zeros(3)}),
        (np.zeros(3), np.zeros(3), {"m": np.zeros(2), "v": np.zeros(2)}),
    ):
        with pytest.raises(ConfigError, match=r"must be flat|needs the slots"):
            optimizer.step(params, delta, memory, 0)
