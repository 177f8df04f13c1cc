"""``hansa list``: what a plan can name."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa import registry
from hansa.cli.output import Json, emit, say
from hansa.errors import ConfigError, nearest


def list_entries(
    group: Annotated[
        str, typer.Argument(help="protocols, learners, stages, partitioners, sources, samplings, topologies")
    ],
    json: Json = False,
) -> None:
    """List what a plan can name, with where each comes from."""
    if group not in registry.GROUPS:
        raise ConfigError(f"there is nothing called {group!r} to list; {nearest(group, registry.GROUPS)}")
    rows = []
    for name, place in registry.names(group).items():
        try:
            entry = registry.find(group, name)
            about = (entry.__doc__ or "").strip().split("\n")[0]
        except ConfigError as error:
            about = f"not available: {error}"
        rows.append({"name": name, "about": about, "from": place.partition(":")[0].partition(".")[0], "place": place})
    if json:
        emit(rows)
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        origin = "" if row["from"] == "hansa" else f"  [{row['from']}]"
        say(f"{row['name']:<{width}}  {row['about']}{origin}")
