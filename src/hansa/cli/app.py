"""The commands of ``hansa``, gathered."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Final

import typer

from hansa.cli import backups, catalogue, demo, doctor, federation, owner, plans, remote, runs
from hansa.cli.output import say
from hansa.errors import ConfigError, HansaError, TrustError, VersionMismatch

BAD_INPUT: Final = 2
"""Exit code: what was asked cannot be done."""
FAILED: Final = 1
"""Exit code: a run failed."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated learning: the model moves, the data stays.",
)
app.command()(demo.demo)
app.command("init")(plans.init)
app.command("explain")(plans.explain)
app.command("simulate")(runs.simulate)
app.command("compare")(runs.compare)
app.command("report")(runs.write_report)
app.command("list")(catalogue.list_entries)
app.command()(federation.hub)
app.command()(federation.invite)
app.command()(federation.join)
app.command()(federation.node)
app.command()(federation.members)
app.command()(federation.revoke)
app.command()(remote.submit)
app.command("runs")(remote.list_runs)
app.command()(remote.watch)
app.command()(remote.logs)
app.command()(remote.stop)
app.command()(remote.resume)
app.command()(remote.forget)
app.command()(remote.fetch)
app.command()(owner.pending)
app.command()(owner.approve)
app.command()(owner.refuse)
app.command()(owner.audit)
app.command()(doctor.doctor)
app.command()(backups.backup)
app.command()(backups.restore)


def _version(asked: bool) -> None:
    if asked:
        say(f"hansa {version('hansa')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated learning: the model moves, the data stays."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    A mistake of the user is one sentence on standard error and exit code 2, a run that failed is exit code 1, an interrupted one
    130; none shows a traceback. What nobody foresaw does.
    """
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="hansa")
    except (ConfigError, TrustError, VersionMismatch) as error:
        print(f"hansa: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except HansaError as error:
        print(f"hansa: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except Exception as error:
        error.add_note(
            "This is a mistake in Hansa or in code that the plan names; if it is Hansa's, please report it with all of this."
        )
        raise
