"""One run through a seeded schedule of faults of real processes: the model is the undisturbed one, and the status is true."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import hansa as hs
from hansa.deployment import api
from hansa.deployment.quantity import Address
from tests.deployment.faults import homes as homes_of
from tests.deployment.faults import village
from tests.deployment.faults.homes import NAMES
from tests.deployment.faults.realm import Machine, Proxy, Realm, free_port, realm

FAULTS = 54
PLAN = homes_of.plan(hs.FedAvg(rounds=FAULTS // 2 + 6, cohort=3, quorum=1.0, deadline=600.0))
PAUSE = 0.3
"""Seconds for which a process is stopped."""


class Chaos:
    """What can go wrong, drawn by a seed."""

    def __init__(self, league: Realm, proxy: Proxy, seed: int) -> None:
        self.league, self.proxy, self.random = league, proxy, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.kinds: list[tuple[int, Callable[[], str]]] = [
            (3, self.kill_hub), (4, self.kill_node), (4, self.kill_worker), (3, self.pause_node), (1, self.pause_hub),
            (4, self.cut), (2, self.cut_in_the_middle), (2, self.slow), (2, self.drip), (2, self.flap),
        ]  # fmt: skip

    def strike(self) -> None:
        """One fault."""
        kinds = [kind for weight, kind in self.kinds for _ in range(weight)]
        while not (name := self.random.choice(kinds)()):
            pass
        self.counts[name] += 1

    def kill_hub(self) -> str:
        return "hub killed" if self.league.hub.kill() else ""

    def kill_node(self) -> str:
        return "node killed" if self.node().kill() else ""

    def kill_worker(self) -> str:
        machine = self.random.choice(list(self.league.machines.values()))
        workers = machine.workers()
        if not workers:
            return ""
        try:
            os.kill(self.random.choice(sorted(workers)), signal.SIGKILL)
        except ProcessLookupError:
            return ""
        return "worker killed"

    def pause_node(self) -> str:
        return self.pause(self.node().name, "node stopped for a while")

    def pause_hub(self) -> str:
        return self.pause("hub", "hub stopped for a while")

    def cut(self) -> str:
        return "connections cut" if self.proxy.cut() else ""

    def cut_in_the_middle(self) -> str:
        self.proxy.cut_after = self.proxy.bytes + self.random.randrange(1, 5000)
        return "connection cut after some bytes"

    def slow(self) -> str:
        self.proxy.delay = 0.02
        self.later(self.calm)
        return "slow line"

    def drip(self) -> str:
        self.proxy.drip = 100
        self.later(self.calm)
        return "dripping line"

    def flap(self) -> str:
        machine = self.node()
        for times in range(3):
            self.later(self.proxy.cut, times / 3)
        machine.kill()
        return "node flaps"

    def node(self) -> Machine:
        return self.league.machines[self.random.choice(NAMES)]

    def calm(self) -> None:
        self.proxy.delay, self.proxy.drip = 0.0, 0

    def pause(self, name: str, what: str) -> str:
        machine = self.league.machines[name]
        if not machine.kill(signal.SIGSTOP):
            return ""
        process = machine.process
        assert process is not None

        def go_on() -> None:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)

        self.later(go_on)
        return what

    @staticmethod
    def later(action: Callable[[], object], share: float = 1.0) -> None:
        asyncio.get_running_loop().call_later(PAUSE * share, action)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_run_in_chaos_ends_with_the_undisturbed_model(tmp_path: Path, seed: int) -> None:
    port = free_port()
    folder = tmp_path / "league"
    folder.mkdir()

    async def scene(through: int) -> tuple[Counter[str], str]:
        async with (
            Proxy(Address("127.0.0.1", port), through) as proxy,
            realm(homes, port, {"cleo": {"CLOCK": "3600"}, "bela": {"CLOCK": "-3600"}}) as league,
        ):
            await league.up()
            answer = await league.asked(api.Submit(PLAN, data="table"), api.Submitted)
            run = answer.run
            chaos = Chaos(league, proxy, seed)
            last, struck = -1, 0
            async with asyncio.timeout(300):
                view = await league.view(run)
                while view.status not in ("completed", "failed", "stopped"):
                    async for event in league.events(run):
                        assert event.kind != "trouble", event.text
                        if event.kind != "round":
                            continue
                        assert event.round == last + 1, "a round was told twice, or not at all"
                        last = event.round
                        for _ in range(2):
                            if struck < FAULTS:
                                chaos.strike()
                                struck += 1
                    view = await league.view(run)
                    assert view.status in ("running", "completed"), view
                    assert view.round is None or view.round >= last
            assert (view.status, view.cause, view.round) == ("completed", "", view.rounds)
            assert sum(chaos.counts.values()) >= 50
            await league.up()
            await league.stop()
            assert league.model(run) == plain
            return chaos.counts, run

    through = free_port()
    homes = homes_of.make(folder, Address("127.0.0.1", through))
    outcome = village.play(homes, tmp_path / "plain", PLAN)
    plain = outcome.models[0]
    counts, _ = asyncio.run(scene(through))
    assert len(counts) >= 8
