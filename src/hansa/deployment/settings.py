"""The files of a node and of a hub: what their owners decide, with defaults that are safe where nothing is said."""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, final, get_args, get_origin

from hansa import registry, schema
from hansa.deployment.binding import Binding, rooted
from hansa.deployment.policy import ANY, Policy, Required
from hansa.deployment.quantity import Address, in_bytes, in_seconds
from hansa.errors import ConfigError, nearest
from hansa.toml import Lines

Bytes = Annotated[int, in_bytes]
"""A number of bytes, or a text such as ``"8GB"``."""
Seconds = Annotated[float, in_seconds]
"""A number of seconds, or a text such as ``"15min"``."""
LogFormat = Literal["text", "json"]

BINDING_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
DAY: Final = 86400.0

Kind = TypeVar("Kind")


def _refuse(*sentences: str) -> None:
    """Raise with those that are not empty, a line each; every one begins with its setting."""
    found = [sentence for sentence in sentences if sentence]
    if found:
        raise ConfigError("\n".join(found))


def _at_least(what: str, value: float, least: float) -> str:
    return "" if isfinite(value) and value >= least else f"{what} must be at least {least:g}, not {value:g}"


def _positive(what: str, value: float) -> str:
    return "" if isfinite(value) and value > 0 else f"{what} must be above 0 and have an end, not {value:g}"


def _lasting(keep: float) -> str:
    """Whoever writes a bare number may mean days, and would lose everything in seconds."""
    return "" if keep == 0 else _at_least('keep is 0 for ever, or a time such as "90d", and', keep, 3600)


@final
@dataclass(frozen=True)
class NodeLimits:
    """The ``[limits]`` of a node: what runs may take of its machine.

    Args:
        threads: threads of the numerical libraries of one worker.
        memory: address space of one worker; 0 for no limit of its own. A worker with a GPU maps far more than it uses.
        gpus: numbers of the devices that workers see; none sees any where the list is empty.
        run: seconds that a run may take at most.
        runs_at_once: how many runs may be under way; more wait.
        spool: bytes of the folder that keeps what is under way, and results.
        keep: seconds for which a run that is over is kept, with its results; 0 for ever.
    """

    threads: int = 1
    memory: Bytes = 0
    gpus: tuple[int, ...] = ()
    run: Seconds = 7 * DAY
    runs_at_once: int = 1
    spool: Bytes = 20 * 10**9
    keep: Seconds = 0.0

    def __post_init__(self) -> None:
        once = all(gpu >= 0 for gpu in self.gpus) and len(set(self.gpus)) == len(self.gpus)
        _refuse(
            _at_least("threads", self.threads, 1),
            _at_least("memory", self.memory, 0),
            "" if once else f"gpus must be numbers of devices from 0, each once, not {list(self.gpus)}",
            _positive("run", self.run),
            _at_least("runs_at_once", self.runs_at_once, 1),
            _at_least("spool", self.spool, 10**6),
            _lasting(self.keep),
        )


@final
@dataclass(frozen=True)
class NodeSettings:
    """A node's file, ``node.toml``.

    Args:
        data: what names of data mean here; without any the node can still run a server's role.
        policy: what the owner allows; nothing, where nothing is said.
        limits: what runs may take.
        listen: where other parties may connect directly; None for nowhere: all goes through the hub.
        address: what other parties are told to connect to, where it is not ``listen``.
        health: where health and metrics are told over plain HTTP; None for nowhere.
        log: ``"text"`` for people, ``"json"`` for machines.
    """

    data: Mapping[str, Binding] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    limits: NodeLimits = field(default_factory=NodeLimits)
    listen: Address | None = None
    address: Address | None = None
    health: Address | None = None
    log: LogFormat = "text"

    def __post_init__(self) -> None:
        if self.listen is None and self.address is not None:
            raise ConfigError("address is told to other parties, but the node does not listen; give listen too")
        _refuse(_told(self.listen, self.address))


@final
@dataclass(frozen=True)
class Lifetimes:
    """The ``[certificates]`` of a hub: seconds for which each kind is valid.

    Args:
        authority: the federation's own.
        hub, node: of processes; they renew their own when two thirds of it are over.
        person: of operators, submitters and observers, who are invited anew afterwards.
        invitation: of a token that has not been used.
    """

    authority: Seconds = 3650 * DAY
    hub: Seconds = 7 * DAY
    node: Seconds = 7 * DAY
    person: Seconds = 90 * DAY
    invitation: Seconds = DAY

    def __post_init__(self) -> None:
        given = {"hub": self.hub, "node": self.node, "person": self.person, "invitation": self.invitation}
        _refuse(
            _at_least("authority", self.authority, 60),
            *(_at_least(name, seconds, 60) for name, seconds in given.items()),
            *(
                f"{name} must not outlive the authority, whose certificate signs it"
                for name, seconds in given.items()
                if 60 <= self.authority < seconds
            ),
        )


@final
@dataclass(frozen=True)
class HubLimits:
    """The ``[limits]`` of a hub.

    Args:
        runs_at_once: how many runs may be under way; more wait.
        runs_each: how many runs that have not ended one submitter may have; more are refused.
        message: bytes of one message at most.
        spool: bytes of the folder that keeps what is under way, and results.
        keep: seconds for which a run that has ended is kept, with its result and what can be resumed of it; 0 for ever.
        join: seconds that a new run waits for its parties.
        run: seconds that a run may take at most, whatever its plan says.
        connections: how many may be open.
        connections_per_minute: how many new ones one address may open.
        enrolments_per_minute: how many tries to enrol one address has.
    """

    runs_at_once: int = 4
    runs_each: int = 100
    message: Bytes = 4 * 10**9
    spool: Bytes = 100 * 10**9
    keep: Seconds = 0.0
    join: Seconds = 60.0
    run: Seconds = 7 * DAY
    connections: int = 5000
    connections_per_minute: int = 600
    enrolments_per_minute: int = 10

    def __post_init__(self) -> None:
        _refuse(
            _at_least("runs_at_once", self.runs_at_once, 1),
            _at_least("runs_each", self.runs_each, 1),
            _at_least("message", self.message, 1000),
            "" if self.spool >= self.message else "spool must hold at least one message of the largest size",
            _lasting(self.keep),
            _positive("join", self.join),
            _positive("run", self.run),
            _at_least("connections", self.connections, 1),
            _at_least("connections_per_minute", self.connections_per_minute, 1),
            _at_least("enrolments_per_minute", self.enrolments_per_minute, 1),
        )


@final
@dataclass(frozen=True)
class HubSettings:
    """A hub's file, ``hub.toml``.

    Args:
        listen: where nodes and people connect; this machine only, until the operator says otherwise.
        address: what invitations tell them to connect to, where it is not ``listen``.
        health: where health and metrics are told over plain HTTP; None for nowhere.
        log: ``"text"`` for people, ``"json"`` for machines.
        certificates: how long each kind is valid.
        limits: what runs and visitors may take.
        data: what names of data mean for the server's own, central test set.
    """

    listen: Address = field(default=Address("127.0.0.1", 7400))
    address: Address | None = None
    health: Address | None = None
    log: LogFormat = "text"
    certificates: Lifetimes = field(default_factory=Lifetimes)
    limits: HubLimits = field(default_factory=HubLimits)
    data: Mapping[str, Binding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse(_told(self.listen, self.address))


def _told(listen: Address | None, address: Address | None) -> str:
    if address is not None and (address.wildcard or address.port == 0):
        return f"address is what others connect to, so it needs a host and a port of its own, not {address}"
    if address is None and listen is not None and listen.wildcard:
        return f"listen is {listen}, which others cannot connect to by that name; say with address what they use"
    return ""


def load_node(path: str | Path) -> NodeSettings:
    """Read a node's file; relative paths of its data start at its folder.

    Raises:
        ConfigError: all its mistakes, a line each.
    """
    return _load(NodeSettings, Path(path))


def load_hub(path: str | Path) -> HubSettings:
    """Read a hub's file; relative paths of its data start at its folder.

    Raises:
        ConfigError: all its mistakes, a line each.
    """
    return _load(HubSettings, Path(path))


def template_node() -> str:
    """A node's file with every setting and its meaning, for its owner to edit."""
    return Path(__file__).with_name("node.toml").read_text(encoding="utf-8")


def template_hub() -> str:
    """A hub's file with every setting and its meaning, for its operator to edit."""
    return Path(__file__).with_name("hub.toml").read_text(encoding="utf-8")


def _load(kind: type[Kind], path: Path) -> Kind:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8") from None
    return parse(kind, text, path)


def parse(kind: type[Kind], text: str, path: Path) -> Kind:
    """Settings from text that is at hand; ``path`` is where it would stand."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    lines = Lines.of(text, path.name)
    mistakes: list[tuple[int, str]] = []
    unreadable: set[str] = set()

    def note(place: str, sentences: str) -> None:
        place = place.lstrip(".")
        if place in unreadable:
            return
        for sentence in sentences.splitlines():
            # What fits together is checked table by table; such a sentence begins with the setting that it is about.
            inner = f"{place}.{sentence.partition(' ')[0]}".lstrip(".")
            line = lines.numbers.get(inner) or lines.find(place)
            mistakes.append((line, f"{f'line {line}: ' if line else ''}{f'[{place}] ' if place else ''}{sentence}"))

    def misread(place: str, sentence: str) -> None:
        note(place, sentence)
        unreadable.add(place.lstrip("."))

    _check_names(table, note)
    value = schema.build(kind, _prepared(kind, table, "", misread), "", note)
    if isinstance(value, NodeSettings | HubSettings):
        value = _finished(value, path, lines, note)
    if mistakes:
        raise ConfigError("\n".join(f"{path}: {sentence}" for _, sentence in sorted(mistakes, key=lambda m: m[0])))
    assert isinstance(value, kind)
    return value


def _check_names(table: Mapping[str, Any], note: schema.Note) -> None:
    """Names that must be of something."""
    data = table.get("data")
    bound = list(data) if isinstance(data, Mapping) else []
    for name in bound:
        if not BINDING_NAME.fullmatch(name):
            note(f"data.{name}", f"{name!r} is no name for data: lower case letters, digits, '-' and '_', at most 63")
    policy = table.get("policy")
    if not isinstance(policy, Mapping):
        return
    known: dict[str, tuple[str, Iterable[str]]] = {
        "protocols": ("protocol", registry.names("protocols")),
        "learners": ("learner", registry.names("learners")),
        "require": ("stage", registry.names("stages")),
        "forbid": ("stage", registry.names("stages")),
        "data": ("data of this file", bound),
    }
    for setting, (what, names) in known.items():
        given = policy.get(setting)
        for item in given if isinstance(given, list) else []:
            name = item.get("stage") if isinstance(item, Mapping) else item
            if isinstance(name, str) and name not in names and (name != ANY or what == "stage"):
                known_ones = nearest(name, names) if names else "it binds none"
                note(f"policy.{setting}", f"no {what} is named {name!r}; {known_ones}")
            elif setting == "require" and isinstance(item, Mapping) and isinstance(name, str) and name != ANY:
                _check_bounds(name, item, note)


def _check_bounds(stage: str, required: Mapping[str, Any], note: schema.Note) -> None:
    """Bounds of what a stage has: one of anything else would refuse every plan, as no plan can say it."""
    kind = registry.find("stages", stage)
    known = [one.name for one in fields(kind)] if is_dataclass(kind) else []
    bounded = [one for side in ("least", "most") if isinstance(one := required.get(side), Mapping)]
    for number in {number for bounds in bounded for number in bounds if number not in known}:
        note("policy.require", f"the stage {stage!r} has no setting {number!r}; {nearest(number, known)}")


def _finished(
    value: NodeSettings | HubSettings, path: Path, lines: Lines, note: schema.Note
) -> NodeSettings | HubSettings:
    """Paths that start at the file's folder, and a policy that knows where it stands."""
    folder = path.resolve().parent
    data: dict[str, Binding] = {}
    for name, binding in value.data.items():
        try:
            data[name] = rooted(binding, folder)
        except ConfigError as error:
            note(f"data.{name}.source", str(error))
    if isinstance(value, HubSettings):
        return replace(value, data=data)
    return replace(value, data=data, policy=replace(value.policy, lines=lines))


def _prepared(hint: Any, data: Any, place: str, note: schema.Note) -> Any:
    """``data`` with its shorthands written out, so that the schema can read it: texts of quantities, addresses and stages."""
    if get_origin(hint) is Annotated:
        _, convert = get_args(hint)
        return _converted(convert, data, place, note) if isinstance(data, str) else data
    if hint is Address or Address in get_args(hint):
        if data == "" and hint is not Address:
            return None
        address = _converted(Address.of, data, place, note)
        return {"host": address.host, "port": address.port} if isinstance(address, Address) else address
    if isinstance(data, list) and get_args(hint)[:1] == (Required,):
        return [{"stage": item} if isinstance(item, str) else item for item in data]
    if isinstance(data, Mapping) and isinstance(hint, type) and is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        return {key: _prepared(hints.get(key), item, f"{place}.{key}", note) for key, item in data.items()}
    return data


def _converted(convert: Callable[[str], Any], text: Any, place: str, note: schema.Note) -> Any:
    if not isinstance(text, str):
        note(place, "expected a text such as '127.0.0.1:7400'")
        return text
    try:
        return convert(text)
    except ConfigError as error:
        note(place, str(error))
        return text
