"""The operator's guide: its commands, played on one machine as on four, say what the page says that they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs the extra 'net'")
pytest.importorskip("sklearn", reason="needs the extra 'sklearn'")

from docs.operate import PAGE, four, parts, played

TEXT = PAGE.read_text(encoding="utf-8")
CONSOLES = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CHANGING = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
    (r"hansa1-[\w.-]+", "TOKEN"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"\b(?:[0-9a-f]{4} ){7}[0-9a-f]{4}\b", "KEYS"),
    (r"\b[0-9a-f]{16}\b|(?<=(?:watch|fetch|prove|octor) )[0-9a-f]{6}\b", "RUN"),
    (r"\d+\.\d+ s\b", "SECONDS"),
    (r"\d+\.\d+ [kMGT]B are free", "SIZE are free"),
    (r"(Python|grpcio|cryptography) [\d.]+", r"\1 VERSION"),
    (r"\b\d+\.\d{4}\b", "NUMBER"),
    (r"hospital-[ab]", "HOSPITAL"),  # of two that refuse, the first ends the run, and the other may not have judged yet
    (r"\b\d+(?= records,|:HASH)", "COUNT"),
    (r" +", " "),
)


def steady(line: str) -> str:
    """A line without what is different each time."""
    for pattern, name in CHANGING:
        line = re.sub(pattern, name, line)
    return line


def commands(text: str) -> list[tuple[str, str, list[str]]]:
    """Every command with what it says, in an order of its own: two machines' answers may cross."""
    found = [
        part
        for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for part in parts(block)
    ]
    return [
        (machine, re.sub(r"\b[0-9a-f]{6}\b", "RUN", command), sorted(map(steady, said)))
        for machine, command, said in found
    ]


@pytest.mark.slow
def test_the_commands_of_the_page_say_what_it_says(tmp_path: Path) -> None:
    with four(tmp_path) as machines:
        again = played(TEXT, machines)
    assert commands(again) == commands(TEXT), (
        "if this is meant, run `python docs/operate.py` and let the difference be reviewed"
    )


def test_every_command_of_the_page_is_one() -> None:
    from hansa.cli.app import app

    known = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback is not None}
    named = {command.split()[1] for block in CONSOLES for _, command, _ in parts(block) if command != "^C"}
    prose = set(re.findall(r"`hansa ([a-z]+)", TEXT))
    assert {"hub", "invite", "join", "node", "submit", "watch", "approve", "revoke"} <= named
    assert named | prose <= {name.replace("_", "-") for name in known} | {"hub", "node"}, named | prose


def test_no_output_of_the_page_was_left_to_be_filled_in() -> None:
    assert all("-" not in said for block in CONSOLES for _, _, said in parts(block))
    assert "/tmp" not in TEXT and "127.0.0.1:7" not in TEXT


def test_the_page_names_every_setting_of_a_policy_and_every_kind_of_member() -> None:
    from dataclasses import fields
    from typing import get_args

    from hansa.deployment.identity.names import MemberKind
    from hansa.deployment.policy import Policy

    for name in (field.name for field in fields(Policy) if field.name != "lines"):
        assert f"`{name}`" in TEXT, name
    for kind in get_args(MemberKind):
        assert f"| `{kind}` |" in TEXT
