"""What users get wrong: one sentence on standard error, exit code 2, no traceback, nothing trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hansa.cli import main

GOOD = """
name = "t"
seed = 1
[protocol]
name = "fedavg"
rounds = 2
cohort = 4
[learner]
name = "softmax"
batch_size = 10
[data]
source = "sklearn:iris"
parties = 5
partition = { name = "iid" }
"""

CSV = "age,site,ill\n50,a,0\n61,a,1\n47,b,0\n58,b,1\n"


def changed(old: str, new: str) -> Callable[[Path], list[str]]:
    """A plan with one mistake."""

    def write(folder: Path) -> list[str]:
        assert old in GOOD
        (folder / "plan.toml").write_text(GOOD.replace(old, new))
        return ["simulate", "plan.toml"]

    return write


def with_csv(query: str, text: str = CSV, parties: str = "2") -> Callable[[Path], list[str]]:
    """A plan over a table of our own."""

    def write(folder: Path) -> list[str]:
        (folder / "t.csv").write_text(text)
        plan = GOOD.replace("sklearn:iris", f"csv:t.csv{query}").replace("parties = 5", f"parties = {parties}")
        (folder / "plan.toml").write_text(plan.replace("cohort = 4", "cohort = 1"))
        return ["simulate", "plan.toml"]

    return write


def called(*arguments: str) -> Callable[[Path], list[str]]:
    """A command over a good plan."""

    def write(folder: Path) -> list[str]:
        (folder / "plan.toml").write_text(GOOD)
        return list(arguments)

    return write


MISTAKES = {
    "no such plan": (called("simulate", "nope.toml"), "nope.toml: cannot be read"),
    "not TOML": (changed("[protocol]", "[protocol"), "is not TOML"),
    "unknown table": (changed("[protocol]", "[protocoll]"), "did you mean 'protocol'?"),
    "missing table": (changed('[learner]\nname = "softmax"\nbatch_size = 10', ""), "needs a table [learner]"),
    "unknown protocol": (
        changed('"fedavg"', '"fedavgg"'),
        "line 5: [protocol.name] no protocol is named 'fedavgg'; did you",
    ),
    "unknown learner": (changed('"softmax"', '"sofmax"'), "did you mean 'softmax'?"),
    "unknown setting": (
        changed("rounds = 2", "rounds = 2\nround = 3"),
        "line 7: [protocol.round] 'fedavg' has no setting",
    ),
    "missing setting": (changed("rounds = 2", ""), "line 4: [protocol] 'fedavg' needs the setting 'rounds'"),
    "wrong type": (changed("rounds = 2", 'rounds = "two"'), "line 6: [protocol.rounds] expected 'int', got 'str'"),
    "no rounds": (changed("rounds = 2", "rounds = 0"), "rounds must be at least 1, not 0"),
    "negative cohort": (changed("cohort = 4", "cohort = -4"), "cohort must be at least 1, not -4"),
    "cohort over population": (
        changed("cohort = 4", "cohort = 6"),
        "the cohort of 6 is larger than the population of 5",
    ),
    "bad batch": (changed("batch_size = 10", "batch_size = 0"), "batch_size"),
    "bad quorum": (changed("rounds = 2", "rounds = 2\nquorum = 1.5"), "quorum"),
    "bad deadline": (changed("rounds = 2", "rounds = 2\ndeadline = -1.0"), "deadline"),
    "unknown source": (changed("sklearn:iris", "skleran:iris"), "did you mean 'sklearn'?"),
    "unknown set": (changed("sklearn:iris", "sklearn:iriss"), "did you mean 'iris'?"),
    "unknown partitioner": (changed('"iid"', '"dirichle"'), "did you mean 'dirichlet'?"),
    "partition needs alpha": (changed('"iid"', '"dirichlet"'), "needs the setting 'alpha'"),
    "bad alpha": (changed('"iid"', '"dirichlet", alpha = 0.0'), "alpha"),
    "bad test share": (changed("parties = 5", "parties = 5\ntest = 1.0"), "test"),
    "no parties": (changed("parties = 5", "parties = 0"), "part"),
    "more parties than rows": (changed("parties = 5", "parties = 1000"), "1000"),
    "clip after mean": (
        changed("[data]", '[[aggregation]]\nname = "mean"\n[[aggregation]]\nname = "clip"\nbound = 1.0\n[data]'),
        "'clip' cannot follow 'mean'",
    ),
    "nothing combines": (
        changed("[data]", '[[aggregation]]\nname = "clip"\nbound = 1.0\n[data]'),
        "nothing here combines",
    ),
    "bad bound": (
        changed("[data]", '[[aggregation]]\nname = "clip"\nbound = 0.0\n[[aggregation]]\nname = "mean"\n[data]'),
        "bound",
    ),
    "missing csv": (changed("sklearn:iris", "csv:nope.csv?target=ill"), "nope.csv"),
    "wrong column": (with_csv("?target=il&drop=site"), "did you mean 'ill'?"),
    "text where a number is": (with_csv("?target=ill&drop=site", CSV.replace("61", "NaN")), "age"),
    "missing value": (with_csv("?target=ill&drop=site", CSV.replace("61", "")), "age"),
    "label out of range": (changed("batch_size = 10", "batch_size = 10\nclasses = 2"), "label"),
    "shape mismatch": (
        changed('name = "softmax"', 'name = "torch"\nmodel = "tests.cli.models:TooWide"'),
        "TooWide",
    ),
    "no such model": (changed('name = "softmax"', 'name = "torch"\nmodel = "tests.cli.models:Nope"'), "Nope"),
    "bad fault": (changed("[data]", "[simulation]\nfaults = { drop = 2.0 }\n[data]"), "probability"),
    "unknown simulation setting": (changed("[data]", "[simulation]\nworker = 2\n[data]"), "did you mean 'workers'?"),
    "bad --set": (called("simulate", "plan.toml", "--set", "rounds"), "--set must read"),
    "--set of an unknown": (called("simulate", "plan.toml", "--set", "protocol.ronds=3"), "did you mean 'rounds'?"),
    "bad workers": (called("simulate", "plan.toml", "--workers", "-1"), "workers must be"),
    "unknown option": (called("simulate", "plan.toml", "--wrkers", "1"), "No such option"),
    "unknown command": (called("simulat"), "No such command"),
    "unknown group": (called("list", "protocol"), "did you mean 'protocols'?"),
    "unknown tracker": (called("simulate", "plan.toml", "--tracker", "tensorbord"), "did you mean 'tensorboard'?"),
    "nothing to resume": (called("simulate", "plan.toml", "--resume", "nowhere"), "no checkpoint"),
    "out and resume": (called("simulate", "plan.toml", "--out", "a", "--resume", "b"), "exclude each other"),
    "init over a file": (called("init", "plan.toml"), "is there already"),
    "compare nothing": (called("compare", "nowhere", "nowhere2"), "nowhere"),
    "explain a wrong plan": (called("explain", "nope.toml"), "cannot be read"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arrange, expected = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    if mistake in ("shape mismatch", "no such model"):
        pytest.importorskip("torch")
    arguments = arrange(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capfd.readouterr()
    assert stopped.value.code == 2, err
    assert expected in err
    assert "Traceback" not in err + out
    assert "round 1" not in err + out, "something was trained"
    assert not list(tmp_path.glob("runs/*/model.safetensors"))


def test_all_mistakes_of_a_plan_come_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = GOOD.replace('"fedavg"', '"fedavgg"').replace('"softmax"', '"sofmax"').replace("seed = 1", 'seed = "x"')
    Path("plan.toml").write_text(wrong.replace('"iid"', '"idd"'))
    with pytest.raises(SystemExit):
        main(["simulate", "plan.toml"])
    lines = [line for line in capfd.readouterr().err.splitlines() if "line" in line]
    assert [line.split("line ")[1].split(":")[0] for line in lines] == ["3", "5", "9", "14"]


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what Hansa raises on purpose is shortened."""
    monkeypatch.setattr(sys.modules["hansa.cli.plans"], "explanation", lambda plan: 1 / 0)
    plan = Path(__file__).with_name("good.toml")
    with pytest.raises(ZeroDivisionError) as raised:
        main(["explain", str(plan)])
    assert "please report it" in raised.value.__notes__[0]
