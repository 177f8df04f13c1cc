"""The guide names everything that there is, and its plan in TOML is its plan in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa import registry
from hansa.plan import parse

GUIDE = (Path(__file__).resolve().parent.parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("group", ["protocols", "sources", "partitioners"])
def test_the_tables_hold_every_name(group: str) -> None:
    named = set(re.findall(r"^\| \[?`(\w+)`", GUIDE, re.MULTILINE))
    assert set(registry.BUILT_IN[group]) <= named


@pytest.mark.parametrize("group", ["stages", "learners", "samplings"])
def test_the_text_names_every_name(group: str) -> None:
    for place in registry.BUILT_IN[group].values():
        name = place.partition(":")[2]
        assert re.search(rf"\b{name}\b", GUIDE) or name in ("Clip", "Averaging"), name


def test_the_plan_in_toml_is_the_plan_in_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    toml = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)[0]
    python = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    values: dict[str, Any] = {"hs": hs}
    exec(next(block for block in python if "fedprox = " in block), values)
    plan, _ = parse(toml, {})
    assert plan == values["fedprox"] and plan.digest == values["fedprox"].digest
