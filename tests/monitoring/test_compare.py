"""A comparison is fair: the same question to every run, and every setting that differs is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hansa.errors import ConfigError
from hansa.monitoring.compare import Comparison, Reached, compare, flat
from tests.monitoring.folders import CURVE, PLAN, record, write


def two(folder: Path, target: tuple[str, float] | None = None) -> Comparison:
    slow = [
        record(0, {"test_accuracy": 0.1, "test_loss": 2.0}),
        record(1, {"test_accuracy": 0.95, "test_loss": 0.5, "contributors": 4}, time=10.0),
        record(2, {"test_accuracy": 0.8, "test_loss": None}, time=30.0, seconds=1.5),
    ]
    fast = [record(0, {"test_accuracy": 0.2}), record(1, {"test_accuracy": 0.6}), record(2, {"test_accuracy": 0.7})]
    write(
        folder / "a", slow, status={"seconds": 9.0}, traffic={"Task": {"messages": 2, "bytes": 10}, "B": {"bytes": 5}}
    )
    write(folder / "b", fast, plan=PLAN.replace("10.0", "10").replace("seed = 7", 'seed = 8\nextra = "x"'))
    return compare([folder / "a", folder / "b"], target)


def test_final_best_and_cost_of_each_run(tmp_path: Path) -> None:
    a, b = two(tmp_path).rows
    assert a.final == {"test_accuracy": 0.8, "test_loss": None, "contributors": 4.0}
    assert a.best == {"test_accuracy": 0.95, "test_loss": 0.5}
    assert (a.rounds, a.time, a.seconds, a.messages, a.bytes) == (2, 30.0, 9.0, 2, 15)
    assert (b.seconds, b.messages, b.bytes, b.reached) == (1.5, None, None, None)


@pytest.mark.parametrize(
    ("target", "a", "b"),
    [
        (("test_accuracy", 0.6), Reached(1, 10.0, 1.0), Reached(1, 0.0, 1.0)),
        (("test_accuracy", 0.7), Reached(1, 10.0, 1.0), Reached(2, 0.0, 1.5)),
        (("test_accuracy", 0.95), Reached(1, 10.0, 1.0), None),
        (("test_accuracy", 0.96), None, None),
        (("test_loss", 2.0), Reached(0, 0.0, 0.5), None),
        (("test_loss", 0.6), Reached(1, 10.0, 1.0), None),
        (("test_loss", 0.4), None, None),
    ],
)
def test_the_target_is_met_by_the_first_round_that_is_as_good(
    tmp_path: Path, target: tuple[str, float], a: Reached | None, b: Reached | None
) -> None:
    assert tuple(row.reached for row in two(tmp_path, target).rows) == (a, b)


def test_every_setting_that_differs_and_no_other(tmp_path: Path) -> None:
    assert dict(two(tmp_path).settings) == {"seed": (7, 8), "aggregation[0].bound": (10.0, 10), "extra": (None, "x")}


def test_how_a_run_was_simulated_counts_but_for_the_workers(tmp_path: Path) -> None:
    write(tmp_path / "a", CURVE, status={"settings": {"workers": 1, "faults": {"drop": 0.0}}})
    write(tmp_path / "b", CURVE, status={"settings": {"workers": 2, "faults": {"drop": 0.1}}})
    assert dict(compare([tmp_path / "a", tmp_path / "b"]).settings) == {"simulation.faults.drop": (0.0, 0.1)}


def test_the_text_has_a_column_a_run(tmp_path: Path) -> None:
    found = two(tmp_path, ("test_accuracy", 0.7)).text()
    rows = {line[:30].strip(): line[30:].split() for line in found.splitlines()}
    assert "rounds to test_accuracy >= 0.7" in found
    assert [line.split()[-2:] for line in found.splitlines() if line.startswith("rounds to")] == [["1", "2"]]
    assert [line.split()[-2:] for line in found.splitlines() if line.startswith("bytes")] == [["15", "-"]]
    assert "not finite" in found and str(tmp_path / "a")[-8:] in found  # equal names: the folders tell them apart
    assert rows and all(line == line.rstrip() for line in found.splitlines())


def test_one_run_is_a_comparison_too_and_equal_plans_are_called_equal(tmp_path: Path) -> None:
    write(tmp_path / "a", CURVE)
    write(tmp_path / "b", [])
    assert "settings" not in compare([tmp_path / "a"]).text()
    text = compare([tmp_path / "a", tmp_path / "b"]).text()
    assert "equal in every setting" in text


def test_the_data_is_strict_json(tmp_path: Path) -> None:
    write(tmp_path / "a", CURVE, plan="x = inf\nday = 2024-01-01\n[t]\ny = [nan, 1]\n")
    write(tmp_path / "b", CURVE, plan="")
    found = compare([tmp_path / "a", tmp_path / "b"], ("test_loss", 1.0)).data()
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read["settings"] == {"x": ["inf", None], "day": ["2024-01-01", None], "t.y": [["nan", 1], None]}
    assert read["target"] == {"metric": "test_loss", "value": 1.0}
    assert read["runs"][0]["reached"] == {"round": 1, "time": 0.0, "seconds": 1.0}


def test_a_name_cannot_break_the_table(tmp_path: Path) -> None:
    write(tmp_path / "a", CURVE, status={"name": "two\nlines " + "x" * 200, "status": "a\tb"})
    plain = write(tmp_path / "b", CURVE)
    text = compare([tmp_path / "a", plain]).text()
    assert len(text.splitlines()) == len(compare([plain, plain]).text().splitlines())
    assert max(map(len, text.splitlines())) < 140


def test_what_cannot_be_compared_is_refused_with_a_sentence(tmp_path: Path) -> None:
    good = write(tmp_path / "good", CURVE)
    with pytest.raises(ConfigError, match="name the folders"):
        compare([])
    with pytest.raises(ConfigError, match="missing is not a run's folder"):
        compare([good, tmp_path / "missing"])
    with pytest.raises(ConfigError, match="not a run's folder"):
        compare([good, tmp_path])
    with pytest.raises(ConfigError, match="did you mean 'test_accuracy'"):
        compare([good], ("test_acuracy", 0.5))
    with pytest.raises(ConfigError, match="finite"):
        compare([good], ("test_accuracy", float("nan")))
    with pytest.raises(ConfigError, match="no round of them is on record"):
        compare([write(tmp_path / "empty")], ("test_accuracy", 0.5))
    with pytest.raises(ConfigError, match=r"plan\.toml is not TOML"):
        compare([write(tmp_path / "bad", CURVE, plan="= 3")])


def test_flat_keeps_lists_of_values_whole() -> None:
    assert flat({"a": {"b": []}, "c": [1, 2], "d": [{"e": {"f": 1}}, {"e": 2}], "g": {}}) == {
        "a.b": [], "c": [1, 2], "d[0].e.f": 1, "d[1].e": 2,
    }  # fmt: skip
