"""The [deployment] table beside a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from hansa.cli.remote import _plan_text
from hansa.deployment.placement import Deployment
from hansa.errors import ConfigError
from hansa.plan import Plan

SOUND = """
name = "hearts"
[protocol]
name = "fedavg"
rounds = 3
cohort = 2
[learner]
name = "softmax"
"""


def plan(folder: Path, more: str = "") -> Path:
    path = folder / "plan.toml"
    path.write_text(SOUND + more, encoding="utf-8")
    return path


def test_a_plan_says_where_it_is_placed(tmp_path: Path) -> None:
    path = plan(tmp_path, '[deployment]\nserver = "lund"\nparties = ["lund", "kiel"]\nleast = 2\nwithin = 5\n')
    _, name, placed = _plan_text(path, [])
    assert name == "hearts" and placed == Deployment(parties=("lund", "kiel"), least=2, server="lund", within=5.0)


def test_without_a_table_the_hub_serves_and_all_are_asked(tmp_path: Path) -> None:
    assert _plan_text(plan(tmp_path), [])[2] == Deployment()


def test_the_table_is_no_part_of_the_plan(tmp_path: Path) -> None:
    bare = Plan.load(plan(tmp_path)).digest
    assert Plan.load(plan(tmp_path, '[deployment]\nserver = "lund"\n')).digest == bare


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('severs = "lund"', "did you mean 'server'"),
        ('parties = "lund"', "deployment.parties"),
        ("least = -1", "least is how many"),
        ("least = 1.5", "deployment.least"),
        ("within = -2.0", "within is a number of seconds"),
        ("within = inf", "within is a number of seconds"),
        ('server = ["hub"]', "deployment.server"),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _plan_text(plan(tmp_path, f"[deployment]\n{line}\n"), [])
