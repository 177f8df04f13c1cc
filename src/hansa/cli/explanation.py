"""What a plan means for privacy: messages, who sees them, what protects them, which guarantee holds."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from dataclasses import asdict, dataclass
from typing import Any

from hansa import schema
from hansa.errors import ConfigError
from hansa.message import Message
from hansa.params import Params
from hansa.pipeline import stages
from hansa.plan import Plan
from hansa.protocol import OBSERVER, Progress
from hansa.simulation.simulate import check, load_data
from hansa.tensor import Tensor


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
        receivers = dict.fromkeys(d.receiver for d in self.disclosures)
        for receiver in receivers:
            lines += ["", f"{receiver} receives"]
            for d in (d for d in self.disclosures if d.receiver == receiver):
                lines.append(f"  {d.message} from {d.senders}{self._size(d.models)}: {d.discloses}")
        lines += ["", "what happens to an update on its way"]
        lines += [f"  {name}: {effect}" for name, effect in self.protections]
        lines += ["", "threat model"] + [f"  {text}" for text in self.threat_models]
        lines += ["", f"guarantee: {self.guarantee}"]
        return "\n".join(lines + ([self.remark] if self.remark else []))

    def _size(self, models: int) -> str:
        if not models:
            return " (small)"
        if self.model_bytes is None:
            return f" ({models} x the model)"
        return f" (about {models * self.model_bytes / 1e3:,.1f} kB each)"


def explanation(plan: Plan) -> Explanation:
    """What ``plan`` discloses to whom."""
    roles = plan.protocol.roles(plan.learner, plan.aggregation)
    size, remark = None, ""
    try:
        size = check(plan, load_data(plan)).flat.nbytes
    except ConfigError as error:
        remark = f"sizes are not known: {error}"
    disclosures = []
    for name, role in roles.items():
        others = [other for other in roles if other != name] or [f"other {name}s"]
        disclosures += [
            Disclosure(name, " or ".join(others), kind.__name__, kind.discloses, _models(kind))
            for kind in dict.fromkeys(role.receives)
        ]
    disclosures.append(Disclosure(OBSERVER, " or ".join(roles), Progress.__name__, Progress.discloses, 0))
    protections = [
        (schema.type_name(type(stage)) or type(stage).__name__, stage.effect.format(**_fields(stage)) or "not said")
        for stage in stages(plan.aggregation)
    ]
    return Explanation(
        plan.name,
        plan.digest,
        type(plan.protocol).__name__,
        schema.write(plan.protocol),
        disclosures,
        protections,
        list(dict.fromkeys(filter(None, (_threat_model(part) for part in (plan.protocol, *stages(plan.aggregation)))))),
        "none. No noise is added, so no differential privacy holds; no secure aggregation, so the aggregating party is trusted"
        if not _protects(plan)
        else "see the stages",
        size,
        remark,
    )


def _fields(stage: Any) -> dict[str, Any]:
    return {name: getattr(stage, name) for name in getattr(stage, "__dataclass_fields__", {})}


def _protects(plan: Plan) -> bool:
    return any({"noised", "bounded sum"} & set(stage.flow.values()) - {"noised update"} and _secures(stage)
               for stage in stages(plan.aggregation))  # fmt: skip


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


def _threat_model(part: Any) -> str:
    """The threat model that the docstring of a part's file states, or the one of the file that its class builds on."""
    for kind in type(part).__mro__:
        text = inspect.getdoc(sys.modules.get(kind.__module__)) or ""
        found = re.search(r"\*Threat model\*:(.*?)(?:\n\n|\Z)", text, re.DOTALL)
        if found:
            return " ".join(found[1].split())
    return ""
