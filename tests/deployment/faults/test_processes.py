"""Real processes that are killed with SIGKILL, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

import hansa as hs
from hansa.decentralized import DPSGD
from hansa.deployment import api
from hansa.deployment.quantity import Address
from hansa.deployment.store import Database, WorkTable
from hansa.deployment.worker.spool import Spool
from tests.deployment.faults import homes as homes_of
from tests.deployment.faults import village
from tests.deployment.faults.homes import Homes
from tests.deployment.faults.realm import Realm, free_port, gone, marked, realm

PLAN = homes_of.plan(hs.FedAvg(rounds=2, cohort=3))


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    folder = tmp_path / "league"
    folder.mkdir()
    return homes_of.make(folder, Address("127.0.0.1", free_port()))


def undisturbed(homes: Homes, tmp_path: Path, plan: str = PLAN) -> bytes:
    outcome = village.play(homes, tmp_path / "plain", plan)
    model = outcome.models[0]
    assert isinstance(model, bytes)
    return model


async def submitted(league: Realm, plan: str = PLAN) -> str:
    answer = await league.asked(api.Submit(plan, data="table"), api.Submitted)
    assert isinstance(answer, api.Submitted)
    return answer.run


def test_a_killed_hub_and_a_killed_node_come_back_and_leave_no_orphans(homes: Homes, tmp_path: Path) -> None:
    plain = undisturbed(homes, tmp_path)

    async def scene() -> str:
        async with realm(homes, homes.address.port) as league:
            league.hub.faults = ["after", "9"]
            league.machines["ada"].faults = ["before", "6"]
            await league.up()
            run = await submitted(league)
            view = await league.ended(run)
            assert (view.status, view.cause, view.round) == ("completed", "", 2)
            assert league.hub.ended == [-signal.SIGKILL]
            assert league.machines["ada"].ended == [-signal.SIGKILL]
            # Kill all at once: workers go with their owners.
            pids = [pid for machine in league.machines.values() for pid in machine.workers()]
            assert pids
            await league.stop(signal.SIGKILL)
            await gone([*pids, *marked(league.mark)])
            assert marked(league.mark) == []
            assert league.model(run) == plain
            return run

    asyncio.run(scene())


def test_a_drained_federation_leaves_no_orphans_and_goes_on_later(homes: Homes, tmp_path: Path) -> None:
    plan = homes_of.plan(hs.FedAvg(rounds=30, cohort=3))
    plain = undisturbed(homes, tmp_path, plan)

    async def first() -> str:
        async with realm(homes, homes.address.port) as league:
            await league.up()
            run = await submitted(league, plan)
            async for event in league.events(run):
                if event.kind == "round":
                    break
            await league.stop(signal.SIGTERM)
            await gone(marked(league.mark))
            assert marked(league.mark) == []
            for machine in league.machines.values():
                while not machine.ended:
                    await machine.changed.wait()
                assert machine.ended == [0]
            return run

    async def second(run: str) -> None:
        async with realm(homes, homes.address.port) as league:
            view = await league.ended(run)
            assert (view.status, view.round) == ("completed", 30)
            await league.stop()
            assert league.model(run) == plain

    asyncio.run(second(asyncio.run(first())))


def test_a_node_keeps_its_work_while_the_hub_is_away(homes: Homes, tmp_path: Path) -> None:
    plain = undisturbed(homes, tmp_path)

    async def scene() -> None:
        async with realm(homes, homes.address.port) as league:
            await league.up()
            league.hub.held = True  # it does not come back by itself
            league.hub.faults = []
            run = await submitted(league)
            async for event in league.events(run):
                if event.kind == "status" and event.text.startswith("runs with"):
                    break
            league.hub.kill()
            ada = league.machines["ada"]
            await ada.until(lambda: sum("no link" in line for line in ada.said) >= 4)
            assert ada.ended == []
            league.hub.again()
            view = await league.ended(run)
            assert (view.status, view.cause) == ("completed", "")
            assert [machine.starts for machine in league.machines.values()] == [2, 1, 1, 1]
            await league.stop()
            assert league.model(run) == plain

    asyncio.run(scene())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["before", "after", "reads", "writes"])
@pytest.mark.parametrize("who", ["hub", "bela"])
def test_sigkill_at_steps_of_real_processes(homes: Homes, tmp_path: Path, who: str, what: str) -> None:
    plain = undisturbed(homes, tmp_path)
    killed = 0

    async def scene(number: int) -> int:
        async with realm(homes, homes.address.port) as league:
            league.machines[who].faults = [what, str(number)]
            run = await submitted(league)
            view = await league.ended(run)
            assert (view.status, view.cause, view.round) == ("completed", "", 2), number
            ended = list(league.machines[who].ended)
            assert ended in ([], [-signal.SIGKILL])
            await league.stop()
            assert league.model(run) == plain, number
            return len(ended)

    for number in (2, 4, 7, 10):
        killed += asyncio.run(scene(number))
    assert killed >= 3


async def lost(league: Realm, name: str, run: str) -> None:
    """After the first round a node dies for good, and the hub dies too, and comes back."""
    async for event in league.events(run):
        if event.kind == "round" and event.round:
            break
    machine = league.machines[name]
    machine.held = True
    machine.kill()
    league.hub.kill()


@pytest.mark.slow
def test_a_run_whose_server_is_gone_fails_by_name_and_can_be_resumed(homes: Homes, tmp_path: Path) -> None:
    plan = homes_of.plan(hs.FedAvg(rounds=30, cohort=3))
    plain = undisturbed(homes, tmp_path, plan)

    async def scene() -> None:
        async with realm(homes, homes.address.port, {"hub": {"LOST_AFTER": "3"}}) as league:
            await league.up()
            answer = await league.asked(api.Submit(plan, data="table", server="ada"), api.Submitted)
            assert isinstance(answer, api.Submitted)
            await lost(league, "ada", answer.run)
            view = await league.ended(answer.run)
            assert (view.status, view.party) == ("failed", "server")
            assert "ada" in view.cause
            assert "3 s" in view.cause
            assert "hansa resume" in view.remedy
            league.machines["ada"].again()
            await league.up("ada")
            await league.asked(api.ResumeRun(answer.run), api.Submitted)
            view = await league.ended(answer.run)
            assert (view.status, view.cause, view.round) == ("completed", "", 30)
            await league.stop()
            with contextlib.closing(Database(homes.node("ada") / "node.db")) as database:
                body = WorkTable(database).results(answer.run)["server"]
            assert village.parameters(body, Spool(homes.node("ada") / "spool")) == plain

    asyncio.run(scene())


@pytest.mark.slow
def test_peers_go_on_without_one_that_is_gone_and_the_run_ends(homes: Homes) -> None:
    plan = homes_of.plan(DPSGD(rounds=40, deadline=1.0))

    async def scene() -> None:
        async with realm(homes, homes.address.port, {"hub": {"LOST_AFTER": "3"}}) as league:
            await league.up()
            run = await submitted(league, plan)
            await lost(league, "cleo", run)
            view = await league.ended(run)
            assert (view.status, view.round) == ("completed", 40)
            events = [event async for event in league.events(run)]
            assert any(event.kind == "trouble" and event.party == "cleo" for event in events)
            texts = [event.text for event in events if event.kind == "round"]
            assert any(text.startswith("no model from") and "cleo" in text for text in texts), texts

    asyncio.run(scene())
