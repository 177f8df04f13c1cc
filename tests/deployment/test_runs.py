"""A run from its submission to a true end: every way there, with its cause, the party and what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.deployment import api, joining, running
from hansa.deployment.packets import Answer, End, Finished, Report, Trouble
from hansa.deployment.settings import HubLimits, HubSettings, NodeLimits
from hansa.errors import ConfigError, NotAuthorized
from hansa.message import encode
from hansa.protocol import Progress
from tests.deployment.federation import ANYTHING, DATA, PLAN, Federation, drive, federation, iris

FEDAVG = PLAN.format(name="fedavg")
LONG = FEDAVG.replace("rounds = 3", "rounds = 400")


FEDBUFF = PLAN.format(name="fedbuff").replace("cohort = 4", "concurrency = 5\nbuffer = 1")


def sampled(how: str, cohort: int) -> str:
    return with_cohort(FEDAVG, cohort).replace("[learner]", f"sampling = {{ name = {how} }}\n[learner]")


def with_cohort(plan: str, cohort: int) -> str:
    return plan.replace("cohort = 4", f"cohort = {cohort}")


async def round_of(fed: Federation, run: str, number: int) -> None:
    """Wait until a run has come so far."""
    await fed.until(lambda: (status(fed, run).round or 0) >= number, f"round {number}")


def status(fed: Federation, run: str) -> Any:
    record = fed.hub.runs.table.get(run)
    assert record is not None
    return record


def answers(fed: Federation, run: str) -> list[str]:
    return [seat.answer for seat in fed.hub.runs.table.seats(run)]


def refuse_all(fed: Federation, name: str) -> Callable[[], Any]:
    return lambda: fed.start_node(name, fed.settings(name, policy=replace(ANYTHING, protocols=("fedsgd",))))


def test_the_events_of_a_run_tell_its_story(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(FEDAVG)
            view = await fed.end(run)
            events = await fed.events(run)
            told = [event.text for event in events if event.kind == "status"]
            assert told == [
                "submitted by operator operator; waits for its turn", "asks its parties", "runs with 4 parties",
                "completed",
            ]  # fmt: skip
            assert sorted(event.party for event in events if event.kind == "answer") == fed.names
            assert [event.round for event in events if event.kind == "round"] == [0, 1, 2, 3]
            numbers = [event.number for event in events]
            assert numbers == sorted(set(numbers))
            assert (view.cause, view.party, view.remedy) == ("", "", "")
            assert view.ended is not None
            assert fed.hub.runs.table.events(run)[-1].text == "completed"
            # A run that is complete keeps its model and nothing else: no letters, no journal, no files but that.
            for table in ("programs", "letters", "steps", "states", "outbox"):
                assert fed.hub.database.read(f"SELECT * FROM {table}") == [], table
            with pytest.raises(ConfigError, match="completed already"):
                await fed.caller.ask(api.StopRun(run), api.Done)
            with pytest.raises(ConfigError, match="is completed; only a run that was stopped or failed"):
                await fed.caller.ask(api.ResumeRun(run), api.Submitted)

    drive(scenario())


def test_too_few_acceptances_fail_by_name_and_enough_of_them_begin(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            await refuse_all(fed, "node-3")()
            view = await fed.end(await fed.submit(FEDAVG))
            assert view.status == "failed"
            # It is over with the refusal, however many had accepted by then.
            assert view.cause[1:].startswith(
                " of 4 parties accepted and 4 are wanted: node-3 refused (policy: [policy] protocols"
            )
            assert view.party == "node-3"
            assert "--least" in view.remedy
            view = await fed.end(await fed.submit(with_cohort(FEDAVG, 3), least=3))
            assert view.status == "completed", view.cause
            answers = {seat.party: seat.answer for seat in view.participants}
            assert answers == {
                "server": "accepted",
                "node-0": "accepted",
                "node-1": "accepted",
                "node-2": "accepted",
                "node-3": "refused",
            }

    drive(scenario())


def test_whoever_says_nothing_within_the_window_is_left_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            run = await fed.submit(FEDAVG)
            await fed.until(lambda: answers(fed, run).count("accepted") == 4, "three accept")
            fed.hub.runs.joining._decide(run)  # the window is over
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "node-3")
            assert "node-3 did not answer" in view.cause
            run = await fed.submit(with_cohort(LONG, 3), least=3)
            await fed.until(lambda: answers(fed, run).count("accepted") == 4, "three accept")
            fed.hub.runs.joining._decide(run)  # the window is over
            await round_of(fed, run, 1)
            # It comes too late: it is told so, and holds nothing for the run.
            late = await fed.start_node("node-3")
            await fed.until(lambda: late.works.state(run) == "ended", "it is told")
            assert status(fed, run).status == "running"
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario())


def test_a_refusal_that_nobody_can_make_up_for_ends_the_run_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            manual = await fed.start_node("node-1", fed.settings("node-1", policy=replace(ANYTHING, approval="manual")))
            run = await fed.submit(FEDAVG)  # node-3 is away for good
            await fed.until(lambda: answers(fed, run)[1:3] == ["accepted", "pending"], "one accepts, an owner is asked")
            assert status(fed, run).status == "joining"
            await refuse_all(fed, "node-2")()
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "node-2")
            assert view.cause.startswith("1 of 4 parties accepted and 4 are wanted: node-2 refused (policy: ")
            # Neither the owner who was asked nor the node that is away is to blame, or holds anything for the run.
            assert not any(name in view.cause for name in ("node-1", "node-3"))
            assert [seat.reason for seat in view.participants][-1] == "the run ended before it answered"
            await fed.until(lambda: manual.works.state(run) == "ended", "the owner is asked no more")
            late = await fed.start_node("node-3")
            # One refusal of two that may be: whoever is still asked could save it.
            first, run = run, await fed.submit(with_cohort(FEDAVG, 3), least=3)
            await fed.until(lambda: sorted(answers(fed, run)[1:]) == ["accepted", "accepted", "pending", "refused"])
            assert status(fed, run).status == "joining"
            assert late.works.state(first) in ("", "ended")  # all that it was told of it came before
            manual.participation.refuse(run, "not in August")
            view = await fed.end(run)
            assert "3 are wanted: node-1 refused (not in August); node-2 refused (policy: " in view.cause

    drive(scenario(), 15.0)


def test_who_is_away_when_it_is_asked_is_named_while_the_run_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            run = await fed.submit(FEDAVG)
            told = [event.text for event in await fed.events(run, "status")]
            assert told[1:] == ["asks its parties", "waits up to 60 s for node-3, which is away"]
            fed.hub.runs.joining._decide(run)  # the window is over
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "node-3")
            assert "by naming the others with --parties" in view.remedy and "--least" in view.remedy
            # Asked again, it is said again; who is here, or was not asked, is not waited for.
            await fed.stop_node("node-2")
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            await fed.start_node("node-2")
            await fed.start_node("node-3")
            assert (await fed.end(run)).status == "completed"
            told = [event.text for event in await fed.events(run, "status") if "waits up to" in event.text]
            assert told == [
                "waits up to 60 s for node-3, which is away", "waits up to 60 s for node-2, node-3, which are away",
            ]  # fmt: skip
            await fed.stop_node("node-3")
            three = await fed.submit(with_cohort(FEDAVG, 3), parties=("node-0", "node-1", "node-2"), seconds=5.5)
            assert (await fed.end(three)).status == "completed"
            assert not [event for event in await fed.events(three) if "waits up to" in event.text]

    drive(scenario())


def test_many_who_are_away_are_counted(tmp_path: Path) -> None:
    async def scenario() -> None:
        names = [f"node-{number}" for number in range(10)]
        async with federation(tmp_path, data=iris(10), start=[]) as fed:
            run = await fed.submit(FEDAVG, seconds=7.5, server="node-9")
            told = (await fed.events(run, "status"))[-1].text
            # The machine of the server is one of those that are asked, and it is named once.
            first = ", ".join(["node-9", *names[:7]])
            assert told == f"waits up to 7.5 s for {first} and 2 more, which are away"

    drive(scenario())


def test_a_refused_server_ends_the_run_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            await refuse_all(fed, "node-3")()
            run = await fed.submit(with_cohort(FEDAVG, 1), server="node-3", parties=("node-0", "node-1"), least=1)
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "server")
            assert "server refused (policy:" in view.cause and "node-1" not in view.cause
            assert "place the server elsewhere" in view.remedy

    drive(scenario(), 15.0)


def test_an_owner_may_take_longer_than_the_window_and_no_longer_than_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            manual = fed.settings("node-3", policy=replace(ANYTHING, approval="manual"))
            node = await fed.start_node("node-3", manual)
            run = await fed.submit(FEDAVG)
            await fed.until(
                lambda: answers(fed, run).count("accepted") == 4 and "pending" in answers(fed, run),
                "the owner is asked",
            )
            fed.hub.runs.joining._decide(run)  # the window is over
            assert status(fed, run).status == "joining"
            node.participation.approve(run)
            assert (await fed.end(run)).status == "completed"
            # With enough others nobody waits for an owner.
            run = await fed.submit(with_cohort(FEDAVG, 3), least=3)
            await fed.until(
                lambda: answers(fed, run).count("accepted") == 4 and "pending" in answers(fed, run), "asked"
            )
            fed.hub.runs.joining._decide(run)
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            assert [seat.answer for seat in view.participants][-1] == "pending"
            await fed.until(lambda: node.works.state(run) == "ended", "the owner is asked no more")
            with pytest.raises(ConfigError, match="waits for an answer"):
                node.participation.approve(run)
            run = await fed.submit(FEDAVG)
            await fed.until(
                lambda: answers(fed, run).count("accepted") == 4 and "pending" in answers(fed, run), "asked"
            )
            monkeypatch.setattr(joining, "APPROVAL", 0.0)
            fed.hub.runs.joining._decide(run)
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "node-3")
            assert "its owner has not answered" in view.cause

    drive(scenario())


def test_a_run_that_is_stopped_goes_on_from_its_saved_round_to_the_same_model(tmp_path: Path) -> None:
    plan = FEDAVG.replace("rounds = 3", "rounds = 30")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            undisturbed = await fed.run(plan)
            run = await fed.submit(plan)
            for stop in (5, 12, 20):
                await round_of(fed, run, stop)
                await fed.caller.ask(api.StopRun(run), api.Done)
                view = await fed.view(run)
                assert (view.status, view.cause) == ("stopped", "stopped by operator operator")
                assert f"hansa resume {run}" in view.remedy
                # At once: what the first attempt still says or sends must not count in the next.
                await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            view = await fed.end(run)
            assert view.status == "completed", view.cause
            np.testing.assert_array_equal(fed.model(run).flat, undisturbed.flat)
            rounds = [event.round or 0 for event in await fed.events(run, "round")]
            assert len(rounds) < 31 + 3 * 4  # it did not begin anew

    drive(scenario())


def test_a_run_may_be_stopped_in_each_state(tmp_path: Path) -> None:
    settings = HubSettings(limits=HubLimits(runs_at_once=1))

    async def scenario() -> None:
        async with federation(tmp_path, hub=settings, start=["node-0", "node-1", "node-2"]) as fed:
            joining, queued = await fed.submit(FEDAVG), await fed.submit(FEDAVG)
            assert [status(fed, run).status for run in (joining, queued)] == ["joining", "queued"]
            for run in (queued, joining):
                await fed.caller.ask(api.StopRun(run), api.Done)
                assert (await fed.end(run)).status == "stopped"
            await fed.start_node("node-3")
            for run in (queued, joining):
                await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            for run in (queued, joining):
                view = await fed.end(run)
                assert view.status == "completed", view.cause

    drive(scenario())


def test_the_next_turn_is_of_whoever_has_the_fewest_runs_under_way(tmp_path: Path) -> None:
    settings = HubSettings(limits=HubLimits(runs_at_once=2))

    async def scenario() -> None:
        async with (
            federation(tmp_path, hub=settings, start=[]) as fed,
            fed.person("ada", "submitter") as ada,
            fed.person("bob", "submitter") as bob,
        ):
            greedy = [await fed.submit(FEDAVG, by=ada) for _ in range(4)]
            modest = await fed.submit(FEDAVG, by=bob)
            assert [status(fed, run).status for run in greedy] == ["joining", "joining", "queued", "queued"]
            await ada.ask(api.StopRun(greedy[0]), api.Done)
            assert status(fed, modest).status == "joining"
            await bob.ask(api.StopRun(modest), api.Done)
            assert status(fed, greedy[2]).status == "joining"
            with pytest.raises(NotAuthorized):
                await bob.ask(api.StopRun(greedy[1]), api.Done)

    drive(scenario())


@pytest.mark.parametrize("crash", [False, True])
def test_a_hub_that_comes_back_goes_on_with_every_run_where_it_was(crash: bool, tmp_path: Path) -> None:
    settings = HubSettings(limits=HubLimits(runs_at_once=2))
    plan = FEDAVG.replace("rounds = 3", "rounds = 12")

    async def scenario() -> None:
        async with federation(tmp_path, hub=settings, start=["node-0", "node-1", "node-2"]) as fed:
            done = await fed.submit(with_cohort(FEDAVG, 3), parties=("node-0", "node-1", "node-2"))
            await fed.end(done)
            running = await fed.submit(with_cohort(plan, 3), parties=("node-0", "node-1", "node-2"))
            joining, queued = await fed.submit(FEDAVG), await fed.submit(FEDAVG)
            await round_of(fed, running, 3)
            before = fed.model(done).flat
            await fed.stop_hub(crash=crash)
            await fed.start_hub()
            assert status(fed, done).status == "completed"
            assert status(fed, joining).status == "joining"
            assert status(fed, queued).status in ("queued", "joining")
            np.testing.assert_array_equal(fed.model(done).flat, before)
            await fed.start_node("node-3")
            for run in (running, joining, queued):
                view = await fed.end(run)
                assert view.status == "completed", view.cause
            undisturbed = await fed.run(with_cohort(plan, 3), parties=("node-0", "node-1", "node-2"))
            np.testing.assert_array_equal(fed.models(running)["server"].flat, undisturbed.flat)

    drive(scenario())


def test_the_window_of_a_run_goes_on_while_the_hub_is_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        now = time.time()
        async with federation(tmp_path, start=["node-0"], clock=lambda: now) as fed:
            run = await fed.submit(FEDAVG, seconds=60.0)
            await fed.stop_hub()
            now += 61.0
            await fed.start_hub()
            view = await fed.end(run)
            assert view.status == "failed"
            assert "did not answer" in view.cause

    drive(scenario())


def test_a_run_that_takes_too_long_ends_with_the_limit_as_its_cause(tmp_path: Path) -> None:
    settings = HubSettings(limits=HubLimits(run=0.5))

    async def scenario() -> None:
        async with federation(tmp_path, hub=settings) as fed:
            view = await fed.end(await fed.submit(LONG.replace("rounds = 400", "rounds = 10000")))
            assert view.status == "failed"
            assert "hub's limit of 0.5 s" in view.cause
            assert "hub.toml" in view.remedy

    drive(scenario())


@pytest.mark.parametrize("restart", [False, True])
def test_a_machine_with_the_server_that_stays_away_ends_the_run_by_name(
    restart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LOST_AFTER", 0.1)

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG, server="node-3")
            await round_of(fed, run, 1)
            if restart:  # a hub that was down when it left must miss it too
                monkeypatch.setattr(running, "LOST_AFTER", 600.0)
                await fed.stop_node("node-3")
                await fed.stop_hub()
                monkeypatch.setattr(running, "LOST_AFTER", 0.1)
                await fed.start_hub()
            else:
                await fed.stop_node("node-3")
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "server")
            assert view.cause == "node-3 has been away for 0.1 s, and the run cannot do without it"
            monkeypatch.setattr(running, "LOST_AFTER", 600.0)
            await fed.start_node("node-3")

    drive(scenario())


def test_peers_without_a_server_go_on_without_one_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LOST_AFTER", 0.05)
    plan = PLAN.format(name="dpsgd").replace("cohort = 4", "deadline = 0.3").replace("rounds = 3", "rounds = 4")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(plan)
            await fed.until(lambda: status(fed, run).status == "running", "it runs")
            await fed.stop_node("node-3")
            view = await fed.end(run)
            assert view.status in ("completed", "failed")
            if view.status == "completed":
                texts = [event.text for event in await fed.events(run, "trouble") if event.party == "node-3"]
                assert any("the run goes on without it" in text for text in texts)

    drive(scenario())


def test_what_nodes_say_of_runs_that_are_not_theirs_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(with_cohort(LONG, 2), parties=("node-0", "node-1"), name="theirs")
            await round_of(fed, run, 1)
            heard, frame = fed.hub.runs.heard, encode(Progress(1, {}, {}))
            assert "take no part" in heard("node-3", Trouble(run, 1, "server", "E", "x", fatal=True))
            assert "take no part" in heard("node-3", Answer(run, 1, "refused"))
            assert "no such run" in heard("node-3", Finished("00000000000000ff", 1, "server"))
            assert "not yours" in heard("node-0", Trouble(run, 1, "server", "E", "x", fatal=True))
            assert "not yours" in heard("node-0", Trouble(run, 1, "node-1", "E", "x", fatal=True))
            assert "not yours" in heard("node-0", Finished(run, 1, "server"))
            assert heard("node-0", Finished(run, 1, "node-0"))  # a client cannot end a run
            assert heard("node-0", Report(run, "node-0", frame))
            # Of another attempt, or a second time: nothing, and nobody is left out for it.
            for word in (
                Trouble(run, 7, "node-0", "E", "x", fatal=True),
                Answer(run, 1, "accepted"),
                Answer(run, 1, "refused"),
            ):
                assert heard("node-0", word) == ""
            ends = fed.hub.database.read("SELECT inline FROM outbox WHERE peer = 'node-0' AND run = ''")
            assert not any(End.tag.encode() in bytes(frame) for (frame,) in ends)
            # A client's own fatal trouble is news, and no more.
            assert heard("node-0", Trouble(run, 1, "node-0", "E", "its disk broke", fatal=True)) == ""
            assert status(fed, run).status == "running"
            assert [event.text for event in await fed.events(run, "trouble")] == ["E: its disk broke"]
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert heard("node-0", Trouble(run, 1, "node-0", "E", "crossed the end")) == ""
            assert status(fed, run).status == "stopped"

    drive(scenario())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"parties": ("node-0", "nobody")}, "no node of this federation is called 'nobody'"),
        ({"server": "nobody"}, "no node of this federation is called 'nobody'"),
        ({"parties": ("hub",)}, "the hub owns no data"),
        ({"least": 5}, "least is at most the 4 parties asked, not 5"),
        ({"least": -1}, "least is at most"),
        ({"seconds": -1.0}, "seconds to join"),
        ({"seconds": 1e9}, "seconds to join"),
        ({"seconds": float("nan")}, "seconds to join"),
        ({"plan": "this is no plan"}, "plan"),
        ({"plan": FEDAVG.replace("fedavg", "fedavgg")}, "fedavg"),
        (
            {"plan": with_cohort(FEDAVG, 5)},
            r"^\[protocol\] cohort = 5 needs 5 parties, and 4 are asked: set cohort to 4 .*cohort=4\), or ask more parties$",
        ),
        ({"parties": ("node-0", "node-0")}, "cohort = 4 needs 4 parties, and 1 is asked: set cohort to 1 or less"),
        (
            {"least": 3},
            "with --least 3 the run could begin with fewer: set cohort to 3 or less .*, or raise --least to 4$",
        ),
        ({"plan": sampled('"poisson"', 5)}, "cohort = 5 needs 5 parties, and 4 are asked"),
        ({"plan": FEDBUFF}, "concurrency = 5 needs 5 parties, and 4 are asked: set concurrency to 4 or less"),
        ({"plan": sampled('"fixed", names = ["node-1", "node-7"]', 1)}, "names 'node-7', which is not asked"),
        (
            {"plan": sampled('"fixed", names = ["node-1"]', 1), "parties": ("node-0", "node-2")},
            "names 'node-1', which is not asked: name it in --parties too",
        ),
    ],
)
def test_a_request_that_cannot_be_used_keeps_nothing(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            with pytest.raises(ConfigError, match=said):
                await fed.caller.ask(api.Submit(**{"plan": FEDAVG, "data": DATA, **fields}), api.Submitted)
            assert fed.hub.runs.table.all() == []
            assert fed.hub.database.read("SELECT * FROM hosts") == []

    drive(scenario())


@pytest.mark.parametrize(
    ("plan", "fields"),
    [
        (sampled('"fixed", names = ["node-1", "node-2"]', 9), {"parties": ("node-1", "node-2")}),
        (sampled('"poisson"', 4), {}),
        (FEDBUFF.replace("concurrency = 5", "concurrency = 2"), {"parties": ("node-1", "node-2")}),
        (PLAN.format(name="cyclic").replace("cohort = 4", ""), {"parties": ("node-1",)}),
        (PLAN.format(name="dpsgd").replace("cohort = 4", ""), {"parties": ("node-1", "node-2"), "least": 1}),
    ],
)
def test_a_protocol_that_can_run_with_those_who_are_asked_runs(
    plan: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            view = await fed.end(await fed.submit(plan, **fields))
            assert view.status == "completed", view.cause

    drive(scenario())


def test_nodes_take_no_more_runs_at_once_than_their_owners_allow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, limits=NodeLimits(runs_at_once=1)) as fed:
            most = 0

            def busy(run: str) -> Callable[[], bool]:
                return lambda: answers(fed, run).count("pending") == 4

            def over(run: str) -> bool:
                nonlocal most
                for node in fed.nodes.values():
                    most = max(most, len(node.works.all(("looked at", "accepted", "started"))))
                return status(fed, run).status in ("completed", "failed")

            first = await fed.submit(LONG)
            await round_of(fed, first, 1)
            others = [await fed.submit(FEDAVG) for _ in range(3)]
            for run in others:
                await fed.until(busy(run), "all say that they are busy")
                fed.hub.runs.joining._decide(run)  # its window is over, but a busy node is no absent one
                assert status(fed, run).status == "joining"
                assert "is busy with another run" in (await fed.events(run, "answer"))[0].text
            await fed.caller.ask(api.StopRun(first), api.Done)
            for run in others:
                await fed.until(partial(over, run), "it has its turn")
                assert status(fed, run).status == "completed", status(fed, run).cause
            assert most == 1

    drive(scenario())
