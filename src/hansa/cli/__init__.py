"""The command line: ``hansa``. Thin: every command calls what Python users call."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hansa.cli.app import app
from hansa.errors import ConfigError, HansaError

__all__ = ["app", "main"]

BAD_INPUT, FAILED = 2, 1
"""Exit codes: what was asked cannot be done; a run failed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    A mistake of the user is one sentence on standard error and exit code 2; no traceback.
    """
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="hansa")
    except ConfigError as error:
        print(f"hansa: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except HansaError as error:
        print(f"hansa: {error}", file=sys.stderr)
        sys.exit(FAILED)
