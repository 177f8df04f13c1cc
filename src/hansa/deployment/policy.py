"""A party's own policy: what its owner allows, whoever asks. Nobody else's setting can widen it.

The ``[policy]`` table of a node's file. What is not said there is not allowed: a list that is empty or missing allows nothing,
and ``"*"``, written out, allows all. So a policy that says nothing takes part in nothing, and a new protocol that comes with a
new version of Hansa is refused until it is listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Final, Literal, NoReturn, final

from hansa import schema
from hansa.deployment.terms import StageTerms, Terms, terms_of
from hansa.errors import ConfigError, PolicyRefused
from hansa.plan import Plan
from hansa.toml import Lines

ANY: Final = "*"
HUB: Final = "hub"
PARTY: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@final
@dataclass(frozen=True)
class Required:
    """A stage that the aggregation must have, and within which bounds its settings must be.

    Args:
        stage: its registered name, such as ``"clip"``.
        least, most: bounds of its numbers by name, both inclusive; ``most = { bound = 10.0 }``.
    """

    stage: str
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)


def asker(kind: str, name: str) -> str:
    """How a policy writes the identity of a submitter: a submitter's bare name, any other kind before it.

    >>> asker("submitter", "ada"), asker("operator", "ada")
    ('ada', 'operator/ada')
    """
    return name if kind == "submitter" else f"{kind}/{name}"


@final
@dataclass(frozen=True)
class RunRequest:
    """What a party is asked to take part in, as the hub tells it; the plan itself comes beside it.

    Args:
        run: the run's name.
        digest: the plan's digest, as the submitter said it.
        submitter: who submitted it, as :func:`asker` writes it.
        data: the name of the data wanted.
        parties: the names of the parties that own the data.
        server: who runs the one role that owns no data: ``"hub"`` or a party's name; empty where the protocol has none.
    """

    run: str
    digest: str
    submitter: str
    data: str
    parties: tuple[str, ...]
    server: str = HUB


@final
@dataclass(frozen=True)
class Policy:
    """The ``[policy]`` table. All of it must allow a run.

    Args:
        protocols, learners: by registered name.
        submitters: who may submit runs, as :func:`asker` writes them: ``"ada"``, or ``"operator/ada"`` for an operator.
        data: which of the party's bindings may be used.
        code: what a plan may name as ``package.module:Name``, a torch model for one, to be imported and called here:
            the same text, or ``"package.module:*"``. scikit-learn's estimators need no line: their learner knows them.
        servers: who may run the server's role: ``"hub"``, or names of parties.
        require: stages that the aggregation must have. One that the protocol never uses does not count.
        forbid: stages that it must not have.
        digests: if any are listed, only the plans with these digests.
        least_parties: the fewest parties in one aggregate, however many fail: the quorum's share of the cohort.
        most_rounds: rounds of a run at most; 0 for no limit.
        most_deadline: seconds that a round may wait at most.
        approval: ``"manual"`` asks the party's operator about each run that all of this allows; ``"automatic"`` takes part.
        lines: where the table stands; for refusals.
    """

    protocols: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    submitters: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    servers: tuple[str, ...] = (HUB,)
    require: tuple[Required, ...] = ()
    forbid: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    least_parties: int = 2
    most_rounds: int = 10_000
    most_deadline: float = 3600.0
    approval: Literal["automatic", "manual"] = "manual"
    lines: Lines = field(default=Lines("policy"), compare=False, repr=False, metadata={schema.ASIDE: True})

    def __post_init__(self) -> None:
        sentences = [
            f"digests holds {digest!r}, which is not the 64 hexadecimal digits of a plan's digest"
            for digest in self.digests
            if not re.fullmatch(r"[0-9a-f]{64}", digest)
        ]
        for setting, names in (("submitters", self.submitters), ("servers", self.servers)):
            sentences += [
                f"{setting} holds {name!r}, which can be nobody's name: lower case letters, digits and '-'"
                for name in names
                if name != ANY
                and not PARTY.fullmatch(name.removeprefix("operator/") if setting == "submitters" else name)
            ]
        sentences += [
            f"code holds {name!r}; write package.module:Name or package.module:*"
            for name in self.code
            if name != ANY and not re.fullmatch(r"[A-Za-z_][\w.]*:(\*|[A-Za-z_]\w*)", name, re.ASCII)
        ]
        if self.least_parties < 1:
            sentences.append(f"least_parties must be at least 1, not {self.least_parties}")
        if self.most_rounds < 0:
            sentences.append(f"most_rounds must be 0 (no limit) or more, not {self.most_rounds}")
        if not (isfinite(self.most_deadline) and self.most_deadline > 0):
            sentences.append(f"most_deadline must be above 0 and have an end, not {self.most_deadline:g}")
        if sentences:
            raise ConfigError("\n".join(sentences))


def check(policy: Policy, plan: Plan | Terms, request: RunRequest) -> None:
    """Refuse what the policy does not allow.

    Args:
        policy: the party's own.
        plan: read from its text by the party itself; or the terms of that, where another process of the party read it.
        request: what it is asked.

    Raises:
        PolicyRefused: one sentence that names the line. It goes to the submitter, so it says what was asked for, and of lists
            that could tell of others (submitters, data, code, servers, digests) not what they hold.

    >>> from hansa import FedAvg
    >>> from hansa.learners import Softmax
    >>> plan = Plan(FedAvg(rounds=5, cohort=4), Softmax())
    >>> check(Policy(), plan, RunRequest("r1", plan.digest, "ada", "hearts", ("a", "b", "c", "d")))
    Traceback (most recent call last):
    hansa.errors.PolicyRefused: policy: [policy] protocols allows nothing, so it does not allow fedavg
    """
    terms = terms_of(plan) if isinstance(plan, Plan) else plan
    if request.digest != terms.digest:
        raise PolicyRefused(
            f"the plan has the digest {terms.digest[:16]}, and the request is for {_short(request.digest[:16])}: "
            "somebody changed the plan on its way; submit it again"
        )
    _listed(policy, "protocols", policy.protocols, terms.protocol, shown=True)
    _listed(policy, "learners", policy.learners, terms.learner, shown=True)
    _listed(policy, "submitters", policy.submitters, request.submitter)
    _listed(policy, "data", policy.data, request.data)
    if policy.digests and terms.digest not in policy.digests:
        _refuse(policy, "digests", f"does not list this plan's digest {terms.digest[:16]}")
    for code in terms.code:
        if f"{code.partition(':')[0]}:{ANY}" not in policy.code:
            _listed(policy, "code", policy.code, code)
    if terms.served:
        _listed(policy, "servers", policy.servers, request.server)
    elif request.server:
        raise PolicyRefused(
            f"{terms.protocol} has no server, and the request says that {_short(request.server)} is it; submit it again"
        )
    _check_stages(policy, terms)
    _check_sizes(policy, terms, request)


def _check_stages(policy: Policy, terms: Terms) -> None:
    for stage in terms.stages:
        if stage.name in policy.forbid:
            _refuse(policy, "forbid", f"= {_said(policy.forbid)} does not allow the stage {stage.name}")
    for wanted in policy.require:
        if not terms.gathers:
            _refuse(policy, "require", f"wants the stage {wanted.stage}, and {terms.protocol} uses no aggregation")
        reasons = [_outside(stage, wanted) for stage in terms.stages if stage.name == wanted.stage]
        if not reasons:
            _refuse(policy, "require", f"wants the stage {wanted.stage}, which the plan's aggregation has not")
        if all(reasons):
            _refuse(policy, "require", f"wants the stage {wanted.stage} with {reasons[0]}")


def _outside(stage: StageTerms, wanted: Required) -> str:
    """What a stage's settings would have to be; empty where they are."""
    for name, bound in wanted.least.items():
        value = stage.numbers.get(name)
        if value is None or not value >= bound:
            return f"{name} of at least {bound:g}, not {value}"
    for name, bound in wanted.most.items():
        value = stage.numbers.get(name)
        if value is None or not value <= bound:
            return f"{name} of at most {bound:g}, not {value}"
    return ""


def _check_sizes(policy: Policy, terms: Terms, request: RunRequest) -> None:
    fewest, rounds, deadline = terms.fewest(request.parties), terms.rounds, terms.deadline
    if fewest < policy.least_parties:
        _refuse(
            policy,
            "least_parties",
            f"= {policy.least_parties} does not allow an aggregate of {fewest}; raise the cohort or the quorum",
        )
    if policy.most_rounds and (rounds is None or not rounds <= policy.most_rounds):
        _refuse(policy, "most_rounds", f"= {policy.most_rounds} does not allow {_or_unsaid(rounds)} rounds")
    if deadline is None or not deadline <= policy.most_deadline:
        _refuse(
            policy,
            "most_deadline",
            f"= {policy.most_deadline:g} does not allow a deadline of {_or_unsaid(deadline)} seconds",
        )


def listing_nothing(policy: Policy) -> list[str]:
    """The settings that list nothing, of those that must list something before any run is allowed.

    >>> listing_nothing(Policy(submitters=("ada",), data=("hearts",)))
    ['protocols', 'learners']
    """
    lists = {
        "submitters": policy.submitters, "data": policy.data, "protocols": policy.protocols,
        "learners": policy.learners, "servers": policy.servers,
    }  # fmt: skip
    return [name for name, allowed in lists.items() if not allowed]


def _or_unsaid(value: float | None) -> str:
    return "an unsaid number of" if value is None else f"{value:g}"


def _said(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _listed(policy: Policy, setting: str, allowed: Sequence[str], asked: str, shown: bool = False) -> None:
    if asked in allowed or ANY in allowed:
        return
    what = asked if shown else _short(asked)
    if not allowed:
        _refuse(policy, setting, f"allows nothing, so it does not allow {what}")
    _refuse(policy, setting, f"{'= ' + _said(allowed) + ' ' if shown else ''}does not allow {what}")


def _short(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _refuse(policy: Policy, setting: str, why: str) -> NoReturn:
    raise PolicyRefused(f"{policy.lines.place(f'policy.{setting}')}: [policy] {setting} {why}")
