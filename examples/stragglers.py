"""Slow phones among fast ones: what waiting for them costs, and what over-selection and asynchrony do about it.

Time is virtual: each device's speed and link drive the clock, so the same script gives the same times on any machine.
"""

from __future__ import annotations

import hansa as hs
from hansa.horizontal.fedbuff import FedBuff
from hansa.protocol import Protocol
from hansa.simulation import Device, Devices

data = hs.data.load("sklearn:digits").partition(hs.data.IID(), parties=60, seed=0)
fleet = Devices(
    kinds=(
        (0.7, Device(examples_per_second=100.0, up=1e5, down=1e6, latency=0.05)),
        (0.3, Device(examples_per_second=2.0, up=1e4, down=1e5, latency=0.3)),
    )
)
target = hs.Stop(metric="test_accuracy", target=0.9)
protocols: dict[str, Protocol] = {
    "wait for all": hs.FedAvg(rounds=200, cohort=12, stop=target),
    "first 12 of 24": hs.FedAvg(rounds=200, cohort=12, over_selection=2.0, stop=target),
    "asynchronous": FedBuff(rounds=400, concurrency=24, buffer=6, stop=target),
}
for name, protocol in protocols.items():
    plan = hs.Plan(protocol=protocol, learner=hs.learners.Softmax(optimizer=hs.SGD(0.3), batch_size=10))
    run = hs.simulate(plan, data, seed=1, devices=fleet).raise_if_failed()
    accuracy = run.metrics["test_accuracy"]
    print(f"{name:<16} {run.time:8.1f} virtual seconds, {run.history[-1].round:4} rounds, accuracy {accuracy:.3f}")
