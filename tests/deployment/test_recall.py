"""A member whose certificate was revoked: who was in a run with it neither writes to it nor reads of it, also after a crash."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from hansa.deployment import api, dial
from hansa.deployment.courier import Part
from hansa.deployment.identity import Credentials, read_invitation
from hansa.deployment.node import Node
from hansa.deployment.packets import Recall, Start
from hansa.deployment.sealing import Envelope, seal
from hansa.deployment.settings import NodeLimits
from hansa.deployment.store import Parcel
from hansa.deployment.worker.frames import Body
from hansa.errors import SealError
from tests.deployment.federation import PLAN, Federation, drive, federation

FEDAVG = PLAN.format(name="fedavg")
LONG = FEDAVG.replace("rounds = 3", "rounds = 400")
GONE = "node-1"


def part(node: Node, run: str) -> Part:
    assert run in node.begun
    return node.begun[run]


def letter(node: Node, run: str, author: Credentials) -> Parcel:
    """The next letter of the server to node-0, as its machine would truly write it."""
    work = part(node, run).work
    number = node.mailbox.last_number(f"{run}/{work.attempt}", "server", "node-0") + 1
    envelope = Envelope("trial", f"{run}/{work.attempt}", GONE, "node-0", "server", "node-0", "t/1", number)
    body = seal(envelope, b"hello", author.sealing, node.credentials.sealing.public)
    return Parcel(run, 10**6, "server", "node-0", True, Body("t/1", len(body), body))


def estranged(node: Node, run: str, author: Credentials) -> None:
    """Nothing is sealed for the machine that is gone, and nothing opened from it."""
    assert node.works.recalled(run) == {GONE}
    work = part(node, run).work
    with pytest.raises(SealError, match="recalled"):
        node.envelopes.sealed(work, "node-0", "server", Body("t/1", 1, b"x"))
    assert "recalled" in node.take("hub", letter(node, run, author))


async def under_way(fed: Federation) -> tuple[str, Credentials]:
    """A run whose server is on the machine that will go."""
    run = await fed.submit(LONG, server=GONE)
    await fed.until(lambda: run in fed.nodes["node-0"].begun and run in fed.nodes[GONE].begun, "it begins")
    author = fed.nodes[GONE].credentials
    await fed.stop_node(GONE)
    return run, author


@pytest.mark.parametrize("away", [False, True], ids=["told before the crash", "told after it"])
def test_a_recall_outlasts_a_crash(tmp_path: Path, away: bool) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run, author = await under_way(fed)
            node = fed.nodes["node-0"]
            assert node.envelopes.sealed(part(node, run).work, "node-0", "server", Body("t/1", 1, b"x")).size > 1
            if away:
                await fed.stop_node("node-0", crash=True)
            await fed.caller.ask(api.Revoke(GONE), api.Done)
            if not away:
                await fed.until(lambda: node.works.recalled(run), "it is told")
                estranged(node, run, author)
                node.database.commit()
                await fed.stop_node("node-0", crash=True)
            node = await fed.start_node("node-0")
            await fed.until(lambda: node.works.recalled(run), "it knows")
            estranged(node, run, author)
            # What of the run is not that machine's business stands.
            assert run in node.begun and node.works.state(run) == "started"

    drive(scenario())


def test_a_recall_that_was_not_kept_is_said_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run, author = await under_way(fed)
            node = fed.nodes["node-0"]
            before = fed.hub.mailbox.sent("node-0", "")
            node.works.recall(GONE)
            await fed.stop_node("node-0", crash=True)  # in the instant before it is on the disk
            node = await fed.start_node("node-0", connect=False)
            assert node.works.recalled(run) == frozenset()
            assert node.envelopes.sealed(part(node, run).work, "node-0", "server", Body("t/1", 1, b"x")).size > 1
            await fed.caller.ask(api.Revoke(GONE), api.Done)
            assert fed.hub.mailbox.sent("node-0", "") == before + 1
            await fed.until(lambda: node.works.recalled(run), "it is told")
            estranged(node, run, author)

    drive(scenario())


def test_a_recall_between_the_answer_and_the_beginning_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", GONE, "node-2"]) as fed:
            run = await fed.submit(LONG, server=GONE)
            node = fed.nodes["node-0"]
            await fed.until(lambda: node.works.state(run) == "accepted", "it waits for node-3")
            node._control(Recall([GONE]))
            node._control(Start(run, 1, node.works.offer(run).roles, {}))
            estranged(node, run, fed.nodes[GONE].credentials)
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_a_recall_counts_for_an_offer_that_was_not_looked_at_yet(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", GONE], limits=NodeLimits(runs_at_once=1)) as fed:
            node = fed.nodes["node-0"]
            first = await fed.submit(LONG)
            await fed.until(lambda: node.works.state(first) == "accepted", "it waits for the others")
            second = await fed.submit(LONG, server=GONE)
            await fed.until(lambda: node.works.state(second) == "offered", "it waits for its turn")
            node._control(Recall([GONE]))
            assert node.works.recalled(first) == frozenset(), "in this run the two would not have met"
            await fed.caller.ask(api.StopRun(first), api.Done)
            await fed.until(lambda: node.works.state(second) == "accepted", "it is looked at")
            node._control(Start(second, 1, node.works.offer(second).roles, {}))
            assert (second, GONE) not in node.envelopes._keys
            assert (second, "hub") in node.envelopes._keys
            await fed.caller.ask(api.StopRun(second), api.Done)

    drive(scenario())


def test_whoever_is_no_machine_of_a_run_can_be_recalled_as_often_as_one_likes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG)
            node = fed.nodes["node-0"]
            await fed.until(lambda: run in node.begun, "it begins")
            node._control(Recall(["", "../../x", "node-3", "x" * 10_000] * 40))
            assert node.works.recalled(run) == frozenset()
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert (await fed.end(await fed.submit(FEDAVG, server="node-3"))).status == "completed"

    drive(scenario())


def test_who_comes_back_under_its_name_is_written_to_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run, author = await under_way(fed)
            await fed.caller.ask(api.Revoke(GONE), api.Done)
            node = fed.nodes["node-0"]
            await fed.until(lambda: node.works.recalled(run), "it is told")
            token = (await fed.caller.ask(api.Invite(GONE), api.Invited)).token
            invitation = dataclasses.replace(read_invitation(token), addresses=(str(fed.address),))
            await dial.join(author.home, invitation, time.time())
            await fed.start_node(GONE)
            await fed.stop_node("node-0", crash=True)
            node = await fed.start_node("node-0")
            # It has a certificate again, and in the run that it was put out of it stays out.
            estranged(node, run, author)
            await fed.caller.ask(api.StopRun(run), api.Done)
            await fed.until(lambda: node.works.state(run) == "ended", "it ends")
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            await fed.until(lambda: run in node.begun and node.begun[run].work.attempt == 2, "it is asked anew")
            assert node.works.recalled(run) == frozenset()
            assert node.envelopes.sealed(part(node, run).work, "node-0", "server", Body("t/1", 1, b"x")).size > 1
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert (await fed.end(await fed.submit(FEDAVG, server=GONE))).status == "completed"

    drive(scenario())
