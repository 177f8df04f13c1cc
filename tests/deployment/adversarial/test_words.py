"""Words about runs that are too long, too many or too early: whoever says them is alone with it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from hansa.deployment import api, joining
from hansa.deployment.packets import MAX_PACKET, Answer, Finished, Report, Trouble
from hansa.errors import ConfigError
from hansa.message import encode
from hansa.protocol import Progress
from tests.deployment.federation import PLAN, drive, federation

FEDAVG = PLAN.format(name="fedavg").replace("cohort = 4", "cohort = 2")
PEERS = PLAN.format(name="dpsgd").replace("cohort = 4\n", "")


def test_a_long_refusal_of_one_does_not_keep_the_others_from_hearing_of_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            run = await fed.submit(FEDAVG, parties=("node-0", "node-1", "node-3"), seconds=30.0)
            states = [node.works for node in fed.nodes.values()]
            await fed.until(lambda: all(works.state(run) == "accepted" for works in states), "they accept")
            seats = fed.hub.runs.table.seats
            await fed.until(lambda: sum(seat.answer == "accepted" for seat in seats(run)) == 3, "the hub knows")
            fed.hub.runs.heard("node-3", Answer(run, 1, "refused", "x" * 4000))
            fed.hub.database.commit()
            view = await fed.end(run)
            assert view.status == "failed" and view.party == "node-3"
            await fed.until(lambda: all(works.state(run) == "ended" for works in states), "they hear of the end")

    drive(scenario())


@pytest.mark.parametrize(
    "word",
    [
        lambda run: Trouble(run, 1, "node-3", "Sulk", "because", fatal=True),
        lambda run: Finished(run, 1, "node-3"),
        lambda run: Report(run, "node-3", encode(Progress(7, {"accuracy": 1.0}))),
    ],
    ids=["trouble", "finished", "report"],
)
def test_a_peer_ends_and_reports_nothing_before_the_run_begins_nor_when_it_was_left_out(
    tmp_path: Path, word: object
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            run = await fed.submit(PEERS, least=3, seconds=30.0)
            said = word(run)  # type: ignore[operator]
            assert (await fed.view(run)).status == "joining"
            fed.hub.runs.heard("node-3", said)
            fed.hub.runs.heard("node-3", Answer(run, 1, "refused", "no"))
            fed.hub.runs.heard("node-3", said)
            fed.hub.database.commit()
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            assert not [event for event in await fed.events(run) if event.party == "node-3" and event.kind != "answer"]

    drive(scenario())


def test_who_answers_again_and_again_fills_neither_the_events_nor_its_own_lane(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            run = await fed.submit(FEDAVG, parties=("node-0", "node-1", "node-3"), least=2, seconds=30.0)
            said = [fed.hub.runs.heard("node-3", Answer(run, 1, "pending", f"{n}")) for n in range(300)]
            assert said[: joining.ANSWERS] == [""] * joining.ANSWERS and all(said[joining.ANSWERS :])
            assert (
                len([event for event in await fed.events(run, "answer") if event.party == "node-3"]) <= joining.ANSWERS
            )
            # Nor is an answer that is none written down.
            assert fed.hub.runs.heard("node-0", Answer(run, 1, "perhaps"))
            fed.hub.runs.heard("node-3", Answer(run, 1, "refused", "no"))
            fed.hub.runs.stop(run, "the test")
            assert not fed.hub.runs.joining._heard

    drive(scenario())


@pytest.mark.parametrize(("name", "data"), [("", ""), ("short", ""), ("short", "short")])
def test_a_plan_that_no_packet_holds_is_refused_and_closes_nobodys_lane(tmp_path: Path, name: str, data: str) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            large = FEDAVG.replace('"trial"', f'"{"x" * (MAX_PACKET - 4000)}"')
            with pytest.raises(ConfigError, match=r"at most 200 characters|make the plan shorter"):
                await fed.caller.ask(api.Submit(large, name=name, data=data), api.Submitted)
            assert not fed.hub.runs.table.all()
            run = await fed.submit(FEDAVG)
            view = await fed.end(run)
            assert view.status == "completed", view.cause

    drive(scenario())


def test_so_many_peers_that_no_packet_holds_their_certificates_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "TELLABLE", 8000)

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            node = fed.hub.members.get("node-0")
            assert node is not None
            for number in range(20):
                fed.hub.members.certified(f"peer-{number}", "node", 1 << 80 | number, node.certificate, 1.0)
            with pytest.raises(ConfigError, match="ask fewer parties"):
                await fed.submit(PEERS)
            assert not fed.hub.runs.table.all()
            await fed.submit(FEDAVG)  # a server alone is told to each

    drive(scenario())


def test_addresses_that_no_packet_holds_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "TELLABLE", 4000)

    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            parties = ("node-0", "node-1", "node-2", "node-3")
            monkeypatch.setattr(joining.Joining, "require_tellable", lambda *_: None)
            run = await fed.submit(FEDAVG, parties=parties, seconds=30.0)
            for name in parties[1:]:
                fed.hub.runs.heard(name, Answer(run, 1, "accepted", "", f"{'a' * 60}.{'b' * 60}.{'c' * 60}:1"))
            works = fed.nodes["node-0"].works
            assert all(len(seat.address) < 255 for seat in fed.hub.runs.table.seats(run))
            await fed.until(lambda: works.start(run), "it begins")
            start = works.start(run)
            assert start is not None and len(encode(start)) <= 2000

    drive(scenario())


def test_a_clock_that_was_set_back_holds_up_no_run(tmp_path: Path) -> None:
    """What is under way when the hub comes back has its window from then on, and not until the old time comes again."""
    now = [0.0]

    async def scenario() -> None:
        now[0] = time.time()
        async with federation(tmp_path, start=["node-0"], clock=lambda: now[0]) as fed:
            run = await fed.submit(FEDAVG, seconds=600.0)
            await fed.stop_hub()
            now[0] -= 3600.0
            await fed.start_hub()
            alarm = fed.hub.runs.ledger._alarms[run]
            assert alarm.when() - asyncio.get_running_loop().time() <= 600.0
            seats = fed.hub.runs.table.seats
            await fed.until(lambda: sum(seat.answer == "accepted" for seat in seats(run)) == 2, "one accepts")
            now[0] -= 1800.0
            fed.hub.runs.heard("node-3", Answer(run, 1, "pending", "asked"))
            fed.hub.runs.heard("node-2", Answer(run, 1, "pending", "asked"))
            fed.hub.runs.heard("node-1", Answer(run, 1, "pending", "asked"))
            fed.hub.runs.joining._decide(run)
            alarm = fed.hub.runs.ledger._alarms[run]
            assert alarm.when() - asyncio.get_running_loop().time() <= joining.APPROVAL

    drive(scenario())
