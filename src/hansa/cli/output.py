"""What commands print: text for people on standard output, or one JSON document for programs."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs, and nothing else, on standard output.")]


def say(text: str) -> None:
    """Print text for people."""
    print(text, file=sys.stdout)


def emit(data: Any) -> None:
    """Print a JSON document."""
    print(json.dumps(data, indent=2, default=str), file=sys.stdout)
