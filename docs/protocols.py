"""Makes one page a protocol when the documentation is built, from the protocol itself and from a run of it.

What a page says of roles, messages, disclosures and the threat model is what ``hansa explain`` says. Its picture is drawn from the
message log of a real run: two rounds, four parties, a small softmax regression. ``python docs/protocols.py`` writes the text of
every picture into ``tests/docs/golden``, where a test compares them, so a new message or disclosure is seen in review.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

import hansa as hs
from hansa import pipeline, registry, schema
from hansa.cli.explanation import THREAT_MODEL, Disclosure, Explanation, explanation, threat_model
from hansa.protocol import OBSERVER, Role
from hansa.simulation.log import Entry

GOLDEN: Final = Path(__file__).resolve().parent.parent / "tests" / "docs" / "golden"
PARTIES: Final = 4

SETTINGS: Final[Mapping[str, Any]] = {
    "rounds": 2,
    "cohort": PARTIES,
    "concurrency": PARTIES,
    "buffer": 2,
    "mu": 0.1,
    "server_learning_rate": 0.1,
}
"""What the run of a picture sets, of what a protocol leaves without a default."""


@dataclass(frozen=True)
class Shown:
    """A protocol, how it was set, and what a run of it did."""

    name: str
    plan: hs.Plan
    run: hs.Run
    explanation: Explanation
    roles: Mapping[str, Role]


def names() -> list[str]:
    """The protocols that come with Hansa."""
    return list(registry.BUILT_IN["protocols"])


def show(name: str) -> Shown:
    """Run the protocol ``name`` for two rounds over four parties.

    Raises:
        ValueError: it has a setting without a default that :data:`SETTINGS` does not know.
    """
    kind = registry.find("protocols", name)
    wanted = [field.name for field in fields(kind) if field.init and not _has_default(field)]
    unknown = [setting for setting in wanted if setting not in SETTINGS]
    if unknown:
        raise ValueError(f"docs/protocols.py: say in SETTINGS what {name}'s {unknown[0]} is in its picture")
    rows = np.linspace(-1.0, 1.0, 40)
    data = hs.data.arrays(np.stack([rows, rows**2], axis=1), (rows > 0).astype(np.int64))
    learner = hs.learners.Softmax(optimizer=hs.SGD(0.1), batch_size=4)
    plan = hs.Plan(kind(**{setting: SETTINGS[setting] for setting in wanted}), learner, name=name)
    run = hs.simulate(plan, data.partition(hs.data.IID(), parties=PARTIES)).raise_if_failed()
    return Shown(name, plan, run, explanation(plan), plan.protocol.roles(plan.learner, plan.aggregation))


def diagram(shown: Shown) -> str:
    """The Mermaid text of a protocol's picture, with what each class of messages discloses as comments."""
    comments = [
        f"    %% {one.message}, {_senders(shown, one)} to {one.receiver}: {one.discloses}"
        for one in shown.explanation.disclosures
    ]
    return "\n".join([shown.run.diagram(parties=PARTIES + 1, lines=1000), *comments]) + "\n"


_WIDTH: Final = 170
_STEP: Final = 26
_COLOURS: Final = ("#1f5f99", "#a8480f", "#2f7a38", "#8a2c8a", "#6b5a10", "#555555")


def picture(shown: Shown) -> str:
    """The same as an inline SVG, which a browser shows without a script: a column a party, an arrow a message."""
    entries = shown.run.log.entries
    parties = {f"client-{number}" for number in range(PARTIES)}
    met = sorted({name for e in entries for name in (e.sender, e.to)} - {OBSERVER}, key=lambda n: (n in parties, n))
    x = {name: _WIDTH // 2 + place * _WIDTH for place, name in enumerate(met)}
    kinds = list(dict.fromkeys(e.kind for e in entries if e.to != OBSERVER))
    colour = {kind: _COLOURS[place % len(_COLOURS)] for place, kind in enumerate(kinds)}
    height = 60 + _STEP * len(entries)
    width = _WIDTH * len(x)
    drawn = [
        (
            f'<svg viewBox="0 0 {width} {height}" width="{width}" style="max-width:100%;height:auto" role="img" '
            f'font-family="sans-serif" font-size="12" xmlns="http://www.w3.org/2000/svg">'
        ),
        f"<title>{escape(shown.name)}: every message of two rounds, in order</title>",
        "<defs>" + "".join(_head(place, colour[kind]) for place, kind in enumerate(kinds)) + "</defs>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for name, at in x.items():
        drawn.append(f'<line x1="{at}" y1="34" x2="{at}" y2="{height}" stroke="#cccccc"/>')
        drawn.append(
            f'<text x="{at}" y="22" text-anchor="middle" font-weight="bold" fill="#222222">{escape(name)}</text>'
        )
    reported = iter(shown.run.history)
    for place, entry in enumerate(entries):
        y = 60 + _STEP * place
        if entry.to == OBSERVER:
            drawn += _report(y, width, next(reported).round, x[entry.sender])
        else:
            drawn += _arrow(y, x[entry.sender], x[entry.to], entry, colour[entry.kind], kinds.index(entry.kind))
    return "\n".join([*drawn, "</svg>"])


def _head(place: int, colour: str) -> str:
    return (
        f'<marker id="head{place}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
    )


def _arrow(y: int, start: int, end: int, entry: Entry, colour: str, place: int) -> list[str]:
    # A label stands beside the sender, on a white ground, so that columns it crosses do not cut it.
    right = end > start
    at, anchor = (start + 8, "start") if right else (start - 8, "end")
    text = f"{entry.kind} {entry.nbytes} B"
    return [
        f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" stroke="{colour}" marker-end="url(#head{place})"/>',
        (
            f'<text x="{at}" y="{y - 5}" text-anchor="{anchor}" fill="{colour}" stroke="#ffffff" stroke-width="3" '
            f'paint-order="stroke">{escape(text)}</text>'
        ),
    ]


def _report(y: int, width: int, number: int, at: int) -> list[str]:
    text = "the model before training is reported" if number == 0 else f"round {number} is reported"
    return [
        f'<line x1="0" y1="{y}" x2="{width}" y2="{y}" stroke="#999999" stroke-dasharray="3 4"/>',
        (
            f'<text x="{max(at - 40, 4)}" y="{y - 5}" fill="#666666" stroke="#ffffff" stroke-width="3" '
            f'paint-order="stroke">{text}</text>'
        ),
    ]


_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([\w.]+)`")
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):$", re.MULTILINE)


def page(shown: Shown) -> str:
    """The Markdown of one protocol's page."""
    kind = type(shown.plan.protocol)
    home = sys.modules[kind.__module__]
    prose = _SECTION.split(inspect.getdoc(kind) or "")[0]
    made = [
        f"# {kind.__name__}",
        _markdown(_without_threat_model(inspect.getdoc(home) or "")),
        f"## What it does\n\n{_markdown(_without_doctest(prose))}",
        f'In a plan: `name = "{shown.name}"`. In Python: [`{kind.__name__}`][{_address(kind)}].',
        "## Settings\n\n" + _settings(kind),
        "## Roles\n\n" + _roles(shown.roles),
        "## Who learns what\n\n" + _disclosures(shown),
        "## Threat model\n\n" + _threat_models(shown),
        f"The guarantee of the plan of this page, {_aggregated(shown)}: {_markdown(shown.explanation.guarantee)}.",
        "## Two rounds of four parties\n\n" + _told(shown),
        f'<div style="overflow-x:auto">\n{picture(shown)}\n</div>',
        (
            "The same as Mermaid text, as [`Run.diagram`][hansa.Run] gives it for any run:\n\n"
            f"```text\n{shown.run.diagram(parties=PARTIES + 1, lines=1000)}\n```"
        ),
    ]
    return "\n\n".join(made) + "\n"


def _threat_models(shown: Shown) -> str:
    told = [_markdown(text) for text in threat_model(type(shown.plan.protocol).__module__)]
    for stage in pipeline.stages(shown.plan.aggregation) if shown.explanation.protections else []:
        told += [f"The stage `{stage_name(stage)}`: {_markdown(text)}" for text in threat_model(type(stage).__module__)]
    return "\n\n".join(told)


def _aggregated(shown: Shown) -> str:
    names = [f"`{name}`" for name, _ in shown.explanation.protections]
    return f"which aggregates by {' and '.join(names)} alone" if names else "which aggregates nowhere"


def stage_name(stage: Any) -> str:
    """The name of a stage in a plan."""
    return schema.type_name(type(stage)) or type(stage).__name__


def _told(shown: Shown) -> str:
    settings = ", ".join(f"{key} = {value}" for key, value in shown.explanation.settings.items() if key in SETTINGS)
    return (
        f"Drawn from the message log of a run made when this page was built, with {settings}; a dashed line is what the"
        " run's owner is told."
    )


def _settings(kind: type[Any]) -> str:
    told: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        told |= _arguments(inspect.getdoc(base) or "") if base is not object else {}
    rows = ["| setting | default | |", "|---|---|---|"]
    for field in fields(kind):
        if field.init:
            default = f"`{_default(field)}`" if _has_default(field) else "must be said"
            rows.append(f"| `{field.name}` | {default} | {_markdown(told.get(field.name, ''))} |".replace("\n", " "))
    return "\n".join(rows)


def _arguments(text: str) -> dict[str, str]:
    """What the section ``Args`` of a docstring says of each argument.

    >>> _arguments("A.\\n\\nArgs:\\n    x, y: two\\n        numbers.\\n    z: one.\\n\\nMore.")
    {'x': 'two numbers.', 'y': 'two numbers.', 'z': 'one.'}
    """
    parts = _SECTION.split(text)
    section = next((body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title == "Args"), "")
    found: dict[str, str] = {}
    for match in re.finditer(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        found |= dict.fromkeys(match[1].split(", "), " ".join(match[2].split()))
    return found


def _roles(roles: Mapping[str, Role]) -> str:
    rows = ["| role | who | runs | keeps |", "|---|---|---|---|"]
    for name, role in roles.items():
        who = "each party that owns data" if role.many else "one party"
        runs = "from the beginning" if role.starts else "when invited by " + _list(role.invitations)
        rows.append(f"| {name} | {who} | {runs} | {f'`{role.saves.__name__}`' if role.saves else 'nothing'} |")
    return "\n".join(rows)


def _disclosures(shown: Shown) -> str:
    traffic = shown.run.traffic
    rows = ["| message | from | to | discloses | here |", "|---|---|---|---|---|"]
    for one in shown.explanation.disclosures:
        sent = traffic.get(one.message)
        here = f"{sent.messages} sent, {sent.nbytes} B" if sent else "none sent"
        if one.receiver == OBSERVER:
            here = "to the run's owner, not counted"
        rows.append(f"| `{one.message}` | {_senders(shown, one)} | {one.receiver} | {one.discloses} | {here} |")
    return "\n".join(rows)


def _senders(shown: Shown, one: Disclosure) -> str:
    """Who sends a class of messages: any other role, but only parties that start by themselves report to the owner."""
    starting = [name for name, role in shown.roles.items() if role.starts]
    return " or ".join(starting) if one.receiver == OBSERVER else one.senders


def _list(kinds: Sequence[type[Any]]) -> str:
    return " or ".join(f"`{kind.__name__}`" for kind in kinds)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return repr(value)


def _address(kind: type[Any]) -> str:
    """Where the reference describes a protocol: in the page of its room."""
    return f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"


def _markdown(text: str) -> str:
    return _ROLE.sub(lambda role: f"`{role[1].rsplit('.', 1)[-1]}`", text.replace("``", "`")).strip()


def _first(text: str) -> str:
    """The first paragraph, in one line."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def _without_doctest(text: str) -> str:
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith(">>> "))


def _without_threat_model(text: str) -> str:
    """The text but its threat model, which has a section of its own."""
    return re.sub(r"\n{3,}", "\n\n", THREAT_MODEL.sub("\n\n", text)).strip()


def index(all_shown: Sequence[Shown]) -> str:
    """The page that lists the protocols."""
    rows = ["| protocol | in a plan | |", "|---|---|---|"]
    homes = [type(shown.plan.protocol).__module__ for shown in all_shown]
    for shown, home in zip(all_shown, homes, strict=True):
        kind = type(shown.plan.protocol)
        # A file of one protocol says best what it is; of several, each class does.
        told = inspect.getdoc(sys.modules[home] if homes.count(home) == 1 else kind) or ""
        rows.append(f"| [{kind.__name__}]({shown.name}.md) | `{shown.name}` | {_markdown(_first(told))} |")
    return (
        "# Protocols\n\nWhat comes with Hansa. Each page is made from the protocol's own docstrings, classes and a run, so it"
        " says what the code does. `hansa list protocols` also shows what other installed packages bring.\n\n"
        + "\n".join(rows)
        + "\n"
    )


def pages() -> dict[str, str]:
    """The text of each page by its address."""
    all_shown = [show(name) for name in names()]
    found = {"protocols/index.md": index(all_shown)}
    return found | {f"protocols/{shown.name}.md": page(shown) for shown in all_shown}


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    entries: list[Any] = [{"All": "protocols/index.md"}]
    entries += [{registry.find("protocols", name).__name__: f"protocols/{name}.md"} for name in names()]
    config["nav"] = [*config["nav"], {"Protocols": entries}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those that stand on the disk."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def write() -> None:
    """Write the text of every picture into :data:`GOLDEN`."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in names():
        (GOLDEN / f"{name}.mmd").write_text(diagram(show(name)), encoding="utf-8")


if __name__ == "__main__":
    write()
