"""Each algorithm equals the plain loop of its paper, written here with nothing of the system but the minibatch orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hansa.aggregation import mean
from hansa.errors import ConfigError, PlanError
from hansa.horizontal.evaluation import Evaluation
from hansa.horizontal.fedavg import FedAvg
from hansa.horizontal.fednova import FedNova, reach
from hansa.horizontal.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from hansa.horizontal.fedprox import FedProx
from hansa.horizontal.fedsgd import FedSGD
from hansa.horizontal.rounds import PartyState, RoundState
from hansa.horizontal.scaffold import Scaffold
from hansa.learners.optimizers import SGD, Adam
from hansa.learners.schedules import Exponential, StepDecay
from hansa.rng import Key
from tests.protocols import TOLERANCE, Data, LeastSquares, Vector, permutation, regression, run

SIZES = (7, 16, 4, 11, 9)
ROUNDS = 6
RATE, BATCH, EPOCHS = 0.05, 4, 2
QUIET = Evaluation(every=0, parties=0)


@pytest.fixture(scope="module")
def data() -> Data:
    return regression(SIZES)


def first_model(seed: int = 0) -> Vector:
    model: Vector = Key.root(seed).child("server/init").generator().normal(size=3)
    return model


def gradient(w: Vector, x: Vector, y: Vector) -> Vector:
    value: Vector = x.T @ (x @ w - y) / len(y)
    return value


def batches(name: str, round: int, count: int) -> list[Any]:
    orders = [permutation(name, round, count, epoch) for epoch in range(EPOCHS)]
    return [order[start : start + BATCH] for order in orders for start in range(0, count, BATCH)]


def settings(**more: Any) -> dict[str, Any]:
    return {"rounds": ROUNDS, "cohort": len(SIZES), "evaluation": QUIET, **more}


def local_sgd(w: Vector, x: Vector, y: Vector, name: str, round: int, mu: float = 0.0) -> Vector:
    v = w.copy()
    for rows in batches(name, round, len(y)):
        v = v - RATE * (gradient(v, x[rows], y[rows]) + mu * (v - w))
    return v


def averaging(
    data: Data, server: Callable[[Vector, Vector, int], Vector], weights: Any = None, mu: float = 0.0
) -> Vector:
    """McMahan et al. 2017, algorithm 1; ``server(w, averaged change, round)`` is the last line."""
    w = first_model()
    p = np.array([len(y) for _, y in data], float) if weights is None else np.asarray(weights, float)
    for t in range(1, ROUNDS + 1):
        locals_ = [local_sgd(w, x, y, f"client-{k}", t, mu) for k, (x, y) in enumerate(data)]
        w = server(w, sum(p_k * (v - w) for p_k, v in zip(p / p.sum(), locals_, strict=True)), t)
    return w


def same(found: Vector, expected: Vector) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(expected - first_model()).max() > 0.1, "the oracle did not move, so it proves nothing"


def test_fedavg_is_the_weighted_average_of_local_models(data: Data) -> None:
    same(run(FedAvg(**settings()), data).model, averaging(data, lambda w, change, t: w + change))


def test_fedavg_with_uniform_weights_and_a_server_rate(data: Data) -> None:
    found = run(FedAvg(**settings(server_learning_rate=0.5)), data, aggregation=mean("uniform")).model
    same(found, averaging(data, lambda w, change, t: w + 0.5 * change, weights=np.ones(len(data))))


def test_fedsgd_is_gradient_descent_on_the_union(data: Data) -> None:
    w = first_model()
    x, y = np.concatenate([x for x, _ in data]), np.concatenate([y for _, y in data])
    for t in range(1, ROUNDS + 1):
        w = w - 0.2 * 0.9**t * gradient(w, x, y)
    learner = LeastSquares(SGD(0.2, schedule=Exponential(0.9)))
    same(run(FedSGD(**settings()), data, learner=learner).model, w)


def test_fedprox_adds_the_proximal_gradient(data: Data) -> None:
    found = run(FedProx(**settings(mu=0.7)), data).model
    same(found, averaging(data, lambda w, change, t: w + change, mu=0.7))
    assert np.abs(found - run(FedAvg(**settings()), data).model).max() > 1e-3


def test_fedprox_without_its_term_is_fedavg(data: Data) -> None:
    np.testing.assert_array_equal(run(FedProx(**settings(mu=0.0)), data).model, run(FedAvg(**settings()), data).model)


def test_fedavgm_keeps_a_velocity(data: Data) -> None:
    velocity = np.zeros(3)

    def server(w: Vector, change: Vector, t: int) -> Vector:
        nonlocal velocity
        velocity = 0.6 * velocity + change
        return w + 0.5 * velocity

    expected = averaging(data, server)
    same(run(FedAvgM(**settings(server_learning_rate=0.5, momentum=0.6)), data).model, expected)


@pytest.mark.parametrize("name", ["adagrad", "yogi", "adam"])
def test_adaptive_servers_follow_algorithm_2(data: Data, name: str) -> None:
    eta, b1, b2, tau = 0.1, 0.8, 0.95, 1e-2
    m, v = np.zeros(3), np.full(3, tau**2)

    def server(w: Vector, change: Vector, t: int) -> Vector:
        nonlocal m, v
        m = b1 * m + (1 - b1) * change
        if name == "adagrad":
            v = v + change**2
        elif name == "yogi":
            v = v - (1 - b2) * change**2 * np.sign(v - change**2)
        else:
            v = b2 * v + (1 - b2) * change**2
        return w + eta * m / (np.sqrt(v) + tau)

    protocol = {
        "adagrad": FedAdagrad(**settings(server_learning_rate=eta, beta_1=b1, tau=tau)),
        "yogi": FedYogi(**settings(server_learning_rate=eta, beta_1=b1, beta_2=b2, tau=tau)),
        "adam": FedAdam(**settings(server_learning_rate=eta, beta_1=b1, beta_2=b2, tau=tau)),
    }[name]
    same(run(protocol, data).model, averaging(data, server))


def scaffold(data: Data, cohorts: dict[int, list[str]], server_rate: float, decay: float) -> tuple[Vector, Vector, Any]:
    """Karimireddy et al. 2020, algorithm 1, option II."""
    x_server, c, n = first_model(), np.zeros(3), len(data)
    c_i = [np.zeros(3) for _ in data]
    for t in sorted(cohorts):
        rate, dy, dc = RATE * decay**t, np.zeros(3), np.zeros(3)
        for name in cohorts[t]:
            i = int(name.removeprefix("client-"))
            x, y = data[i]
            y_i, steps = x_server.copy(), batches(name, t, len(y))
            for rows in steps:
                y_i = y_i - rate * (gradient(y_i, x[rows], y[rows]) - c_i[i] + c)
            c_plus = c_i[i] - c + (x_server - y_i) / (len(steps) * rate)
            dy, dc = dy + (y_i - x_server), dc + (c_plus - c_i[i])
            c_i[i] = c_plus
        size = len(cohorts[t])
        x_server, c = x_server + server_rate * dy / size, c + (size / n) * dc / size
    return x_server, c, c_i


@pytest.mark.parametrize("cohort", [2, 5])
def test_scaffold_follows_algorithm_1(data: Data, cohort: int) -> None:
    learner = LeastSquares(SGD(RATE, schedule=Exponential(0.9)))
    outcome = run(Scaffold(**settings(cohort=cohort, server_learning_rate=0.8)), data, learner=learner)
    model, c, c_i = scaffold(data, outcome.cohorts(), 0.8, 0.9)
    same(outcome.model, model)
    state = outcome.world.states["server"]
    assert isinstance(state, RoundState)
    np.testing.assert_allclose(state.slots["c"].array, c, rtol=0, atol=TOLERANCE)
    for i, control in enumerate(c_i):
        kept = outcome.world.states.get(f"client-{i}", PartyState(0, {}))
        assert isinstance(kept, PartyState)
        own = kept.slots["c"].array if kept.slots else np.zeros(3)
        np.testing.assert_allclose(own, control, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(c, np.mean(c_i, axis=0), rtol=0, atol=TOLERANCE)


def test_scaffold_finds_the_optimum_where_fedavg_drifts(data: Data) -> None:
    # Full-batch local steps over unequal solutions: FedAvg's fixed point is not the minimum of the average loss.
    learner = LeastSquares(SGD(0.05), batch_size=64, epochs=5)
    optimum = np.linalg.solve(sum(x.T @ x / len(y) for x, y in data), sum(x.T @ y / len(y) for x, y in data))
    many = settings(rounds=200)
    drift = run(FedAvg(**many), data, learner=learner, aggregation=mean("uniform")).model
    exact = run(Scaffold(**many), data, learner=learner).model
    assert np.linalg.norm(exact - optimum) < 1e-6
    assert np.linalg.norm(drift - optimum) > 1e-3


def fednova(data: Data, momentum: float, mu: float, nesterov: bool = False) -> Vector:
    """Wang et al. 2020, equation 4 with tau_eff = sum p_i ||a_i||_1; a_i found by differentiating through the local steps."""
    w = first_model()
    p = np.array([len(y) for _, y in data], float)
    p /= p.sum()
    for t in range(1, ROUNDS + 1):
        d, norms = [], []
        for k, (x, y) in enumerate(data):
            steps = batches(f"client-{k}", t, len(y))
            v, b = w.copy(), np.zeros(3)
            a, memory, moved = np.zeros(len(steps)), np.zeros(len(steps)), np.zeros(len(steps))
            for s, rows in enumerate(steps):
                g = gradient(v, x[rows], y[rows]) + mu * (v - w)
                b = momentum * b + g
                v = v - RATE * (g + momentum * b if nesterov else b)
                # The same step for the weight of each single gradient in the change.
                unit = np.eye(len(steps))[s] - mu * RATE * moved
                memory = momentum * memory + unit
                moved = moved + (unit + momentum * memory if nesterov else memory)
                a = moved
            norms.append(np.abs(a).sum())
            d.append((w - v) / (RATE * norms[-1]))
        tau_eff = p @ norms
        w = w - RATE * tau_eff * sum(p_i * d_i for p_i, d_i in zip(p, d, strict=True))
    return w


@pytest.mark.parametrize(
    ("momentum", "mu", "nesterov"),
    [(0.0, 0.0, False), (0.6, 0.0, False), (0.0, 0.9, False), (0.5, 0.3, False), (0.5, 0.0, True)],
)
def test_fednova_normalises_uneven_steps(data: Data, momentum: float, mu: float, nesterov: bool) -> None:
    learner = LeastSquares(SGD(RATE, momentum=momentum, nesterov=nesterov))
    same(run(FedNova(**settings(mu=mu)), data, learner=learner).model, fednova(data, momentum, mu, nesterov))


def test_fednova_with_equal_steps_is_fedavg() -> None:
    data = regression([8, 8, 8])
    nova = run(FedNova(**settings(cohort=3)), data).model
    np.testing.assert_allclose(nova, run(FedAvg(**settings(cohort=3)), data).model, rtol=0, atol=TOLERANCE)


def test_fednova_is_consistent_where_fedavg_is_not() -> None:
    data = regression([40, 8, 8], spread=2.0)
    learner = LeastSquares(SGD(0.02), batch_size=4, epochs=4)
    x, y = np.concatenate([x for x, _ in data]), np.concatenate([y for _, y in data])
    optimum = np.linalg.lstsq(x, y, rcond=None)[0]
    many = settings(cohort=3, rounds=60)
    nova = np.linalg.norm(run(FedNova(**many), data, learner=learner).model - optimum)
    plain = np.linalg.norm(run(FedAvg(**many), data, learner=learner).model - optimum)
    assert nova < 0.7 * plain


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_reach_has_the_papers_closed_forms(steps: int) -> None:
    rho, eta, mu = 0.7, 0.1, 0.9
    alpha = eta * mu
    assert reach(steps, lambda s: 1.0) == steps
    closed = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert reach(steps, lambda s: 1.0, momentum=rho) == pytest.approx(closed, rel=1e-12)
    assert reach(steps, lambda s: eta, mu=mu) / eta == pytest.approx((1 - (1 - alpha) ** steps) / alpha, rel=1e-12)


REFUSED: list[tuple[Any, Any, str]] = [
    (FedSGD(**settings()), LeastSquares(Adam()), "SGD"),  # type: ignore[arg-type]
    (Scaffold(**settings()), LeastSquares(Adam()), "SGD"),  # type: ignore[arg-type]
    (Scaffold(**settings()), LeastSquares(SGD(0.1, momentum=0.9)), "momentum"),
    (Scaffold(**settings()), LeastSquares(SGD(0.1, schedule=StepDecay(1, 0.5, over="steps"))), "schedule over steps"),
    (FedNova(**settings()), LeastSquares(Adam()), "SGD"),  # type: ignore[arg-type]
    (FedNova(**settings()), LeastSquares(SGD(0.1, schedule=StepDecay(1, 0.5, over="epochs"))), "schedule over epochs"),
]


@pytest.mark.parametrize(("protocol", "learner", "word"), REFUSED)
def test_learners_that_would_make_the_formulas_wrong_are_refused(protocol: Any, learner: Any, word: str) -> None:
    with pytest.raises(PlanError, match=word):
        protocol.roles(learner, mean())


def test_a_learner_without_an_optimizer_is_refused() -> None:
    class Silent:
        init = evaluate = fit = None

    with pytest.raises(PlanError, match="none that it tells of"):
        Scaffold(**settings()).roles(Silent(), mean())  # type: ignore[arg-type]


WRONG: list[tuple[type[Any], dict[str, Any]]] = [
    (FedAvg, {"rounds": 0}),
    (FedAvg, {"cohort": 0}),
    (FedAvg, {"over_selection": 0.9}),
    (FedAvg, {"over_selection": float("inf")}),
    (FedAvg, {"quorum": 0.0}),
    (FedAvg, {"quorum": 1.1}),
    (FedAvg, {"deadline": 0.0}),
    (FedAvg, {"deadline": float("nan")}),
    (FedAvg, {"missed_quorum": "shrug"}),
    (FedAvg, {"server_learning_rate": 0.0}),
    (FedAvg, {"server_learning_rate": float("nan")}),
    (FedProx, {"mu": -1.0}),
    (FedAvgM, {"momentum": 1.0}),
    (FedAdagrad, {"server_learning_rate": 0.0}),
    (FedAdam, {"server_learning_rate": 1.0, "beta_2": 1.0}),
    (FedYogi, {"server_learning_rate": 1.0, "tau": 0.0}),
    (Scaffold, {"server_learning_rate": -1.0}),
    (FedNova, {"mu": -0.1}),
    (FedNova, {"server_learning_rate": float("inf")}),
]


@pytest.mark.parametrize(("kind", "changes"), WRONG)
def test_settings_out_of_range_are_refused_at_once(kind: type[Any], changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        kind(**settings(**changes))
