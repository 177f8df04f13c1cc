"""Makes the reference pages when the documentation is built, from what each package says is public.

One page a package with an ``__all__``, one for the ground floor's files, and one for the public face that lists every name and
where it is described. So a new public name is in the reference from the day that it is in ``__all__``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parent.parent / "src" / "hansa"


def exported(tree: ast.Module) -> list[str]:
    """The strings of a module's ``__all__``, in their order; nothing where there is none."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None and any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return [str(name) for name in ast.literal_eval(value)]
    return []


def defined(tree: ast.Module) -> list[str]:
    """The public classes, functions and documented or annotated names that a module itself defines, in their order."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def homes(tree: ast.Module) -> dict[str, str]:
    """Which module each name of a public face is imported from."""
    return {
        alias.asname or alias.name: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def public(src: Path = SRC) -> dict[str, list[str]]:
    """The public names of each module that has a section of its own: ground-floor files, then packages with ``__all__``."""
    found = {
        f"hansa.{path.stem}": defined(parse(path)) for path in sorted(src.glob("*.py")) if not path.stem.startswith("_")
    }
    for path in sorted(src.rglob("*/__init__.py")):
        names = exported(parse(path))
        if names:
            found[".".join(("hansa", *path.parent.relative_to(src).parts))] = names
    return found


def anchor(module: str, name: str, src: Path = SRC) -> str:
    """The address under which a public name is described: where a file has the name of its function, the file's own."""
    face = src.joinpath(*module.split(".")[1:], "__init__.py")
    home = homes(parse(face)).get(name) if face.is_file() else None
    return f"{module}.{name}.{name}" if home == f"{module}.{name}" else f"{module}.{name}"


def directive(address: str, level: int, members: str = "") -> str:
    """What asks mkdocstrings to describe one thing."""
    return f"::: {address}\n    options:\n      heading_level: {level}\n      show_root_full_path: true\n{members}"


def section(module: str, names: list[str], level: int, src: Path = SRC) -> str:
    """One module's own docstring, then each of its public names."""
    face = src.joinpath(*module.split(".")[1:], "__init__.py")
    inside = homes(parse(face)) if face.is_file() else {}
    plain = [name for name in names if inside.get(name, "") not in (module, f"{module}.{name}")]
    members = "      members:" + ("".join(f"\n        - {name}" for name in plain) or " false") + "\n"
    rest = [directive(anchor(module, name, src), level + 1) for name in names if name not in plain]
    return "\n".join([directive(module, level, members), *rest])


def face(src: Path = SRC) -> str:
    """The page of ``import hansa``: each name with a link to its description, or described here where it has no other place."""
    tree = parse(src / "__init__.py") if (src / "__init__.py").exists() else ast.Module([], [])
    names, sources, elsewhere = exported(tree), homes(tree), public(src)
    lines, here = [], []
    for name in sorted(names, key=str.lower):
        home = sources.get(name, "")
        described = [m for m, members in elsewhere.items() if name in members and f"{home}.".startswith(f"{m}.")]
        if f"hansa.{name}" in elsewhere and home in ("", "hansa"):
            lines.append(f"- [`{name}`][hansa.{name}]")
        elif described:
            lines.append(f"- [`{name}`][{anchor(max(described, key=len), name, src)}]")
        elif name != "__version__":
            here.append(name)
    page = f"# hansa\n\n{ast.get_docstring(tree) or ''}\n\n" + "\n".join(lines) + "\n"
    return page + "".join("\n" + directive(f"{sources.get(name, 'hansa')}.{name}", 2) for name in here)


def pages(src: Path = SRC) -> dict[str, str]:
    """The text of each reference page by its address."""
    found = {"reference/hansa.md": face(src)}
    ground = "# The ground floor\n\nWhat every room builds on; import these names from their files.\n"
    for module, names in public(src).items():
        if "." in module.removeprefix("hansa.") or (src / module.removeprefix("hansa.")).is_dir():
            found[f"reference/{module.removeprefix('hansa.')}.md"] = section(module, names, 1, src)
        else:
            ground += f"\n{section(module, names, 2, src)}"
    found["reference/ground.md"] = ground
    return found


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    titles = {"reference/hansa.md": "import hansa", "reference/ground.md": "The ground floor"}
    entries = [{titles.get(page, page[10:-3]): page} for page in pages()]
    config["nav"] = [*config["nav"], {"Reference": entries}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that stand on the disk."""
    from mkdocs.structure.files import File

    made: Mapping[str, str] = pages()
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files
