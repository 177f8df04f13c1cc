"""The commands of ``hansa``, gathered."""

from __future__ import annotations

from typing import Annotated

import typer

from hansa.cli import catalogue, plans, runs
from hansa.cli.output import say

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated learning: the model moves, the data stays.",
)
app.command("demo")(runs.demo)
app.command("init")(plans.init)
app.command("explain")(plans.explain)
app.command("simulate")(runs.simulate)
app.command("compare")(runs.compare)
app.command("list")(catalogue.list_entries)


def _version(asked: bool) -> None:
    if asked:
        from hansa import __version__

        say(f"hansa {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated learning: the model moves, the data stays."""
