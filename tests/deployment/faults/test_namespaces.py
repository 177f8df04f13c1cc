"""Three hosts of their own network each: real partitions, in the middle of a large transfer and longer than a deadline; lost packets."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hansa as hs
from hansa.deployment import api
from hansa.deployment.quantity import Address
from tests.deployment.faults import homes as homes_of
from tests.deployment.faults import village
from tests.deployment.faults.homes import Homes
from tests.deployment.faults.realm import Realm, realm

pytestmark = pytest.mark.slow

TWO = ("ada", "bela")
NET = f"10.231.{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:]}"
"""Tests that run beside each other reach their hubs by different networks."""
HUB = f"{NET}.1"


def ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        pytest.skip(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


class Net:
    """Namespaces for a hub and two nodes, joined by a bridge in the hub's."""

    def __init__(self) -> None:
        self.tag = f"hn{os.getpid()}"

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def make(self) -> None:
        for name in ("hub", *TWO):
            ip("netns", "add", self.space(name))
            ip("-n", self.space(name), "link", "set", "lo", "up")
        hub = self.space("hub")
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{HUB}/24", "dev", "br0")
        ip("-n", hub, "link", "set", "br0", "up")
        for number, name in enumerate(TWO, 2):
            ip("-n", hub, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "up0", "netns", self.space(name))
            ip("-n", hub, "link", "set", f"to-{name}", "master", "br0", "up")
            ip("-n", self.space(name), "addr", "add", f"{NET}.{number}/24", "dev", "up0")
            ip("-n", self.space(name), "link", "set", "up0", "up")

        # The test itself asks the hub, as its operator does.
        ip("link", "add", self.tag, "type", "veth", "peer", "name", "to-test", "netns", hub)
        ip("-n", hub, "link", "set", "to-test", "master", "br0", "up")
        ip("addr", "add", f"{NET}.254/24", "dev", self.tag)
        ip("link", "set", self.tag, "up")

    def remove(self) -> None:
        ip("link", "del", self.tag, check=False)  # with its namespace it would go too, but some time later
        for name in ("hub", *TWO):
            ip("netns", "del", self.space(name), check=False)

    def part(self, name: str) -> None:
        ip("-n", self.space("hub"), "link", "set", f"to-{name}", "down")

    def heal(self, name: str) -> None:
        ip("-n", self.space("hub"), "link", "set", f"to-{name}", "up")

    def bytes(self, name: str) -> int:
        """What has come to a node."""
        text = ip("netns", "exec", self.space(name), "cat", "/sys/class/net/up0/statistics/rx_bytes")
        return int(text)

    def shape(self, name: str, *words: str) -> None:
        """Shape what goes to a node."""
        self._run("hub", "tc", "qdisc", "add", "dev", f"to-{name}", "root", *words)

    def lose(self, name: str, every: int) -> None:
        """Lose one packet in ``every`` that comes to a node, and one that goes from it."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            which = ("-m", "statistic", "--mode", "nth", "--every", str(every), "--packet", "0")
            self._run(name, "iptables", "-A", chain, way, "up0", *which, "-j", "DROP")

    def lost(self, name: str) -> int:
        """Packets that were lost on the way to a node."""
        return int(self._run(name, "iptables", "-L", "INPUT", "-v", "-x").splitlines()[2].split()[0])

    def _run(self, name: str, *command: str) -> str:
        done = subprocess.run([*self.prefix(name), *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def prefix(self, name: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.space(name))


@pytest.fixture
def net() -> Iterator[Net]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "iptables"))):
        pytest.skip("network namespaces need root, and the tools ip, tc and iptables")
    found = Net()
    try:
        found.make()
        yield found
    finally:
        found.remove()


def league_of(tmp_path: Path, **table: int) -> Homes:
    folder = tmp_path / "league"
    folder.mkdir()
    return homes_of.make(folder, Address(HUB, 7400), TWO, **table)


def prefixes(net: Net) -> dict[str, tuple[str, ...]]:
    return {name: net.prefix(name) for name in ("hub", *TWO)}


async def submitted(league: Realm, plan: str) -> str:
    await league.up()
    answer = await league.asked(api.Submit(plan, data="table"), api.Submitted)
    assert isinstance(answer, api.Submitted)
    return answer.run


async def come(net: Net, name: str, count: int) -> None:
    """Wait until so many bytes have come to a node."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(net.bytes, name) < count:
            pass


def test_a_large_transfer_goes_on_from_its_last_piece_when_a_partition_heals(net: Net, tmp_path: Path) -> None:
    homes = league_of(tmp_path, features=400_000, rows=12)
    plan = homes_of.plan(hs.FedAvg(rounds=1, cohort=2, quorum=1.0, deadline=300.0))
    plain = village.play(homes, tmp_path / "plain", plan).models[0]
    size = len(plain)
    net.shape("ada", "tbf", "rate", "20mbit", "burst", "64kb", "latency", "200ms")

    async def scene(partition: bool) -> int:
        async with realm(homes, 7400, prefixes=prefixes(net)) as league:
            await league.up()
            before = net.bytes("ada")
            run = await submitted(league, plan)
            if partition:
                await come(net, "ada", before + size * 3 // 4)
                net.part("ada")
                hub = league.hub
                await hub.until(lambda: any("node gone" in line and "ada" in line for line in hub.said), 120)
                net.heal("ada")
            view = await league.ended(run, 200)
            assert (view.status, view.cause) == ("completed", "")
            total = net.bytes("ada") - before
            await league.stop()
            assert league.model(run) == plain
            return total

    undisturbed = asyncio.run(scene(False))
    disturbed = asyncio.run(scene(True))
    # Begun anew it would be three quarters of a model more; a piece is 1 MiB, and so is what was read and not yet whole.
    assert disturbed < undisturbed + size // 2, (undisturbed, disturbed, size)


def test_a_partition_longer_than_the_deadline_costs_its_rounds_the_missing_party_and_no_more(
    net: Net, tmp_path: Path
) -> None:
    homes = league_of(tmp_path)
    plan = homes_of.plan(hs.FedAvg(rounds=4, cohort=2, quorum=0.5, deadline=3.0))

    async def scene() -> None:
        async with realm(homes, 7400, prefixes=prefixes(net)) as league:
            run = await submitted(league, plan)
            times, notes = {}, {}
            async for event in league.events(run):
                if event.kind == "status" and event.text.startswith("runs with"):
                    net.part("ada")
                if event.kind == "round":
                    times[event.round], notes[event.round] = event.time, event.text
            view = await league.view(run)
            assert (view.status, view.cause, view.round) == ("completed", "", 4)
            assert all("ada" in notes[number] for number in (1, 2, 3, 4)), notes
            assert all("bela" not in note for note in notes.values())
            # Collecting and evaluating have a deadline each.
            assert max(times[number] - times[number - 1] for number in (1, 2, 3, 4)) < 2 * 3.0 + 2.0

    asyncio.run(scene())


@pytest.mark.parametrize("line", ["thin", "long"])
def test_a_slow_and_lossy_line_changes_nothing(line: str, net: Net, tmp_path: Path) -> None:
    for name in TWO:
        if line == "thin":  # a packet waits for those before it
            net.shape(name, "tbf", "rate", "500kbit", "burst", "4kb", "latency", "400ms")
        else:  # a packet travels long, whatever there is on the way
            net.shape(name, "netem", "delay", "40ms")
        net.lose(name, 10)
    homes = league_of(tmp_path)
    plan = homes_of.plan(hs.FedAvg(rounds=30, cohort=2, quorum=1.0))
    plain = village.play(homes, tmp_path / "plain", plan).models[0]

    async def scene() -> None:
        async with realm(homes, 7400, prefixes=prefixes(net)) as league:
            run = await submitted(league, plan)
            assert (await league.ended(run)).status == "completed"
            await league.stop()
            assert league.model(run) == plain

    asyncio.run(scene())
    assert min(map(net.lost, TWO)) > 0
