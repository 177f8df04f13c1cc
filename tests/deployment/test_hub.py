"""The hub: members, one stream a node, and what it relays."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment import api, dial
from hansa.deployment.host import INLINE, Work
from hansa.deployment.identity import read_invitation
from hansa.deployment.packets import Sending
from hansa.deployment.store import Record
from hansa.deployment.worker.frames import Body
from hansa.errors import ConfigError, HansaError, IdentityError, NotAuthorized, StoreError
from hansa.message import encode
from hansa.protocol import Progress
from tests.deployment.federation import PLAN, Federation, drive, federation

FEDAVG = PLAN.format(name="fedavg")


async def running(fed: Federation, **fields: Any) -> str:
    run = await fed.submit(FEDAVG.replace("rounds = 3", "rounds = 400"), **fields)
    await fed.until(lambda: status(fed, run).round, "it runs")
    return run


def status(fed: Federation, run: str) -> Record:
    record = fed.hub.runs.table.get(run)
    assert record is not None
    return record


def sending(run: str, sender: str, receiver: str, sealed: bool) -> Sending:
    return Sending(run, 1, sender, receiver, sealed, "t", 1, b"1")


def test_an_invitation_makes_a_member_once_and_a_lost_answer_is_given_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed", start=[]) as fed:
            invited = await fed.caller.ask(api.Invite("clinic"), api.Invited)
            invitation = read_invitation(invited.token)
            joined = await dial.join(tmp_path / "clinic", invitation, fed.clock())
            assert (joined.identity.name, joined.identity.kind) == ("clinic", "node")
            with pytest.raises(IdentityError, match="used already"):
                await dial.join(tmp_path / "thief", invitation, fed.clock())
            with pytest.raises(IdentityError, match="member already"):
                await fed.caller.ask(api.Invite("clinic"), api.Invited)
            found = await fed.caller.ask(api.ListMembers(), api.MemberList)
            assert "clinic" in {member.name for member in found.members}
            with pytest.raises(ConfigError, match="no member"):
                await fed.caller.ask(api.Revoke("nobody"), api.Done)

    drive(scenario())


def test_a_member_whose_certificate_ran_out_is_invited_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            with pytest.raises(IdentityError, match="member already"):
                await fed.caller.ask(api.Invite("node-0"), api.Invited)
            fed.hub.clock = lambda: time.time() + fed.hub.settings.certificates.node + 1
            assert (await fed.caller.ask(api.Invite("node-0"), api.Invited)).token.startswith("hansa1-")

    drive(scenario())


def test_what_a_program_tells_the_observer_may_be_long(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await running(fed)
            parties = {f"party-{number:04}": {"accuracy": 0.5, "loss": 1.0} for number in range(2000)}
            frame = encode(Progress(7, {}, parties, "long"))
            assert len(frame) > INLINE
            body = Body(Progress.tag, len(frame), None, fed.hub.spool.write([frame]))
            hub = fed.hub.runs.running
            hub.report(Work(run, 1, "", {}, frozenset(), {}), "server", body)
            assert any(event.text == "long" for event in await fed.events(run))

    drive(scenario())


def test_a_node_speaks_for_its_own_parties_alone_and_seals_what_is_for_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await running(fed, parties=("node-0", "node-1", "node-2", "node-3"))
            admit = fed.hub.admit
            assert admit("node-0", sending(run, "node-0", "server", False)) == ""
            assert admit("node-0", sending(run, "node-0", "node-1", True)) == ""
            assert "not yours" in admit("node-0", sending(run, "node-1", "server", False))
            assert "not yours" in admit("node-0", sending(run, "server", "node-1", True))
            assert "sealed" in admit("node-0", sending(run, "node-0", "node-1", False))
            assert "sealed" in admit("node-0", sending(run, "node-0", "server", True))
            for stranger in ("nobody", "", "hub", "../x"):
                assert "no such party" in admit("node-0", sending(run, "node-0", stranger, False))
                assert "no such party" in admit("node-0", sending(run, stranger, "server", False))
            assert "not running" in admit("node-0", sending("00000000000000ff", "node-0", "server", False))
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert "not running" in admit("node-0", sending(run, "node-0", "server", False))

    drive(scenario())


def test_nothing_waits_for_anybody_after_the_last_run_has_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            for server in ("hub", "node-2"):
                await fed.run(FEDAVG, server=server)
            databases = [fed.hub.database, *(node.database for node in fed.nodes.values())]
            await fed.until(
                lambda: all(database.read("SELECT count(*) FROM outbox") == [(0,)] for database in databases),
                "everything is delivered",
            )
            for node in fed.nodes.values():
                assert node.host.running() == set()
                assert node.database.read("SELECT count(*) FROM programs") == [(0,)]
            assert fed.hub.host.running() == set()

    drive(scenario())


def test_a_disk_that_fails_ends_the_hub_and_not_its_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await running(fed)
            database = fed.hub.database
            database.commit()
            database.read("PRAGMA query_only = ON")  # as a disk that takes nothing more
            async with asyncio.timeout(10):
                error = await fed.hub.broken()
            assert isinstance(error, StoreError)
            assert "nothing accepted is lost" in str(error)
            with pytest.raises(HansaError):
                await fed.caller.ask(api.StopRun(run), api.Done)
            await fed.stop_hub(crash=True)
            await fed.start_hub()
            assert status(fed, run).status == "running"
            before = status(fed, run).round or 0
            await fed.until(lambda: (status(fed, run).round or 0) > before + 1, "it goes on")
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_a_submitter_sees_and_stops_its_own_runs_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(tmp_path, start=[]) as fed,
            fed.person("ada", "submitter") as ada,
            fed.person("eve", "submitter") as eve,
            fed.person("oda", "observer") as oda,
        ):
            run = await fed.submit(FEDAVG, by=ada)
            assert (await eve.ask(api.ListRuns(), api.RunList)).runs == ()
            assert [view.run for view in (await ada.ask(api.ListRuns(), api.RunList)).runs] == [run]
            for caller in (eve, oda):
                with pytest.raises(NotAuthorized):
                    await caller.ask(api.StopRun(run), api.Done)
            with pytest.raises(NotAuthorized):
                await oda.ask(api.Submit(FEDAVG), api.Submitted)
            with pytest.raises(NotAuthorized):
                await ada.ask(api.Invite("friend"), api.Invited)
            await ada.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_a_second_hub_on_one_home_or_one_port_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            with pytest.raises(StoreError, match="in use by another process"):
                await fed.start_hub()

    drive(scenario())
