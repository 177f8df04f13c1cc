"""What the hub, a node and a worker say of their own work: one line a record, for people or as JSON, on standard error.

A :class:`Log` is a value: a name, and fields bound to every record. ``logging`` of the standard library is underneath; nothing that
arrives from a network can set its levels, formats or places.

*Guarantees*, whatever a peer sends: a record is one line; characters that are not printable are escaped, among them line ends,
terminal sequences and marks that turn the direction of text; a field has at most :data:`LONGEST` characters. A field whose name
is that of a secret is refused; bytes and unknown objects are never spelled out; a value that holds a PEM block is withheld.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal, TextIO, TypeAlias, final

LONGEST: Final = 400
"""Characters of a field; a longer one ends with the number of those left out."""

LONGEST_TRACEBACK: Final = 8_000
"""Characters of a traceback; of a longer one the end is kept."""

Format: TypeAlias = Literal["text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Value: TypeAlias = str | int | float | bool | bytes | PurePath | BaseException | None
"""What a field may hold. Of bytes only the number is written, of an error its class and its sentence; None leaves the field out."""

_LEVELS: Final[Mapping[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_NAMES: Final[Mapping[int, str]] = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "error"}
_FIRST: Final = ("run", "round", "party", "peer")
_OWN: Final = frozenset({"time", "level", "log", "event"})
_SECRET: Final = frozenset(
    ("token", "tokens", "key", "keys", "secret", "secrets", "password", "passphrase", "passwd", "private", "pin",
     "credential", "credentials", "invitation", "authorization", "cookie")
)  # fmt: skip
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_BARE: Final = re.compile(r"[^\s\"=\\]+")
_ROOT: Final = "hansa"


@final
@dataclass(frozen=True)
class Log:
    """A named source of records, with fields that all its records carry.

    Args:
        name: ``"hub"``, ``"node"``, ``"worker"``.
        fields: carried by every record; see :meth:`bind`.

    Raises:
        ValueError: of a field's name that is none, is taken by the record itself, or is that of a secret.

    >>> import sys
    >>> log = Log("hub").bind(run="r1")
    >>> with written(stream=sys.stdout, clock=lambda: 0.0):
    ...     log.info("node connected", peer="hospital-a", version="0.1.0")
    1970-01-01T00:00:00.000Z info    hub: node connected run=r1 peer=hospital-a version=0.1.0
    """

    name: str
    fields: tuple[tuple[str, Value], ...] = ()

    def bind(self, **fields: Value) -> Log:
        """The same log with these fields in every record, in place of earlier ones of the same name."""
        _check(fields)
        return Log(self.name, tuple({**dict(self.fields), **fields}.items()))

    def debug(self, event: str, /, **fields: Value) -> None:
        """Say what only somebody who looks for a mistake wants to know."""
        self._write("debug", event, fields)

    def info(self, event: str, /, **fields: Value) -> None:
        """Say what happened as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, /, **fields: Value) -> None:
        """Say what was refused, or went on despite a fault."""
        self._write("warning", event, fields)

    def error(self, event: str, /, **fields: Value) -> None:
        """Say what failed; an error given as a field is written without its traceback."""
        self._write("error", event, fields)

    def failed(self, event: str, error: BaseException, /, **fields: Value) -> None:
        """Say what nobody foresaw: ``error`` with its traceback, on the same line."""
        text = "".join(traceback.format_exception(error))
        self._write("error", event, {**fields, "error": error}, _safe_tail(text))

    def _write(self, level: Level, event: str, fields: Mapping[str, Value], trace: str = "") -> None:
        _check(fields)
        logger = logging.getLogger(f"{_ROOT}.{self.name}")
        if logger.isEnabledFor(_LEVELS[level]):
            given: dict[str, Value] = {**dict(self.fields), **fields}
            merged: dict[str, Value] = {name: value for name, value in given.items() if value is not None}
            first: dict[str, Value] = {name: merged[name] for name in _FIRST if name in merged}
            said = {name: _plain(value) for name, value in {**first, **merged}.items()}
            logger.log(_LEVELS[level], "%s", event, extra={"said": {**said, **({"traceback": trace} if trace else {})}})


@contextlib.contextmanager
def written(
    form: Format = "text",
    *,
    level: Level = "info",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[None]:
    """Write records to ``stream`` while the context lasts: Hansa's from ``level`` on, those of libraries from warnings on.

    Args:
        form: ``"text"`` for people, ``"json"`` for machines: one object a line with ``time``, ``level``, ``log``, ``event``
            and the fields.
        level: the least that is written.
        stream: standard error, unless another is given.
        clock: seconds since 1970, in place of the system's clock.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    if clock is not time.time:

        def stamp(record: logging.LogRecord) -> bool:
            record.created = clock()
            return True

        handler.addFilter(stamp)
    root, own = logging.getLogger(), logging.getLogger(_ROOT)
    before = root.level, own.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    own.setLevel(_LEVELS[level])
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        own.setLevel(before[1])


def printable(text: str, longest: int = LONGEST) -> str:
    r"""``text`` without anything that could end a line or steer a terminal, and bounded.

    >>> printable("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    >>> printable("x" * 500, longest=10)
    'xxxxxxxxxx...(+490)'
    """
    kept = text[:longest]
    safe = kept if kept.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in kept)
    return safe if len(text) <= longest else f"{safe}...(+{len(text) - longest})"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _safe_tail(text: str) -> str:
    left_out = len(text) - LONGEST_TRACEBACK
    return _withheld(text if left_out <= 0 else f"({left_out} characters)...{text[left_out:]}")


def _withheld(text: str) -> str:
    return "(withheld: a PEM block)" if "-----BEGIN" in text else text


def _check(fields: Mapping[str, Value]) -> None:
    for name in fields:
        if not _NAME.fullmatch(name) or name in _OWN or name == "traceback":
            raise ValueError(
                f"{name[:60]!r} cannot be a log field: name it in lower-case letters, and not {sorted(_OWN)}"
            )
        if _SECRET.intersection(name.split("_")):
            raise ValueError(
                f"{name!r} cannot be a log field: it is the name of a secret; log a fingerprint or nothing"
            )


def _plain(value: Value) -> str | int | float | bool:
    """What a record holds of a value: nothing longer than a field, no object's own idea of itself."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() <= 64 else f"(integer of {value.bit_length()} bits)"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str | PurePath):
        return _bounded(_withheld(str(value)))
    if isinstance(value, BaseException):
        return _bounded(_withheld(f"{type(value).__name__}: {value}"))
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return f"({type(value).__name__})"


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}...(+{len(text) - LONGEST})"


def _said(record: logging.LogRecord) -> tuple[str, str, dict[str, str | int | float | bool]]:
    """The name, the event and the fields of a record: of one that a library wrote, its message and its error."""
    said = record.__dict__.get("said")
    name = record.name.removeprefix(f"{_ROOT}.")
    if said is not None:
        return name, record.getMessage(), said
    error = record.exc_info[1] if record.exc_info else None
    more = {} if error is None else {"error": _plain(error)}
    if error is not None:
        more["traceback"] = _safe_tail("".join(traceback.format_exception(error)))
    return name, _withheld(record.getMessage()), more


def _time(record: logging.LogRecord) -> str:
    thousandths = int(record.created * 1000)
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(thousandths // 1000))
    return f"{seconds}.{thousandths % 1000:03d}Z"


def _shown(value: str | int | float | bool, longest: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if text.isprintable() and _BARE.fullmatch(text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(quoted, longest)}"'


@final
class _Text(logging.Formatter):
    """``time level name: event field=value ...``."""

    def format(self, record: logging.LogRecord) -> str:
        name, event, said = _said(record)
        plain = event.isprintable() and not set(event) & set('"=\\')
        told = printable(event) if plain else _shown(event, LONGEST)
        fields = "".join(f" {field}={_shown(value, 4 * LONGEST_TRACEBACK)}" for field, value in said.items())
        level = _NAMES.get(record.levelno, "info")
        return f"{_time(record)} {level:<7} {printable(name)}: {told}{fields}"


@final
class _Json(logging.Formatter):
    """One JSON object, ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        name, event, said = _said(record)
        level = _NAMES.get(record.levelno, "info")
        line = {"time": _time(record), "level": level, "log": name, "event": _bounded(event), **said}
        valid = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in line.items()}
        return json.dumps(valid, allow_nan=False)
