"""The message log: exact counts, whole views, diagrams, and a digest over every byte."""

from __future__ import annotations

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import Contribution
from hansa.horizontal.rounds import TrainTask
from hansa.message import Message, decode, encode
from hansa.simulation.log import Entry, MessageLog, Traffic, mermaid, total
from hansa.tensor import Tensor
from tests.simulation.cases import CASES, PARTIES, federation

PLAN = CASES[0].plan()


class Blob(Message, frozen=True):
    tag = "test.blob/1"
    discloses = "a tensor"

    values: Tensor


def test_traffic_is_the_bytes_of_the_frames() -> None:
    run = hs.simulate(PLAN, federation(), seed=1, record=("server", *(f"client-{i}" for i in range(PARTIES))))
    messages = [m for name in run.log.received for _, m in run.view(name).messages]
    for kind, traffic in run.traffic.items():
        frames = [encode(m) for m in messages if type(m).__name__ == kind]
        assert traffic == Traffic(len(frames), sum(map(len, frames))), kind
    assert set(run.traffic) == {"TrainTask", "Contribution", "EvaluateTask", "Scores"}
    assert total(run.traffic.values()).messages == len(messages)
    assert len(run.log.entries) == len(messages) + len(run.history)


def test_a_view_holds_what_was_received_and_nothing_else() -> None:
    run = hs.simulate(PLAN, federation(), seed=1, record=("server", "client-3"))
    tasks = run.view("client-3").of(TrainTask)
    assert tasks and {type(m).__name__ for _, m in run.view("client-3").messages} <= {"TrainTask", "EvaluateTask"}
    assert {sender for sender, _ in run.view("client-3").messages} == {"server"}
    assert len(run.view("server").of(Contribution)) == 6 * 5
    for message in run.view("server").of(Contribution):
        assert encode(decode(encode(message), Contribution)) == encode(message)
    with pytest.raises(KeyError, match="record="):
        run.view("client-4")


def test_every_byte_is_in_the_digest() -> None:
    def log(time: float = 0.0, sender: str = "a", to: str = "b", value: float = 1.0, times: int = 1) -> str:
        made = MessageLog(digest=True)
        for _ in range(times):
            made.note(time, sender, to, Blob(Tensor(np.array([1.0, value]))), 0)
        return made.digest()

    others = [
        log(time=1e-300),
        log(sender="c"),
        log(to="c"),
        log(value=np.nextafter(1.0, 2.0)),
        log(times=2),
        log(times=0),
    ]
    assert len({log(), *others}) == 7 and log() == log()
    with pytest.raises(KeyError, match="digest=True"):
        MessageLog().digest()


def test_entries_are_bounded_and_counts_are_not() -> None:
    log = MessageLog(keep=3)
    for _ in range(10):
        log.note(0.0, "a", "b", Blob(Tensor(np.zeros(1))), 64)
    assert len(log.entries) == 3 and log.traffic()["Blob"] == Traffic(10, 640)


def test_a_diagram_shows_the_first_parties_and_lines() -> None:
    entries = [Entry(0.0, "server", f"client-{i}", "TrainTask", 10**i) for i in range(6)]
    entries.insert(1, Entry(0.0, "server", "observer", "Progress", 5))
    assert mermaid(entries, parties=3).splitlines() == [
        "sequenceDiagram",
        "    server->>client-0: TrainTask (1 B)",
        "    server->>client-1: TrainTask (10 B)",
    ]
    assert len(mermaid(entries, parties=9, lines=4).splitlines()) == 5
    assert mermaid([]) == "sequenceDiagram"
    assert "(100.0 kB)" in mermaid(entries, parties=9) and "Progress" not in mermaid(entries, parties=9)
    run = hs.simulate(PLAN, federation(), seed=1)
    assert "server->>client-" in run.diagram() and "Contribution" in run.diagram(parties=20)


def test_a_run_tells_how_it_ended() -> None:
    run = hs.simulate(PLAN, federation(), seed=1)
    assert "completed after 5 rounds" in run.summary() and "test_accuracy" in run.summary()
    assert [point[0] for point in run.curve("test_accuracy")] == list(range(6))
    with pytest.raises(KeyError, match="test_accuracy"):
        run.curve("accuracy")
    diverged = hs.Plan(protocol=hs.FedAvg(rounds=9, cohort=6, server_learning_rate=1e38), learner=hs.learners.Linear())
    rng = np.random.default_rng(0)
    real = hs.data.arrays(rng.normal(size=(60, 2)), rng.normal(size=60)).partition(hs.data.IID(), parties=6)
    failed = hs.simulate(diverged, real)
    assert failed.status == "failed" and failed.cause and "failed" in failed.summary()
    with pytest.raises(hs.errors.HansaError):
        failed.raise_if_failed()
