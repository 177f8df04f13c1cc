"""Killed at any word of any party and started again from what was written down, a run ends as one that was left alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import hansa as hs
from hansa.decentralized import DPSGD
from hansa.horizontal import Cyclic, FedAvg, Scaffold
from tests.deployment.worker.cases import ALONE, DATA, deploy, plan
from tests.deployment.worker.owner import Owner

LOOKED_AT = hs.Evaluation(parties=2, parties_every=1)
PLANS: dict[str, hs.Plan] = {
    "fedavg": plan(FedAvg(rounds=2, cohort=3, evaluation=LOOKED_AT)),
    "scaffold": plan(Scaffold(rounds=3, cohort=2)),
    "dpsgd": plan(DPSGD(rounds=2, evaluate_every=1)),
    "cyclic": plan(Cyclic(rounds=4, order="shuffled")),
}


def model(owner: Owner) -> dict[str, bytes]:
    assert not owner.troubles and not owner.failures, (owner.troubles, owner.failures)
    found = {}
    for name, params in owner.results.items():
        assert params is not None
        found[name] = params.flat.tobytes()
    return found


@cache
def undisturbed(name: str) -> Owner:
    with TemporaryDirectory() as folder:
        return deploy(PLANS[name], Path(folder), inline=200)


@pytest.mark.parametrize("name", PLANS)
def test_killed_at_every_word_of_every_party(name: str, tmp_path: Path) -> None:
    whole = undisturbed(name)
    for party, seat in whole.seats.items():
        for word in range(1, len(seat.words) + 1):
            after = deploy(PLANS[name], tmp_path / f"{party}-{word}", inline=200, kill=(party, word))
            assert after.killed == 1, (party, word)
            assert model(after) == model(whole), (party, word)
            # Neither twice nor never.
            assert after.posted == whole.posted, (party, word)
            assert [p.metrics for p in after.progress] == [p.metrics for p in whole.progress], (party, word)


@pytest.mark.parametrize("name", PLANS)
def test_the_undisturbed_run_is_the_simulated_one(name: str) -> None:
    whole, simulated = undisturbed(name), hs.simulate(PLANS[name], DATA, devices=ALONE).raise_if_failed()
    results: dict[str, Any] = dict(simulated.results)
    assert model(whole) == {party: params.flat.tobytes() for party, params in results.items()}
    told = [(p.round, dict(p.metrics)) for p in whole.progress]
    assert told == [(r.round, dict(r.metrics)) for r in simulated.history]
