"""The report says what the folder says, in whatever state the run left it, and runs nothing that a name smuggles in."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.errors import ConfigError
from hansa.monitoring import chart
from hansa.monitoring.folder import RunFolder
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo
from hansa.monitoring.report import report
from tests.monitoring.folders import CURVE, record, write

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'onmouseover='alert(1)",
    "</title></style></svg></pre><iframe src=//evil>",
    "&lt;b&gt;",
    "a\x00b\x1b[31m\u202ekcab",
    "]]><!--",
]
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and refuses tags that do not nest."""

    def __init__(self, page: str) -> None:
        HTMLParser.__init__(self)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(word for word in self.words if word.strip())


def shape(page: str) -> tuple[set[str], set[str]]:
    """The tags and the attribute names of a page: what a hostile name must not add to."""
    read = Page(page)
    return read.tags, {name for name, _ in read.attributes}


def everywhere(folder: Path, name: str) -> Path:
    """A run in which everything that has a name has this one."""
    parties = {name: {name: 0.5, "accuracy": 0.5, "examples": 3}, "other": {"accuracy": 1.0, "examples": 2}}
    metrics: dict[str, Any] = {name: 1.0, f"test_{name}": 0.5}
    records = [
        record(0, metrics, note=name, parties=parties),
        record(1, {name: 2.0, f"test_{name}": None}, note=name, parties=parties, time=3.0),
    ]
    status = {
        "status": name,
        "cause": name,
        "name": name,
        "digest": name,
        "failures": {name: name},
        "baselines": {name: {name: 1.0}},
        "settings": {name: {name: name}},
    }
    write(folder, records, plan=name.replace("\x00", ""), status=status, traffic={name: {"messages": 1, "bytes": 2}})
    (folder / "environment.json").write_text('{"system": "</pre><script>"}')
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_text(tmp_path: Path, name: str) -> None:
    harmless = report(everywhere(tmp_path / "harmless", "name"))
    page = report(everywhere(tmp_path / "hostile", name))
    assert shape(page)[0] <= shape(harmless)[0]
    assert shape(page)[1] <= shape(harmless)[1]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", page)


def test_a_hostile_name_is_still_shown(tmp_path: Path) -> None:
    words = Page(report(everywhere(tmp_path, "<script>alert(1)</script>"))).text
    assert words.count("<script>alert(1)</script>") >= 6


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = report(write(tmp_path, CURVE))
    read = Page(page)
    assert not read.tags & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert not {name for name, _ in read.attributes} & {"src", "href", "xlink:href", "onload"}
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_what_the_folder_writes_is_what_the_page_says(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(RunInfo("digits", 'name = "digits"\n', "abc123", 2, 40, 1234))
    for n, accuracy in enumerate((0.125, 0.75, 0.5)):
        parties = {"a": {"accuracy": 0.25, "examples": 4.0}, "b": {"accuracy": 1.0, "examples": 4.0}}
        metrics = {"test_accuracy": accuracy, "test_loss": math.inf if n == 1 else 1.0}
        folder.round(RoundRecord(n, metrics, parties if n == 2 else {}, "b: late" if n == 1 else "", 7.0 * n, 0.1))
    traffic = {"TrainTask": {"messages": 3, "bytes": 3_000}, "Contribution": {"messages": 1, "bytes": 1_000}}
    folder.end(
        RunEnd(
            "failed",
            "server, round 2: it broke",
            61.0,
            traffic,
            {"b": "ValueError: no"},
            {"central": {"accuracy": 0.9}},
        )
    )
    words = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).text
    for said in (
        "failed after 2 rounds:", "server, round 2: it broke", "0.5000", "0.7500", "b: late", "ValueError: no", "abc123",
        "1,234", "61.0 s", "14.0 s", "4.0 kB", "75%", "this run", "central", "0.9000", "accuracy over virtual time",
        "1 values are not finite",
    ):  # fmt: skip
        assert said in words, said


def test_the_status_is_the_true_one(tmp_path: Path) -> None:
    for status, cause, said in (
        ("completed", "", "completed after 1 rounds."),
        ("interrupted", "from the keyboard", "interrupted after 1 rounds:"),
        ("running", "", "no end is on record"),
        (None, "", "no end is on record"),
    ):
        words = Page(report(write(tmp_path, CURVE, status={"status": status, "cause": cause}))).text
        assert said in words
        assert ("completed" in words) == (status == "completed")


def test_a_killed_run_without_a_status_has_its_rounds(tmp_path: Path) -> None:
    write(tmp_path, CURVE)
    (tmp_path / "status.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"round": 2, "metrics": {"test_acc')
    words = Page(report(tmp_path)).text
    assert (
        "no end is on record" in words and "0.5000" in words and "One line of metrics.jsonl could not be read" in words
    )


def test_an_empty_run_and_a_run_of_one_record_have_no_curves(tmp_path: Path) -> None:
    for records in ([], CURVE[:1]):
        page = report(write(tmp_path, records, status={"status": "failed", "cause": "nobody came"}))
        words = Page(page).text
        assert "nobody came" in words and "Curves" not in words and "<svg" not in page


def test_virtual_time_has_curves_only_where_it_moves(tmp_path: Path) -> None:
    still = report(write(tmp_path, CURVE))
    moving = report(write(tmp_path, [CURVE[0], {**CURVE[1], "time": 9.0}]))
    assert "over rounds" in still and "virtual time" not in still and "accuracy over virtual time" in moving


@pytest.mark.parametrize(("metric", "worst"), [("loss", 9.0), ("accuracy", 0.0)])
def test_the_worst_decile_is_marked(tmp_path: Path, metric: str, worst: float) -> None:
    parties = {f"p{n}": {metric: float(n), "examples": 1.0} for n in range(10)}
    page = report(write(tmp_path, [record(0, {}, parties=parties)]))
    marked = re.findall(r'<rect class="marked".*?/><text class="minor".*?>(.*?)</text>', page)
    assert marked == [f"{worst:g}"]
    assert page.count('<rect class="bar"') == 9


def test_a_party_that_diverged_is_among_the_worst(tmp_path: Path) -> None:
    parties: dict[str, Any] = {f"p{n}": {"accuracy": 0.5, "examples": 1.0} for n in range(5)}
    parties["lost"] = {"accuracy": None, "examples": 1.0}
    page = report(write(tmp_path, [record(0, {}, parties=parties)]))
    assert "not finite" in page and 'class="marked"' not in page
    names = re.findall(r"<title>(p\d|lost)</title>", page)
    assert names[0] == "lost" and len(names) == 6


def test_ten_thousand_parties_and_rounds_stay_a_small_page(tmp_path: Path) -> None:
    parties = {f"p{n}": {"accuracy": n / 10_000, "examples": 1.0} for n in range(10_000)}
    records = [record(n, {"test_loss": math.sin(n)}, note="late") for n in range(10_000)]
    page = report(write(tmp_path, [*records, record(10_000, {"test_loss": 0.0}, parties=parties)]))
    assert len(page) < 100_000
    assert "The first 200 of 10,000" in page
    marked = re.findall(r'class="marked" [^/]*height="([\d.]+)"', page)
    assert len(marked) == 2  # of 20 bins of 500 parties, the 1,000 worst fill two


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"neither status\.json nor metrics\.jsonl"):
        report(tmp_path)
    write(tmp_path)
    for content in ("{", "[1]", "[" * 100_000):
        (tmp_path / "status.json").write_text(content)
        with pytest.raises(ConfigError, match=r"status\.json .*damaged"):
            report(tmp_path)
    (tmp_path / "status.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        report(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("round", "metrics", "parties", "note", "time"), JSON))),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("status", "rounds", "failures", "baselines", "seconds"), JSON)),
    st.dictionaries(st.text(max_size=5), JSON, max_size=2),
)
def test_no_json_of_any_shape_breaks_the_page(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], status: dict[str, Any], traffic: dict[str, Any]
) -> None:
    Page(report(write(tmp_path_factory.mktemp("run"), records, status=status, traffic=traffic)))


def coordinates(picture: str) -> list[float]:
    tree = ET.fromstring(picture)
    found = []
    for element in tree.iter():
        places = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")
        found += [float(element.attrib[name]) for name in places if name in element.attrib]
        found += [float(part) for part in re.split("[ ,]", element.attrib.get("points", "")) if part]
    return found


@given(st.lists(st.tuples(st.floats(), st.none() | st.floats()), max_size=8), st.booleans())
def test_lines_of_any_numbers_stay_on_the_drawing(points: list[tuple[float, float | None]], whole: bool) -> None:
    found = coordinates(chart.lines("any", [chart.Series("s", points)], "x", whole))
    assert all(math.isfinite(place) and -1 <= place <= 441 for place in found)


@given(st.lists(st.floats(), max_size=8))
def test_bars_and_histograms_of_any_numbers_stay_on_the_drawing(values: list[float]) -> None:
    rows = chart.bars("any", {str(n): value for n, value in enumerate(values)})
    counts = chart.histogram("any", values, values[:1], "x")
    assert all(math.isfinite(place) and -1 <= place <= 441 for place in coordinates(rows) + coordinates(counts))


@given(st.floats(-1e90, 1e90), st.floats(-1e90, 1e90), st.booleans())
def test_ticks_cover_the_range_and_rise(a: float, b: float, whole: bool) -> None:
    low, high = min(a, b), max(a, b)
    found = chart.ticks(low, high, 5, whole)
    slack = 0.01 * (found[1] - found[0])  # ticks are rounded to be short
    assert found[0] <= low + slack and high - slack <= found[-1]
    assert all(x < y for x, y in pairwise(found)) and 2 <= len(found) <= 12


def test_a_line_has_a_gap_where_a_value_is_not_finite() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 3.0), (4.0, None), (5.0, 1.0), (6.0, 2.0)]
    picture = chart.lines("gap", [chart.Series("s", points)], "round")
    assert picture.count("<polyline") == 2 and picture.count("<circle") == 1


def test_thinning_keeps_the_peak_and_both_ends() -> None:
    points: list[tuple[float, float | None]] = [(float(n), 0.0) for n in range(50_000)]
    points[31_111] = (31_111.0, 7.0)
    picture = chart.lines("peak", [chart.Series("s", points)], "round")
    found = re.findall(r'points="([^"]*)"', picture)[0].split()
    heights = [float(pair.split(",")[1]) for pair in found]
    assert len(found) < 500 and min(heights) < heights[0] - 100
    assert (found[0], found[-1]) == (
        min(found, key=lambda p: float(p.split(",")[0])),
        max(found, key=lambda p: float(p.split(",")[0])),
    )
