"""The files of a run: what the hub keeps, for those who may have it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hansa.deployment import api
from hansa.deployment.dial import FILES
from hansa.errors import NotAuthorized
from tests.deployment.federation import PLAN, drive, federation

FEDAVG = PLAN.format(name="fedavg")


def read(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((path / "status.json").read_text())
    return found


def test_the_files_hold_the_model_and_the_metrics_of_the_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed") as fed:
            run = await fed.submit(FEDAVG)
            await fed.end(run)
            out = tmp_path / "out"
            out.mkdir()
            written = await fed.caller.fetch(run, out)
            assert {path.name for path in written} == {path.name for path in out.iterdir()} <= FILES
            model = load_file(out / "model.safetensors")
            expected = fed.model(run).tensors()
            assert set(model) == set(expected)
            for name, tensor in expected.items():
                np.testing.assert_array_equal(model[name], tensor)
            rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            assert len(rounds) >= 4
            assert read(out)["status"] == "completed"
            again = tmp_path / "again"
            again.mkdir()
            await fed.caller.fetch(run, again)  # is written anew, and is the same
            for path in out.iterdir():
                if path.suffix in (".safetensors", ".jsonl", ".toml"):
                    assert path.read_bytes() == (again / path.name).read_bytes()

    drive(scenario())


def test_a_run_that_failed_has_files_too_and_they_say_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed") as fed:
            run = await fed.submit(FEDAVG, data="hearts")
            view = await fed.end(run)
            written = await fed.caller.fetch(run, tmp_path)
            assert "model.safetensors" not in {path.name for path in written}
            assert read(tmp_path)["status"] == "failed"
            assert read(tmp_path)["cause"] == view.cause

    drive(scenario())


def test_a_model_on_a_node_stays_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed") as fed:
            run = await fed.submit(FEDAVG, server="node-1")
            assert (await fed.end(run)).status == "completed"
            written = await fed.caller.fetch(run, tmp_path)
            assert "model.safetensors" not in {path.name for path in written}
            assert set(fed.models(run)) == {"server"}

    drive(scenario())


@pytest.mark.parametrize("run", ["", "nothing", "../../etc/passwd", "0" * 16, "\x00"])
def test_a_run_that_is_not_there_is_refused_in_the_same_words_as_one_that_is_anothers(run: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed", start=[]) as fed, fed.person("ada", "submitter") as ada:
            theirs = await fed.submit(FEDAVG)
            sentences = []
            for name in (run, theirs):
                with pytest.raises(NotAuthorized) as caught:
                    await ada.fetch(name, tmp_path)
                sentences.append(str(caught.value).replace(repr(name), "it").replace(name or "\x00\x00", "it"))
            assert sentences[0] == sentences[1]
            with pytest.raises(NotAuthorized):
                async for _ in ada.events(run):
                    pass
            await fed.caller.ask(api.StopRun(theirs), api.Done)

    drive(scenario())
    assert [path.name for path in tmp_path.iterdir()] == ["fed"]


def test_many_who_fetch_one_run_at_one_instant_all_have_its_files(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "fed").mkdir()
        async with federation(tmp_path / "fed") as fed:
            run = await fed.submit(FEDAVG)
            await fed.end(run)
            outs = [tmp_path / f"out-{number}" for number in range(12)]
            for out in outs:
                out.mkdir()
            await asyncio.gather(*(fed.caller.fetch(run, out) for out in outs))
            for name in ("model.safetensors", "metrics.jsonl", "status.json"):
                assert len({(out / name).read_bytes() for out in outs}) == 1

    drive(scenario())
