"""The examples run as scripts of their own, and say what they are meant to show."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NEEDS = {"quickstart_torch.py": ("torch", "sklearn")}


def run(command: list[str], folder: Path, extra: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(extra or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def output(name: str, folder: Path) -> str:
    for library in NEEDS.get(name, ("sklearn",)):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    return run([sys.executable, "-W", "error::RuntimeWarning", str(EXAMPLES / name)], folder)


def test_every_script_is_tested() -> None:
    tested = {"quickstart_numpy.py", "quickstart_torch.py", "stragglers.py", "gossip.py", "heart_disease.py"}
    mine = {path.name for path in EXAMPLES.glob("*.py")}
    assert tested <= mine
    for name in mine - tested:
        assert any(name in path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")), name


@pytest.mark.parametrize("name", ["quickstart_numpy.py", "quickstart_torch.py"])
def test_a_quickstart_learns(name: str, tmp_path: Path) -> None:
    text = output(name, tmp_path)
    assert "completed" in text
    found = re.search(r"test_accuracy +([0-9.]+)", text)
    assert found is not None and float(found[1]) > 0.8, text


def test_stragglers_cost_time_that_asynchrony_saves(tmp_path: Path) -> None:
    text = output("stragglers.py", tmp_path)
    seconds = [float(found) for found in re.findall(r"([0-9.]+) virtual seconds", text)]
    accuracies = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", text)]
    assert len(seconds) == 3 and min(accuracies) >= 0.9
    assert seconds[1] < seconds[0] and seconds[2] < seconds[0]


def test_gossip_needs_no_server(tmp_path: Path) -> None:
    text = output("gossip.py", tmp_path)
    accuracy = [float(found) for found in re.findall(r"accuracy ([0-9.]+)", text)]
    apart = [float(found) for found in re.findall(r"neighbours ([0-9.]+)", text)]
    assert min(accuracy) > 0.8 and apart[1] < apart[0]


@pytest.mark.parametrize("real", [False, True], ids=["made up", "real"])
def test_hospitals_gain_from_training_together(real: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "heart_disease.py")]
    if real:
        command.append(str(request.getfixturevalue("real_data")("heart-disease-4-hospitals")))
    text = run(command, tmp_path)
    found = {name: float(value) for name, value in re.findall(r"(federated|local only) +[0-9.]+ +([0-9.]+)", text)}
    assert found["federated"] > found["local only"], text
    assert len(re.findall(r"accuracy [0-9.]+ on [0-9]+ patients", text)) == 4


USES_ALL = """
import json, sys
from hansa import registry, simulate
from hansa.errors import PlanError
from hansa.plan import Plan, parse
from hansa.simulation import Simulation

path = sys.argv[1]
plan = Plan.load(path)
names = {group: sorted(n for n, place in registry.names(group).items() if place.startswith("hansa_extras"))
         for group in registry.GROUPS}
again, _ = parse(plan.to_toml(), {})
text = open(path).read()
mistakes = []
for old, new in [("half_life = 2.0", "half_lives = 2.0"), ("pull = 0.5", "pull = 1.5"), ('"grid"', '"grit"'),
                 ("offset = 1", 'offset = "one"')]:
    try:
        parse(text.replace(old, new), {})
    except PlanError as error:
        mistakes.append(str(error))
run = simulate(path).raise_if_failed()
print(json.dumps({
    "names": names, "same": again == plan and again.digest == plan.digest, "mistakes": mistakes,
    "toml": plan.to_toml(), "status": run.status, "accuracy": run.curve("test_accuracy"),
    "hansa_modules": type(plan.protocol).__module__,
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a folder of its own, with no network."""
    if importlib.util.find_spec("pip") is None or importlib.util.find_spec("hatchling") is None:
        pytest.skip("pip and hatchling are needed to install the example package")
    target = tmp_path_factory.mktemp("target")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    ]
    command += ["--no-build-isolation", "--target", str(target), str(EXAMPLES / "third_party")]
    run(command, target)
    return target


def test_another_package_adds_to_every_group_without_touching_hansa(installed: Path, tmp_path: Path) -> None:
    plan = EXAMPLES / "third_party" / "plan.toml"
    found = json.loads(run([sys.executable, "-c", USES_ALL, str(plan)], tmp_path, {"PYTHONPATH": str(installed)}))
    assert found["status"] == "completed" and found["accuracy"][-1][1] > 0.9 > found["accuracy"][0][1]
    names = {group: names for group, names in found["names"].items() if names}
    assert names == {
        "protocols": ["cooled"], "learners": ["centroids"], "stages": ["grid"], "partitioners": ["every_nth"],
        "sources": ["rings"],
    }  # fmt: skip
    assert found["same"]
    for name in ("cooled", "centroids", "grid", "every_nth", "rings:300"):
        assert f'"{name}"' in found["toml"]
    wrong = [
        r"line 9: \[protocol.half_lives\].*did you mean 'half_life'",
        r"line 11: \[learner\] Centroids: pull must be above 0",
        r"no stage is named 'grit'; did you mean 'grid'",
        r"line 28: \[data.partition.offset\] expected 'int'",
    ]
    for mistake, sentence in zip(found["mistakes"], wrong, strict=True):
        assert re.search(sentence, mistake), mistake
    assert "hansa_extras" not in "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))


def test_without_the_package_its_names_are_unknown(tmp_path: Path) -> None:
    script = "import sys; from hansa.plan import Plan; Plan.load(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, str(EXAMPLES / "third_party" / "plan.toml")],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    for name in ("cooled", "centroids", "grid", "every_nth"):
        assert f"'{name}'" in done.stderr.splitlines()[-1] or f"is named '{name}'" in done.stderr
