"""Pipelines that make no sense fail type checking, on the line where they are written; the same in a plan give a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa.aggregation import Averaging, Clip, compose, stages
from hansa.errors import ConfigError, PlanError
from tests.typing.stand_ins import (
    Krum,
    LocalNoise,
    Mechanism,
    NoisyMean,
    SecureSum,
    gaussian,
    gaussian_each,
    multi_krum,
    noisy_mean,
    secure_sum,
)

HERE = Path(__file__).resolve().parent


def test_every_planted_mistake_fails_type_checking_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(HERE.parents[1])
    files = [str(HERE / name) for name in ("mistakes.py", "right.py", "stand_ins.py")]
    report, trouble, _ = api.run(["--no-error-summary", "--hide-error-context", *files])
    assert not trouble
    found = {(Path(m[1]).name, int(m[2])) for m in re.finditer(r"^(.+?):(\d+): error:", report, re.MULTILINE)}
    lines = (HERE / "mistakes.py").read_text().splitlines()
    planted = {("mistakes.py", number) for number, line in enumerate(lines, 1) if line.endswith("# mistake")}
    assert len(planted) >= 30
    assert found == planted, report


RIGHT = [
    hs.clip(1.0) | hs.mean(),
    hs.mean("uniform"),
    hs.clip(1.0) | hs.mean() | gaussian(),
    hs.clip(1.0) | gaussian_each() | noisy_mean(),
    hs.clip(1.0) | (gaussian_each() | noisy_mean()),
    hs.clip(1.0) | secure_sum() | gaussian(),
    hs.clip(1.0) | multi_krum(),
]


@pytest.mark.parametrize("pipeline", RIGHT)
def test_a_right_pipeline_is_its_stages(pipeline: Any) -> None:
    parts = stages(pipeline)
    assert stages(compose(parts)) == parts
    assert compose(parts).messages == pipeline.messages


def test_how_a_pipeline_was_put_together_does_not_show() -> None:
    one = (hs.clip(1.0) | gaussian_each()) | noisy_mean()
    other = hs.clip(1.0) | (gaussian_each() | noisy_mean())
    assert [type(s) for s in stages(one)] == [type(s) for s in stages(other)] == [Clip, LocalNoise, NoisyMean]


WRONG: list[tuple[list[Any], str]] = [
    ([Averaging(), Clip(1.0)], "'clip' cannot follow 'averaging'.*what one party can change"),
    ([LocalNoise(), Clip(1.0), Averaging()], "'localnoise' cannot follow the learner.*clip first"),
    ([Clip(1.0), SecureSum(), Krum()], "'krum' cannot follow 'securesum'.*nobody saw singly.*compares single updates"),
    ([Clip(1.0), Krum(), Mechanism()], "'mechanism' cannot follow 'krum'.*no bound.*clip before the aggregation"),
    ([SecureSum()], "'securesum' cannot follow the learner.*must have a bound"),
    ([Averaging(), Mechanism()], "'mechanism' cannot follow 'averaging'.*no bound"),
    ([Clip(1.0), Averaging(), Averaging()], "'averaging' cannot follow 'averaging'.*once"),
    ([Clip(1.0), Averaging(), SecureSum()], "'securesum' cannot follow 'averaging'"),
    ([Clip(1.0), Clip(2.0), Averaging()], "'clip' cannot follow 'clip'"),
    ([Clip(1.0), Mechanism(), Averaging()], "'mechanism' cannot follow 'clip'"),
    ([Clip(1.0)], "nothing here combines.*'mean'"),
    ([], "nothing here combines"),
]


@pytest.mark.parametrize(("parts", "why"), WRONG)
def test_a_wrong_pipeline_is_refused_with_a_sentence(parts: list[Any], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(parts)
    sentence = str(caught.value)
    assert re.search(why, sentence), sentence
    assert "\n" not in sentence and len(sentence) < 400


def test_a_plan_refuses_what_only_python_let_through() -> None:
    settings: Any = {"protocol": hs.FedAvg(rounds=1, cohort=1), "learner": hs.learners.Softmax()}
    plain: Any = hs.mean()
    robust: Any = hs.clip(1.0) | multi_krum()
    wrong: list[Any] = [plain | gaussian(), secure_sum(), hs.clip(1.0), robust | gaussian(), 3, None]
    for pipeline in wrong:
        with pytest.raises(PlanError):
            hs.Plan(aggregation=pipeline, **settings)
    hs.Plan(aggregation=hs.clip(1.0) | secure_sum() | gaussian(), **settings)


TOML = """
[protocol]
name = "fedavg"
rounds = 1
cohort = 1
[learner]
name = "softmax"
"""


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        (
            '[[aggregation]]\nname = "mean"\n[[aggregation]]\nname = "clip"\nbound = 1.0\n',
            "'clip' cannot follow 'mean'",
        ),
        ('[[aggregation]]\nname = "mean"\n[[aggregation]]\nname = "mean"\n', "'mean' cannot follow 'mean'.*once"),
        ('[[aggregation]]\nname = "clip"\nbound = 1.0\n', "nothing here combines"),
        (
            '[[aggregation]]\nname = "clip"\nbound = 1.0\n' * 2 + '[[aggregation]]\nname = "mean"\n',
            "'clip' cannot follow 'clip'",
        ),
    ],
)
def test_a_wrong_pipeline_in_a_file_is_refused_with_a_sentence(tables: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(TOML + tables)
    with pytest.raises(PlanError, match=why) as caught:
        hs.Plan.load(path)
    assert len(caught.value.mistakes) == 1
