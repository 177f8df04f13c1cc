"""A recorded party says the same again; another's recording does not pass for it."""

from __future__ import annotations

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import Contribution
from hansa.data import FederatedData
from hansa.errors import ConfigError
from hansa.horizontal import TrainTask
from hansa.message import Message
from hansa.protocol import Protocol
from hansa.simulation import replay


@pytest.fixture(scope="module")
def data() -> FederatedData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    return hs.data.arrays(x, (x[:, 0] > 0).astype(np.int64)).partition(hs.data.IID(), parties=4, seed=0)


def recorded(data: FederatedData, protocol: Protocol, *parties: str) -> hs.Run:
    plan = hs.Plan(protocol=protocol, learner=hs.learners.Softmax(optimizer=hs.SGD(0.1), batch_size=5))
    return hs.simulate(plan, data, seed=3, record=parties).raise_if_failed()


@pytest.mark.parametrize("protocol", [hs.FedAvg(rounds=3, cohort=3), hs.Scaffold(rounds=3, cohort=4)])
def test_a_client_says_the_same_again(data: FederatedData, protocol: Protocol) -> None:
    run = recorded(data, protocol, "server", "client-1")
    said = [m for who, m in run.view("server").messages if who == "client-1" and isinstance(m, Contribution)]
    again = [m for to, m in replay(run, data, "client-1") if isinstance(m, Contribution) and to == "server"]
    assert len(said) == len(again) > 0
    for first, second in zip(said, again, strict=True):
        assert (first.round, first.weight) == (second.round, second.weight)
        np.testing.assert_allclose(first.delta.array, second.delta.array, atol=1e-6)


def test_the_server_says_the_same_again(data: FederatedData) -> None:
    run = recorded(data, hs.FedAvg(rounds=3, cohort=3), "server", "client-0", "client-1", "client-2", "client-3")
    tasks = [(to, m) for to, m in replay(run, data, "server") if isinstance(m, TrainTask)]
    for name in ("client-0", "client-1", "client-2", "client-3"):
        heard = [m.round for _, m in run.view(name).messages if isinstance(m, TrainTask)]
        assert [m.round for to, m in tasks if to == name] == heard


def test_a_recording_of_other_data_differs(data: FederatedData) -> None:
    run = recorded(data, hs.FedAvg(rounds=1, cohort=4), "server", "client-1")
    x = np.ones((60, 3), np.float32)
    other = hs.data.arrays(x, np.arange(60) % 2).partition(hs.data.IID(), parties=4, seed=0)
    said = next(m for who, m in run.view("server").messages if who == "client-1" and isinstance(m, Contribution))
    again: Message = next(m for _, m in replay(run, other, "client-1") if isinstance(m, Contribution))
    assert isinstance(again, Contribution)
    assert not np.allclose(said.delta.array, again.delta.array, atol=1e-4)


def test_only_what_was_recorded_can_be_replayed(data: FederatedData) -> None:
    run = recorded(data, hs.FedAvg(rounds=1, cohort=4), "client-1")
    for name in ("client-2", "server", "nobody"):
        with pytest.raises(ConfigError, match="was not recorded"):
            replay(run, data, name)
