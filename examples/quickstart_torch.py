"""A PyTorch model, a data set, FedAvg."""

from __future__ import annotations

from torch import nn

import hansa as hs


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


data = hs.data.load("sklearn:digits").partition(hs.data.Dirichlet(alpha=0.3), parties=100, seed=0)
plan = hs.Plan(
    protocol=hs.FedAvg(rounds=50, cohort=10),
    learner=hs.learners.Torch(model=net, loss="cross_entropy", optimizer=hs.SGD(0.2), batch_size=10, epochs=2),
    aggregation=hs.clip(10.0) | hs.mean(),
)
run = hs.simulate(plan, data, seed=7).raise_if_failed()
print(run.summary())
