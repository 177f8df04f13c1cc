"""No server anywhere: twelve peers on a ring average with their neighbours and end with models that agree."""

from __future__ import annotations

import hansa as hs
from hansa.decentralized import DPSGD, Complete, Ring, Topology

data = hs.data.load("sklearn:digits").partition(hs.data.IID(), parties=12, seed=0)
topologies: dict[str, Topology] = {"ring": Ring(), "complete": Complete()}
for name, topology in topologies.items():
    plan = hs.Plan(
        protocol=DPSGD(rounds=60, topology=topology, steps=5),
        learner=hs.learners.Softmax(optimizer=hs.SGD(0.3), batch_size=10),
    )
    run = hs.simulate(plan, data, seed=1).raise_if_failed()
    last = run.history[-1].metrics
    print(f"{name:<10} accuracy {last['party_accuracy']:.3f}, distance to the neighbours {last['disagreement']:.4f}")
