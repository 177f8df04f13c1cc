"""The public face: every name is meant, described, and found in the documentation; importing it is cheap."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.reference import SRC, anchor, exported, homes, pages, parse, public

ROOT = SRC.parent.parent
HEAVY = [
    "torch",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "datasets",
    "jax",
    "ray",
    "xgboost",
    "transformers",
    "tensorboard",
    "mlflow",
    "wandb",
    "typer",
    "click",
    "rich",
    "matplotlib",
    "asyncio",
]


def public_packages() -> list[str]:
    """Packages that say what is public, the whole of Hansa first."""
    found = [
        ".".join(("hansa", *path.parent.relative_to(SRC).parts))
        for path in sorted(SRC.rglob("__init__.py"))
        if exported(parse(path))
    ]
    return sorted(found, key=lambda name: (name.count("."), name))


PACKAGES = public_packages()


def visible(module: types.ModuleType) -> set[str]:
    """What a user sees after a dot: not private, and not a submodule that merely happens to be loaded."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name not in ("annotations", "TYPE_CHECKING")
    }


def disagreements(module: types.ModuleType) -> Iterator[str]:
    """Where a module's ``__all__`` and what is visible in it differ."""
    names: list[str] = list(module.__all__)
    yield from (f"{name} stands twice in __all__" for name in sorted(set(names)) if names.count(name) > 1)
    yield from (f"{name} is visible and not in __all__" for name in sorted(visible(module) - set(names)))
    for name in names:
        try:
            getattr(module, name)
        except AttributeError:
            yield f"{name} is in __all__ and not there"


def attribute_docstring(tree: ast.Module, name: str) -> bool:
    """Whether ``name = value`` is followed by a string, or led by a comment, that says what it is."""
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == name:
            return isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
    return False


def home_file(package: str, name: str) -> Path | None:
    """The file of Hansa that a public name of ``package`` is imported from."""
    face = SRC.joinpath(*package.split(".")[1:], "__init__.py")
    module = homes(parse(face)).get(name, package)
    path = SRC.joinpath(*module.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def described_somewhere(cls: type, method: str) -> bool:
    """Whether a method, or the one that it implements, has a docstring."""
    return any(getattr(vars(parent).get(method), "__doc__", None) for parent in cls.__mro__)


def undocumented(package: str, module: types.ModuleType) -> Iterator[str]:
    """Public names, and public methods of public classes, that nobody has described."""
    for name in module.__all__:
        value = getattr(module, name, None)
        if name.startswith("__") or value is None:
            continue
        if inspect.isclass(value):
            # A dataclass without a docstring gets its signature for one.
            if not value.__doc__ or value.__doc__.startswith(f"{value.__name__}("):
                yield f"{package}.{name}"
            for method, member in vars(value).items():
                # A function that is a field's default is a value, not a method.
                own = inspect.isfunction(member) and member.__qualname__ == f"{value.__qualname__}.{method}"
                own = own or isinstance(member, property | staticmethod | classmethod)
                if own and not method.startswith("_") and not described_somewhere(value, method):
                    yield f"{package}.{name}.{method}"
        elif inspect.isfunction(value) or isinstance(value, types.ModuleType):
            if not value.__doc__:
                yield f"{package}.{name}"
        else:
            home = home_file(package, name)
            if home is None or not attribute_docstring(parse(home), name):
                yield f"{package}.{name} (a string below the assignment describes a constant or an alias)"


def directives(text: str) -> set[str]:
    """The full names that a reference page shows or links to."""
    found: set[str] = set(re.findall(r"\]\[(hansa[\w.]*)\]", text))
    for block in re.split(r"^(?=::: )", text, flags=re.MULTILINE):
        if block.startswith("::: "):
            name = block[4:].split("\n", 1)[0].strip()
            found |= {name} | {f"{name}.{member}" for member in re.findall(r"^ {8}- (\w+)", block, re.MULTILINE)}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_all_equals_what_is_visible(package: str) -> None:
    assert list(disagreements(importlib.import_module(package))) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_described(package: str) -> None:
    assert list(undocumented(package, importlib.import_module(package))) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_reaches_every_public_name(package: str) -> None:
    made = pages()
    reached = set().union(*(directives(text) for text in made.values()))
    for name in exported(parse(SRC.joinpath(*package.split(".")[1:], "__init__.py"))):
        if package == "hansa":
            page = made["reference/hansa.md"]
            assert name.startswith("__") or re.search(rf"`{name}`\]\[|^::: hansa[\w.]*\.{name}$", page, re.MULTILINE), (
                name
            )
        else:
            assert anchor(package, name) in reached


def test_every_room_says_what_is_public() -> None:
    """A package that holds code has an ``__all__``, so that nothing is public by accident."""
    silent = [
        str(path.parent.relative_to(SRC))
        for path in sorted(SRC.rglob("__init__.py"))
        if not exported(parse(path)) and len(list(path.parent.glob("*.py"))) > 1
    ]
    assert silent == []


def run_python(code: str) -> str:
    """What a fresh interpreter prints for ``code``."""
    environment = {**os.environ, "PYTHONPATH": str(SRC.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    return done.stdout.strip()


def test_importing_hansa_loads_nothing_heavy() -> None:
    loaded = run_python(f"import sys, hansa; print(*sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert loaded == ""


def test_importing_hansa_prints_nothing_and_leaves_the_randomness_alone() -> None:
    code = (
        "import random, numpy as np; before = random.getstate(), np.random.get_state()[1].tolist(); import hansa; "
        "after = random.getstate(), np.random.get_state()[1].tolist(); print(before == after)"
    )
    assert run_python(code) == "True"


@pytest.mark.slow
def test_the_built_documentation_holds_every_public_name(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        timeout=300,
        check=True,
    )
    packed = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]
    anchors = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    missing = [anchor(m, name) for m, names in public().items() for name in names if anchor(m, name) not in anchors]
    assert missing == []


# Below, the checks must see what they are made for.


def module_of(text: str, name: str = "planted") -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(text, name, "exec", dont_inherit=True), vars(module))
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__all__ = ['a', 'b']\na = 1", "b is in __all__ and not there"),
        ("__all__ = ['a']\na = b = 1", "b is visible and not in __all__"),
        ("__all__ = ['a', 'a']\na = 1", "a stands twice in __all__"),
        ("__all__ = ['a']\nfrom pathlib import Path\na = 1", "Path is visible and not in __all__"),
    ],
)
def test_a_disagreement_is_seen(text: str, expected: str) -> None:
    assert list(disagreements(module_of(text))) == [expected]


def test_agreement_passes() -> None:
    text = "from __future__ import annotations\nimport os\n__all__ = ['a', 'lazy']\na = _b = 1\ndef __getattr__(name): return 1"
    assert list(disagreements(module_of(text))) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(): ...", "planted.f"),
        ("class f: ...", "planted.f"),
        ("from dataclasses import dataclass\n@dataclass\nclass f:\n    x: int", "planted.f"),
        ("class f:\n    'Said.'\n    def g(self): ...", "planted.f.g"),
        ("class f:\n    'Said.'\n    @property\n    def g(self): ...", "planted.f.g"),
        ("class f:\n    'Said.'\n    @staticmethod\n    def g(): ...", "planted.f.g"),
    ],
)
def test_an_undescribed_name_is_seen(text: str, expected: str) -> None:
    assert list(undocumented("planted", module_of(f"{text}\n__all__ = ['f']"))) == [expected]


def test_an_overriding_method_needs_no_second_description() -> None:
    text = "def _k(): ...\nclass A:\n    'A.'\n    def g(self): 'G.'\nclass f(A):\n    'F.'\n    k = _k\n    def g(self): ...\n    def _h(self): ...\n__all__ = ['f']"
    assert list(undocumented("planted", module_of(text))) == []


@pytest.mark.parametrize(
    ("text", "documented"),
    [
        ("x = 1\n'''What x is.'''", True),
        ("x: int = 1\n'''What x is.'''", True),
        ("x = 1\ny = 2\n'''y'''", False),
        ("x = 1", False),
    ],
)
def test_a_constant_is_described_below_it(text: str, documented: bool) -> None:
    assert attribute_docstring(ast.parse(text), "x") is documented


def test_the_pages_of_a_small_tree(tmp_path: Path) -> None:
    (tmp_path / "room" / "inner").mkdir(parents=True)
    (tmp_path / "errors.py").write_text("class Bad(Exception):\n    'Bad.'\n\ndef _hidden(): ...\n")
    (tmp_path / "room" / "__init__.py").write_text("from hansa.room.x import A as A\n__all__ = ['A']\n")
    (tmp_path / "room" / "inner" / "__init__.py").write_text("from hansa.room.inner.B import B as B\n__all__ = ['B']\n")
    (tmp_path / "room" / "inner" / "B.py").write_text("def B(): 'B.'\n")
    face = "from hansa.errors import Bad as Bad\nfrom hansa.room.x import A as A\nfrom hansa import room as room\nalone = 1\n"
    (tmp_path / "__init__.py").write_text(face + "__all__ = ['A', 'Bad', 'alone', 'room']\n")
    made = pages(tmp_path)
    assert set(made) == {f"reference/{name}.md" for name in ("hansa", "ground", "room", "room.inner")}
    assert directives(made["reference/ground.md"]) == {"hansa.errors", "hansa.errors.Bad"}
    assert directives(made["reference/room.inner.md"]) == {"hansa.room.inner", "hansa.room.inner.B.B"}
    expected = {"hansa.errors.Bad", "hansa.room.A", "hansa.room", "hansa.alone"}
    assert directives(made["reference/hansa.md"]) == expected
