"""The command line: ``hansa``. Thin: every command calls what Python users call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from hansa.cli.app import app
from hansa.errors import ConfigError, HansaError

__all__ = ["app", "main"]

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: what was asked cannot be done; a run failed; Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    A mistake of the user is one sentence on standard error and exit code 2; no traceback.
    """
    try:
        code = app(args=list(arguments) if arguments is not None else None, prog_name="hansa", standalone_mode=False)
    except ConfigError as error:
        print(f"hansa: {error}", file=sys.stderr)
        code = BAD_INPUT
    except HansaError as error:
        print(f"hansa: {error}", file=sys.stderr)
        code = FAILED
    except click.ClickException as error:
        error.show(sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)
