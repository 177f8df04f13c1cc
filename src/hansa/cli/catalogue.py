"""``hansa list``: what a plan can name."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from hansa import registry
from hansa.cli.output import Json, emit, say
from hansa.errors import ConfigError, nearest


def list_entries(
    group: Annotated[
        str | None,
        typer.Argument(
            help="protocols, learners, stages, partitioners, sources, samplings, topologies; all if not said"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List what a plan can name, with where each comes from."""
    if group is not None and group not in registry.GROUPS:
        raise ConfigError(f"there is nothing called {group!r} to list; {nearest(group, registry.GROUPS)}")
    groups = {name: _rows(name) for name in ([group] if group is not None else registry.GROUPS)}
    if json:
        emit(groups[group] if group is not None else groups)
        return
    for place, (name, rows) in enumerate(groups.items()):
        if group is None:
            say(("\n" if place else "") + name)
        _show(rows, "" if group is not None else "  ")


def _rows(group: str) -> list[dict[str, str]]:
    rows = []
    for name, place in registry.names(group).items():
        try:
            entry = registry.find(group, name)
            about = first_sentence(entry.__doc__ or "")
        except ConfigError as error:
            about = f"not available: {error}"
        rows.append({"name": name, "about": about, "from": place.partition(":")[0].partition(".")[0], "place": place})
    return rows


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, without its markup.

    >>> first_sentence("Sums ``x`` and\\n    :class:`Y`. See :func:`z`.")
    'Sums x and Y.'
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    plain = re.sub(r":[a-z]+:`~?([^`]*)`", r"\1", paragraph).replace("``", "")
    return re.split(r"(?<=[.:])\s(?=[A-Z])", plain, maxsplit=1)[0].removesuffix(":")


def _show(rows: list[dict[str, str]], indent: str) -> None:
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        origin = "" if row["from"] == "hansa" else f"  [{row['from']}]"
        say(f"{indent}{row['name']:<{width}}  {row['about']}{origin}")
