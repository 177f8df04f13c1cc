"""What a plan means for privacy: messages, who sees them, what protects them, which guarantee holds."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from hansa import schema
from hansa.errors import ConfigError
from hansa.horizontal.rounds import share_of
from hansa.message import Message
from hansa.params import Params
from hansa.pipeline import stages
from hansa.plan import Plan
from hansa.protocol import OBSERVER, Progress
from hansa.simulation.simulate import check, load_data
from hansa.tensor import Tensor

THREAT_MODEL: Final = re.compile(r"\*?Threat model\*?:\s*(.*?)(?:\n\n|\Z)", re.DOTALL)
"""Where a docstring states its threat model: up to the end of the paragraph."""


@dataclass(frozen=True)
class Disclosure:
    """One class of messages: who receives it, from whom, what they learn, and about how large it is."""

    receiver: str
    senders: str
    message: str
    discloses: str
    models: int


@dataclass(frozen=True)
class Explanation:
    """What :func:`explanation` found."""

    name: str
    digest: str
    protocol: str
    settings: dict[str, Any]
    waits: list[str]
    disclosures: list[Disclosure]
    protections: list[tuple[str, str]]
    threat_models: list[str]
    guarantee: str
    model_bytes: int | None
    remark: str

    def data(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def text(self) -> str:
        """Text for people."""
        lines = [f"plan {self.name or '(unnamed)'}", f"digest {self.digest}", "", f"protocol: {self.protocol}"]
        lines += [f"  {key} = {value}" for key, value in self.settings.items() if key != "name"]
        if self.waits:
            lines += ["", "a round", *(f"  {sentence}" for sentence in self.waits)]
        receivers = dict.fromkeys(d.receiver for d in self.disclosures)
        for receiver in receivers:
            lines += ["", f"{receiver} receives"]
            for d in (d for d in self.disclosures if d.receiver == receiver):
                lines.append(f"  {d.message} from {d.senders}{self._size(d.models)}: {d.discloses}")
        lines += ["", "what happens to an update on its way"]
        lines += [f"  {name}: {effect}" for name, effect in self.protections] or [
            "  nothing: this protocol aggregates nowhere"
        ]
        lines += ["", "threat model"] + [f"  {text}" for text in self.threat_models]
        lines += ["", f"guarantee: {self.guarantee}"]
        return "\n".join(lines + ([self.remark] if self.remark else []))

    def _size(self, models: int) -> str:
        if not models:
            return " (small)"
        if self.model_bytes is None:
            return f" (at least {models} x the model each)"
        return f" (at least {models * self.model_bytes / 1e3:,.1f} kB each)"


def explanation(plan: Plan) -> Explanation:
    """What ``plan`` discloses to whom."""
    roles = plan.protocol.roles(plan.learner, plan.aggregation)
    size, remark = None, ""
    try:
        size = check(plan, load_data(plan)).flat.nbytes
    except ConfigError as error:
        remark = f"sizes are not known: {error}"
    # A protocol in which nobody accepts what the aggregation sends has no part for it, as gossip has none.
    updates = {kind for kind in plan.aggregation.messages if _models(kind)}
    parts = stages(plan.aggregation) if any(updates & set(role.receives) for role in roles.values()) else []
    disclosures = []
    for name, role in roles.items():
        others = [other for other in roles if other != name] or [f"other {name}s"]
        disclosures += [
            Disclosure(name, " or ".join(others), kind.__name__, kind.discloses, _models(kind))
            for kind in dict.fromkeys(role.receives)
        ]
    tellers = " or ".join(name for name, role in roles.items() if role.starts)
    disclosures.append(Disclosure(OBSERVER, tellers, Progress.__name__, Progress.discloses, 0))
    protections = [
        (schema.type_name(type(stage)) or type(stage).__name__, stage.effect.format(**_fields(stage)) or "not said")
        for stage in parts
    ]
    return Explanation(
        plan.name,
        plan.digest,
        type(plan.protocol).__name__,
        _settings(plan.protocol),
        _waits(plan, size),
        disclosures,
        protections,
        list(dict.fromkeys(text for part in (plan.protocol, *parts) for text in _threat_models(part))),
        _guarantee(parts),
        size,
        remark,
    )


def _settings(protocol: Any) -> dict[str, Any]:
    """All settings, the defaults included: what was not written holds all the same."""
    return {field.name: schema.write(getattr(protocol, field.name)) for field in fields(protocol)}


def _waits(plan: Plan, size: int | None) -> list[str]:
    """How long a round lasts at most, what it needs, and what its updates weigh, as far as the protocol's settings say."""
    settings = _settings(plan.protocol)
    wanted, deadline, quorum = (
        settings.get("cohort", settings.get("buffer")),
        settings.get("deadline"),
        settings.get("quorum"),
    )
    sentences = []
    if isinstance(deadline, int | float):
        sentences.append(f"every wait in it ends {deadline:g} s after its beginning at the latest")
    if isinstance(wanted, int) and isinstance(quorum, int | float):
        least = share_of(wanted, quorum)
        then = (
            "keeps the model and goes on"
            if settings.get("missed_quorum") == "skip"
            else "ends the run, and names who was silent"
        )
        sentences.append(f"it wants {wanted} contributions and needs {least}; with fewer it {then}")
    updates = [kind.__name__ for kind in plan.aggregation.messages if _models(kind)]
    if isinstance(wanted, int) and size is not None and updates:
        sentences.append(
            f"at least {wanted * size / 1e3:,.1f} kB of {' and '.join(updates)} travel in it, and the model to everybody invited"
        )
    return sentences


def _fields(stage: Any) -> dict[str, Any]:
    return {name: getattr(stage, name) for name in getattr(stage, "__dataclass_fields__", {})}


def _guarantee(parts: Sequence[Any]) -> str:
    if any(_secures(stage) for stage in parts):
        return "see the stages"
    trusted = "the aggregating party is trusted" if parts else "every receiver sees what it is sent as it is"
    return f"none. No noise is added, so no differential privacy holds; no secure aggregation, so {trusted}"


def _secures(stage: Any) -> bool:
    """Whether a stage makes noise or hides single updates itself, rather than passing such values on."""
    return any(
        after in ("noised", "noised update", "bounded sum") and before not in ("noised update", "noised")
        for before, after in stage.flow.items()
    )


def _models(kind: type[Message]) -> int:
    """How many vectors of the model's size a message of this class carries at least."""
    hints = typing.get_type_hints(kind)
    return sum(hint in (Tensor, Params) for hint in hints.values())


def threat_model(module: str) -> list[str]:
    """What a module's docstring says that is seen and by whom: first what it takes over from another, then its own.

    Raises:
        ValueError: it says nothing.
    """
    found = THREAT_MODEL.search(inspect.getdoc(importlib.import_module(module)) or "")
    if found is None:
        raise ValueError(f"the docstring of {module} must state its threat model")
    own = " ".join(found[1].split())
    reference = re.match(r"that of :mod:`([\w.]+)`[.;]?\s*(.*)", own)
    told = [*threat_model(reference[1]), reference[2]] if reference else [own]
    return [text[0].upper() + text[1:] for text in told if text]


def _threat_models(part: Any) -> list[str]:
    """What the file of a part says, or the one of the first class that it builds on which says anything."""
    for kind in type(part).__mro__:
        try:
            return threat_model(kind.__module__)
        except ValueError:
            continue
    return []
