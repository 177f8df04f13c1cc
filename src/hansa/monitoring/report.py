"""A run's report: one page to look at."""

from __future__ import annotations

import html
from pathlib import Path


def report(folder: Path) -> str:
    """The page for a run's folder."""
    status = (folder / "status.json").read_text(encoding="utf-8")
    return f"<!doctype html><title>run</title><pre>{html.escape(status)}</pre>"
