"""Optimizers and schedules: what they accept and the learning rate they give."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import ConfigError
from hansa.learner import LocalWork
from hansa.learners.optimizers import SGD, Adam, AdamW, learning_rate
from hansa.learners.schedules import Constant, Cosine, Exponential, Linear, Schedule, StepDecay, Warmup

SCHEDULES: list[Schedule] = [
    Constant(),
    StepDecay(3, 0.5),
    Exponential(0.9),
    Cosine(10, 0.1),
    Linear(10, 0.2),
    Warmup(4, then=Warmup(2, then=Cosine(5))),
]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SGD(0.0), "SGD.learning_rate must be above 0"),
        (lambda: SGD(-0.1), "SGD.learning_rate"),
        (lambda: SGD(math.nan), "finite"),
        (lambda: SGD(math.inf), "finite"),
        (lambda: SGD("0.1"), "finite number, not '0.1'"),  # type: ignore[arg-type]
        (lambda: SGD(True), "finite number, not True"),
        (lambda: SGD(0.1, momentum=1.0), r"SGD.momentum must be in \[0, 1\)"),
        (lambda: SGD(0.1, momentum=-0.1), "SGD.momentum"),
        (lambda: SGD(0.1, nesterov=True), "needs a momentum"),
        (lambda: SGD(0.1, weight_decay=-1e-9), "SGD.weight_decay"),
        (lambda: SGD(0.1, schedule="cosine"), "SGD.schedule must be a schedule"),  # type: ignore[arg-type]
        (lambda: SGD(0.1, schedule=Cosine), "SGD.schedule must be a schedule"),  # type: ignore[arg-type]
        (lambda: Adam(0.0), "Adam.learning_rate"),
        (lambda: Adam(betas=(0.9, 1.0)), r"Adam.betas\[1\]"),
        (lambda: Adam(betas=(-0.1, 0.9)), r"Adam.betas\[0\]"),
        (lambda: Adam(betas=(0.9,)), "two numbers"),  # type: ignore[arg-type]
        (lambda: Adam(betas=0.9), "two numbers"),  # type: ignore[arg-type]
        (lambda: Adam(eps=0.0), "Adam.eps"),
        (lambda: AdamW(weight_decay=-1), "AdamW.weight_decay"),
        (lambda: StepDecay(0, 0.5), "StepDecay.every"),
        (lambda: StepDecay(2.5, 0.5), "StepDecay.every"),  # type: ignore[arg-type]
        (lambda: StepDecay(1, 0.0), r"StepDecay.gamma must be in \(0, 1\]"),
        (lambda: Exponential(1.1), "Exponential.gamma"),
        (lambda: Cosine(0), "Cosine.total"),
        (lambda: Cosine(5, floor=-0.1), "Cosine.floor"),
        (lambda: Linear(5, floor=1.1), "Linear.floor"),
        (lambda: Linear(5, over="round"), "did you mean 'rounds'"),  # type: ignore[arg-type]
        (lambda: Constant(over=["rounds"]), "not a unit"),  # type: ignore[arg-type]
        (lambda: Warmup(0), "Warmup.steps"),
        (lambda: Warmup(2, then=0.5), "Warmup.then"),  # type: ignore[arg-type]
        (lambda: Warmup(2, then=Cosine(5, over="epochs")), "counts rounds but its `then`, Cosine, counts epochs"),
    ],
)
def test_bad_values_are_named(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_they_are_values() -> None:
    assert SGD(0.05) == SGD(learning_rate=0.05)
    assert len({Adam(), Adam(), AdamW()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        SGD(0.1).learning_rate = 0.2  # type: ignore[misc]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@given(step=st.integers(0, 10_000))
def test_factors_stay_in_the_unit_interval(schedule: Schedule, step: int) -> None:
    assert 0.0 <= schedule.factor(step) <= 1.0


@pytest.mark.parametrize("schedule", SCHEDULES[:5], ids=str)
@given(step=st.integers(0, 100))
def test_decays_start_at_one_and_never_rise(schedule: Schedule, step: int) -> None:
    assert schedule.factor(0) == 1.0
    assert schedule.factor(step + 1) <= schedule.factor(step) + 1e-12


@pytest.mark.parametrize("total", [1, 2, 7])
def test_floors_are_met_and_kept(total: int) -> None:
    for schedule in (Cosine(total, 0.25), Linear(total, 0.25)):
        assert [schedule.factor(t) for t in (total, total + 1, 10**9)] == pytest.approx([0.25] * 3)


@pytest.mark.parametrize(("over", "factor"), [("rounds", 0.5**7), ("epochs", 0.5**2), ("steps", 0.5**5)])
def test_each_unit_counts_its_own_index(over: Any, factor: float) -> None:
    work = LocalWork(round=7, learning_rate=0.1)
    rate = learning_rate(SGD(2.0, schedule=Exponential(0.5, over=over)), work, epoch=2, step=5)
    assert rate == pytest.approx(2.0 * factor * 0.1)
