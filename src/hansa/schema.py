"""Values from plain data and back: how a plan's tables become dataclasses.

Every mistake is noted with its place and the reading goes on, so that a user sees all of them at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, Union, get_args, get_origin

import msgspec

from hansa import registry
from hansa.errors import ConfigError, nearest

Note = Callable[[str, str], None]
"""Takes note of a mistake: the place (a dotted path) and the sentence."""

ASIDE: Final = "aside"
"""A field whose metadata has this is no setting: it is neither read nor written."""

MISSING: Final = object()
"""Stands for a value that could not be read; its mistake has been noted."""


def read(hint: Any, data: Any, place: str, note: Note) -> Any:
    """The value that ``data`` means where ``hint`` is expected.

    Args:
        hint: a type: a dataclass, an abstract class with a registry group, a union, a container of these, or plain data.
        data: what was parsed: tables, lists, strings, numbers.
        place: the dotted path of ``data``, for mistakes.
        note: called for each mistake.

    Returns:
        The value, or :data:`MISSING` if something was wrong.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (Any, object) or origin is Callable or hint is Callable:
        return data
    if origin in (Union, types.UnionType):
        return _union(arguments, data, place, note)
    group = registry.ABSTRACT.get(f"{getattr(hint, '__module__', '')}:{getattr(hint, '__qualname__', '')}")
    if group is not None:
        return _named(data, place, note, lambda name: registry.find(group, name))
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, data, place, note)
    if origin is tuple:
        return _tuple(arguments, data, place, note)
    if origin in (Mapping, dict) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(data, Mapping):
            note(place, f"expected a table, got {_say(data)}")
            return MISSING
        values = {key: read(arguments[1], value, f"{place}.{key}", note) for key, value in data.items()}
        return MISSING if any(value is MISSING for value in values.values()) else values
    try:
        if origin is Literal and isinstance(data, str) and data not in arguments:
            note(place, f"{data!r} cannot stand here; {nearest(data, map(str, arguments))}")
            return MISSING
        return msgspec.convert(data, hint, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        note(place, str(error).replace("`", "'").replace("Expected", "expected"))
        return MISSING


def write(value: Any) -> Any:
    """Plain data for a value; ``read`` gives the value back. Fields that have their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table: dict[str, Any] = {}
        name = type_name(type(value))
        if name is not None:
            table["name"] = name
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if field.init and not field.metadata.get(ASIDE) and not _is_default(field, item):
                table[field.name] = write(item)
        return table
    if isinstance(value, Mapping):
        return {str(key): write(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [write(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if callable(value) and getattr(value, "__qualname__", None):
        return f"{value.__module__}:{value.__qualname__}"
    return f"{type(value).__module__}:{type(value).__qualname__}"


def type_name(kind: type) -> str | None:
    """The name of a dataclass in a plan: its registered one, or its own in lower case where it stands in a union."""
    return _type_name(kind)


@lru_cache(maxsize=1024)
def _type_name(kind: Hashable) -> str | None:
    assert isinstance(kind, type)
    for group in registry.GROUPS:
        name = registry.name_of(group, kind)
        if name is not None:
            return name
    return kind.__name__.lower() if kind.__module__.startswith("hansa.learners.") else None


def build(kind: Any, table: Mapping[str, Any], place: str, note: Note) -> Any:
    """Make ``kind`` (a dataclass) from the fields in ``table``."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init and not field.metadata.get(ASIDE)}
    values: dict[str, Any] = {}
    sound = True
    for key, item in table.items():
        if key not in fields:
            note(f"{place}.{key}", f"{_shown(kind, place)} has no setting '{key}'; {nearest(key, fields)}")
            sound = False
            continue
        value = read(hints[key], item, f"{place}.{key}", note)
        sound = sound and value is not MISSING
        values[key] = value
    for name, field in fields.items():
        if name not in table and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            note(place, f"{_shown(kind, place)} needs the setting '{name}'")
            sound = False
    if not sound:
        return MISSING
    try:
        return kind(**values)
    except ConfigError as error:
        note(place, str(error))
        return MISSING


def _dataclass(kind: Any, data: Any, place: str, note: Note) -> Any:
    if not isinstance(data, Mapping):
        note(place, f"expected a table, got {_say(data)}")
        return MISSING
    return build(kind, {key: value for key, value in data.items() if key != "name"}, place, note)


def _named(data: Any, place: str, note: Note, find: Callable[[str], Any]) -> Any:
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        note(place, "expected a name, or a table with a name and settings")
        return MISSING
    try:
        kind = find(data["name"])
    except ConfigError as error:
        note(f"{place}.name", str(error))
        return MISSING
    return build(kind, {key: value for key, value in data.items() if key != "name"}, place, note)


def _union(arguments: tuple[Any, ...], data: Any, place: str, note: Note) -> Any:
    if data is None and type(None) in arguments:
        return None
    choices = [a for a in arguments if a is not type(None)]
    if len(choices) == 1:
        return read(choices[0], data, place, note)
    tables = {a.__name__.lower(): a for a in choices if isinstance(a, type) and dataclasses.is_dataclass(a)}
    if tables and (isinstance(data, Mapping) or len(tables) == len(choices)):

        def find(name: str) -> Any:
            plain = name.lower().replace("_", "").replace("-", "")
            if plain not in tables:
                raise ConfigError(f"{name!r} cannot stand here; {nearest(plain, tables)}")
            return tables[plain]

        return _named(data, place, note, find)
    problems: list[str] = []
    for choice in choices:
        if dataclasses.is_dataclass(choice):
            continue
        value = read(choice, data, place, lambda _, sentence: problems.append(sentence))
        if value is not MISSING:
            return value
    note(place, problems[0] if problems else f"cannot use {_say(data)} here")
    return MISSING


def _tuple(arguments: tuple[Any, ...], data: Any, place: str, note: Note) -> Any:
    if not isinstance(data, list | tuple):
        note(place, f"expected a list, got {_say(data)}")
        return MISSING
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        hints = [arguments[0]] * len(data)
    elif len(arguments) == len(data):
        hints = list(arguments)
    else:
        note(place, f"expected {len(arguments)} items, got {len(data)}")
        return MISSING
    values = [read(hint, item, f"{place}[{i}]", note) for i, (hint, item) in enumerate(zip(hints, data, strict=True))]
    return MISSING if any(value is MISSING for value in values) else tuple(values)


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(type(field.default) is type(value) and field.default == value)
    if field.default_factory is not dataclasses.MISSING:
        return bool(field.default_factory() == value)
    return False


def _shown(kind: Any, place: str) -> str:
    """What a user knows a dataclass by: its name, or where there is none to write, the table that it is read from."""
    name = type_name(kind)
    place = place.lstrip(".")
    return f"'{name}'" if name is not None else f"the table [{place}]" if place else "the file"


def _say(data: Any) -> str:
    words = {dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return words.get(type(data), f"a {type(data).__name__}")
