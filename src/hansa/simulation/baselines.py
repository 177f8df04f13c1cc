"""What a federation is compared with: all data in one place, and every party for itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hansa.data import FederatedData
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.params import Params
from hansa.plan import Plan
from hansa.rng import Key

ALONE = 10
"""How many parties are trained alone; spread evenly over the roster."""


def baselines(plan: Plan, data: FederatedData) -> dict[str, Mapping[str, float]]:
    """Train with the plan's learner and as many passes as the plan has rounds: centrally, and parties alone.

    Returns:
        ``central``: metrics of the model trained on all training rows, on the central test set. ``local only``: the mean over
        up to ten parties, of models trained on one party's rows each, on the same test set.
    """
    rounds = getattr(plan.protocol, "rounds", 1)
    key = Key.root(plan.seed).child("baselines")
    initial = plan.learner.init(Key.root(plan.seed).child("server/init"), data.example)
    places = np.unique(np.linspace(0, len(data) - 1, min(ALONE, len(data)), dtype=np.int64))

    def trained(examples: Examples, key: Key) -> Mapping[str, float]:
        params = initial
        for round in range(1, rounds + 1):
            params = _moved(plan, params, examples, round, key)
        return plan.learner.evaluate(params, data.central_test)

    alone = [trained(data.shard(int(place)).train, key.child("alone", int(place))) for place in places]
    return {
        "central": trained(pooled(data), key.child("central")),
        "local only": {name: float(np.mean([metrics[name] for metrics in alone])) for name in alone[0]},
    }


def pooled(data: FederatedData) -> Examples:
    """All parties' training examples together."""
    shards = [data.shard(place).train for place in range(len(data))]
    bases = {(id(shard.base[0]), id(shard.base[1])) for shard in shards}
    if len(bases) == 1 and all(shard.rows is not None for shard in shards):
        x, y = shards[0].base
        return Examples(x, y, np.concatenate([shard.rows for shard in shards if shard.rows is not None]))
    return Examples(np.concatenate([shard.x for shard in shards]), np.concatenate([shard.y for shard in shards]))


def _moved(plan: Plan, params: Params, examples: Examples, round: int, key: Key) -> Params:
    update = plan.learner.fit(params, examples, LocalWork(round=round), key.child("fit", round))
    return params + update.delta.array
