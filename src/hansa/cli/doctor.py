"""``hansa doctor``: what may go wrong, and what went wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa.cli.home import Home, home_of
from hansa.cli.output import Json, emit, say


def doctor(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="A run, to learn what went wrong in it.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Look at a home, its data and the way to the hub; or at a run. Exits with 1 if there is a problem."""
    place = home_of(home, "hansa doctor")
    from hansa.deployment import api, doctor, people

    found: list[doctor.Finding] = []
    if run:
        mine = people.credentials_at(place)
        view = people.find_run(mine, run)
        events: list[api.Event] = []
        people.watch(mine, view.run, events.append, follow=False)
        findings = doctor.post_mortem(view, events)
    else:
        findings = doctor.examine(place)
    for finding in findings:
        found.append(finding)
        if not json:
            say(str(finding))
    if json:
        emit([{"verdict": one.verdict, "about": one.about, "text": one.text} for one in found])
    raise typer.Exit(1 if any(one.verdict == "problem" for one in found) else 0)
