"""What commands print: text for people on standard output, or one JSON document for programs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from hansa.monitoring.strict_json import dumps

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else, on standard output.")]


def say(text: str) -> None:
    """Print text for people."""
    print(text, file=sys.stdout, flush=True)


def emit(data: Any) -> None:
    """Print a JSON document."""
    print(dumps(data, indent=2), file=sys.stdout, flush=True)
