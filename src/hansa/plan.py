"""A plan: what the parties agree to before anything runs.

It is data, not code: a TOML file and a Python value are the same thing, and both have the same digest::

    name = "digits"
    seed = 7

    [protocol]
    name = "fedavg"
    rounds = 50
    cohort = 10

    [learner]
    name = "softmax"
    optimizer = { name = "sgd", learning_rate = 0.05 }

    [[aggregation]]
    name = "clip"
    bound = 10.0

    [[aggregation]]
    name = "mean"

    [data]
    source = "sklearn:digits"
    parties = 100
    partition = { name = "dirichlet", alpha = 0.3 }
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, final

from hansa import registry, schema
from hansa.errors import ConfigError, PlanError, nearest
from hansa.learner import Learner
from hansa.pipeline import compose, stages
from hansa.protocol import Aggregation, Protocol
from hansa.toml import Lines
from hansa.update import Update


@final
@dataclass(frozen=True)
class DataSpec:
    """Which data a simulation runs on, and how it falls to the parties.

    Args:
        source: ``"scheme:rest"``, see ``hansa list sources``.
        partition: how rows fall to parties; a registered partitioner.
        parties: how many; None where the partition is natural.
        test: the share of each party's rows that is kept for testing.
        seed: of the partition.
        options: further settings of the source.
    """

    source: str
    partition: Any = None
    parties: int | None = None
    test: float = 0.2
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


BESIDE: Final = frozenset({"simulation", "deployment"})
"""Tables that may stand in a plan's file and are not part of the plan: how to simulate it, and where to place it."""


def _plain_mean() -> Aggregation[Any, Any]:
    aggregation: Aggregation[Any, Any] = registry.find("stages", "mean")()
    return aggregation


@final
@dataclass(frozen=True)
class Plan:
    """The value that parties agree to.

    Args:
        protocol: what they do.
        learner: how each trains.
        aggregation: what happens to their updates; the plain mean if not said.
        seed: of all public randomness.
        name: for people.
        data: the data of a simulation, where the plan says it.

    Raises:
        PlanError: the parts do not fit; every reason at once.
    """

    protocol: Protocol
    learner: Learner
    aggregation: Aggregation[Update, Any] = field(default_factory=_plain_mean)
    seed: int = 0
    name: str = ""
    data: DataSpec | None = None

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        if not isinstance(self.protocol, Protocol):
            mistakes.append(f"protocol must be a Protocol such as FedAvg(...), not {type(self.protocol).__name__}")
        if not isinstance(self.learner, Learner):
            mistakes.append(f"learner must be a Learner such as Softmax(...), not {type(self.learner).__name__}")
        if not isinstance(self.aggregation, Aggregation):
            mistakes.append(
                "aggregation must end in an aggregation: nothing here combines the parties' updates; add '| mean()'"
            )
        if mistakes:
            raise PlanError(mistakes)
        try:
            parts = stages(self.aggregation)
            compose(parts, [schema.type_name(type(part)) or type(part).__name__ for part in parts])
            self.protocol.roles(self.learner, self.aggregation)
        except PlanError:
            raise
        except ConfigError as error:
            raise PlanError([str(error)]) from error

    @staticmethod
    def load(path: str | Path, tables: Mapping[str, Any] | None = None) -> Plan:
        """Read a TOML plan; tables of :data:`BESIDE`, which are not part of the plan, may stand beside it.

        Raises:
            PlanError: all its mistakes, each with its line.
        """
        return load(path, tables or {})[0]

    def to_toml(self) -> str:
        """The plan as TOML text; loading it gives an equal plan."""
        return to_toml(plain(self))

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical form, in hex: equal plans have equal digests, whatever file they came from."""
        canonical = json.dumps(plain(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return sha256(canonical.encode()).hexdigest()

    def with_seed(self, seed: int) -> Plan:
        """The same plan with another seed."""
        return replace(self, seed=seed)


def plain(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: what its TOML says and its digest covers."""
    table: dict[str, Any] = {"name": plan.name} if plan.name else {}
    table["seed"] = plan.seed
    table["protocol"] = schema.write(plan.protocol)
    table["learner"] = schema.write(plan.learner)
    table["aggregation"] = [schema.write(stage) for stage in stages(plan.aggregation)]
    if plan.data is not None:
        table["data"] = schema.write(plan.data)
    return table


def load(path: str | Path, tables: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Read a TOML plan and further tables beside it.

    Args:
        path: the file.
        tables: dataclasses by the name of a further top-level table; one that is absent from the file is left out.

    Returns:
        The plan, and the values of the further tables by name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError([f"cannot be read: {error.strerror or error}"], str(path)) from None
    except UnicodeDecodeError:
        raise PlanError(["is not text in UTF-8"], str(path)) from None
    return parse(text, tables, str(path))


def parse(text: str, tables: Mapping[str, Any], source: str = "plan") -> tuple[Plan, dict[str, Any]]:
    """:func:`load` for text that is at hand; ``source`` is what errors call it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError([f"is not TOML: {error}"], source) from None
    lines = Lines.of(text, source)
    mistakes: list[tuple[int, str]] = []

    def note(place: str, sentence: str) -> None:
        line = lines.find(place)
        mistakes.append((line, f"line {line}: [{place}] {sentence}" if line else f"[{place}] {sentence}"))

    known = {"name", "seed", "protocol", "learner", "aggregation", "data"}
    for key in data:
        if key not in known and key not in tables and key not in BESIDE:
            note(key, f"a plan has no table or setting '{key}'; {nearest(key, known | set(tables) | BESIDE)}")
    values: dict[str, Any] = {"name": schema.read(str, data.get("name", ""), "name", note)}
    values["seed"] = schema.read(int, data.get("seed", 0), "seed", note)
    for key, hint in (("protocol", Protocol), ("learner", Learner)):
        if key not in data:
            note(key, f"a plan needs a table [{key}]")
            values[key] = schema.MISSING
        else:
            values[key] = schema.read(hint, data[key], key, note)
    values["aggregation"] = _aggregation(data.get("aggregation", [{"name": "mean"}]), note)
    if "data" in data:
        values["data"] = _data_spec(data["data"], note)
    others = {key: schema.read(kind, data[key], key, note) for key, kind in tables.items() if key in data}
    if not mistakes:
        try:
            return Plan(**values), others
        except PlanError as error:
            mistakes = [(0, mistake) for mistake in error.mistakes]
    raise PlanError([sentence for _, sentence in sorted(mistakes)], source)


def _aggregation(data: Any, note: schema.Note) -> Any:
    if not isinstance(data, list) or not data:
        note("aggregation", "expected a list of stages: [[aggregation]] tables with a name each")
        return schema.MISSING
    parts, names = [], []
    for place, table in enumerate(data):
        where = f"aggregation[{place}]"
        part = schema.MISSING
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            note(where, "a stage needs a name")
        else:
            try:
                kind = registry.find("stages", table["name"])
            except ConfigError as error:
                note(f"{where}.name", str(error))
            else:
                settings = {key: value for key, value in table.items() if key != "name"}
                part = schema.build(kind, settings, where, note)
                names.append(table["name"])
        parts.append(part)
    if any(part is schema.MISSING for part in parts):
        return schema.MISSING
    try:
        return compose(parts, names)
    except ConfigError as error:
        note("aggregation", str(error))
        return schema.MISSING


def _data_spec(data: Any, note: schema.Note) -> Any:
    spec = schema.read(DataSpec, data, "data", note)
    if spec is schema.MISSING or spec.partition is None:
        return spec
    table = {"name": spec.partition} if isinstance(spec.partition, str) else spec.partition
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        note("data.partition", "expected a name, or a table with a name and settings")
        return schema.MISSING
    try:
        kind = registry.find("partitioners", table["name"])
    except ConfigError as error:
        note("data.partition.name", str(error))
        return schema.MISSING
    settings = {key: value for key, value in table.items() if key != "name"}
    partition = schema.build(kind, settings, "data.partition", note)
    return schema.MISSING if partition is schema.MISSING else replace(spec, partition=partition)


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML text for plain data: scalars first, then tables; nested tables inline."""
    blocks = ["".join(f"{key} = {_inline(value)}\n" for key, value in table.items() if _is_scalar(value))]
    for key, value in table.items():
        if isinstance(value, Mapping):
            blocks.append(f"[{key}]\n" + "".join(f"{k} = {_inline(v)}\n" for k, v in value.items()))
        elif not _is_scalar(value):
            blocks += [f"[[{key}]]\n" + "".join(f"{k} = {_inline(v)}\n" for k, v in item.items()) for item in value]
    return "\n".join(block for block in blocks if block)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, list):
        return not (value and isinstance(value[0], Mapping))
    return not isinstance(value, Mapping)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(repr(value), repr(value))
    if isinstance(value, int):
        return str(value)
    return _quoted(value)


def _quoted(text: str) -> str:
    # JSON escapes what TOML does, but for DEL; of characters beyond the first plane it would make pairs, which TOML has not.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)
