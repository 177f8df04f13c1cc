"""A party takes part in what its owner allowed and in nothing else; a refusal names the line and tells of nobody."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hansa as hs
from hansa.aggregation import clip, mean
from hansa.deployment.policy import Policy, Required, RunRequest, asker, check
from hansa.deployment.settings import NodeSettings, parse
from hansa.deployment.terms import Terms, terms_of
from hansa.errors import ConfigError, PolicyRefused
from hansa.horizontal.sampling import Fixed, Poisson, Sampling, Uniform, Weighted
from hansa.party import Party
from hansa.pipeline import ClientStage
from hansa.plan import Plan
from hansa.plan import parse as parse_plan
from hansa.protocol import Protocol, Role

PARTIES = tuple(f"hospital-{letter}" for letter in "abcd")

PLAN = """
seed = 3
[protocol]
name = "fedavg"
rounds = 5
cohort = 4
quorum = 1.0
[learner]
name = "softmax"
[[aggregation]]
name = "clip"
bound = 10.0
[[aggregation]]
name = "mean"
"""

CODE = PLAN.replace('name = "softmax"', 'name = "torch"\nmodel = "os:abort"')

OPEN = Policy(
    protocols=("fedavg",),
    learners=("softmax",),
    submitters=("ada",),
    data=("hearts",),
    require=(Required("clip"),),
    least_parties=4,
)


def plan_of(text: str) -> Plan:
    return parse_plan(text, {})[0]


def request(plan: Plan, **changes: Any) -> RunRequest:
    return replace(RunRequest("run-1", plan.digest, "ada", "hearts", PARTIES), **changes)


def refusal(policy: Policy, plan: Plan, **changes: Any) -> str:
    with pytest.raises(PolicyRefused) as caught:
        check(policy, plan, request(plan, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_allowed_passes() -> None:
    plan = plan_of(PLAN)
    check(OPEN, plan, request(plan))


def test_terms_judge_as_their_plan_does_and_survive_a_message() -> None:
    for text in (PLAN, PLAN.replace("10.0", "11.0"), PLAN.replace("cohort = 4", "cohort = 3"), CODE):
        plan = plan_of(text)
        terms = msgspec.msgpack.decode(msgspec.msgpack.encode(terms_of(plan)), type=Terms)
        assert terms == terms_of(plan)
        policy = replace(OPEN, require=(Required("clip", most={"bound": 10.0}),))
        said = []
        for what in (plan, terms):
            try:
                check(policy, what, request(plan))
            except PolicyRefused as refused:
                said.append(str(refused))
        assert len(said) == (0 if text == PLAN else 2) and len(set(said)) <= 1


def test_a_policy_that_says_nothing_allows_nothing() -> None:
    assert "[policy] protocols allows nothing" in refusal(Policy(), plan_of(PLAN))


@pytest.mark.parametrize("setting", ["protocols", "learners", "submitters", "data", "servers"])
def test_each_list_denies_by_itself_and_a_star_allows_all(setting: str) -> None:
    plan = plan_of(PLAN)
    changes: list[dict[str, Any]] = [{setting: ()}, {setting: ("other",)}]
    for change in changes:
        assert f"[policy] {setting} " in refusal(replace(OPEN, **change), plan)
    star: dict[str, Any] = {setting: ("*",)}
    check(replace(OPEN, **star), plan, request(plan))


def test_a_star_is_no_pattern() -> None:
    patterned: dict[str, Any] = {"protocols": ("fed*",)}
    assert "does not allow fedavg" in refusal(replace(OPEN, **patterned), plan_of(PLAN))


FILE = """log = "json"

[data.hearts]
source = "csv:hearts.csv"

[policy]
submitters = ["ada"]
data = ["hearts"]
learners = ["softmax"]

# after the trial
protocols = ["fedavg"]
require = ["clip"]
least_parties = 4
approval = "automatic"
"""


def test_a_refusal_names_the_line_of_the_file(tmp_path: Path) -> None:
    policy = parse(NodeSettings, FILE, tmp_path / "node.toml").policy
    plan = plan_of(PLAN.replace('"fedavg"', '"fedprox"').replace("cohort", "mu = 0.1\ncohort"))
    assert refusal(policy, plan) == 'node.toml line 12: [policy] protocols = ["fedavg"] does not allow fedprox'
    assert refusal(policy, plan_of(PLAN), submitter="bob").startswith("node.toml line 7: ")
    # What is not said has no line of its own: its table's.
    assert refusal(policy, plan_of(PLAN), server="hospital-b").startswith("node.toml line 6: [policy] servers")
    check(policy, plan_of(PLAN), request(plan_of(PLAN)))


def test_a_refusal_does_not_tell_who_else_is_listed() -> None:
    secret = replace(OPEN, submitters=("eve-secret",), data=("secret-study",), servers=("secret-host",))
    plan = plan_of(PLAN)
    assert "secret" not in refusal(secret, plan)
    assert "secret" not in refusal(replace(secret, submitters=("ada",)), plan)
    assert "secret" not in refusal(replace(secret, submitters=("ada",), data=("hearts",)), plan)


@pytest.mark.parametrize("text", ["x\ny", "x\u2028y", "a" * 10_000, "\x1b[2J"])
def test_what_a_request_says_cannot_forge_a_line(text: str) -> None:
    plan = plan_of(PLAN)
    for field in ("submitter", "data", "server", "digest"):
        said = refusal(OPEN, plan, **{field: text})
        assert said.isprintable() and len(said) < 300


def test_the_digest_is_recomputed() -> None:
    plan = plan_of(PLAN)
    assert "changed the plan" in refusal(OPEN, plan, digest=plan.with_seed(4).digest)
    assert "changed the plan" in refusal(OPEN, plan, digest="")
    assert "changed the plan" in refusal(OPEN, plan, digest=plan.digest.upper())


def test_only_listed_digests() -> None:
    plan = plan_of(PLAN)
    check(replace(OPEN, digests=(plan.digest,)), plan, request(plan))
    said = refusal(replace(OPEN, digests=(plan.with_seed(4).digest,)), plan)
    assert "digests does not list" in said and plan.with_seed(4).digest[:16] not in said


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "a" * 64 + "\n", "*", "g" * 64])
def test_a_digest_is_written_whole(digest: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        Policy(digests=(digest,))


def test_an_operator_is_not_the_submitter_of_the_same_name() -> None:
    plan = plan_of(PLAN)
    assert "submitters" in refusal(OPEN, plan, submitter=asker("operator", "ada"))
    check(replace(OPEN, submitters=("operator/ada",)), plan, request(plan, submitter=asker("operator", "ada")))
    assert "submitters" in refusal(
        replace(OPEN, submitters=("operator/ada",)), plan, submitter=asker("submitter", "ada")
    )


@pytest.mark.parametrize("name", ["Ada", "ada ", "", "node/../ada", "operator/", "operator/*", "ada*", "ａda", "-a"])
def test_a_name_that_nobody_can_have_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match="can be nobody's name"):
        Policy(submitters=(name,))
    with pytest.raises(ConfigError, match="can be nobody's name"):
        Policy(servers=(name,))


def test_a_missing_stage_is_refused() -> None:
    bare = PLAN.replace('[[aggregation]]\nname = "clip"\nbound = 10.0\n', "")
    assert "wants the stage clip, which" in refusal(OPEN, plan_of(bare))


@pytest.mark.parametrize(("bound", "allowed"), [(0.5, True), (10.0, True), (10.1, False), (1e300, False)])
def test_a_stage_that_protects_too_little_is_refused(bound: float, allowed: bool) -> None:
    policy = replace(OPEN, require=(Required("clip", most={"bound": 10.0}),))
    plan = plan_of(PLAN.replace("10.0", str(bound)))
    if allowed:
        check(policy, plan, request(plan))
    else:
        assert "bound of at most 10" in refusal(policy, plan)


def test_a_bound_of_a_setting_that_is_not_there_refuses() -> None:
    assert "strength of at least" in refusal(
        replace(OPEN, require=(Required("clip", {"strength": 1.0}),)), plan_of(PLAN)
    )


def test_a_forbidden_stage_is_refused() -> None:
    assert '= ["clip"] does not allow the stage clip' in refusal(
        replace(OPEN, require=(), forbid=("clip",)), plan_of(PLAN)
    )


def test_a_stage_that_the_protocol_never_uses_does_not_protect() -> None:
    gossip = hs.DPSGD(rounds=3)
    plan = Plan(gossip, plan_of(PLAN).learner, clip(1.0) | mean())
    policy = replace(OPEN, protocols=("dpsgd",))
    assert "dpsgd uses no aggregation" in refusal(policy, plan, server="")
    check(replace(policy, require=()), plan, request(plan, server=""))


def test_a_server_is_said_exactly_where_there_is_one() -> None:
    plan = Plan(hs.DPSGD(rounds=3), plan_of(PLAN).learner)
    gossip = replace(OPEN, protocols=("dpsgd",), require=(), servers=("*",))
    assert "has no server" in refusal(gossip, plan, server="hub")
    assert "servers" in refusal(OPEN, plan_of(PLAN), server="")


def test_a_named_party_may_be_the_server() -> None:
    plan = plan_of(PLAN)
    check(replace(OPEN, servers=("hospital-a",)), plan, request(plan, server="hospital-a"))
    assert "servers" in refusal(replace(OPEN, servers=("hospital-a",)), plan)


@pytest.mark.parametrize(
    ("settings", "parties", "fewest"),
    [
        ({"cohort": 4}, 4, 2),
        ({"cohort": 4, "quorum": 1.0}, 4, 4),
        ({"cohort": 4, "quorum": 0.51}, 4, 3),
        ({"cohort": 4, "quorum": 1e-9}, 4, 1),
        ({"cohort": 100, "quorum": 1.0}, 4, 4),
        ({"cohort": 4, "quorum": 1.0, "sampling": Poisson()}, 4, 1),
        ({"cohort": 4, "quorum": 1.0, "sampling": Weighted((1.0, 1.0, 1.0, 1.0))}, 4, 4),
        ({"cohort": 4, "quorum": 1.0, "sampling": Fixed(("hospital-a", "hospital-b"))}, 4, 2),
        ({"cohort": 2, "quorum": 1.0, "sampling": Fixed(("hospital-a",))}, 4, 1),
        ({"cohort": 4, "quorum": 1.0, "sampling": Uniform()}, 1, 1),
        ({"cohort": 4}, 0, 0),
    ],
)
def test_the_fewest_in_one_aggregate(settings: dict[str, Any], parties: int, fewest: int) -> None:
    plan = Plan(hs.FedAvg(rounds=1, **settings), plan_of(PLAN).learner)
    assert terms_of(plan).fewest(PARTIES[:parties]) == fewest


def test_a_party_named_twice_counts_once() -> None:
    plan = plan_of(PLAN)
    assert "does not allow an aggregate of 2" in refusal(OPEN, plan, parties=("hospital-a", "hospital-b") * 2)


def test_a_sampling_of_somebody_else_counts_as_one() -> None:
    @dataclass(frozen=True)
    class Favourites(Sampling):
        def draw(self, rng: Any, population: Any, cohort: int) -> list[str]:
            return [population[0]]

    plan = Plan(hs.FedAvg(rounds=1, cohort=4, quorum=1.0, sampling=Favourites()), plan_of(PLAN).learner)
    assert terms_of(plan).fewest(PARTIES) == 1


def test_a_buffer_is_an_aggregate() -> None:
    from hansa.horizontal.fedbuff import FedBuff

    plan = Plan(FedBuff(rounds=1, concurrency=4, buffer=3, quorum=1.0), plan_of(PLAN).learner)
    assert terms_of(plan).fewest(PARTIES) == 3


def test_rounds_and_deadline_have_limits() -> None:
    assert "most_rounds = 4 does not allow 5 rounds" in refusal(replace(OPEN, most_rounds=4), plan_of(PLAN))
    check(replace(OPEN, most_rounds=5), plan_of(PLAN), request(plan_of(PLAN)))
    assert "most_deadline = 599" in refusal(replace(OPEN, most_deadline=599.0), plan_of(PLAN))
    check(replace(OPEN, most_deadline=600.0), plan_of(PLAN), request(plan_of(PLAN)))


def test_a_protocol_that_says_neither_is_refused() -> None:
    @dataclass(frozen=True)
    class Quiet(Protocol):
        def roles(self, learner: Any, aggregation: Any) -> Any:
            async def idle(me: Party) -> None: ...

            return {"server": Role(idle, (), starts=True), "client": Role(idle, (), many=True)}

    plan = Plan(Quiet(), plan_of(PLAN).learner)
    policy = replace(OPEN, protocols=("*",), require=())
    assert "unsaid number of rounds" in refusal(policy, plan)
    assert "unsaid number of seconds" in refusal(replace(policy, most_rounds=0), plan)


@pytest.mark.parametrize("allowed", [(), ("hospital.models:*",), ("os.path:*",), ("os:abort_",), ("o:*",)])
def test_code_that_a_plan_names_must_be_listed(allowed: tuple[str, ...]) -> None:
    policy = replace(OPEN, learners=("*",), code=allowed)
    assert "[policy] code" in refusal(policy, plan_of(CODE)) and "'os:abort'" in refusal(policy, plan_of(CODE))


def test_code_is_found_wherever_it_stands() -> None:
    @dataclass(frozen=True)
    class Odd(ClientStage[Any, Any]):
        settings: Any
        flow = {"update": "update"}
        needs = ""

        def on_client(self, value: Any, rng: Any) -> Any:
            return value

    learner = plan_of(PLAN).learner
    nested = {"a": [{"b": ["x", {"os:key": 1}]}], "c": ("os:abort", 3)}
    for plan in (
        Plan(hs.FedAvg(rounds=1, cohort=1, sampling=Fixed(("os:abort", "os:key"))), learner),
        Plan(hs.FedAvg(rounds=1, cohort=1), learner, Odd(nested) | mean()),
    ):
        assert terms_of(plan).code == ("os:abort", "os:key")
    assert terms_of(plan_of(PLAN)).code == ()


@pytest.mark.parametrize("allowed", ["hospital.models:Net", "hospital.models:*", "*"])
def test_listed_code_passes(allowed: str) -> None:
    plan = plan_of(CODE.replace("os:abort", "hospital.models:Net"))
    check(replace(OPEN, learners=("torch",), code=(allowed,)), plan, request(plan))


@pytest.mark.parametrize("name", ["os", "os:", ":x", "os:a.b", "*:x", "os.*", "os:a b", ""])
def test_a_mistaken_line_of_code_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"write package\.module:Name"):
        Policy(code=(name,))


def test_scikit_learn_s_own_need_no_line() -> None:
    text = PLAN.replace('name = "softmax"', 'name = "sklearn"\nestimator = "sklearn.linear_model:SGDClassifier"')
    plan = plan_of(text)
    check(replace(OPEN, learners=("sklearn",)), plan, request(plan))


def test_a_plan_is_checked_without_running_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real, seen = importlib.import_module, []

    def watch(name: str, package: str | None = None) -> Any:
        seen.append(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", watch)
    refusal(replace(OPEN, learners=("*",)), plan_of(CODE.replace("os:abort", "antigravity:geohash")))
    assert "antigravity" not in seen


@given(
    st.builds(
        Policy,
        protocols=st.sampled_from([(), ("fedavg",), ("fedprox",), ("*",)]),
        learners=st.sampled_from([(), ("softmax",), ("*",)]),
        submitters=st.sampled_from([(), ("ada",), ("bob",)]),
        data=st.sampled_from([(), ("hearts",), ("lungs",)]),
        servers=st.sampled_from([(), ("hub",), ("hospital-a",)]),
        forbid=st.sampled_from([(), ("clip",)]),
        least_parties=st.integers(1, 6),
        most_rounds=st.integers(0, 9),
    )
)
def test_every_setting_must_allow(policy: Policy) -> None:
    plan = plan_of(PLAN)
    allowed = (
        bool({"fedavg", "*"} & set(policy.protocols))
        and bool({"softmax", "*"} & set(policy.learners))
        and "ada" in policy.submitters
        and "hearts" in policy.data
        and "hub" in policy.servers
        and "clip" not in policy.forbid
        and policy.least_parties <= 4
        and (policy.most_rounds == 0 or policy.most_rounds >= 5)
    )
    try:
        check(policy, plan, request(plan))
    except PolicyRefused:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    "settings",
    [{"least_parties": 0}, {"most_rounds": -1}, {"most_deadline": 0.0}, {"most_deadline": float("inf")}],
    ids=str,
)
def test_limits_that_limit_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Policy(**settings)


def test_where_a_policy_stands_is_no_setting_and_no_part_of_its_value(tmp_path: Path) -> None:
    named = parse(NodeSettings, FILE, tmp_path / "a.toml").policy
    assert named == parse(NodeSettings, "\n" + FILE, tmp_path / "b.toml").policy
    with pytest.raises(ConfigError, match="no setting 'lines'"):
        parse(NodeSettings, "[policy]\nlines = 3\n", tmp_path / "node.toml")
    assert {field.name for field in fields(Policy)} >= {"approval", "lines"}
