"""What a plan asks of a party, as plain data: all that a policy looks at.

Reading a plan imports its learner's library. A process that must not can have the terms from one that may, and still judges by
its own policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from hansa import schema
from hansa.horizontal.rounds import share_of
from hansa.horizontal.sampling import Fixed, Uniform, Weighted
from hansa.pipeline import stages
from hansa.plan import Plan, plain


class StageTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stage of the aggregation: its registered name, and those of its settings that are numbers."""

    name: str
    numbers: dict[str, float] = {}


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Made by :func:`terms_of`.

    Args:
        digest: the plan's.
        protocol, learner: by registered name.
        stages: of the aggregation, in order.
        gathers: whether the protocol uses the aggregation at all; otherwise its stages protect nothing.
        served: whether one role owns no data, so that somebody has to run it.
        code: every text of the plan that could name something to import, ``package.module:Name``.
        rounds, deadline: as the protocol says them; None where it does not.
        drawn: how many parties an aggregate wants at most; None for all of them.
        named: the parties that alone take part, where the plan names them.
        quorum: the least share of an aggregate that must be there.
    """

    digest: str
    protocol: str
    learner: str
    stages: tuple[StageTerms, ...]
    gathers: bool
    served: bool
    code: tuple[str, ...] = ()
    rounds: float | None = None
    deadline: float | None = None
    drawn: int | None = None
    named: tuple[str, ...] | None = None
    quorum: float = 1.0

    def fewest(self, parties: Sequence[str]) -> int:
        """The fewest of ``parties`` whose updates one aggregate may hold: a lower bound, whatever fails."""
        there = set(parties)
        if self.named is not None:
            there &= set(self.named)
        count = len(there) if self.drawn is None or self.named is not None else min(len(there), self.drawn)
        return min(count, share_of(count, self.quorum)) if count else 0


def terms_of(plan: Plan) -> Terms:
    """The terms of a plan. Nothing that the plan names is imported or called, but for what is registered.

    The size of an aggregate is the protocol's ``buffer`` or ``cohort``, or all parties where it has neither; where a sampling
    may draw any number, it is 1.

    >>> from hansa import FedAvg
    >>> from hansa.learners import Softmax
    >>> terms_of(Plan(FedAvg(rounds=5, cohort=10, quorum=0.5), Softmax())).fewest([f"party-{i}" for i in range(20)])
    5
    """
    protocol = plan.protocol
    roles = protocol.roles(plan.learner, plan.aggregation)
    received = {kind for role in roles.values() for kind in role.receives}
    messages = plan.aggregation.messages
    sizes = [size for size in (_number(protocol, "cohort"), _number(protocol, "buffer")) if size is not None]
    sampling = getattr(protocol, "sampling", None)
    if sampling is not None and not isinstance(sampling, Uniform | Weighted | Fixed):
        sizes.append(1)
    quorum = _number(protocol, "quorum")
    return Terms(
        digest=plan.digest,
        protocol=_name(protocol),
        learner=_name(plan.learner),
        stages=tuple(StageTerms(_name(stage), _numbers(stage)) for stage in stages(plan.aggregation)),
        gathers=bool(messages) and received.issuperset(messages),
        served=any(not role.many for role in roles.values()),
        code=tuple(sorted(_code(plan))),
        rounds=_number(protocol, "rounds"),
        deadline=_number(protocol, "deadline"),
        drawn=int(min(sizes)) if sizes else None,
        named=sampling.names if isinstance(sampling, Fixed) else None,
        quorum=1.0 if quorum is None else quorum,
    )


def _code(plan: Plan) -> set[str]:
    """Any text with a colon, wherever it stands. scikit-learn's learner takes only estimators that it knows."""
    table = plain(plan)
    learner = dict(table["learner"])
    if learner.get("name") == "sklearn":
        learner.pop("estimator", None)
    found: set[str] = set()
    waiting: list[Any] = [table["protocol"], learner, table["aggregation"]]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and ":" in value:
            found.add(value)
    return found


def _name(value: Any) -> str:
    return schema.type_name(type(value)) or type(value).__name__


def _number(value: Any, name: str) -> float | None:
    found = getattr(value, name, None)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _numbers(stage: Any) -> dict[str, float]:
    names = [field.name for field in fields(stage)] if is_dataclass(stage) else []
    found = {name: _number(stage, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
