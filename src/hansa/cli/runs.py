"""``hansa simulate``, ``hansa demo --simulate`` and ``hansa compare``: running plans and looking at runs."""

from __future__ import annotations

import importlib
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

import hansa.monitoring.compare as comparing
import hansa.monitoring.report as reporting
import hansa.simulation.simulate as simulating
from hansa import plan as planning
from hansa.cli.output import Json, emit, say
from hansa.data import Dirichlet, load
from hansa.errors import ConfigError, nearest
from hansa.horizontal import FedAvg
from hansa.learners import MLP, SGD
from hansa.monitoring.progress import progress
from hansa.monitoring.records import Tracker
from hansa.plan import Plan
from hansa.simulation.run import Run
from hansa.simulation.settings import Simulation

_TRACKERS: Mapping[str, str] = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "WandB"}
_EXIT = {"completed": 0, "stopped": 0, "interrupted": 130, "failed": 1}


def simulate(
    file: Annotated[Path, typer.Argument(help="A TOML plan.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME-N if not said.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the plan's seed.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; 0 is one a core.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: protocol.rounds=5.")] = None,
    tracker: Annotated[list[str] | None, typer.Option(help="Also follow with: tensorboard, mlflow, wandb.")] = None,
    json: Json = False,
) -> None:
    """Run a plan over simulated parties, here and now."""
    if out is not None and resume is not None:
        raise ConfigError("--out and --resume exclude each other: a resumed run stays in its folder")
    plan, settings = _loaded(file, change or [])
    if seed is not None:
        plan = plan.with_seed(seed)
    if workers is not None:
        settings = replace(settings, workers=workers)
    data = simulating.load_data(plan)
    simulating.check(plan, data)
    folder = resume or out or _fresh(Path("runs"), plan.name or file.stem)
    trackers = [progress(json), *(_tracker(name, plan, folder) for name in tracker or [])]
    run = simulating.simulate(
        plan, data, settings=settings, folder=folder, resume=resume is not None, trackers=trackers
    )
    again = ["hansa", "simulate", str(file), "--resume", str(folder)]
    again += [] if seed is None else ["--seed", str(seed)]
    again += [part for one in change or [] for part in ("--set", one)]
    _finish(run, folder, json, shlex.join(again))


def simulated_demo(out: Path | None, json: bool) -> None:
    """Train one model over ten simulated parties' real data, live."""
    data = load("sklearn:digits").partition(Dirichlet(alpha=0.3), parties=10, seed=0)
    plan = Plan(
        protocol=FedAvg(rounds=60, cohort=10),
        learner=MLP(hidden=(64,), optimizer=SGD(0.1), batch_size=10),
        name="demo",
        seed=7,
    )
    if not json:
        say("Ten parties hold handwritten digits (scikit-learn's, real data). No party shows its own to anybody.")
        say(data.skew().text() + "\n")
    folder = out or _fresh(Path("runs"), "demo")
    run = simulating.simulate(plan, data, folder=folder, trackers=[progress(json)], baselines=True)
    _finish(run, folder, json)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.")],
    target: Annotated[str | None, typer.Option(help="Rounds and time to a metric: test_accuracy=0.9.")] = None,
    json: Json = False,
) -> None:
    """Compare runs: metrics, rounds and time to a target, traffic, and the settings that differ."""
    goal = None
    if target is not None:
        metric, _, value = target.partition("=")
        try:
            goal = (metric, float(value))
        except ValueError:
            raise ConfigError(f"--target must read METRIC=NUMBER, not {target!r}") from None
    found = comparing.compare(folders, goal)
    if json:
        emit(found.data())
    else:
        say(found.text())


def write_report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    json: Json = False,
) -> None:
    """Write a run's report anew, also of a run that goes on or was killed."""
    page = reporting.report(folder)
    file = folder / "report.html"
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    if json:
        emit({"report": str(file)})
    else:
        say(f"wrote {file}")


def _loaded(file: Path, changes: list[str]) -> tuple[Plan, Simulation]:
    tables = {"simulation": Simulation}
    if not changes:
        plan, others = planning.load(file, tables)
    else:
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file}: is not TOML: {error}") from None
        for change in changes:
            _set(data, change)
        plan, others = planning.parse(planning.to_toml(data), tables, f"{file} with --set")
    settings: Simulation = others.get("simulation", Simulation())
    return plan, settings


def _set(data: dict[str, Any], change: str) -> None:
    path, sign, text = change.partition("=")
    *tables, key = [part.strip() for part in path.split(".")]
    if not sign or not key or not all(tables):
        raise ConfigError(f"--set must read TABLE.SETTING=VALUE, not {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    place: Any = data
    for name in tables:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {change}: {name!r} is not a table; write the setting in the plan")
    place[key] = value


def _tracker(name: str, plan: Plan, folder: Path) -> Tracker:
    if name not in _TRACKERS:
        raise ConfigError(f"no tracker is named {name!r}; {nearest(name, _TRACKERS)}")
    module = importlib.import_module(f"hansa.monitoring.{name}")
    if name == "tensorboard":
        tracker: Tracker = module.TensorBoard(folder / "tensorboard")
    elif name == "mlflow":
        tracker = module.MLflow(plan.name or "hansa")
    else:
        tracker = module.WandB(plan.name or "hansa", folder=folder)
    return tracker


def _fresh(parent: Path, name: str) -> Path:
    return next(path for number in count(1) if not (path := parent / f"{name}-{number}").exists())


def _finish(run: Run, folder: Path, json: bool, again: str = "") -> None:
    if not json:
        say(run.summary())
        say(f"  report: {folder / 'report.html'}")
        if again and run.status != "completed" and (folder / "checkpoint.bin").exists():
            say(f"  go on from its last checkpoint: {again}")
    raise typer.Exit(_EXIT[run.status])
