"""`hansa runs`: the newest, and how many there are besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hansa.cli.app import main
from hansa.deployment import people
from hansa.deployment.api import Participant, RunView

SEAT = Participant("node-1", "node-1", "accepted", "", True)
RUNS = [
    RunView(f"{n:016x}", "trial", "ada", "completed", "", "", "", 3, 3, 1e9 - n, None, None, "ab" * 32, (SEAT,))
    for n in range(25)
]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command, with a hub that has 25 runs."""

    def runs(_: object, most: int | None = None) -> tuple[list[RunView], int]:
        return RUNS[:most], len(RUNS[most:]) if most is not None else 0

    monkeypatch.setattr(people, "credentials_at", lambda _: None)
    monkeypatch.setattr(people, "list_runs", runs)

    def ask(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["runs", *words, "--home", str(tmp_path)])
        assert ended.value.code == 0
        said = capsys.readouterr()
        return said.out, said.err

    return ask


def test_the_newest_are_shown_and_the_others_counted(listed: Any) -> None:
    out, err = listed()
    assert [line.split()[0] for line in out.splitlines()[1:]] == [view.run for view in RUNS[:20]]
    assert err.startswith("5 more, older ones: hansa runs --all --home ")
    out, err = listed("--all")
    assert (len(out.splitlines()), err) == (26, "")


def test_programs_get_the_same_and_a_whole_list_is_whole(listed: Any) -> None:
    out, err = listed("--json", "--all")
    found = json.loads(out)
    assert ([one["run"] for one in found], err) == ([view.run for view in RUNS], "")
    assert found[0]["participants"][0]["party"] == "node-1"
    out, err = listed("--json")
    assert len(json.loads(out)) == 20 and "5 more" in err
