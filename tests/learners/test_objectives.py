"""Local objective terms: the algebra of addition, and each paper's gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import ConfigError
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.learners.numpy import Linear
from hansa.learners.objectives import Term, control_variate, dynamic_regularizer, proximal
from hansa.learners.optimizers import SGD
from hansa.rng import Key

# Whole numbers add exactly, so the laws hold to the bit.
terms = st.builds(
    Term,
    st.integers(0, 1000).map(float),
    st.one_of(st.none(), st.lists(st.integers(-1000, 1000), min_size=3, max_size=3).map(lambda v: np.array(v, float))),
)


def same(one: Term, two: Term) -> bool:
    if one.linear is None or two.linear is None:
        return one.proximal == two.proximal and one.linear is two.linear
    return one.proximal == two.proximal and np.array_equal(one.linear, two.linear)


@given(terms, terms, terms)
def test_addition_is_a_commutative_monoid(a: Term, b: Term, c: Term) -> None:
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))
    assert same(a + Term(), a)
    assert same(Term() + a, a)


@given(terms, terms)
def test_applying_a_sum_is_applying_each(a: Term, b: Term) -> None:
    work = LocalWork(round=4, epochs=2, learning_rate=0.5)
    once, twice = (a + b).apply(work), b.apply(a.apply(work))
    assert same(Term(once.proximal, once.linear), Term(twice.proximal, twice.linear))
    assert (once.round, once.epochs, once.learning_rate) == (4, 2, 0.5)


@given(terms)
def test_work_is_apply_to_fresh_work(a: Term) -> None:
    made = a.work(round=2, steps=3, full_batch=True)
    applied = a.apply(LocalWork(round=2, steps=3, full_batch=True))
    assert same(Term(made.proximal, made.linear), Term(applied.proximal, applied.linear))
    assert (made.round, made.steps, made.full_batch) == (2, 3, True)


def test_addition_changes_neither_side() -> None:
    linear = np.ones(3)
    a, b = Term(linear=linear), Term(linear=np.full(3, 2.0))
    a + b
    a.apply(b.work())
    assert linear.tolist() == [1.0] * 3 and b.linear is not None and b.linear.tolist() == [2.0] * 3


@pytest.mark.parametrize("engine", ["book", "batched"])
def test_a_learner_steps_along_each_papers_gradient(engine: str) -> None:
    g = np.random.default_rng(0)
    data = Examples(g.normal(size=(6, 2)), g.normal(size=6))
    learner = Linear(SGD(0.1), dtype="float64", engine=engine)  # type: ignore[arg-type]
    start = learner.init(Key.root(0), data) + g.normal(size=3)
    c, c_i, history = (g.normal(size=3) for _ in range(3))

    def slope(w: np.ndarray) -> np.ndarray:
        error = data.x @ w[:2] + w[2] - data.y
        return np.append(2 * data.x.T @ error / 6, 2 * error.mean())

    gradients: dict[Term, Callable[[np.ndarray], np.ndarray]] = {
        proximal(0.7): lambda w: slope(w) + 0.7 * (w - start.flat),
        control_variate(c, c_i): lambda w: slope(w) - c_i + c,
        dynamic_regularizer(0.3, history): lambda w: slope(w) - history + 0.3 * (w - start.flat),
    }
    for term, gradient in gradients.items():
        w = start.flat.copy()
        for _ in range(4):
            w = w - 0.1 * gradient(w)
        update = learner.fit(start, data, term.work(steps=4, full_batch=True), Key.root(0))
        np.testing.assert_allclose(update.delta.array, w - start.flat, rtol=1e-9)


def test_bad_terms_are_named() -> None:
    with pytest.raises(ConfigError, match=r"proximal\.mu"):
        proximal(-0.1)
    with pytest.raises(ConfigError, match=r"dynamic_regularizer\.alpha"):
        dynamic_regularizer(0.0, np.zeros(2))
    with pytest.raises(ConfigError, match="control variate has shape"):
        control_variate(np.zeros(2), np.zeros(3))
    with pytest.raises(ConfigError, match="linear parts of shapes"):
        Term(linear=np.zeros(2)) + Term(linear=np.zeros(1))
