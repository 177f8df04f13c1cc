"""A submitter who submits more than anybody could run: refused by name, and alone with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hansa.deployment import api
from hansa.deployment.settings import HubLimits, HubSettings
from hansa.errors import ConfigError, NotAuthorized
from tests.deployment.federation import PLAN, drive, federation

FEDAVG = PLAN.format(name="fedavg")
THREE = HubSettings(limits=HubLimits(runs_at_once=1, runs_each=3))


def test_who_has_runs_enough_submits_no_more_and_others_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            federation(tmp_path, hub=THREE, start=[]) as fed,
            fed.person("ada", "submitter") as ada,
            fed.person("bob", "submitter") as bob,
        ):
            runs = [await fed.submit(FEDAVG, by=ada) for _ in range(3)]
            with pytest.raises(ConfigError, match=r"submitter 'ada' has 3 runs .*hansa stop RUN.* runs_each"):
                await fed.submit(FEDAVG, by=ada)
            assert len(fed.hub.runs.table.all()) == 3
            await fed.submit(FEDAVG, by=bob)
            # What has ended does not count, however it ended; nor does stopping it twice give more room.
            await ada.ask(api.StopRun(runs[0]), api.Done)
            with pytest.raises(ConfigError):
                await ada.ask(api.StopRun(runs[0]), api.Done)
            await fed.submit(FEDAVG, by=ada)
            with pytest.raises(ConfigError, match="runs_each"):
                await fed.submit(FEDAVG, by=ada)

    drive(scenario())


def test_an_operator_is_no_exception(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, hub=THREE, start=[]) as fed:
            for _ in range(3):
                await fed.submit(FEDAVG)
            with pytest.raises(ConfigError, match="operator 'operator' has 3 runs"):
                await fed.submit(FEDAVG)

    drive(scenario())


def test_many_at_the_same_instant_are_not_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, hub=THREE, start=[]) as fed, fed.person("ada", "submitter") as ada:
            found = await asyncio.gather(*(fed.submit(FEDAVG, by=ada) for _ in range(12)), return_exceptions=True)
            assert sum(isinstance(one, str) for one in found) == 3
            assert all(isinstance(one, str | ConfigError) for one in found)
            assert len(fed.hub.runs.table.all()) == 3

    drive(scenario())


def test_to_resume_is_no_way_around_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, hub=THREE, start=[]) as fed, fed.person("ada", "submitter") as ada:
            first = [await fed.submit(FEDAVG, by=ada) for _ in range(3)]
            for run in first:
                await ada.ask(api.StopRun(run), api.Done)
            second = [await fed.submit(FEDAVG, by=ada) for _ in range(2)]
            await ada.ask(api.ResumeRun(first[0]), api.Submitted)
            for caller in (ada, fed.caller):  # whoever resumes it, the run is ada's
                with pytest.raises(ConfigError, match="submitter 'ada' has 3 runs"):
                    await caller.ask(api.ResumeRun(first[1]), api.Submitted)
            record = fed.hub.runs.table.get(first[1])
            assert record is not None and (record.status, record.attempt) == ("stopped", 1)
            await ada.ask(api.StopRun(second[0]), api.Done)
            await ada.ask(api.ResumeRun(first[1]), api.Submitted)

    drive(scenario())


def test_a_plan_is_not_even_read_of_who_has_runs_enough(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, hub=THREE, start=[]) as fed:
            for _ in range(3):
                await fed.submit(FEDAVG)

            async def describe(plan: str) -> None:
                raise AssertionError("it was read")

            fed.workers["hub"].describe = describe  # type: ignore[assignment,method-assign]
            with pytest.raises(ConfigError, match="runs_each"):
                await fed.submit(FEDAVG)

    drive(scenario())


def test_the_count_is_the_same_after_a_crash(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, hub=THREE, start=[]) as fed:
            for _ in range(3):
                await fed.submit(FEDAVG)
            await fed.stop_hub(crash=True)
            await fed.start_hub()
            with pytest.raises(ConfigError, match="runs_each"):
                await fed.submit(FEDAVG)

    drive(scenario())


def test_plans_are_read_one_after_another_and_of_nobody_who_was_revoked_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with (
            federation(tmp_path, hub=THREE, start=[]) as fed,
            fed.person("ada", "submitter"),
            fed.person("bob", "submitter") as bob,
        ):
            read, reading, go = fed.workers["hub"].describe, 0, asyncio.Event()

            async def slow(plan: str) -> object:
                nonlocal reading
                reading += 1
                await go.wait()
                return await read(plan)

            monkeypatch.setattr(fed.workers["hub"], "describe", slow)
            owner, request = ("submitter", "ada"), api.Submit(FEDAVG)
            adas = [asyncio.ensure_future(fed.hub.runs.submit(owner, request)) for _ in range(5)]
            bobs = asyncio.ensure_future(fed.submit(FEDAVG, by=bob))
            await fed.until(lambda: reading == 2, "both read")
            assert sum(task.done() for task in adas) == 2  # more than it may have is refused before it is read
            await fed.hub.revoke("ada", "operator")
            go.set()
            await bobs
            refused = await asyncio.gather(*adas, return_exceptions=True)
            assert [type(one) for one in refused].count(NotAuthorized) == 3
            assert len(fed.hub.runs.table.all()) == 1

    drive(scenario())
