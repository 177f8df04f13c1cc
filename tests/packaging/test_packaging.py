"""What is shipped beside the code gives a process nothing that it does not need. No tool is wanted for this."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNITS = {"hub": "hansa-hub.service", "node": "hansa-node.service"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what they are given, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (PACKAGING / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in lines)]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(n for n, (name, _) in enumerate(found) if name == "FROM") :]


def given(name: str) -> list[str]:
    return [rest for found, rest in last_stage() if found == name]


def compose() -> dict[str, Any]:
    content = yaml.safe_load((PACKAGING / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((PACKAGING / UNITS[name]).read_text(encoding="utf-8"))
    return parser["Service"]


def test_the_image_has_two_stages_of_pinned_slim_bases() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"python:3\.1[123]-slim-[a-z]+", base), base


def test_the_image_is_built_from_the_pinned_versions() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    assert "--constraint constraints.txt" in installs[0]
    assert "[net,sklearn]" in installs[0]


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = given("USER")
    assert users
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", users[-1]), (
        "a number, so that an orchestrator can see that it is not root"
    )
    names = [name for name, _ in last_stage()]
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_program_is_the_process_that_gets_the_signals() -> None:
    assert given("ENTRYPOINT") == ['["hansa"]']
    assert given("STOPSIGNAL") == ["SIGTERM"]
    assert len(given("HEALTHCHECK")) == 1
    assert "/healthz" in given("HEALTHCHECK")[0]


def test_nothing_secret_goes_into_the_image() -> None:
    text = (PACKAGING / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"(?i)(token|password|secret|api_?key|\.pem|\.key)", text)
    assert not [rest for name, rest in instructions() if name in {"ADD", "ARG"}]
    for name, rest in instructions():
        if name == "COPY":
            assert rest.split()[0] != ".", "the whole folder may hold keys"
    ignored = (PACKAGING / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in ignored if line and not line.startswith("#")]
    assert lines[0] == "*"


def test_what_the_image_copies_is_in_the_build() -> None:
    kept = [line[1:] for line in (PACKAGING / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert sorted(kept) == sorted(copied)
    assert all((ROOT / source).exists() for source in copied)


def test_a_hub_and_two_nodes() -> None:
    commands = sorted(" ".join(service["command"]) for service in services().values())
    assert commands == [f"{role} --home /var/lib/hansa" for role in ("hub", "node", "node")]
    assert [name for name, service in services().items() if "ports" in service] == ["hub"]


@pytest.mark.parametrize("name", sorted(services()))
def test_a_container_has_no_rights(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    for key in ("privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "userns_mode", "env_file"):
        assert key not in service
    assert not re.search(r":latest$|^[^:]+$", service["image"])
    assert "docker.sock" not in str(service)


@pytest.mark.parametrize("name", sorted(services()))
def test_a_container_s_home_is_a_volume_of_its_own_and_its_data_cannot_be_written(name: str) -> None:
    home, *others = services()[name]["volumes"]
    assert home == f"{name}:/var/lib/hansa"
    assert name in compose()["volumes"]
    assert all(other.endswith(":ro") for other in others)


HARDENING = {
    "DynamicUser": "yes",
    "StateDirectory": "hansa",
    "StateDirectoryMode": "0700",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "LimitCORE": "0",
    "KillMode": "mixed",
    "KillSignal": "SIGTERM",
    "Restart": "on-failure",
}


@pytest.mark.parametrize("role", sorted(UNITS))
def test_a_unit_is_closed(role: str) -> None:
    found = unit(role)
    assert {key: found.get(key) for key in HARDENING} == HARDENING
    assert set(found["RestrictAddressFamilies"].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}


@pytest.mark.parametrize("role", sorted(UNITS))
def test_a_unit_starts_its_role_where_its_state_is_kept(role: str) -> None:
    assert unit(role)["ExecStart"].split()[1:] == [role, "--home", "/var/lib/hansa"]
    assert unit(role)["StateDirectory"] == "hansa"


@pytest.mark.parametrize("role", sorted(UNITS))
def test_a_drain_has_the_same_time_in_a_unit_and_in_a_container(role: str) -> None:
    assert int(unit(role)["TimeoutStopSec"]) >= 30
    assert {service["stop_grace_period"] for service in services().values()} == {f"{unit(role)['TimeoutStopSec']}s"}
