"""A node: it decides for itself, says why, and goes on where it stood."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hansa.deployment import api
from hansa.deployment.identity import SealingKeys
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.request import make_request, read_request
from hansa.deployment.packets import Answer, End, Offer, Sending, control
from hansa.deployment.policy import Policy
from hansa.deployment.settings import NodeLimits, NodeSettings, parse
from hansa.errors import ConfigError, IdentityError, LinkError, StoreError
from tests.deployment.federation import ANYTHING, PLAN, Federation, drive, federation

FEDAVG = PLAN.format(name="fedavg")
LONG = FEDAVG.replace("rounds = 3", "rounds = 400")
FILE = """
[data.iris]
source = "sklearn:iris"
[policy]
protocols = ["fedavg"]
learners = ["*"]
submitters = ["operator/operator"]
data = ["iris"]
approval = "automatic"
most_rounds = 2
"""


def round_of(fed: Federation, run: str) -> int:
    record = fed.hub.runs.table.get(run)
    assert record is not None
    return record.round or 0


def test_the_submitter_reads_which_line_of_whose_policy_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            settings = parse(NodeSettings, FILE, tmp_path / "node.toml")
            node = await fed.start_node("node-3", settings)
            view = await fed.end(await fed.submit(FEDAVG))
            assert (view.status, view.party) == ("failed", "node-3")
            line = 1 + FILE.splitlines().index("most_rounds = 2")
            assert f"node.toml line {line}" in view.cause or f"line {line}" in view.cause, view.cause
            assert "most_rounds = 2 does not allow 3 rounds" in view.cause
            (answer,) = [event.text for event in await fed.events(view.run, "answer") if event.party == "node-3"]
            assert answer.startswith("node-3 does not take part: ")
            assert node.works.state(view.run) in ("refused", "ended")
            assert node.database.read("SELECT * FROM programs") == []

    drive(scenario())


def test_a_policy_that_says_nothing_takes_part_in_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, policy=Policy()) as fed:
            view = await fed.end(await fed.submit(FEDAVG))
            assert view.status == "failed"
            assert view.cause.startswith("0 of 4 parties accepted")

    drive(scenario())


def test_data_that_are_not_bound_are_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            view = await fed.end(await fed.submit(FEDAVG, data="hearts"))
            assert view.status == "failed"
            assert "no data called 'hearts' are bound here" in view.cause

    drive(scenario())


def test_the_owner_decides_and_no_program_runs_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, policy=replace(ANYTHING, approval="manual")) as fed:
            run = await fed.submit(FEDAVG)
            for node in fed.nodes.values():
                await fed.until(node.participation.asked, "the owner is asked")
                (asked,) = node.participation.asked()
                assert (asked.run, asked.submitter, asked.data) == (run, "operator/operator", "iris")
                assert node.database.read("SELECT * FROM programs") == []
            # The question outlives the node that asks it.
            await fed.stop_node("node-3", crash=True)
            node = await fed.start_node("node-3")
            assert [asked.run for asked in node.participation.asked()] == [run]
            for node in fed.nodes.values():
                node.participation.approve(run)
                with pytest.raises(ConfigError, match="waits for an answer"):
                    node.participation.approve(run)
                with pytest.raises(ConfigError, match="waits for an answer"):
                    node.participation.refuse(run, "too late")
            assert (await fed.end(run)).status == "completed"
            run = await fed.submit(FEDAVG)
            for node in fed.nodes.values():
                await fed.until(node.participation.asked, "the owner is asked")
            for name, node in fed.nodes.items():
                if name == "node-1":
                    node.participation.refuse(run, "not this month")
                else:
                    node.participation.approve(run)
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "node-1")
            assert "node-1 refused (not this month)" in view.cause
            with pytest.raises(ConfigError, match="no run 'unknown'"):
                fed.nodes["node-0"].participation.approve("unknown")

    drive(scenario())


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("server", ["hub", "node-3"])
def test_a_node_that_comes_back_goes_on_and_the_model_is_the_same(crash: bool, server: str, tmp_path: Path) -> None:
    plan = FEDAVG.replace("rounds = 3", "rounds = 15")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            undisturbed = await fed.run(plan)
            run = await fed.submit(plan, server=server)
            for name, number in (("node-1", 3), ("node-3", 7)):
                await fed.until(lambda number=number: round_of(fed, run) >= number, f"round {number}")  # type: ignore[misc]
                await fed.stop_node(name, crash=crash)
                await fed.start_node(name)
            view = await fed.end(run)
            assert view.status == "completed", (view.cause, view.party)
            np.testing.assert_array_equal(fed.model(run).flat, undisturbed.flat)

    drive(scenario(), 60.0)


def test_a_cut_link_heals_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    plan = FEDAVG.replace("rounds = 3", "rounds = 10")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            undisturbed = await fed.run(plan)
            run = await fed.submit(plan)
            for number, name in ((1, "node-0"), (3, "node-2"), (5, "node-0"), (7, "node-1")):
                await fed.until(lambda number=number: round_of(fed, run) >= number, f"round {number}")  # type: ignore[misc]
                await fed.cut(name)
                await fed.dial(name)
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            np.testing.assert_array_equal(fed.model(run).flat, undisturbed.flat)

    drive(scenario())


def test_an_end_and_the_next_offer_in_one_breath_leave_the_next_attempt_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG)
            await fed.until(lambda: round_of(fed, run) >= 2, "it runs")
            node = fed.nodes["node-0"]
            await fed.cut("node-0")
            await fed.caller.ask(api.StopRun(run), api.Done)
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            await fed.dial("node-0")  # the end of the one and the offer of the other come together
            await fed.until(lambda: node.works.state(run) == "started", "it takes part again")
            before = round_of(fed, run)
            await fed.until(lambda: round_of(fed, run) > before + 2, "it goes on")
            await fed.caller.ask(api.StopRun(run), api.Done)
            await fed.until(lambda: node.works.state(run) == "ended", "it ends")
            assert node.host.running() == set()

    drive(scenario())


def test_an_end_is_remembered_through_a_crash_in_the_next_instant(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG)
            await fed.until(lambda: round_of(fed, run) >= 1, "it runs")
            node = fed.nodes["node-0"]
            node._control(End(run, 1, "stopped", "for a test"))
            node.database.commit()
            await fed.stop_node("node-0", crash=True)
            node = await fed.start_node("node-0")
            assert node.works.state(run) == "ended"
            assert node.host.running() == set()
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_words_of_another_attempt_change_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG)
            await fed.until(lambda: round_of(fed, run) >= 1, "it runs")
            node = fed.nodes["node-0"]
            node._control(End(run, 2, "stopped", ""))
            node._control(End("00000000000000ff", 1, "stopped", ""))
            assert node.works.state(run) == "started"
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_a_peer_that_has_heard_of_the_beginning_first_is_asked_to_say_it_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            run = await fed.submit(FEDAVG)
            node = fed.nodes["node-0"]
            await fed.until(lambda: node.works.state(run) == "accepted", "it waits for the others")
            letter = Sending(run, 1, "node-1", "node-0", True, "t/1", 1, b"x")
            # A refusal would be for good, and the letter lost.
            with pytest.raises(LinkError, match="has not begun here yet"):
                node.admit("node-1", letter)
            assert "takes no part" in node.admit("hub", letter)
            await fed.caller.ask(api.StopRun(run), api.Done)
            await fed.until(lambda: node.works.state(run) == "ended", "it ends")
            assert "takes no part" in node.admit("node-1", letter)

    drive(scenario())


def test_a_peer_that_comes_with_other_sealing_keys_is_refused_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            assert (await fed.end(await fed.submit(FEDAVG, server="node-1"))).status == "completed"
            # The operator lets somebody else be node-1: everybody who met node-1 notices.
            hub, now = fed.hub, time.time()
            key, sealing = make_tls_key(), SealingKeys.make()
            request = read_request(make_request("node-1", key, sealing))
            pem = hub.authority.issue_member(request, "node", "node-1", now, 3600.0)
            certificate = fed.nodes["node-1"].credentials.certificate
            hub.members.certified("node-1", "node", certificate.serial + 1, pem, now)
            view = await fed.end(await fed.submit(FEDAVG, server="node-1"))
            assert view.status == "failed"
            assert "'node-1' comes with other sealing keys than before" in view.cause

    drive(scenario())


def test_a_certificate_is_renewed_without_a_restart_and_the_run_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG.replace("rounds = 400", "rounds = 30"))
            node = fed.nodes["node-2"]
            before = node.credentials
            await node.renew()
            assert node.credentials.certificate.serial != before.certificate.serial
            assert node.credentials.sealing is before.sealing
            await fed.cut("node-2")
            await fed.dial("node-2")  # with the new certificate
            assert (await fed.end(run)).status == "completed"
            assert (await fed.end(await fed.submit(FEDAVG, server="node-2"))).status == "completed"

    drive(scenario())


def test_a_revoked_node_ends_and_is_not_let_in_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            await fed.caller.ask(api.Revoke("node-3"), api.Done)
            await fed.until(lambda: fed.ended.get("node-3") is not None, "node-3 ends")
            error = fed.ended.pop("node-3")
            assert isinstance(error, IdentityError)
            assert "was revoked" in str(error)
            assert (await fed.end(await fed.submit(FEDAVG.replace("cohort = 4", "cohort = 3")))).status == "completed"

    drive(scenario())


def test_two_processes_of_one_node_are_one_too_many(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            with pytest.raises(StoreError, match="in use by another process"):
                await fed.start_node("node-0")

    drive(scenario())


def test_control_that_the_hub_may_not_say_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = "00000000000000ee"
            fed.hub.mailbox.put("node-0", "", "", "", control(Answer(run, 1, "accepted")))
            strange = Offer(
                run,
                1,
                "n",
                FEDAVG,
                "0" * 64,
                "operator/operator",
                "iris",
                {"client": ("node-1",)},
                {"node-1": "node-1"},
                {},
                1.0,
            )
            fed.hub.mailbox.put("node-0", "", "", "", control(strange))
            node = fed.nodes["node-0"]
            await fed.until(lambda: node.works.state(run) == "refused", "it refuses")
            assert (await fed.end(await fed.submit(FEDAVG))).status == "completed"

    drive(scenario())


def test_the_time_of_a_run_goes_on_through_restarts(tmp_path: Path) -> None:
    now = [0.0]
    limits = NodeLimits(run=3600.0)

    async def scenario() -> None:
        now[0] = time.time()
        async with federation(tmp_path, clock=lambda: now[0], limits=limits) as fed:
            run = await fed.submit(LONG)
            await fed.until(lambda: round_of(fed, run) >= 1, "it runs")

            async def left() -> float:
                await fed.stop_node("node-0", crash=True)
                node = await fed.start_node("node-0", connect=False)
                return node.parts._limits[run].when() - asyncio.get_running_loop().time()

            assert 3500 < await left() <= 3600
            now[0] += 3000.0
            assert 500 < await left() <= 600
            now[0] -= 7200.0  # a clock that was set back gives no more than the whole
            assert 3500 < await left() <= 3600
            now[0] += 7200.0 + 700.0
            await fed.stop_node("node-0", crash=True)
            node = await fed.start_node("node-0")
            await fed.until(lambda: node.works.state(run) == "ended", "its time is over")
            assert not node.works.all(("started",))
            await fed.until(lambda: fed.hub.runs.table.events(run, kind="trouble"), "the hub hears of it")
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())
