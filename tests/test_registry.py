"""Names: all that Hansa brings can be found under its name and named when found."""

from __future__ import annotations

import dataclasses

import pytest

from hansa import registry, schema
from hansa.errors import ConfigError, MissingExtra

ALL = [(group, name) for group in registry.GROUPS for name in registry.BUILT_IN[group]]


def found(group: str, name: str) -> object:
    try:
        return registry.find(group, name)
    except MissingExtra as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("group", "name"), ALL)
def test_everything_named_is_there(group: str, name: str) -> None:
    kind = found(group, name)
    assert callable(kind)
    assert found(group, name.upper()) is kind
    assert found(group, name.replace("_", "-")) is kind


@pytest.mark.parametrize(("group", "name"), [pair for pair in ALL if pair[0] != "sources"])
def test_what_is_there_knows_its_name(group: str, name: str) -> None:
    kind = found(group, name)
    assert isinstance(kind, type)
    assert dataclasses.is_dataclass(kind)
    assert registry.name_of(group, kind) == name
    assert schema.type_name(kind) == name


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no protocol is named 'fedvag'; did you mean 'fedavg'\?"):
        registry.find("protocols", "fedvag")
    with pytest.raises(ConfigError, match="no topology is named 'rign'; did you mean 'ring'"):
        registry.find("topologies", "rign")
    with pytest.raises(ConfigError, match="there is no group 'protocol'; did you mean 'protocols'"):
        registry.names("protocol")


@pytest.mark.parametrize("name", ["hansa.plan:Plan", "os:system", "../x", "", ":", "fedavg:FedAvg", "__init__"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ConfigError):
        registry.find("protocols", name)


def test_what_is_not_registered_has_no_name() -> None:
    class FedAvg:
        pass

    assert registry.name_of("protocols", FedAvg) is None


def test_a_declared_entry_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {**registry.BUILT_IN, "stages": {"gone": "hansa.nowhere:Gone", "empty": "hansa.plan:Nothing"}}
    monkeypatch.setattr(registry, "BUILT_IN", broken)
    with pytest.raises(ConfigError, match=r"'gone' at hansa\.nowhere:Gone cannot be imported"):
        registry.find("stages", "gone")
    with pytest.raises(ConfigError, match=r"'empty' is declared at hansa\.plan:Nothing"):
        registry.find("stages", "empty")
