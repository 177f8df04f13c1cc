"""The files of node and hub: safe where nothing is said, every mistake at once with its line, nothing guessed."""

from __future__ import annotations

import re
import tomllib
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment.binding import Binding
from hansa.deployment.policy import Policy, Required
from hansa.deployment.quantity import Address
from hansa.deployment.settings import (
    HubLimits,
    HubSettings,
    Lifetimes,
    NodeLimits,
    NodeSettings,
    load_hub,
    load_node,
    parse,
    template_hub,
    template_node,
)
from hansa.errors import ConfigError

HERE = Path("/srv/hansa/node.toml")


def mistakes(kind: type[Any], text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(kind, text, HERE)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{HERE}: ") for line in lines)
    return [line.removeprefix(f"{HERE}: ") for line in lines]


def test_a_template_loads(tmp_path: Path) -> None:
    node, hub = tmp_path / "node.toml", tmp_path / "hub.toml"
    node.write_text(template_node())
    hub.write_text(template_hub())
    assert load_node(node).data["hearts"].source == f"csv:{tmp_path}/hearts.csv"
    assert load_hub(hub) == HubSettings()


def test_a_node_s_template_says_the_defaults() -> None:
    settings = parse(NodeSettings, template_node(), HERE)
    assert replace(settings, data={}, policy=Policy()) == NodeSettings()
    assert replace(settings.policy, data=(), protocols=(), learners=()) == Policy()
    assert settings.data == {"hearts": Binding("csv:/srv/hansa/hearts.csv", options={"target": "disease"})}


@pytest.mark.parametrize("text", [template_node(), template_hub()])
def test_a_template_s_lines_that_are_commented_out_load_too(text: str) -> None:
    kind = NodeSettings if "[policy]" in text else HubSettings
    loaded = parse(kind, re.sub(r"(?m)^# (?=\[|[a-z]+ = )", "", text), HERE)
    assert isinstance(loaded, NodeSettings | HubSettings) and "hearts" in loaded.data


def settings_of(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind) if not field.metadata.get("aside")]


@pytest.mark.parametrize(
    ("template", "kinds"),
    [
        (template_node(), (NodeSettings, NodeLimits, Policy, Binding)),
        (template_hub(), (HubSettings, HubLimits, Lifetimes)),
    ],
)
def test_every_setting_appears_in_its_template(template: str, kinds: tuple[type[Any], ...]) -> None:
    for kind in kinds:
        for name in settings_of(kind):
            assert re.search(rf"(?m)^(# )?(\[{name}[\].]|# \[{name}\.|{name} = )", template), f"{kind.__name__}.{name}"


def test_a_template_has_no_setting_twice_and_none_unknown() -> None:
    for template in (template_node(), template_hub()):
        assert tomllib.loads(template)


def test_an_empty_file_is_safe() -> None:
    node, hub = parse(NodeSettings, "", HERE), parse(HubSettings, "", HERE)
    assert node.policy.approval == "manual"
    assert not (node.policy.protocols or node.policy.learners or node.policy.submitters or node.policy.data)
    assert node.listen is None and node.health is None and hub.health is None
    assert hub.listen.loopback and hub.listen.port == 7400
    assert node.limits.gpus == ()


def test_nothing_is_for_ever() -> None:
    """Every default that is a wait has an end, and infinity is refused wherever a time can be said."""
    for kind, table in ((NodeLimits, "limits"), (HubLimits, "limits"), (Lifetimes, "certificates")):
        whole: Any = NodeSettings if kind is NodeLimits else HubSettings
        for field in fields(kind):
            if field.type == "Seconds":
                # What is kept for ever, which is what 0 says, holds nobody up.
                kept = field.name == "keep"
                assert getattr(kind(), field.name) == 0 if kept else 0 < getattr(kind(), field.name) < float("inf")
                for text in ("inf", "-1", "nan", *(() if kept else ("0",))):
                    assert any(field.name in line for line in mistakes(whole, f"[{table}]\n{field.name} = {text}\n"))


def test_a_full_node() -> None:
    text = """
    log = "json"
    health = "127.0.0.1:0"
    listen = "0.0.0.0:7402"
    address = "node.example.org:7402"
    [data.hearts]
    source = "sklearn:iris"
    partition = { name = "dirichlet", alpha = 0.3 }
    parties = 4
    party = 2
    [policy]
    approval = "automatic"
    require = ["clip", { stage = "clip", most = { bound = 1 } }]
    [limits]
    memory = "8GB"
    gpus = [0, 2]
    run = "12h"
    """
    node = parse(NodeSettings, text, HERE)
    assert node.listen == Address("0.0.0.0", 7402) and node.health == Address("127.0.0.1", 0)
    assert node.limits == NodeLimits(memory=8 * 10**9, gpus=(0, 2), run=43200.0)
    assert node.policy.require == (Required("clip"), Required("clip", most={"bound": 1.0}))
    assert node.data["hearts"].party == 2 and str(node.data["hearts"].partition) == "Dirichlet(alpha=0.3, least=1)"


def test_numbers_stand_for_bytes_and_seconds_too() -> None:
    limits = parse(HubSettings, "[limits]\nmessage = 5000\njoin = 2.5\nrun = 100\n", HERE).limits
    assert (limits.message, limits.join, limits.run) == (5000, 2.5, 100.0)


def test_all_mistakes_at_once_each_with_its_line() -> None:
    found = mistakes(
        NodeSettings,
        'helth = ""\nlisten = ":7400"\nhealth = 5\n\n[limits]\nmemory = "8 gigs"\nthread = 2\nthreads = 1.5\n\n'
        '[policy]\nprotocols = ["fedvag"]\nrequire = ["clp"]\napproval = "auto"\nsubmitters = "ada"\n\n'
        '[data.Hearts]\nsource = "csv:x.csv"\ntest = 2\n\n[data.lungs]\nsorce = "csv:x.csv"\n',
    )
    assert [re.match(r"line (\d+): \[([\w.]+)\]", line).groups() for line in found] == [  # type: ignore[union-attr]
        ("1", "helth"),
        ("2", "listen"),
        ("3", "health"),
        ("6", "limits.memory"),
        ("7", "limits.thread"),
        ("8", "limits.threads"),
        ("11", "policy.protocols"),
        ("12", "policy.require"),
        ("13", "policy.approval"),
        ("14", "policy.submitters"),
        ("16", "data.Hearts"),
        ("18", "data.Hearts"),
        ("20", "data.lungs"),
        ("21", "data.lungs.sorce"),
    ]
    text = "\n".join(found)
    for suggestion in ("'health'", "'threads'", "'fedavg'", "'clip'", "'source'"):
        assert f"did you mean {suggestion}" in text


def test_settings_that_do_not_fit_together_are_found_each_on_its_line() -> None:
    found = mistakes(
        HubSettings, "[limits]\nruns_at_once = 0\nconnections = 0\nmessage = 1\nspool = 0\nruns_each = 0\n"
    )
    assert [line.split(":")[0] for line in found] == ["line 2", "line 3", "line 4", "line 5", "line 6"]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (HubSettings, 'listen = "0.0.0.0:7400"', "say with address"),
        (HubSettings, 'listen = "[::]:7400"', "say with address"),
        (HubSettings, 'address = "0.0.0.0:7400"', "what others connect to"),
        (HubSettings, 'address = "hub.example.org:0"', "what others connect to"),
        (HubSettings, 'address = "hub.example.org"', "host:port"),
        (HubSettings, 'listen = ""', "no address"),
        (HubSettings, 'listen = ":7400"', "0.0.0.0:7400"),
        (HubSettings, "listen = 7400", "expected a text"),
        (HubSettings, '[listen]\nhost = "127.0.0.1"\nport = 1', "expected a text"),
        (HubSettings, 'log = "xml"', "'xml' cannot stand here; known: json, text"),
        (NodeSettings, '[policy]\napproval = "manul"', "did you mean 'manual'"),
        (NodeSettings, '[policy]\nrequire = [{ stage = "clip", most = { bnd = 10.0 } }]', "did you mean 'bound'"),
        (NodeSettings, '[policy]\nrequire = [{ stage = "mean", least = { bound = 1.0 } }]', "has no setting 'bound'"),
        (HubSettings, '[certificates]\nperson = "3651d"', "must not outlive"),
        (HubSettings, '[certificates]\nnode = "0s"', "at least 60"),
        (HubSettings, "[policy]\nprotocols = []", "no setting 'policy'"),
        (HubSettings, "[limits]\nkeep = 90", 'keep is 0 for ever, or a time such as "90d", and must be at least 3600'),
        (NodeSettings, '[limits]\nkeep = "59min"', "must be at least 3600"),
        (NodeSettings, "[limits]\nkeep = -1", "must be at least 3600"),
        (HubSettings, "limits = 3", "expected a table"),
        (NodeSettings, 'listen = "0.0.0.0:7402"', "say with address"),
        (NodeSettings, 'address = "node.example.org:1"', "give listen too"),
        (NodeSettings, "[limits]\nthreads = 0", "threads must be at least 1"),
        (NodeSettings, "[limits]\nthreads = true", "expected 'int', got 'bool'"),
        (NodeSettings, "[limits]\ngpus = [0, 0]", "each once"),
        (NodeSettings, "[limits]\ngpus = [-1]", "each once"),
        (NodeSettings, "[limits]\nmemory = -1", "memory must be at least 0"),
        (NodeSettings, '[policy]\ndata = ["hearts"]', "it binds none"),
        (NodeSettings, '[policy]\ndata = ["heart"]\n[data.hearts]\nsource = "csv:x"', "did you mean 'hearts'"),
        (NodeSettings, '[policy]\nforbid = ["*"]', "no stage is named '*'"),
        (NodeSettings, "[policy]\nrequire = [{ most = {} }]", "needs the setting 'stage'"),
        (NodeSettings, '[policy]\nsubmitters = ["Ada"]', "nobody's name"),
        (NodeSettings, '[data."../x"]\nsource = "csv:x"', "no name for data"),
        (NodeSettings, '[data."x y"]\nsource = "csv:x"', "no name for data"),
        (NodeSettings, 'data = "csv:hearts.csv"', "expected a table"),
        (NodeSettings, '[data.x]\nsource = "hearts.csv"', "write scheme:what"),
        (NodeSettings, "[data.x\n", "is not TOML"),
        (NodeSettings, "log = 'text'\nlog = 'text'", "is not TOML"),
    ],
)
def test_a_mistake_is_said(kind: type[Any], text: str, said: str) -> None:
    found = mistakes(kind, text)
    assert len(found) == 1, found
    assert said in found[0]


def test_a_wildcard_that_is_written_is_meant() -> None:
    hub = parse(HubSettings, 'listen = "0.0.0.0:7400"\naddress = "hub.example.org:443"\n', HERE)
    assert hub.listen.wildcard and str(hub.address) == "hub.example.org:443"


def test_port_0_is_kept_for_the_system_to_choose() -> None:
    assert parse(HubSettings, 'listen = "127.0.0.1:0"', HERE).listen.port == 0


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (NodeSettings, "[polcy]", "line 1: [polcy] the file has no setting 'polcy'; did you mean 'policy'?"),
        (
            NodeSettings,
            '[policy]\naproval = "manual"',
            "line 2: [policy.aproval] the table [policy] has no setting 'aproval'; did you mean 'approval'?",
        ),
        (HubSettings, "[limits]\nrunn = 3", "line 2: [limits.runn] the table [limits] has no setting 'runn'; did you"),
        (NodeSettings, "[data.x]\ntest = 0.2", "line 1: [data.x] the table [data.x] needs the setting 'source'"),
        (NodeSettings, "limits = 3", "line 1: [limits] expected a table, got a number"),
    ],
)
def test_a_mistake_names_what_stands_in_the_file_and_no_class(kind: type[Any], text: str, said: str) -> None:
    (found,) = mistakes(kind, text)
    assert found.startswith(said)


def test_paths_start_at_the_file_whatever_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/node.toml").write_text('[data.x]\nsource = "csv:../x.csv"\n')
    monkeypatch.chdir(tmp_path)
    source = load_node("etc/node.toml").data["x"].source
    monkeypatch.chdir("/")
    assert Path(source.removeprefix("csv:")).resolve() == (tmp_path / "x.csv").resolve()


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("absent.toml", "bytes.toml", "."):
        for load in (load_node, load_hub):
            with pytest.raises(ConfigError) as caught:
                load(tmp_path / name)
            assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([NodeSettings, HubSettings]),
    st.dictionaries(
        st.sampled_from(["data", "policy", "limits", "listen", "address", "health", "log", "certificates", "x"]),
        values
        | st.dictionaries(
            st.sampled_from(["require", "memory", "run", "gpus", "protocols", "hub", "data", "code", "approval"]),
            values,
        ),
    ),
)
def test_any_table_is_settings_or_mistakes(kind: type[Any], table: dict[str, Any]) -> None:
    """Whatever TOML can hold is read or refused with a ConfigError, and never raises anything else."""
    from unittest.mock import patch

    with patch("hansa.deployment.settings.tomllib.loads", return_value=table), suppress(ConfigError):
        assert is_dataclass(parse(kind, "", HERE))
