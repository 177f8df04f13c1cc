"""Kill hub, nodes and workers at every step of small runs, and cut every cable at every packet: nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa.decentralized import DPSGD
from hansa.deployment import host, packets
from hansa.learners import Softmax
from hansa.protocol import Protocol
from tests.deployment.faults import homes as homes_of
from tests.deployment.faults import village
from tests.deployment.faults.homes import NAMES, Homes
from tests.deployment.faults.village import Cut, Kill, KillWorker, Outcome

PLANS: dict[str, Protocol] = {
    "fedavg": hs.FedAvg(rounds=2, cohort=3),
    "scaffold": hs.Scaffold(rounds=2, cohort=3),
    "dpsgd": DPSGD(rounds=2),
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    return homes_of.make(tmp_path_factory.mktemp("league"), features=64)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models go through the spool, and between machines in several pieces."""
    monkeypatch.setattr(host, "INLINE", 256)
    monkeypatch.setattr(packets, "PIECE_BYTES", 400)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a learner trained."""
    count = [0]
    fit = Softmax.fit

    def counted(self: Softmax, *arguments: Any, **named: Any) -> Any:
        count[0] += 1
        return fit(self, *arguments, **named)

    monkeypatch.setattr(Softmax, "fit", counted)
    return count


_PLAIN: dict[str, Outcome] = {}


def undisturbed(homes: Homes, tmp_path: Path, name: str) -> Outcome:
    if name not in _PLAIN:
        outcome = village.play(homes, tmp_path / "plain", homes_of.plan(PLANS[name]))
        assert sound(outcome) == []
        assert outcome.record.status == "completed"
        _PLAIN[name] = outcome
    return _PLAIN[name]


def sound(outcome: Outcome, like: Outcome | None = None) -> list[object]:
    """What is wrong with a run's end."""
    record = outcome.record
    flaws: list[object] = [] if record.status == "completed" else [(record.status, record.cause)]
    if like is not None:
        flaws += [] if outcome.models == like.models else ["another model"]
        flaws += [] if outcome.rounds == like.rounds else [outcome.rounds]
        flaws += [] if outcome.village.faults == 1 else [f"{outcome.village.faults} faults"]
    return [*flaws, *outcome.troubles, *outcome.leftovers.items(), *outcome.village.errors]


def every(name: str, plain: Outcome, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The faults of one kind, numbered over all machines, every ``step``-th of them."""
    found: list[tuple[str, dict[str, Any]]] = []
    if name == "kills":
        for machine, commits in plain.village.commits.items():
            for number in range(1, commits + 1):
                for after in (False, True):
                    kill = Kill(machine, number, after)
                    found.append((str(kill), {"kills": [kill]}))
    elif name == "cuts":
        for node, count in plain.village.packets.items():
            for number in range(1, count + 1):
                for arrives in (False, True):
                    cut = Cut(node, number, arrives)
                    found.append((str(cut), {"cut": cut}))
    else:
        for party, words in plain.village.words.items():
            for number in range(1, words + 1):
                for heard in (False, True):
                    kill_worker = KillWorker(party, number, heard)
                    found.append((str(kill_worker), {"kill_worker": kill_worker}))
    yield from found[::step]


def check(homes: Homes, tmp_path: Path, name: str, kind: str, step: int) -> int:
    plain = undisturbed(homes, tmp_path, name)
    flaws, count = {}, 0
    for what, fault in every(kind, plain, step):
        count += 1
        outcome = village.play(homes, tmp_path / "faulty", homes_of.plan(PLANS[name]), **fault)
        if kind == "workers":
            # What a dead worker wrote and told nobody of goes at the next start of its owner.
            outcome = replace(outcome, leftovers={k: v for k, v in outcome.leftovers.items() if "spool" not in k})
        if found := sound(outcome, plain):
            flaws[what] = found
    assert not flaws
    return count


@pytest.mark.parametrize("name", PLANS)
def test_a_run_without_faults_leaves_nothing_behind(homes: Homes, tmp_path: Path, name: str) -> None:
    undisturbed(homes, tmp_path, name)


@pytest.mark.parametrize("kind", ["kills", "cuts", "workers"])
@pytest.mark.parametrize("name", PLANS)
def test_a_fault_at_some_steps_changes_nothing(homes: Homes, tmp_path: Path, name: str, kind: str) -> None:
    step = {"kills": 29, "cuts": 67, "workers": 37}[kind]
    assert check(homes, tmp_path, name, kind, step) > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kills", "cuts", "workers"])
@pytest.mark.parametrize("name", PLANS)
def test_a_fault_at_every_step_changes_nothing(homes: Homes, tmp_path: Path, name: str, kind: str) -> None:
    assert check(homes, tmp_path, name, kind, 1) > 100


@pytest.mark.parametrize("name", ["scaffold"])
def test_a_node_that_had_finished_its_work_sends_it_again_and_does_not_compute_again(
    homes: Homes, tmp_path: Path, name: str, fits: list[int]
) -> None:
    plain = undisturbed(homes, tmp_path, name)
    fits[0] = 0
    village.play(homes, tmp_path / "again", homes_of.plan(PLANS[name]))
    once = fits[0]
    assert once == 2 * len(NAMES)
    finished = 0
    for number in range(1, plain.village.commits["ada"] + 1, 2):
        fits[0] = 0
        outcome = village.play(
            homes, tmp_path / "again", homes_of.plan(PLANS[name]), kills=[Kill("ada", number, after=True)]
        )
        assert sound(outcome, plain) == []
        # What its journal called under way is done again, and nothing else.
        assert fits[0] - once == sum(outcome.village.computing)
        finished += not any(outcome.village.computing)
    assert finished > 3


def test_every_packet_twice_changes_nothing(homes: Homes, tmp_path: Path) -> None:
    plain = undisturbed(homes, tmp_path, "fedavg")
    for kind in (packets.Sending, packets.Received):

        def twice(packet: bytes, tag: bytes = kind.tag.encode()) -> bool:
            return not packets.is_piece(packet) and tag in packet[:200]

        outcome = village.play(homes, tmp_path / "twice", homes_of.plan(PLANS["fedavg"]), twice=twice)
        assert [flaw for flaw in sound(outcome) if flaw not in outcome.village.errors] == []
        assert outcome.models == plain.models
        assert outcome.rounds == plain.rounds


def test_a_piece_that_comes_twice_ends_the_stream_and_not_the_run(homes: Homes, tmp_path: Path) -> None:
    plain = undisturbed(homes, tmp_path, "fedavg")
    left = [3]

    def twice(packet: bytes) -> bool:
        if packets.is_piece(packet) and left[0]:
            left[0] -= 1
            return True
        return False

    outcome = village.play(homes, tmp_path / "twice", homes_of.plan(PLANS["fedavg"]), twice=twice)
    assert left == [0]
    assert outcome.models == plain.models
    assert any("was due" in str(error) or "did not announce" in str(error) for error in outcome.village.errors)


def test_three_machines_die_in_one_run(homes: Homes, tmp_path: Path) -> None:
    plain = undisturbed(homes, tmp_path, "scaffold")
    kills = [Kill("hub", 7, True), Kill("ada", 6, False), Kill("cleo", 9, True), Kill("hub", 12, False)]
    outcome = village.play(homes, tmp_path / "many", homes_of.plan(PLANS["scaffold"]), kills=kills)
    assert outcome.village.faults == len(kills)
    assert sound(outcome) == []
    assert outcome.models == plain.models
