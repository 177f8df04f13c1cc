"""Commands in the home of somebody for whom they are not, and what is said of a home before it works."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("grpc")

from hansa.cli import main
from hansa.deployment import daemon, doctor
from hansa.deployment.hub import create
from hansa.deployment.settings import HubSettings, template_hub, template_node
from hansa.errors import ConfigError
from tests.deployment.federation import enrol

MOUNTED = """
log = "text"
[data.hearts]
source = "csv:mnt/hearts.csv"
options = { test = "mnt/test.csv" }
[data.scans]
source = "npz:mnt/*.npz"
[data.iris]
source = "sklearn:iris"
"""
ALLOWING = """
[policy]
submitters = ["ada"]
data = ["hearts"]
protocols = ["fedavg"]
learners = ["softmax"]
"""


@pytest.fixture
def homes(tmp_path: Path) -> Path:
    create(tmp_path / "hub", "hearts", "operator", HubSettings(), time.time())
    enrol(tmp_path / "hub", tmp_path / "clinic", "clinic", "node")
    enrol(tmp_path / "hub", tmp_path / "ada", "ada", "submitter")
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capfd.readouterr().err


@pytest.mark.parametrize("command", [("pending",), ("approve", "ab12"), ("refuse", "ab12")])
@pytest.mark.parametrize(
    ("home", "whose"), [("ada", "submitter 'ada' of federation 'hearts'"), ("hub", "hub 'hub' of federation 'hearts'")]
)
def test_nobody_but_a_node_is_asked(
    homes: Path, capfd: pytest.CaptureFixture[str], command: tuple[str, ...], home: str, whose: str
) -> None:
    told = refused(capfd, *command, "--home", str(homes / home))
    assert f"{homes / home} is the home of {whose}; only a node's owner approves" in told
    assert "hansa node" not in told


def test_a_node_that_does_not_run_is_to_be_started(homes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pending", "--home", str(homes / "clinic")])
    assert stopped.value.code == 1 and f"hansa node --home {homes / 'clinic'}" in capfd.readouterr().err


def test_an_empty_home_is_nobodys(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "nobody has joined a federation in" in refused(capfd, "pending", "--home", str(tmp_path))


# What a node says when it starts.


def started(home: Path, text: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log of a node that starts with this file, until it would dial."""

    def enough(*_: object) -> None:
        raise ConfigError("enough")

    (home / "node.toml").write_text(text)
    monkeypatch.setattr(daemon, "Node", enough)
    monkeypatch.setattr(daemon, "one_heap", lambda: None)
    with pytest.raises(ConfigError, match="enough"):
        daemon.run_node(home, daemon.node_settings(home), lambda _: None)
    return capfd.readouterr().err.splitlines()


def test_a_node_that_allows_nothing_says_so(
    homes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = started(homes / "clinic", "", capfd, monkeypatch)
    assert "warning node: this node allows no run" in line
    assert "[policy] submitters, data, protocols, learners in node.toml lists nothing" in line


def test_a_node_whose_data_are_not_there_says_so_once_for_each_and_starts(
    homes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes / "clinic"
    one, two = started(home, MOUNTED + ALLOWING, capfd, monkeypatch)
    assert "warning" in one and "data=hearts" in one
    assert str(home / "mnt/hearts.csv") in one and str(home / "mnt/test.csv") in one
    assert "warning" in two and "data=scans" in two and "*.npz" in two
    (home / "mnt").mkdir()
    for name in ("hearts.csv", "test.csv", "a.npz"):
        (home / "mnt" / name).write_bytes(b"")
    assert started(home, MOUNTED + ALLOWING, capfd, monkeypatch) == []


# What the doctor says of the disk.


@pytest.mark.parametrize(
    ("home", "spool", "free", "said"),
    [
        ("hub", '"100GB"', 50e9, ""),
        ("clinic", '"20GB"', 3e9, ""),
        ("hub", '"100GB"', 1e9, "1.0 GB are free at {home}, and 2.1 GB are little enough"),
        ("clinic", '"20GB"', 1e9, "1.0 GB are free at {home}, and 2.1 GB are little enough"),
        ("hub", '"50GB"', 30e9, "30.0 GB are free at {home}, and [limits] spool is 50.0 GB; lower it or make room"),
        ("clinic", '"1GB"', 1.5e9, ""),
        ("clinic", '"1GB"', 0.5e9, "0.5 GB are free at {home}, and [limits] spool is 1.0 GB"),
    ],
)
def test_the_disk_is_measured_against_what_the_owner_said(
    homes: Path, monkeypatch: pytest.MonkeyPatch, home: str, spool: str, free: float, said: str
) -> None:
    place, kind = homes / home, "hub" if home == "hub" else "node"
    template = template_hub() if kind == "hub" else template_node()
    default = '"100GB"' if kind == "hub" else '"20GB"'
    assert f"spool = {default}" in template
    (place / f"{kind}.toml").write_text(template.replace(f"spool = {default}", f"spool = {spool}"))
    monkeypatch.setattr(doctor, "is_free", lambda _: True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=int(free)))
    monkeypatch.setattr(doctor, "_data", lambda *_, **__: iter(()))
    monkeypatch.setattr(doctor, "_hub_from_here", lambda _: iter(()))
    found = [one.text for one in doctor.examine(place) if (one.about, one.verdict) == ("disk", "warning")]
    assert [text.startswith(said.format(home=place)) for text in found] == ([True] if said else []), found
