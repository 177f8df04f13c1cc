"""The threat model: each test that it names is there, and each setting that it calls the node's own is one."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from hansa.deployment.policy import Policy

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def test_the_tests_that_it_names_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", TEXT))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    # A name without a folder stands beside the one before it.
    found = {path.name for path in (ROOT / "tests" / "deployment").rglob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", TEXT)) <= found


def test_what_holds_without_the_hub_and_what_does_not_are_settings_of_a_policy() -> None:
    sentence = re.search(r"So (.*?) are promises of the hub's operator; (.*?) hold without it\.", TEXT, re.DOTALL)
    assert sentence is not None
    known = {field.name for field in fields(Policy)}
    promised, kept = (set(re.findall(r"`(\w+)`", part)) for part in sentence.groups())
    assert promised and kept and promised | kept <= known and not promised & kept


def test_every_adversary_says_what_does_not_hold() -> None:
    adversaries = TEXT.partition("## Adversaries")[2].partition("## Mistakes")[0].split("\n### ")[1:]
    assert len(adversaries) >= 8
    for part in adversaries:
        title = part.splitlines()[0]
        assert "Does not hold" in part or "no forward secrecy" in part or "Can invite" in part, title
