"""scikit-learn's estimators as learners: equal to the plain estimator, and refused where they do not average."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.tree import DecisionTreeClassifier

from hansa.errors import ConfigError, DataError
from hansa.examples import Examples
from hansa.learner import BatchLearner, LocalWork
from hansa.learners.sklearn import Sklearn, seed
from hansa.rng import Key

KEY = Key.root(3)


def examples(classes: int | None, n: int = 40) -> Examples:
    g = np.random.default_rng(0)
    x = g.normal(size=(n, 4))
    y = x @ np.array([1.0, -1.0, 0.5, 0.0])
    return Examples(x, y if classes is None else np.digitize(y, np.linspace(-1, 1, classes - 1)))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [SGDClassifier, Perceptron])
def test_one_party_is_plain_partial_fit(kind: Any, classes: int) -> None:
    data = examples(classes)
    learner = Sklearn(kind())
    update = learner.fit(learner.init(KEY, data), data, LocalWork(), KEY)
    plain = kind(random_state=seed(KEY)).partial_fit(data.x, data.y, classes=np.arange(classes))
    assert update.delta.array.tobytes() == np.concatenate([plain.coef_.ravel(), plain.intercept_]).tobytes()
    assert (update.weight, update.scalars["steps"]) == (40.0, 40.0)


def test_one_party_is_plain_partial_fit_of_a_regressor() -> None:
    data = examples(None)
    learner = Sklearn("sklearn.linear_model:SGDRegressor", params={"alpha": 0.01})
    params = learner.init(KEY, data)
    update = learner.fit(params, data, LocalWork(), KEY)
    plain = SGDRegressor(alpha=0.01, random_state=seed(KEY)).partial_fit(data.x, data.y)
    assert update.delta.array.tobytes() == np.concatenate([plain.coef_, plain.intercept_]).tobytes()
    got = learner.evaluate(params + update.delta.array, data)
    assert got["mse"] == pytest.approx(np.mean((plain.predict(data.x) - data.y) ** 2))


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("classes", [None, 2, 3])
def test_a_network_goes_on_as_partial_fit_does(solver: str, classes: int | None) -> None:
    data = examples(classes)
    made = (MLPRegressor if classes is None else MLPClassifier)(hidden_layer_sizes=(5,), solver=solver, batch_size=8)
    learner = Sklearn(made, epochs=2)
    params = learner.init(KEY, data)
    extra = {} if classes is None else {"classes": np.arange(classes)}
    plain = type(made)(
        hidden_layer_sizes=(5,),
        solver=solver,
        batch_size=8,
        random_state=seed(KEY),
        learning_rate_init=1e-300,
        alpha=0.0,
    )
    plain.partial_fit(data.x, data.y, **extra)
    start = np.concatenate([w.ravel() for w in (*plain.coefs_, *plain.intercepts_)])
    np.testing.assert_array_equal(params.flat, start)
    plain.set_params(learning_rate_init=made.learning_rate_init, alpha=made.alpha)
    del plain._optimizer
    plain.t_ = 0
    for epoch in range(2):
        plain.set_params(random_state=seed(KEY, epoch)).partial_fit(data.x, data.y, **extra)
    end = np.concatenate([w.ravel() for w in (*plain.coefs_, *plain.intercepts_)])
    update = learner.fit(params, data, LocalWork(), KEY)
    assert update.delta.array.tobytes() == (end - start).tobytes()
    assert update.scalars["steps"] == 10
    if classes is not None:
        assert learner.evaluate(params + update.delta.array, data)["accuracy"] == plain.score(data.x, data.y)


@pytest.mark.parametrize("kind", [LinearRegression, Ridge])
def test_exact_solvers_solve(kind: Any) -> None:
    data = examples(None)
    learner = Sklearn(kind())
    params = learner.init(KEY, data)
    update = learner.fit(params, data, LocalWork(), KEY)
    plain = kind().fit(data.x, data.y)
    np.testing.assert_array_equal(update.delta.array, [*plain.coef_, plain.intercept_])


def test_logistic_regression_starts_where_it_is_told() -> None:
    data = examples(3)
    learner = Sklearn(LogisticRegression(max_iter=3))
    params = learner.init(KEY, data)
    for _ in range(60):
        params = params + learner.fit(params, data, LocalWork(), KEY).delta.array
    plain = LogisticRegression(max_iter=1000, tol=1e-8).fit(data.x, data.y)
    np.testing.assert_allclose(params["coef_"], plain.coef_, atol=1e-2)
    only = Examples(data.x[data.y == 0], data.y[data.y == 0])
    with pytest.raises(DataError, match="each of the 3 classes"):
        learner.fit(params, only, LocalWork(), KEY)


def test_a_party_without_some_classes_trains() -> None:
    data = examples(3)
    only = Examples(data.x[data.y == 0], data.y[data.y == 0])
    learner = Sklearn(SGDClassifier())
    assert learner.fit(learner.init(KEY, data), only, LocalWork(), KEY).delta.array.any()


def test_fit_many_is_map_fit_and_pure() -> None:
    data = examples(3)
    datas = [Examples(data.x, data.y, np.arange(i, 40, 3)) for i in range(3)]
    made = SGDClassifier(random_state=1)
    learner = Sklearn(made, epochs=2)
    params = learner.init(KEY, data)
    before = params.flat.copy()
    rngs = [KEY.child("party", i) for i in range(3)]
    many = learner.fit_many(params, datas, [LocalWork()] * 3, rngs)
    for update, one, rng in zip(many, datas, rngs, strict=True):
        assert update == learner.fit(params, one, LocalWork(), rng)
    assert params.flat.tobytes() == before.tobytes()
    assert set(vars(made)) == set(vars(SGDClassifier(random_state=1)))
    assert isinstance(learner, BatchLearner)


def test_no_examples_change_nothing() -> None:
    data = examples(2)
    none = Examples(data.x, data.y, np.arange(0))
    learner = Sklearn(SGDClassifier())
    params = learner.init(KEY, data)
    update = learner.fit(params, none, LocalWork(), KEY)
    assert update.weight == 0 and not update.delta.array.any()
    with pytest.raises(DataError, match="no examples"):
        learner.evaluate(params, none)


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (LocalWork(proximal=0.1), "proximal term.*Softmax"),
        (LocalWork(linear=np.ones(5)), "linear term"),
        (LocalWork(steps=3), "number of steps"),
        (LocalWork(full_batch=True), "full batches"),
        (LocalWork(learning_rate=0.5, proximal=1.0), "proximal term and a learning-rate factor"),
    ],
)
def test_work_it_cannot_honour_is_refused(work: LocalWork, sentence: str) -> None:
    data = examples(2)
    learner = Sklearn(SGDClassifier())
    with pytest.raises(ConfigError, match=sentence):
        learner.fit(learner.init(KEY, data), data, work, KEY)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((GaussianNB(),), "cannot average the state of 'GaussianNB'"),
        ((DecisionTreeClassifier(),), "DecisionTreeClassifier"),
        (("sklearn.linear_model:SGDClasifier",), "did you mean 'SGDClassifier'"),
        (("os:system",), "cannot average"),
        (("sklearn.os:SGDClassifier",), "cannot average"),
        (("sklearn.neural_network:SGDClassifier",), "cannot average"),
        (("SGDClassifier",), "cannot average"),
        ((SGDClassifier,), "cannot average"),
        ((SGDClassifier(), 1), "classes"),
        ((SGDClassifier(), 2, 0), "epochs"),
        ((SGDRegressor(), 2), "no meaning"),
        ((Ridge(), None, 2), "in one go"),
        (("sklearn.linear_model:Ridge", None, 1, {"alhpa": 1}), "did you mean 'alpha'"),
        ((Ridge(), None, 1, {"alpha": 1}), "instance"),
        ((SGDClassifier(alpha=-1.0),), "'alpha' parameter"),
        ((SGDClassifier(loss="hing"),), "'loss' parameter"),
        ((SGDClassifier(average=True),), "average"),
        ((SGDClassifier(early_stopping=True),), "early_stopping"),
        ((MLPClassifier(solver="lbfgs"),), "lbfgs"),
        ((LogisticRegression(solver="liblinear"),), "liblinear"),
    ],
    ids=str,
)
def test_bad_settings_are_named(arguments: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Sklearn(*arguments)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.ones((2, 4)), np.array([0, 2]), "label 2"),
        (np.ones((2, 4)), np.array([0, -1]), "label -1"),
        (np.ones((2, 4)), np.array([0.0, 0.5]), "whole class numbers"),
        (np.ones((2, 3)), np.array([0, 1]), "4 features"),
        (np.array([[1, 1, 1, 1], [1, np.nan, 1, 1]]), np.array([0, 1]), "feature 1 of example 1"),
        (np.array([["a"] * 4] * 2), np.array([0, 1]), "numbers as features"),
    ],
)
def test_bad_examples_are_named(x: np.ndarray, y: np.ndarray, sentence: str) -> None:
    learner = Sklearn(SGDClassifier())
    params = learner.init(KEY, examples(2))
    for call in (
        lambda: learner.fit(params, Examples(x, y), LocalWork(), KEY),
        lambda: learner.evaluate(params, Examples(x, y)),
    ):
        with pytest.raises(DataError, match=sentence):
            call()
