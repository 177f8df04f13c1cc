"""Writes the table of every message of the network into docs/wire.md, from the classes; a test keeps the two equal.

After a change of a class: ``python docs/packets.py``, and let the difference be reviewed.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

import msgspec

from hansa.deployment import api, packets
from hansa.deployment.authorization import ALL, OWN, RIGHTS
from hansa.message import Message
from hansa.protocol import Progress

PAGE: Final = Path(__file__).resolve().parent / "wire.md"
BEGIN: Final = "<!-- made by docs/packets.py from here -->"
END: Final = "<!-- to here -->"

LISTS: Final[tuple[tuple[str, str, Sequence[type[Message]]], ...]] = (
    ("Link", "Frames on the standing stream, of both sides.", packets.LINK),
    ("Control, from the hub to a node", "Bodies of parcels on the lane of control.", packets.TO_NODE),
    ("Control, from a node to the hub", "Bodies of parcels on the lane of control.", packets.TO_HUB),
    ("Requests", "What a caller asks; `fetch` goes to Fetch, `read-events` to Watch, the others to Call.",
     (*(kind for kind in api.REQUESTS if kind is not api.ReadEvents), api.ReadEvents, api.Fetch)),
    ("Answers", "What the hub says to that.", api.ANSWERS),
    ("Progress", "What a program tells the observer; inside `hansa.control.report/1` and `hansa.api.event/1`.", (Progress,)),
)  # fmt: skip
"""Every message class of the network but those of protocols, in the order of the page."""

_RIGHTS: Final = (
    "Who may ask what. The caller is who its certificate says, the object is what the hub's store says of it, and what is in no row is"
    " denied: in the same words, whether the object is another's or is not there. Approving is done at the node itself."
)
_NAMES: Final = {str: "text", bytes: "bytes", int: "int", float: "float", bool: "bool", type(None): "nil"}
_BOUNDED: Final = {
    packets.Count: "count", packets.Number: "number", packets.RunName: "run", packets.LaneName: "lane", packets.Name: "name",
    packets.Epoch: "epoch", packets.Known: "epoch or empty",
    packets.Tag: "tag", packets.Sentence: "sentence",
}  # fmt: skip
_ROLE: Final = re.compile(r":(?:class|func|mod):`~?([\w.]+)`")


def structs(kind: type[Any]) -> list[type[Any]]:
    """The structs that the fields of a class hold, inner ones too, in their order."""
    found: list[type[Any]] = []
    for hint in typing.get_type_hints(kind).values():
        for inner in _inner(hint):
            found += [inner, *structs(inner)]
    return found


def _inner(hint: Any) -> list[type[Any]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [inner for argument in get_args(hint) for inner in _inner(argument)]


def wire_type(hint: Any) -> str:
    """A type as the page names it.

    >>> wire_type(dict[str, tuple[str, ...]]), wire_type(packets.Count), wire_type(bytes | None)
    ('map of array of text', 'count', 'bytes or nil')
    """
    if hint in _BOUNDED:
        return _BOUNDED[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return wire_type(arguments[0])
    if origin in (list, tuple):
        return f"array of {wire_type(arguments[0])}"
    if origin is dict:
        return f"map of {wire_type(arguments[1])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(wire_type(argument) for argument in arguments)
    return _NAMES.get(hint) or str(hint.__name__)


def about(kind: type[Any]) -> str:
    """The first paragraph of a class's docstring."""
    return _plain(" ".join((inspect.getdoc(kind) or "").split("\n\n", maxsplit=1)[0].split()))


def meanings(kind: type[Any]) -> dict[str, str]:
    """What the section ``Args`` says of each field; several that it names together share the sentence."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Args:\n")
    found: dict[str, str] = {}
    for match in re.finditer(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        found |= dict.fromkeys(match[1].split(", "), _plain(" ".join(match[2].split())))
    return found


def _plain(text: str) -> str:
    return _ROLE.sub(lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", text).replace("``", "`").replace("|", "\\|")


def described(kind: type[Any], title: str) -> str:
    """One class: what it is, then its fields in the order in which they are written."""
    hints = typing.get_type_hints(kind, include_extras=True)
    said = meanings(kind)
    lines = [f"**{title}** {about(kind)}"]
    rows: list[tuple[list[str], str]] = []
    for name in kind.__struct_fields__:
        meaning = said.get(name, "").removesuffix(".")
        if rows and meaning and rows[-1][1] == meaning:
            rows[-1][0].append(name)
        else:
            rows.append(([name], meaning))
    if rows:
        lines += ["", "| field | type | |", "|---|---|---|"]
    for names, meaning in rows:
        kinds = dict.fromkeys(wire_type(hints[name]) for name in names)
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {', '.join(kinds)} | {meaning} |")
    return "\n".join(lines)


def table() -> str:
    """The generated part of the page."""
    parts: list[str] = []
    told: set[type[Any]] = set()
    for title, what, kinds in LISTS:
        parts += [f"### {title}", what]
        for kind in kinds:
            parts.append(described(kind, f"`{kind.tag}`"))
            for inner in structs(kind):
                if inner not in told:
                    told.add(inner)
                    parts.append(described(inner, f"{inner.__name__}, a map."))
    return "\n\n".join(parts)


def index() -> str:
    """All tags in one table: who says it, and what the receiver learns."""
    rows = ["| tag | in | discloses |", "|---|---|---|"]
    for title, _, kinds in LISTS:
        rows += [f"| `{kind.tag}` | {title} | {kind.discloses} |" for kind in kinds]
    return "\n".join(rows)


def rights() -> str:
    """The table of who may do what, as the hub applies it."""
    rows = ["| who | to | may | of |", "|---|---|---|---|"]
    for right in RIGHTS:
        whose = "all" if right.whose == ALL else "own" if right.whose == OWN else "where it takes part"
        rows.append(f"| {right.kind} | {right.thing} | {', '.join(right.verbs)} | {whose} |")
    return "\n".join(rows)


def with_table(text: str) -> str:
    """The page with the generated part as the classes are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{index()}\n\n{table()}\n\n### Rights\n\n{_RIGHTS}\n\n{rights()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
