"""Plans: one value whether written in TOML or Python, and every mistake of a file at once, each on its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hansa as hs
from hansa import data, learners
from hansa.errors import ConfigError, PlanError
from hansa.horizontal.fedbuff import FedBuff, Staleness
from hansa.horizontal.fedopt import FedAdam
from hansa.horizontal.fedprox import FedProx
from hansa.horizontal.sampling import Fixed, Poisson, Uniform, Weighted
from hansa.learners import schedules
from hansa.plan import DataSpec, Plan, parse, plain
from hansa.simulation import Simulation

positive = st.floats(1e-6, 1e6)
shares = st.floats(0.01, 1.0)
counts = st.integers(1, 1000)
words = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)

samplings = st.one_of(
    st.just(Uniform()),
    st.just(Poisson()),
    st.builds(Weighted, st.lists(positive, min_size=1, max_size=3).map(tuple)),
    st.builds(Fixed, st.lists(words.filter(bool), min_size=1, max_size=3, unique=True).map(tuple)),
)
evaluations = st.builds(hs.Evaluation, st.integers(0, 9), st.integers(0, 99), st.integers(0, 9))
stops = st.builds(
    hs.Stop, words, st.none() | st.floats(-10, 10), st.none() | counts, st.sampled_from(["auto", "max", "min"])
)
settings = {
    "rounds": counts,
    "cohort": counts,
    "sampling": samplings,
    "evaluation": evaluations,
    "stop": stops,
    "quorum": shares,
}
protocols = st.one_of(
    st.builds(hs.FedAvg, server_learning_rate=positive, over_selection=st.floats(1, 9), **settings),
    st.builds(FedProx, mu=positive, deadline=positive, **settings),
    st.builds(FedAdam, server_learning_rate=positive, missed_quorum=st.sampled_from(["stop", "skip"]), **settings),
    st.integers(1, 9).flatmap(
        lambda buffer: st.builds(
            FedBuff, rounds=counts, concurrency=st.integers(buffer, 99), buffer=st.just(buffer),
            staleness=st.builds(Staleness, st.sampled_from(["polynomial", "hinge"]), positive),
        )
    ),
)  # fmt: skip
overs = st.sampled_from(["rounds", "epochs", "steps"])
slower: st.SearchStrategy[Any] = st.one_of(
    st.just(schedules.Constant()),
    st.builds(schedules.Exponential, shares, overs),
    st.builds(schedules.StepDecay, st.integers(1, 50), shares, overs),
)
optimizers = st.one_of(
    st.builds(hs.SGD, positive, momentum=st.floats(0, 0.99), schedule=slower),
    st.builds(hs.Adam, positive, schedule=slower),
    st.builds(hs.AdamW, positive),
)
some_learners = st.one_of(
    st.builds(learners.Softmax, st.none() | st.integers(2, 50), optimizers, counts, counts, st.floats(0, 1)),
    st.builds(learners.Linear, optimizers, counts, counts),
    st.builds(
        learners.MLP, hidden=st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple), optimizer=optimizers
    ),
)
aggregations = st.one_of(
    st.just(hs.mean()),
    st.just(hs.mean("uniform")),
    st.builds(lambda bound: hs.clip(bound) | hs.mean(), positive),
)
partitions = st.one_of(
    st.none(),
    st.just(data.IID()),
    st.builds(data.Dirichlet, positive),
    st.builds(data.LabelLimited, st.integers(1, 9)),
    st.just(data.QuantitySkew()),
    st.builds(data.ByColumn, words.filter(bool)),
)
specs = st.none() | st.builds(
    DataSpec, words, partitions, st.none() | counts, st.floats(0, 0.99), st.integers(0, 2**60),
    st.dictionaries(words, st.one_of(st.integers(-5, 5), words, st.booleans(), st.lists(st.integers(0, 5), max_size=3)), max_size=3),
)  # fmt: skip
plans = st.builds(Plan, protocols, some_learners, aggregations, st.integers(-(2**62), 2**62), words, specs)


@given(plans)
def test_a_plan_survives_being_written_and_read(plan: Plan) -> None:
    text = plan.to_toml()
    again, tables = parse(text, {})
    assert again == plan and not tables
    assert again.digest == plan.digest
    assert again.to_toml() == text


@given(plans, plans)
def test_equal_plans_and_only_they_have_equal_digests(one: Plan, other: Plan) -> None:
    assert (one.digest == other.digest) == (one == other)
    assert re.fullmatch("[0-9a-f]{64}", one.digest)


@given(plans, st.integers(0, 9))
def test_the_seed_counts_and_the_layout_of_the_file_does_not(plan: Plan, seed: int) -> None:
    assert (plan.with_seed(seed).digest == plan.digest) == (plan.seed == seed)
    loose = "# a comment\n\n" + plan.to_toml().replace("\n", "\n\n# another\n")
    assert parse(loose, {})[0].digest == plan.digest


def test_a_digest_stays_what_it_is() -> None:
    plan = Plan(hs.FedAvg(rounds=5, cohort=2), learners.Softmax(), hs.clip(1.0) | hs.mean(), seed=7, name="a")
    assert plain(plan) == {
        "name": "a",
        "seed": 7,
        "protocol": {"name": "fedavg", "rounds": 5, "cohort": 2},
        "learner": {"name": "softmax"},
        "aggregation": [{"name": "clip", "bound": 1.0}, {"name": "mean"}],
    }
    assert plan.digest == "d182e62b36e2967c0580323f1faac0a4ed148ec02fa2b9f94a45cb13ecfd8f53"


def test_what_is_a_default_may_be_said_or_left_out() -> None:
    said = SOUND.replace('name = "fedavg"', 'name = "fedavg"\nquorum = 0.5\nover_selection = 1.0\nstop = {}')
    assert parse(said, {})[0].digest == parse(SOUND, {})[0].digest
    assert parse(SOUND, {})[0].digest == parse(SOUND.replace('[[aggregation]]\nname = "mean"\n', ""), {})[0].digest


SOUND = """name = "sound"
seed = 7

[protocol]
name = "fedavg"
rounds = 5
cohort = 2

[learner]
name = "softmax"
optimizer = { name = "sgd", learning_rate = 0.05 }

[[aggregation]]
name = "mean"
"""


def mistakes(text: str, tables: dict[str, type] | None = None) -> list[str]:
    with pytest.raises(PlanError) as caught:
        parse(text, tables or {}, "plan.toml")
    return list(caught.value.mistakes)


def test_all_mistakes_are_collected_each_with_its_line() -> None:
    text = """name = 3
seed = "seven"
sead = 7

[protocol]
name = "fedvag"
rounds = 5

[learner]
name = "softmax"
batch_size = "ten"
epoch = 2
optimizer = { name = "sdg", learning_rate = 0.05 }

[[aggregation]]
name = "clip"
bound = -1.0

[[aggregation]]
name = "maen"

[data]
source = 5
partition = { name = "dirichlet", alfa = 0.3 }
parties = 2.5

[simulation]
workers = -1
"""
    found = mistakes(text, {"simulation": Simulation})
    expected = [
        r"line 1: \[name\] expected 'str'",
        r"line 2: \[seed\] expected 'int'",
        r"line 3: \[sead\].*did you mean 'seed'",
        r"line 6: \[protocol.name\].*'fedvag'.*did you mean 'fedavg'",
        r"line 11: \[learner.batch_size\] expected 'int'",
        r"line 12: \[learner.epoch\].*did you mean 'epochs'",
        r"line 13: \[learner.optimizer.name\].*'sdg'.*did you mean 'sgd'",
        r"line 15: \[aggregation\[0\]\] clip: bound must be a positive number, not -1",
        r"line 20: \[aggregation\[1\].name\].*'maen'.*did you mean 'mean'",
        r"line 23: \[data.source\] expected 'str'",
        r"line 2[45]: \[data",
        r"line 25: \[data.parties\] expected 'int",
        r"line 2[78]: \[simulation\] simulation: workers must be 0",
    ]
    for sentence in expected:
        assert any(re.search(sentence, mistake) for mistake in found), (sentence, found)
    lines = [int(re.match(r"line (\d+)", mistake)[1]) for mistake in found]  # type: ignore[index]
    assert lines == sorted(lines)
    with pytest.raises(PlanError) as caught:
        parse(text, {"simulation": Simulation}, "my.toml")
    assert all(line.startswith("my.toml: line ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("rounds = 5", "rounds = 0", r"line 4.*rounds must be at least 1, not 0"),
        ("rounds = 5", "rounds = 5.5", r"line 6: \[protocol.rounds\] expected 'int', got 'float'"),
        ("rounds = 5", 'rounds = "5"', r"line 6: \[protocol.rounds\] expected 'int', got 'str'"),
        ("rounds = 5", "rounds = true", r"line 6: \[protocol.rounds\] expected 'int', got 'bool'"),
        ("rounds = 5", "rounds = [5]", r"line 6: \[protocol.rounds\] expected 'int', got 'array'"),
        ("rounds = 5\n", "", r"line 4: \[protocol\] 'fedavg' needs the setting 'rounds'"),
        ("cohort = 2", "cohort = -2", r"cohort must be at least 1"),
        ("cohort = 2", "cohort = 2\nquorum = 1.5", r"quorum is a share"),
        ("cohort = 2", "cohort = 2\ndeadline = inf", r"deadline must be a positive number"),
        ("cohort = 2", "cohort = 2\nsampling = 'unifrom'", r"line 8.*'unifrom'.*did you mean 'uniform'"),
        ("cohort = 2", "cohort = 2\nsampling = 3", r"line 8: \[protocol.sampling\] expected a name"),
        ("cohort = 2", "cohort = 2\nsampling = {name = 'weighted', weights = [1, -1]}", r"every weight must be"),
        (
            "cohort = 2",
            "cohort = 2\nsampling = {name = 'weighted', weights = [1, 'x']}",
            r"weights\[1\]\] expected 'float'",
        ),
        ("cohort = 2", "cohort = 2\nstop = {patiense = 3}", r"line 8.*'patiense'; did you mean 'patience'"),
        ("cohort = 2", "cohort = 2\nmissed_quorum = 'wait'", r"line 8: \[protocol.missed_quorum\]"),
        ('name = "softmax"', 'name = "sofmax"', r"line 10: .*no learner is named 'sofmax'; did you mean 'softmax'"),
        ('name = "softmax"', "classes = 3", r"line 9: \[learner\] expected a name"),
        ("learning_rate = 0.05", "learning_rate = -0.05", r"line 11.*learning_rate"),
        ("learning_rate = 0.05", "learning_rate = nan", r"line 11.*learning_rate"),
        ("learning_rate = 0.05", "learning_rate = 'fast'", r"line 11.*learning_rate"),
        ('[[aggregation]]\nname = "mean"', 'aggregation = "mean"', r"line 13: \[.*aggregation"),
        ('[[aggregation]]\nname = "mean"', "[[aggregation]]\nweights = 'examples'", r"a stage needs a name"),
        ('[[aggregation]]\nname = "mean"', "[[aggregation]]\nname = 'mean'\nweights = 'size'", r"weights"),
        (
            '[learner]\nname = "softmax"\n',
            '[lerner]\nname = "softmax"\n',
            r"line 9: \[lerner\].*did you mean 'learner'",
        ),
        ('[protocol]\nname = "fedavg"', '[protocol]\nname = "hansa.horizontal.fedavg:FedAvg"', r"no protocol is named"),
        ('[protocol]\nname = "fedavg"', '[protocol]\nname = ""', r"no protocol is named ''"),
    ],
)
def test_a_mistake_is_told_with_its_place(old: str, new: str, why: str) -> None:
    assert old in SOUND
    found = mistakes(SOUND.replace(old, new))
    assert any(re.search(why, mistake) for mistake in found), found
    assert all("\n" not in mistake and "Traceback" not in mistake for mistake in found)


@pytest.mark.parametrize(
    "text",
    ["", "[protocol", "a = ", "\x00", "[protocol]\n[protocol]\n", "name = 'a'\nname = 'b'", "protocol = 3", "= 1"],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    assert mistakes(text)


@given(st.text(max_size=60))
def test_no_text_upsets_the_reader(text: str) -> None:
    try:
        parse(text, {"simulation": Simulation})
    except PlanError:
        return


@given(st.data())
def test_no_change_of_a_plan_upsets_the_reader(draws: st.DataObject) -> None:
    text = draws.draw(plans).to_toml()
    for _ in range(draws.draw(st.integers(1, 3))):
        place = draws.draw(st.integers(0, len(text) - 1))
        text = (
            text[:place]
            + draws.draw(
                st.sampled_from(
                    ["", "x", "0", "-", '"', "[", "]", "{", "}", "=", "\n", ".", "'", "inf", "nan", "[]", "{}", "true"]
                )
            )
            + text[place + 1 :]
        )
    try:
        plan, _ = parse(text, {})
    except PlanError:
        return
    assert parse(plan.to_toml(), {})[0].digest == plan.digest


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(PlanError, match=re.escape(str(path))):
            Plan.load(path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="binary"):
        Plan.load(binary)


def test_further_tables_are_read_beside_the_plan() -> None:
    plan, tables = parse(SOUND + "\n[simulation]\nworkers = 2\n", {"simulation": Simulation})
    assert tables == {"simulation": Simulation(workers=2)}
    assert plan == parse(SOUND, {})[0]


def test_parts_that_are_no_parts_are_told_all_at_once() -> None:
    wrong: Any = Plan
    with pytest.raises(PlanError) as caught:
        wrong(protocol="fedavg", learner=3, aggregation=hs.clip(1.0))
    assert len(caught.value.mistakes) == 3
    assert issubclass(PlanError, ConfigError)


def federation(parties: int = 5) -> data.FederatedData:
    rng = np.random.default_rng(0)
    return data.arrays(rng.normal(size=(60, 3)), rng.integers(0, 3, size=60)).partition(data.IID(), parties=parties)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"protocol": hs.FedAvg(rounds=1, cohort=6)}, "cohort of 6 is larger than the population of 5"),
        ({"learner": learners.Softmax(classes=2)}, "label"),
        ({"learner": learners.MLP(classes=2)}, "label"),
    ],
)
def test_what_does_not_fit_the_data_is_told_before_anything_runs(change: dict[str, Any], why: str) -> None:
    parts: dict[str, Any] = {"protocol": hs.FedAvg(rounds=1, cohort=2), "learner": learners.Softmax(), **change}
    begun: list[Any] = []
    with pytest.raises(ConfigError, match=why):
        hs.simulate(Plan(**parts), federation(), trackers=[Begun(begun)])
    assert not begun


@dataclass
class Begun:
    """A tracker that notes that a run began."""

    seen: list[Any]

    def begin(self, info: Any) -> None:
        self.seen.append(info)

    def round(self, record: Any) -> None:
        pass

    def end(self, end: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"workers": -1}, "workers"),
        ({"threads": 0}, "threads"),
        ({"checkpoint_every": -1}, "checkpoint_every"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"record": ("nobody",)}, "no party is named 'nobody'"),
        ({"workrs": 2}, "workrs"),
        (
            {"faults": hs.simulation.FaultPlan(crashes=(hs.simulation.Crash("clint-1", 1.0),))},
            "no party is named 'clint-1'",
        ),
        (
            {"faults": hs.simulation.FaultPlan(partitions=(hs.simulation.Partition(("x",), 0.0, 1.0),))},
            "no party is named 'x'",
        ),
        ({"faults": hs.simulation.FaultPlan(drop=0.5, only=("TrainTsk",))}, "did you mean 'TrainTask'"),
        ({"devices": hs.simulation.Devices(named={"y": hs.simulation.Device()})}, "no party is named 'y'"),
    ],
)
def test_settings_of_a_simulation_are_checked(changes: dict[str, Any], why: str) -> None:
    plan = Plan(hs.FedAvg(rounds=1, cohort=2), learners.Softmax())
    with pytest.raises(ConfigError, match=why):
        hs.simulate(plan, federation(), **changes)


def test_faults_and_devices_refuse_what_cannot_be() -> None:
    from hansa.simulation import Crash, Device, Devices, FaultPlan, Partition

    makers: list[Any] = [
        lambda: FaultPlan(drop=1.1), lambda: FaultPlan(duplicate=-0.1), lambda: FaultPlan(delay=(2.0, 1.0)),
        lambda: FaultPlan(delay=(-1.0, 1.0)), lambda: FaultPlan(delay=(0.0, float("inf"))), lambda: FaultPlan(drop=float("nan")),
        lambda: Crash("a", -1.0), lambda: Crash("a", float("nan")), lambda: Crash("a", 1.0, -1.0),
        lambda: Partition(("a",), 2.0, 1.0), lambda: Partition(("a",), -2.0, 1.0),
        lambda: Device(examples_per_second=0.0), lambda: Device(up=-1.0), lambda: Device(latency=-1.0),
        lambda: Device(latency=float("nan")), lambda: Device(down=float("nan")), lambda: Device(available=((3.0, 2.0),)),
        lambda: Device(available=((20.0, 30.0),), period=24.0), lambda: Devices(kinds=((0.0, Device()),)),
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(ConfigError):
            make()
