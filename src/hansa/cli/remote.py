"""``hansa submit``, ``runs``, ``watch``, ``logs``, ``stop``, ``resume``, ``forget``, ``fetch``: runs of a federation."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hansa import plan as planning
from hansa import schema
from hansa.cli.following import Following, as_data, sentence
from hansa.cli.home import Home, date, hint, home_of, same_home, table, terminal
from hansa.cli.output import Json, emit, say
from hansa.cli.runs import _fresh, _set
from hansa.errors import ConfigError, MissingExtra, Unreachable
from hansa.message import decode
from hansa.protocol import Progress
from hansa.simulation.settings import Simulation

if TYPE_CHECKING:
    from hansa.deployment.api import Event, RunView
    from hansa.deployment.identity import Credentials
    from hansa.deployment.placement import Deployment
    from hansa.params import Params

SHOWN = 20
"""Runs that are listed, unless all are asked for."""
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run, or the beginning of its name.")]


def submit(
    file: Annotated[Path, typer.Argument(help="A TOML plan.")],
    data: Annotated[str | None, typer.Option(help="The name by which the nodes bind their data.")] = None,
    parties: Annotated[str | None, typer.Option(help="The nodes that are asked: a,b,c.")] = None,
    least: Annotated[int | None, typer.Option(help="How many must take part; 0 for all that are asked.")] = None,
    server: Annotated[str | None, typer.Option(help="Where updates are combined: hub, or a node.")] = None,
    within: Annotated[float | None, typer.Option(help="Seconds to answer; 0 for the hub's limit.")] = None,
    watching: Annotated[bool, typer.Option("--watch", help="Stay and watch it.")] = False,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: protocol.rounds=5.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Ask the federation to run a plan; prints the run's name. What is not said here, the plan's [deployment] table says."""
    place = home_of(home, "hansa submit")
    from hansa.deployment import api, people

    text, name, placed = _plan_text(file, change or [])
    mine = people.credentials_at(place)
    asked = None if parties is None else tuple(party.strip() for party in parties.split(",") if party.strip())
    said: dict[str, Any] = {"data": data, "parties": asked, "least": least, "server": server, "within": within}
    placed = replace(placed, **{key: value for key, value in said.items() if value is not None})
    request = api.Submit(text, name, placed.data or name, placed.parties, placed.least, placed.server, placed.within)
    run = people.ask(mine, request, api.Submitted).run
    if watching:
        if not json:
            say(f"run {run}")
        _follow(mine, people.find_run(mine, run), json, home)
    elif json:
        emit({"run": run})
    else:
        say(run)
        hint(f"watch it: hansa watch {run[:6]}{same_home(home)}")


def _plan_text(file: Path, changes: list[str]) -> tuple[str, str, Deployment]:
    """A plan as it is sent, read here too, so that mistakes come with their lines; its name; and how it is placed."""
    from hansa.deployment.placement import Deployment

    try:
        text = file.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text in UTF-8"
        raise ConfigError(f"{file}: cannot be read: {why}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from None
    for change in changes:
        _set(table, change)
    if changes:
        text = planning.to_toml(table)
    name = table.get("name") or file.stem
    source = f"{file} with --set" if changes else str(file)

    def wrong(place: str, sentence: str) -> None:
        raise ConfigError(f"{source}: [{place}] {sentence}")

    placed: Deployment = schema.read(Deployment, table.get("deployment", {}), "deployment", wrong)
    try:
        planning.parse(text, {"simulation": Simulation}, source)
    except MissingExtra as error:
        # The parties have what this machine lacks, or say that they have not.
        hint(f"not checked here: {error}")
    return text, str(name), placed


def list_runs(
    everything: Annotated[bool, typer.Option("--all", help=f"All of them, not the newest {SHOWN}.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """List the runs that you may see, the newest first."""
    place = home_of(home, "hansa runs")
    from hansa.deployment import people

    found, more = people.list_runs(people.credentials_at(place), None if everything else SHOWN)
    if json:
        emit([view_data(one) for one in found])
    else:
        rows = [(one.run, one.name, one.status, _round(one), one.owner, date(one.created), why(one)) for one in found]
        say(table(rows, ("run", "name", "status", "round", "owner", "submitted", "cause"), terminal()))
    if more:
        hint(f"{more} more, older ones: hansa runs --all{same_home(home)}")


def _round(run: RunView) -> str:
    return "" if run.round is None else f"{run.round}/{run.rounds}" if run.rounds else str(run.round)


def why(run: RunView) -> str:
    """Why a run ended as it did."""
    return ": ".join(filter(None, [run.party if run.cause else "", run.cause]))


def view_data(run: RunView) -> dict[str, object]:
    """A run as plain data."""
    data: dict[str, object] = {name: getattr(run, name) for name in run.__struct_fields__}
    seats = [{name: getattr(seat, name) for name in seat.__struct_fields__} for seat in run.participants]
    return {**data, "participants": seats}


def watch(run: Run, home: Home = None, json: Json = False) -> None:
    """Follow a run live, until it has ended; exits with 0 if it completed."""
    place = home_of(home, "hansa watch")
    from hansa.deployment import people

    mine = people.credentials_at(place)
    _follow(mine, people.find_run(mine, run), json, home)


def _follow(mine: Credentials, view: RunView, json: bool, home: Path | None) -> None:
    from hansa.deployment import people

    shown = Following(view, json)

    def lost(reason: str) -> None:
        shown.say(f"the hub is gone ({reason}); trying again")

    try:
        people.watch(mine, view.run, shown.event, lost=lost)
    except KeyboardInterrupt:
        shown.leave()
        hint(f"the run goes on; watch it: hansa watch {view.run[:6]}{same_home(home)}, or end it: hansa stop")
        raise typer.Exit(130) from None
    except BaseException:
        shown.leave()
        raise
    view = people.find_run(mine, view.run)
    shown.end(view)
    if json:
        emit_line(view)
    elif view.status == "completed":
        what = "the model and the report" if _place_of_model(view) == "hub" else "the metrics and the report"
        hint(f"get {what}: hansa fetch {view.run[:6]}{same_home(home)}")
    elif view.remedy:
        hint(f"what to do: {view.remedy}")
    raise typer.Exit(0 if view.status == "completed" else 1)


def emit_line(view: RunView) -> None:
    """How a run ended, as the last line of its events."""
    from hansa.monitoring.strict_json import dumps

    ended = {"event": "end", "run": view.run, "status": view.status, "cause": view.cause, "party": view.party}
    print(dumps({**ended, "remedy": view.remedy}), flush=True)


def logs(run: Run, home: Home = None, json: Json = False) -> None:
    """Print what happened in a run so far."""
    place = home_of(home, "hansa logs")
    from hansa.deployment import people

    mine = people.credentials_at(place)
    found: list[Event] = []
    people.watch(mine, people.find_run(mine, run).run, found.append, follow=False)
    told = [(event, None if event.progress is None else decode(event.progress, Progress)) for event in found]
    if json:
        emit([as_data(event, progress) for event, progress in told])
        return
    for event, progress in told:
        metrics = "" if progress is None else "  ".join(f"{k} {v:.4f}" for k, v in list(progress.metrics.items())[:3])
        line = f"round {event.round}  {metrics}  {event.text}" if progress is not None else sentence(event)
        say(f"{date(event.time)}  {line}".rstrip())


def stop(run: Run, home: Home = None, json: Json = False) -> None:
    """End a run; what its programs saved is kept, and it can be resumed."""
    place = home_of(home, "hansa stop")
    from hansa.deployment import api, people

    mine = people.credentials_at(place)
    name = people.find_run(mine, run).run
    people.ask(mine, api.StopRun(name), api.Done)
    if json:
        emit({"stopped": name})
    else:
        say(f"stopped {name}; go on with: hansa resume {name[:6]}{same_home(home)}")


def resume(run: Run, home: Home = None, json: Json = False) -> None:
    """Go on with a run that was stopped or failed, from its last saved round."""
    place = home_of(home, "hansa resume")
    from hansa.deployment import api, people

    mine = people.credentials_at(place)
    name = people.find_run(mine, run).run
    going = people.ask(mine, api.ResumeRun(name), api.Submitted).run
    if json:
        emit({"resumed": name, "run": going})
        return
    if going != name:
        say(f"{name} cannot go on, as a machine was restored from a backup; it begins anew, as run {going}")
    say(f"{going} goes on; watch it: hansa watch {going[:6]}{same_home(home)}")


def forget(run: Run, home: Home = None, json: Json = False) -> None:
    """Remove a run that has ended from the hub: its model, its metrics, and what could be resumed of it."""
    place = home_of(home, "hansa forget")
    from hansa.deployment import api, people

    mine = people.credentials_at(place)
    view = people.find_run(mine, run)
    people.ask(mine, api.ForgetRun(view.run), api.Done)
    if json:
        emit({"forgotten": view.run})
    else:
        say(f"forgot {view.run} ({view.name}, {view.status})")


def fetch(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The folder; runs/NAME-N if not said.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Get a run's model, metrics and report."""
    place = home_of(home, "hansa fetch")
    from hansa.deployment import kept, people

    mine = people.credentials_at(place)
    view = people.find_run(mine, run)
    folder = out or _fresh(Path("runs"), _safe(view.name))
    own: Mapping[str, Params] = {}
    if mine.identity.kind == "node":
        try:
            own = kept.models(place, view.run)
        except Unreachable as error:
            hint(f"only what is on the hub is fetched, for {error}")
    written = people.fetch(mine, view.run, folder, own)
    if json:
        emit({"folder": str(folder), "files": sorted(path.name for path in written)})
        return
    say(f"wrote {len(written)} files into {folder}")
    if not any(path.suffix == ".safetensors" for path in written):
        say(f"without the model: {_whereabouts(view)}")
    if folder / "report.html" in written:
        say(f"report: {folder / 'report.html'}")


def _whereabouts(view: RunView) -> str:
    """Where the model of a run is that was not fetched."""
    if view.status != "completed":
        return "the run has not completed"
    place = _place_of_model(view)
    if place == "hub":
        return "it is not yours to fetch"
    return f"{f'{place} keeps it' if place else 'each node keeps its own'}, and its owner gets it there: hansa fetch {view.run[:6]}"


def _place_of_model(view: RunView) -> str:
    """The machine of the party that owns no data and ends with the model; nothing where all are peers."""
    return next((seat.host for seat in view.participants if seat.party != seat.host), "")


def _safe(name: str) -> str:
    """A run's name as a folder's: whoever named it may have written anything."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name[:60]).strip("-")
    return kept or "run"
