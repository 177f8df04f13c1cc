"""The work of :mod:`bench.work` in pfl-research: run by the environment of its own, prints one JSON object.

Its best case: the users' examples are tensors that stay, their batches are cut once, nothing is evaluated.

    python bench/peers/pfl_run.py MODEL ROUNDS DATA.npz
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import pfl
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """What pfl asks of a module: its own loss and metrics."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        return F.cross_entropy(self.inner(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Any]:
        with torch.no_grad():
            return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl ships no types
    """Processor time of each round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = time.process_time()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        now = time.process_time()
        self.seconds.append(now - self.last)
        self.last = now
        return False, Metrics()


def main(name: str, rounds: int, path: str) -> None:
    torch.set_num_threads(1)
    given = np.load(path)
    x, y, rows, cohort = given["x"], given["y"], given["rows"], int(given["cohort"])
    users = {
        i: Dataset((torch.from_numpy(x[own]), torch.from_numpy(y[own])), user_id=str(i)) for i, own in enumerate(rows)
    }
    module = Net(_models()[name]())
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            # Iteration 0 always evaluates, so it is left out with the others that warm up.
            central_num_iterations=rounds,
            evaluation_frequency=10**6,
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(FederatedDataset(users.__getitem__, get_user_sampler("random", list(users))), None),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.05, local_batch_size=10),
        NNEvalHyperParams(local_batch_size=None),
        [clock],
        send_metrics_to_platform=False,
    )
    steady = clock.seconds[max(1, rounds // 5) :]
    print(json.dumps({"version": getattr(pfl, "__version__", ""), "rate": cohort / statistics.median(steady)}))


def _models() -> dict[str, Any]:
    """The modules of ``bench.work``, which cannot be imported here."""
    return {
        "logistic": lambda: nn.Linear(64, 10),
        "cnn": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 180), nn.ReLU(), nn.Linear(180, 10),
        ),
        "mlp": lambda: nn.Sequential(
            nn.Linear(64, 1230), nn.ReLU(), nn.Linear(1230, 1230), nn.ReLU(), nn.Linear(1230, 10)
        ),
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
