"""A softmax regression over a hundred parties whose labels differ, with nothing but the base install and scikit-learn's digits."""

from __future__ import annotations

import hansa as hs

data = hs.data.load("sklearn:digits").partition(hs.data.Dirichlet(alpha=0.3), parties=100, seed=0)
plan = hs.Plan(
    protocol=hs.FedAvg(rounds=30, cohort=10),
    learner=hs.learners.Softmax(optimizer=hs.SGD(0.3), batch_size=10, epochs=2),
    aggregation=hs.clip(10.0) | hs.mean(),
)
run = hs.simulate(plan, data, seed=7).raise_if_failed()
print(run.summary())
