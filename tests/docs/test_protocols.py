"""The pages of the protocols: what they draw is what was agreed to in review, and they say all that a plan discloses."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from docs.protocols import GOLDEN, Shown, diagram, index, names, page, picture, show
from hansa.cli.explanation import threat_model
from hansa.protocol import OBSERVER

REMEDY = "if this is meant, run `python docs/protocols.py` and let the difference be reviewed"


@pytest.fixture(scope="module")
def shown() -> dict[str, Shown]:
    return {name: show(name) for name in names()}


@pytest.mark.parametrize("name", names())
def test_messages_and_disclosures_are_those_that_were_reviewed(name: str, shown: dict[str, Shown]) -> None:
    file = GOLDEN / f"{name}.mmd"
    assert file.exists(), f"{name} has no golden picture; {REMEDY}"
    assert diagram(shown[name]) == file.read_text(encoding="utf-8"), REMEDY


def test_there_is_no_golden_picture_of_a_protocol_that_is_gone() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(names())


@pytest.mark.parametrize("name", names())
def test_a_picture_has_an_arrow_for_every_message_and_a_line_for_every_report(
    name: str, shown: dict[str, Shown]
) -> None:
    root = ET.fromstring(picture(shown[name]))
    arrows = [line for line in root.iter() if line.tag.endswith("line") and line.get("marker-end")]
    dashed = [line for line in root.iter() if line.tag.endswith("line") and line.get("stroke-dasharray")]
    entries = shown[name].run.log.entries
    assert len(arrows) == sum(entry.to != OBSERVER for entry in entries) > 0
    assert len(dashed) == sum(entry.to == OBSERVER for entry in entries) == len(shown[name].run.history)
    texts = [text.text or "" for text in root.iter() if text.tag.endswith("text")]
    rounds = [text.split()[1] for text in texts if text.startswith("round ")]
    assert rounds == [str(record.round) for record in shown[name].run.history if record.round] == ["1", "2"]
    assert {entry.kind for entry in entries if entry.to != OBSERVER} == {
        text.split()[0] for text in texts if text.endswith(" B")
    }


@pytest.mark.parametrize("name", names())
def test_a_page_says_who_learns_what_and_what_each_setting_is(name: str, shown: dict[str, Shown]) -> None:
    text = page(shown[name])
    for role in shown[name].roles.values():
        for kind in role.receives:
            assert f"| `{kind.__name__}` |" in text and kind.discloses in text
    assert "## Threat model\n\nSemi-honest p" in text and "no secure aggregation, so" in text
    assert ("The stage `mean`: The collector sees" in text) == (name != "dpsgd")
    assert ">>> " not in text and ":mod:" not in text and ":class:" not in text
    for line in text.splitlines():
        if line.startswith("| `") and line.count("|") == 4:
            assert not line.endswith("|  |"), f"a setting that no docstring describes: {line}"
    assert f"({name}.md)" in index(list(shown.values()))


def test_a_threat_model_is_told_whole() -> None:
    inherited, own = threat_model("hansa.horizontal.fednova")
    assert inherited == threat_model("hansa.horizontal.rounds")[0] == threat_model("hansa.horizontal.fedavg")[0]
    assert own.startswith("Besides, a party discloses how far its steps reach")
    with pytest.raises(ValueError, match=r"hansa\.rng must state its threat model"):
        threat_model("hansa.rng")
