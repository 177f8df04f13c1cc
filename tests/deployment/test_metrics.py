"""Counts are exact, their text is what Prometheus reads, and no peer can make series."""

from __future__ import annotations

import math
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hansa.deployment.metrics import OTHER, SECONDS, Counter, Gauge, Histogram, Metrics


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels, as a reader of the format understands it."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}
    assert len(found) == len(samples), "a series stands there twice"
    return found


def test_the_names_are_there_before_anything_happened() -> None:
    samples = read(Metrics().text())
    assert samples["hansa_nodes_connected", ()] == 0
    assert samples["hansa_rounds_total", ()] == 0
    assert samples["hansa_link_reconnects_total", ()] == 0
    assert samples["hansa_spool_bytes", ()] == 0
    assert samples["hansa_bytes_total", (("direction", "out"),)] == 0
    assert samples["hansa_round_seconds_count", ()] == 0


def test_what_is_counted_is_what_is_read() -> None:
    metrics = Metrics()
    metrics.runs.set(2, "running")
    metrics.runs.add("running", by=-1)
    metrics.nodes_connected.set(7)
    metrics.messages.add("in", "fedavg.update/1")
    metrics.messages.add("in", "fedavg.update/1", by=2)
    metrics.bytes.add("out", by=1.5e12)
    metrics.refusals.add("revoked")
    samples = read(metrics.text())
    assert samples["hansa_runs", (("status", "running"),)] == 1
    assert samples["hansa_nodes_connected", ()] == 7
    assert samples["hansa_messages_total", (("class", "fedavg.update/1"), ("direction", "in"))] == 3
    assert samples["hansa_bytes_total", (("direction", "out"),)] == 1.5e12
    assert samples["hansa_refusals_total", (("reason", "revoked"),)] == 1


def test_two_processes_parts_do_not_share() -> None:
    one, two = Metrics(), Metrics()
    one.rounds.add()
    assert (one.rounds.value(), two.rounds.value()) == (1.0, 0.0)


def test_every_family_has_its_help_and_type_once_and_no_time_of_creation() -> None:
    lines = Metrics().text().splitlines()
    helped = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(helped) == len(set(helped)) == len([line for line in lines if line.startswith("# TYPE")])
    assert all(name.startswith("hansa_") for name in helped)
    assert "_created" not in "".join(lines)


@given(st.lists(st.text(max_size=100), max_size=300))
def test_invented_values_make_no_series(invented: list[str]) -> None:
    metrics = Metrics()
    for value in invented:
        metrics.refusals.add(value)
        metrics.messages.add(value, value)
        metrics.bytes.add(value)
        metrics.runs.set(1, value)
    samples = read(metrics.text())
    count = {name: sum(1 for found, _ in samples if found == name) for name, _ in samples}
    assert count.get("hansa_refusals_total", 0) <= 65
    assert count.get("hansa_messages_total", 0) <= 3 * 129
    assert count["hansa_bytes_total"] <= 3
    assert count.get("hansa_runs", 0) <= 17
    assert sum(v for (name, _), v in samples.items() if name == "hansa_refusals_total") == len(invented)


def test_a_million_values_are_bounded_and_none_is_lost() -> None:
    counter = Counter("c_total", "c", {"reason": 4})
    for number in range(10_000):
        counter.add(f"r{number}")
    assert counter.value("r3") == 1
    assert counter.value("r4") == 0
    assert counter.value(OTHER) == 9_996


@pytest.mark.parametrize("value", ["", 'a"} 1\nforged_total 9', "a\nb", "\\", "é", "x" * 65, " ", "-"])
def test_a_value_that_no_label_should_have_is_other(value: str) -> None:
    metrics = Metrics()
    metrics.refusals.add(value)
    assert [key for key in read(metrics.text()) if key[0] == "hansa_refusals_total"] == [
        ("hansa_refusals_total", (("reason", OTHER),))
    ]


@pytest.mark.parametrize("labels", [(), ("in",), ("in", "a", "b")])
def test_the_number_of_labels_is_checked(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="has the labels"):
        Metrics().messages.add(*labels)


@pytest.mark.parametrize("by", [-1.0, math.inf, math.nan, -math.inf])
def test_a_counter_never_shrinks(by: float) -> None:
    counter = Counter("c_total", "c")
    with pytest.raises(ValueError, match="never shrinks"):
        counter.add(by=by)
    assert counter.value() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_histogram_takes_only_finite_values(value: float) -> None:
    histogram = Histogram("h", "h")
    with pytest.raises(ValueError, match="no sum survives"):
        histogram.observe(value)


@given(st.lists(st.one_of(st.sampled_from(SECONDS), st.floats(0, 4000)), max_size=50))
def test_the_buckets_are_cumulative_counts(values: list[float]) -> None:
    metrics = Metrics()
    for value in values:
        metrics.round_seconds.observe(value)
    samples = read(metrics.text())
    for (name, labels), found in samples.items():
        if name == "hansa_round_seconds_bucket":
            assert found == sum(value <= float(dict(labels)["le"]) for value in values)
    assert samples["hansa_round_seconds_count", ()] == len(values)
    assert math.isclose(samples["hansa_round_seconds_sum", ()], sum(values), abs_tol=1e-9)


def test_threads_lose_no_count() -> None:
    counter, gauge = Counter("c_total", "c", {"reason": 2}), Gauge("g", "g")

    def work() -> None:
        for _ in range(2000):
            counter.add("a")
            gauge.add()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counter.value("a"), gauge.value()) == (8000, 8000)


def test_counting_needs_no_client_library() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from hansa.deployment.metrics import Metrics\nfrom hansa.errors import MissingExtra\n"
        "m = Metrics(); m.rounds.add()\n"
        "try:\n    m.text()\nexcept MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "hansa[net]" in done.stdout
