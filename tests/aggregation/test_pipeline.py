"""Pipelines at run time: what a user without a type checker is told."""

from __future__ import annotations

import pytest

from hansa.aggregation import clip, mean
from hansa.errors import ConfigError
from hansa.pipeline import compose, stages
from tests.typing.stand_ins import gaussian


def test_a_client_stage_after_an_aggregation_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match="'Clip' cannot follow 'Averaging': clip limits what one party can change"):
        mean() | clip(1.0)  # type: ignore[operator]


def test_a_server_stage_before_the_aggregation_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match="'Mechanism' cannot follow 'Clip'"):
        clip(1.0) | gaussian()  # type: ignore[operator]


@pytest.mark.parametrize("right", [3, "mean", None])
def test_what_is_no_stage_is_pythons_own_mistake(right: object) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        clip(1.0) | right  # type: ignore[operator]


def test_a_pipeline_comes_apart_and_together_again() -> None:
    pipeline = clip(1.0) | mean("uniform")
    assert compose(stages(pipeline)) == pipeline
