"""The package's face: its names, and what importing it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hansa import learners


def test_all_is_sorted_and_visible() -> None:
    assert sorted(learners.__all__) == sorted(dir(learners))
    assert len(set(learners.__all__)) == len(learners.__all__)
    for name in set(learners.__all__) - {"Torch", "Sklearn"}:
        assert name in vars(learners)


def test_lazy_names_load() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    assert learners.Sklearn.__name__ == "Sklearn"
    assert learners.Torch.__name__ == "Torch"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="Torhc"):
        learners.Torhc  # noqa: B018


def test_importing_imports_no_library_and_a_missing_one_names_its_extra() -> None:
    program = """
import sys
from hansa import learners
assert not {"torch", "sklearn"} & set(sys.modules), "imported too early"
sys.modules["torch"] = sys.modules["sklearn"] = None
from hansa.errors import MissingExtra
for name, extra in (("Torch", "torch"), ("Sklearn", "sklearn")):
    try:
        getattr(learners, name)
    except MissingExtra as error:
        assert error.extra == extra and extra in str(error), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
