"""The house's rules, read off the source: who imports whom, what may stand where, how large a room may be.

Each rule is a function from a source tree to the offences in it. The first test runs them all on the project; the others plant
an offence in a small tree and expect the rule to name it, and plant its lawful neighbour and expect silence.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src" / "hansa"

# From the roof down. A floor is a tuple of groups; a group is a tuple of rooms that never import each other. Rooms of different
# groups on one floor may, as long as no circle comes of it.
FLOORS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("__main__",), ("cli",)),
    (("deployment", "simulation"), ("monitoring",)),
    (("horizontal", "vertical", "transfer", "decentralized"), ("attacks",), ("incentives",)),
    (("aggregation",), ("learners",), ("data",)),
    (("privacy",), ("crypto",)),
)
# The ground floor, file by file: each imports only those before it.
GROUND = (
    "errors",
    "rng",
    "tensor",
    "params",
    "examples",
    "update",
    "learner",
    "message",
    "party",
    "protocol",
    "pipeline",
    "registry",
    "schema",
    "toml",
    "plan",
    "threads",
)
FACE = "__init__"

ROOM_OF_MODULE = {
    **dict.fromkeys(("asyncio", "socket", "socketserver", "selectors", "ssl", "grpc", "aiohttp"), "deployment"),
    **dict.fromkeys(("multiprocessing", "concurrent"), "simulation"),
}
# Libraries that a user may not have, and the room where one file or package adapts each.
ADAPTING_ROOM = {
    **dict.fromkeys(("torch", "jax", "xgboost", "transformers"), "learners"),
    **dict.fromkeys(("pyarrow", "pandas", "datasets"), "data"),
    **dict.fromkeys(("tensorboard", "mlflow", "wandb"), "monitoring"),
    "sklearn": "learners",
    "ray": "simulation",
}
BANNED_NAMES = frozenset(
    {"utils", "util", "common", "base", "helpers", "helper", "manager", "handler", "factory", "misc"}
)
PICKLE_LIKE = frozenset({"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "copyreg", "jsonpickle"})
BANNED_CALLS = frozenset({"super", "hasattr", "eval", "exec"})
# An exception has to hand its message to the exception it is; there is no other way to do that.
MAY_CALL = {("errors.py", "super")}
GENERATORS = frozenset({"Generator", "Philox", "SeedSequence", "BitGenerator"})
# torch initialises and drops out from its one generator; the adapter forks it first and puts it back.
TORCH_ADAPTER = ("learners", "torch")
MAX_FILE, MAX_FUNCTION = 600, 80


@dataclass(frozen=True)
class Import:
    """One imported module name, and where and how it is imported."""

    path: Path
    line: int
    module: str
    top_level: bool


@dataclass(frozen=True)
class Source:
    """One file of a tree: ``place`` is its path from the package's root, ``room`` the first part of that, without ``.py``."""

    path: Path
    place: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.place.parts[0].removesuffix(".py")

    def at(self, line: int) -> str:
        return f"{self.place}:{line}"


Rule = Callable[[Sequence[Source]], Iterator[str]]


def read(root: Path) -> list[Source]:
    paths = sorted(root.rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return [Source(p, p.relative_to(root), t, ast.parse(t, p.name)) for p, t in zip(paths, texts, strict=True)]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(source: Source) -> Iterator[Import]:
    """Every import of a file; one under TYPE_CHECKING or in a function is not at top level."""
    package = ("hansa", *source.place.parent.parts)

    def walk(node: ast.AST, top_level: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(source.place, child.lineno, alias.name, top_level)
            elif isinstance(child, ast.ImportFrom):
                start = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join((*start, *filter(None, [child.module])))
                # `from hansa import data` imports hansa.data, where there is such a thing; the longer name says more.
                if module == "hansa":
                    for alias in child.names:
                        yield Import(source.place, child.lineno, f"hansa.{alias.name}", top_level)
                else:
                    yield Import(source.place, child.lineno, module, top_level)
            deeper = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
            yield from walk(child, top_level and not deeper)

    return walk(source.tree, True)


def address(room: str) -> tuple[int, int] | None:
    """(floor counted from the ground, group) of a room; ground-floor files have floor 0 and their place as group."""
    if room in GROUND:
        return 0, GROUND.index(room)
    for depth, floor in enumerate(reversed(FLOORS), start=1):
        for number, group in enumerate(floor):
            if room in group:
                return depth, number
    return None


def may_import(importer: tuple[int, int], imported: tuple[int, int]) -> bool:
    if importer[0] == imported[0] == 0:
        return imported[1] < importer[1]
    return imported[0] < importer[0] or (imported[0] == importer[0] and imported[1] != importer[1])


def between_rooms(sources: Sequence[Source]) -> Iterator[tuple[Source, Import, str]]:
    for source in sources:
        for found in imports(source):
            parts = found.module.split(".")
            if parts[0] == "hansa" and source.room != FACE and source.room != ".".join(parts[1:2]):
                yield source, found, ".".join(parts[1:2])


def floors(sources: Sequence[Source]) -> Iterator[str]:
    """A floor imports only floors below it, neighbours only where they are not divided, the ground floor only downwards."""
    for source in sources:
        if source.room != FACE and address(source.room) is None:
            yield f"{source.place}: '{source.room}' is on no floor"
    for source, found, room in between_rooms(sources):
        here, there = address(source.room), address(room)
        if there is None:
            yield f"{source.at(found.line)}: imports {found.module}, which is on no floor; name the file, not the public face"
        elif here is not None and not may_import(here, there):
            yield f"{source.at(found.line)}: {source.room} may not import {room}"


def circles(sources: Sequence[Source]) -> Iterator[str]:
    """Rooms that import each other, directly or round about."""
    graph: dict[str, set[str]] = {}
    for source, _, room in between_rooms(sources):
        graph.setdefault(source.room, set()).add(room)

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            room = waiting.pop()
            if room not in seen:
                seen.add(room)
                waiting.extend(graph.get(room, ()))
        return seen

    circle = sorted(room for room in graph if room in reaches(room))
    if circle:
        yield f"these rooms import each other in a circle: {', '.join(circle)}"


def confined_modules(sources: Sequence[Source]) -> Iterator[str]:
    """Sockets and event loops are the deployment's, processes the simulation's, wherever the import stands."""
    for source in sources:
        for found in imports(source):
            room = ROOM_OF_MODULE.get(found.module.split(".")[0])
            if room is not None and source.room != room:
                yield f"{source.at(found.line)}: {found.module} belongs in {room}/"


def optional_libraries(sources: Sequence[Source]) -> Iterator[str]:
    """An optional library is imported at top level by the one file or package that adapts it, and nowhere else."""
    places: dict[str, set[str]] = {}
    for source in sources:
        for found in imports(source):
            library = found.module.split(".")[0]
            if library not in ADAPTING_ROOM or not found.top_level:
                continue
            if (
                source.room != ADAPTING_ROOM[library]
                or len(source.place.parts) < 2
                or source.place.name == source.place.parts[1] == "__init__.py"
            ):
                yield f"{source.at(found.line)}: {library} at top level outside the file that adapts it"
            else:
                places.setdefault(library, set()).add(source.place.parts[1].removesuffix(".py"))
    for library, names in sorted(places.items()):
        if len(names) > 1:
            yield f"{library} is adapted in more than one place: {', '.join(sorted(names))}"


def banned_names(sources: Sequence[Source]) -> Iterator[str]:
    """No drawer for odds and ends: a file is named by its noun or its paper."""
    for source in sources:
        for part in source.place.with_suffix("").parts:
            found = BANNED_NAMES.intersection(re.split(r"_+", part))
            if found:
                yield f"{source.place}: '{part}' says nothing; name the noun"


def sizes(sources: Sequence[Source]) -> Iterator[str]:
    """A file and a function can be read at one go."""
    for source in sources:
        lines = source.text.count("\n")
        if lines > MAX_FILE:
            yield f"{source.place}: {lines} lines, at most {MAX_FILE}"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    yield f"{source.at(node.lineno)}: {node.name} has {length} lines, at most {MAX_FUNCTION}"


def no_pickle(sources: Sequence[Source]) -> Iterator[str]:
    """Nothing that runs code while it reads."""
    for source in sources:
        for found in imports(source):
            if found.module.split(".")[0] in PICKLE_LIKE:
                yield f"{source.at(found.line)}: imports {found.module}"
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            switches = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if switches.get("allow_pickle"):
                yield f"{source.at(node.lineno)}: allow_pickle=True"
            if ast.unparse(node.func) == "torch.load" and switches.get("weights_only") is not True:
                yield f"{source.at(node.lineno)}: torch.load without weights_only=True"


def banned_calls(sources: Sequence[Source]) -> Iterator[str]:
    """No super, no hasattr, no eval: classes are abstract or final, and a value's type is known."""
    for source in sources:
        calls = [node for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
        for call in calls:
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            if name in BANNED_CALLS and (str(source.place), name) not in MAY_CALL:
                yield f"{source.at(call.lineno)}: calls {name}()"


def no_global_randomness(sources: Sequence[Source]) -> Iterator[str]:
    """Randomness comes in as an argument: no module's hidden generator, no seed of the whole process."""
    for source in sources:
        for found in imports(source):
            if found.module == "random":
                yield f"{source.at(found.line)}: imports random; take a Key"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                numpy = name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] not in GENERATORS
                torch = name in ("torch.manual_seed", "torch.seed") and source.place.parts[:2] != TORCH_ADAPTER
                if numpy or torch:
                    yield f"{source.at(node.lineno)}: {name} is the whole process's randomness; take a Key"


RULES: tuple[Rule, ...] = (
    floors,
    circles,
    confined_modules,
    optional_libraries,
    banned_names,
    sizes,
    no_pickle,
    banned_calls,
    no_global_randomness,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    offences = list(rule(read(SRC)))
    assert not offences, f"{rule.__doc__}\n" + "\n".join(offences)


def test_the_source_is_found() -> None:
    assert {source.room for source in read(SRC)} >= {"errors", "message", "party", "protocol"}


# Below, each rule must fail on what it forbids.

Plant = tuple[Rule, dict[str, str], str]

OFFENCES: list[Plant] = [
    (floors, {"message.py": "from hansa.party import Party"}, "message may not import party"),
    (floors, {"rng.py": "import hansa.errors\nimport hansa.tensor"}, "rng may not import tensor"),
    (floors, {"protocol.py": "def f():\n    from hansa.plan import Plan"}, "protocol may not import plan"),
    (floors, {"party.py": "from hansa.data.csv import read"}, "party may not import data"),
    (
        floors,
        {"aggregation/mean.py": "from hansa.horizontal.fedavg import FedAvg"},
        "aggregation may not import horizontal",
    ),
    (floors, {"simulation/world.py": "from hansa.deployment.hub import Hub"}, "simulation may not import deployment"),
    (floors, {"horizontal/x.py": "from hansa.vertical.y import z"}, "horizontal may not import vertical"),
    (floors, {"horizontal/x.py": "from ..simulation import world"}, "horizontal may not import simulation"),
    (floors, {"data/x.py": "if TYPE_CHECKING:\n    from hansa.cli.app import App"}, "data may not import cli"),
    (floors, {"data/x.py": "from hansa import simulation"}, "data may not import simulation"),
    (floors, {"data/x.py": "from hansa import FedAvg"}, "not the public face"),
    (floors, {"data/x.py": "import hansa"}, "not the public face"),
    (floors, {"cellar/x.py": ""}, "'cellar' is on no floor"),
    (
        circles,
        {"data/x.py": "import hansa.learners.y", "learners/y.py": "def f():\n    import hansa.data.x"},
        "circle: data, learners",
    ),
    (
        circles,
        {
            "data/x.py": "import hansa.learners",
            "learners/y.py": "import hansa.aggregation",
            "aggregation/z.py": "import hansa.data",
        },
        "circle: aggregation, data, learners",
    ),
    (confined_modules, {"simulation/x.py": "import asyncio"}, "asyncio belongs in deployment/"),
    (confined_modules, {"monitoring/x.py": "def f():\n    from socket import socket"}, "socket belongs in deployment/"),
    (confined_modules, {"cli/x.py": "import grpc.aio"}, "grpc.aio belongs in deployment/"),
    (confined_modules, {"learners/x.py": "from multiprocessing import Pool"}, "belongs in simulation/"),
    (confined_modules, {"data/x.py": "from concurrent.futures import ThreadPoolExecutor"}, "belongs in simulation/"),
    (optional_libraries, {"horizontal/x.py": "import torch"}, "torch at top level"),
    (optional_libraries, {"learners/__init__.py": "import torch"}, "torch at top level"),
    (optional_libraries, {"data/x.py": "from sklearn.datasets import load_digits"}, "sklearn at top level"),
    (
        optional_libraries,
        {"data/x.py": "try:\n    import pyarrow\nexcept ImportError:\n    pass", "data/y.py": "import pyarrow"},
        "more than one place: x, y",
    ),
    (
        optional_libraries,
        {"learners/torch/a.py": "import torch", "learners/b.py": "import torch.nn as nn"},
        "more than one place",
    ),
    (optional_libraries, {"__init__.py": "import wandb"}, "wandb at top level"),
    (optional_libraries, {"learners.py": "import torch"}, "torch at top level"),
    (banned_names, {"data/utils.py": ""}, "'utils' says nothing"),
    (banned_names, {"cli/run_manager.py": ""}, "'run_manager' says nothing"),
    (banned_names, {"learners/base/torch.py": ""}, "'base' says nothing"),
    (sizes, {"errors.py": "\n" * 601}, "601 lines"),
    (sizes, {"errors.py": "def f():\n" + "    x = 1\n" * 80}, "f has 81 lines"),
    (sizes, {"errors.py": "class A:\n    async def g(self):\n" + "        x = 1\n" * 90}, "g has 91 lines"),
    (no_pickle, {"message.py": "import pickle"}, "imports pickle"),
    (no_pickle, {"message.py": "def f():\n    from joblib import load"}, "imports joblib"),
    (no_pickle, {"data/x.py": "np.load(path, allow_pickle=True)"}, "allow_pickle=True"),
    (no_pickle, {"data/x.py": "torch.load(path)"}, "without weights_only"),
    (banned_calls, {"party.py": "class A(B):\n    def f(self):\n        super().f()"}, "calls super()"),
    (banned_calls, {"party.py": "hasattr(x, 'y')"}, "calls hasattr()"),
    (banned_calls, {"errors.py": "hasattr(x, 'y')"}, "calls hasattr()"),
    (banned_calls, {"plan.py": "eval(text)"}, "calls eval()"),
    (no_global_randomness, {"data/x.py": "import random"}, "imports random"),
    (no_global_randomness, {"data/x.py": "np.random.seed(0)"}, "np.random.seed"),
    (no_global_randomness, {"data/x.py": "rng = np.random.default_rng()"}, "np.random.default_rng"),
    (no_global_randomness, {"learners/x.py": "torch.manual_seed(0)"}, "torch.manual_seed"),
    (no_global_randomness, {"simulation/pool.py": "torch.manual_seed(0)"}, "torch.manual_seed"),
]

LAWFUL: list[tuple[Rule, dict[str, str]]] = [
    (floors, {"message.py": "from hansa.errors import MessageError\nimport msgspec"}),
    (floors, {"__init__.py": "from hansa.simulation.run import simulate as simulate"}),
    (floors, {"cli/app.py": "from hansa.simulation.run import simulate\nfrom hansa.monitoring import log"}),
    (
        floors,
        {
            "simulation/x.py": "from hansa.monitoring import log\nfrom .world import World\nfrom hansa.simulation.pool import Pool"
        },
    ),
    (circles, {"data/x.py": "import hansa.learners.y", "learners/y.py": "import hansa.errors"}),
    (
        confined_modules,
        {"deployment/hub.py": "import asyncio, socket, ssl", "simulation/pool.py": "import multiprocessing"},
    ),
    (optional_libraries, {"learners/torch/a.py": "import torch", "learners/torch/b.py": "from torch import nn"}),
    (
        optional_libraries,
        {"data/x.py": "def f():\n    import pandas", "learners/x.py": "if TYPE_CHECKING:\n    import torch"},
    ),
    (
        optional_libraries,
        {"learners/sklearn.py": "import sklearn", "data/toy.py": "def f():\n    from sklearn import datasets"},
    ),
    (banned_names, {"data/baseline.py": "", "privacy/commons.py": ""}),
    (sizes, {"errors.py": "x = 1\n" * 600 + "", "rng.py": "def f():\n" + "    x = 1\n" * 79}),
    (no_pickle, {"data/x.py": "np.load(path, allow_pickle=False)\ntorch.load(path, weights_only=True)"}),
    (banned_calls, {"errors.py": "class E(Exception):\n    def __init__(self):\n        super().__init__()"}),
    (banned_calls, {"party.py": "# super() and hasattr() are only spoken of\nx = 'eval(1)'"}),
    (no_global_randomness, {"rng.py": "np.random.Generator(np.random.Philox(key=1))"}),
    (no_global_randomness, {"learners/torch/init.py": "torch.manual_seed(0)"}),
]


def planted(root: Path, files: dict[str, str]) -> list[Source]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read(root)


@pytest.mark.parametrize(("rule", "files", "expected"), OFFENCES)
def test_a_planted_offence_is_named(tmp_path: Path, rule: Rule, files: dict[str, str], expected: str) -> None:
    offences = list(rule(planted(tmp_path, files)))
    assert len(offences) == 1, offences
    assert expected in offences[0]


@pytest.mark.parametrize(("rule", "files"), LAWFUL)
def test_what_is_lawful_passes(tmp_path: Path, rule: Rule, files: dict[str, str]) -> None:
    assert list(rule(planted(tmp_path, files))) == []


def test_every_rule_has_its_offence() -> None:
    assert {rule for rule, _, _ in OFFENCES} == set(RULES) == {rule for rule, _ in LAWFUL}
