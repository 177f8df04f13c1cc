"""The work of :mod:`bench.work` in Flower's simulation: run by the environment of its own, prints one JSON object.

The logistic model, plain FedAvg, one core a client, nothing evaluated; each actor keeps the data and one module.

    python bench/peers/flower_run.py ROUNDS DATA.npz
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from functools import cache
from importlib import import_module
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", OMP_NUM_THREADS="1")

import flwr
import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.nn import functional as F

client = ClientApp()


@cache
def _kept(path: str) -> tuple[Any, Any, Any, nn.Module]:
    torch.set_num_threads(1)
    given = np.load(path)
    return torch.from_numpy(given["x"]), torch.from_numpy(given["y"]), given["rows"], nn.Linear(64, 10)


@client.train()  # type: ignore[untyped-decorator]  # Flower is not installed where types are checked
def train(message: Message, context: Context) -> Message:
    x, y, rows, module = _kept(os.environ["HANSA_BENCH_DATA"])
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    own = torch.from_numpy(rows[int(context.node_config["partition-id"])].astype(np.int64))
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for places in torch.split(own[torch.randperm(len(own))], 10):
        optimizer.zero_grad()
        F.cross_entropy(module(x[places]), y[places]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    content = RecordDict(
        {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(own)})}
    )
    return Message(content=content, reply_to=message)


def main(rounds: int, path: str) -> None:
    os.environ["HANSA_BENCH_DATA"] = path
    # The actors import this file by its name.
    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__))
    given = np.load(path)
    cohort, clients = int(given["cohort"]), len(given["rows"])
    ends: list[float] = []
    server = ServerApp()

    class Timed(FedAvg):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            result = FedAvg.aggregate_train(self, server_round, replies)
            ends.append(time.perf_counter())
            return result

    @server.main()  # type: ignore[untyped-decorator]
    def serve(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_train=cohort / clients, fraction_evaluate=0.0, min_available_nodes=clients)
        start = ArrayRecord(nn.Linear(64, 10).state_dict())
        strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({}))

    run_simulation(server, client, clients, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    if len(ends) != rounds:
        raise SystemExit(f"only {len(ends)} of {rounds} rounds ended")
    # Round 1 starts Ray.
    steady = np.diff(ends)
    print(json.dumps({"version": flwr.__version__, "rate": cohort / statistics.median(steady)}))


if __name__ == "__main__":
    # The actors get the client by reference to this module's own name, not to __main__.
    import_module("flower_run").main(int(sys.argv[1]), sys.argv[2])
