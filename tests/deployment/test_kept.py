"""Models that stay on nodes: their owners get them, and nobody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hansa.deployment import control, kept
from hansa.errors import MessageError, StoreError, Unreachable
from hansa.params import Params
from tests.deployment.federation import PLAN, Federation, drive, federation

FEDAVG = PLAN.format(name="fedavg")


async def models(fed: Federation, node: str, run: str) -> dict[str, Params]:
    home = fed.folder / node
    async with control.listening(home, fed.nodes[node], fed.nodes[node].log):
        return await asyncio.to_thread(kept.models, home, run)


def alike(one: Params, other: Params) -> bool:
    return one.layout == other.layout and np.array_equal(one.flat, other.flat)


def test_the_owner_of_the_servers_node_gets_the_model_and_no_other_owner_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(FEDAVG, server="node-1")
            assert (await fed.end(run)).status == "completed"
            found = await models(fed, "node-1", run)
            assert set(found) == {"server"} and alike(found["server"], fed.model(run))
            assert await models(fed, "node-0", run) == {}
            assert await models(fed, "node-1", "00000000000000aa") == {}

    drive(scenario())


def test_each_peer_has_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(PLAN.format(name="dpsgd").replace("cohort = 4\n", ""))
            assert (await fed.end(run)).status == "completed"
            expected = fed.models(run)
            assert len(expected) == len(fed.nodes)
            for node in fed.nodes:
                found = await models(fed, node, run)
                assert set(found) == {node} and alike(found[node], expected[node])

    drive(scenario())


def test_a_result_whose_file_is_gone_is_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(FEDAVG, server="node-1")
            await fed.end(run)
            node = fed.nodes["node-1"]
            body = node.works.results(run)["server"]
            gone = type(body)(body.tag, body.size, None, "0" * 32)
            node.works.keep_result(run, "server", gone)
            with pytest.raises(StoreError):
                await models(fed, "node-1", run)
            node.works.keep_result(run, "server", type(body)(body.tag, 5, b"spoil"))
            with pytest.raises(MessageError):
                await models(fed, "node-1", run)

    drive(scenario())


def test_nobody_is_asked_where_no_node_runs(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no node runs"):
        kept.models(tmp_path, "00000000000000aa")


def test_one_model_is_called_so_and_several_by_their_parties(tmp_path: Path) -> None:
    params = Params.of({"w": np.arange(3, dtype=np.float32)})
    assert [path.name for path in kept.write({"server": params}, tmp_path)] == ["model.safetensors"]
    names = [path.name for path in kept.write({"ada": params, "bela": params}, tmp_path)]
    assert names == ["ada.safetensors", "bela.safetensors"]
    assert load_file(tmp_path / "bela.safetensors")["w"].tolist() == [0.0, 1.0, 2.0]
