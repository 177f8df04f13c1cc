"""The command line: ``hansa``. Thin: every command calls what Python users call."""

from hansa.cli.app import main as main

__all__ = ["main"]
