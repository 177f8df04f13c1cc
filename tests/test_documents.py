"""What the documents say is run: Python blocks without a prompt as one program a page, TOML blocks as plans, commands as commands.

Blocks with a prompt (``>>>``) are doctests, which pytest collects by itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hansa.plan import Plan
from hansa.simulation import Simulation

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language; a block with a prompt is left to doctest."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in found if ">>> " not in block]


def documents(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page.read_text(encoding="utf-8"), language)]


@pytest.mark.parametrize("page", documents("python"), ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page.read_text(encoding="utf-8"), "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", documents("toml"), ids=lambda page: page.name)
def test_the_plans_of_a_page_load(page: Path, tmp_path: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8"), "toml"):
        file = tmp_path / "plan.toml"
        file.write_text(block, encoding="utf-8")
        assert Plan.load(file, {"simulation": Simulation}).name == tomllib.loads(block)["name"]


@pytest.mark.parametrize("page", documents("sh"), ids=lambda page: page.name)
def test_the_make_targets_of_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", "\n".join(blocks(page.read_text(encoding="utf-8"), "sh")), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        # Some pages are made when the documentation is built, whose strict build checks links to them.
        if "://" not in target and not target.startswith(("reference/", "protocols/")):
            assert (page.parent / target).exists(), target


def test_blocks_are_found() -> None:
    text = "a\n```python\nx = 1\n```\n```python\n>>> 1\n1\n```\n```toml\n[a]\n```\n"
    assert blocks(text, "python") == ["x = 1\n"]
    assert blocks(text, "toml") == ["[a]\n"]
