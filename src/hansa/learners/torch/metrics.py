"""Metrics by name: of each example, or of a party's whole set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch

from hansa.errors import ConfigError, nearest
from hansa.learners.torch.losses import Function, Loss

MetricSpec: TypeAlias = str | Callable[[Any, Any], Any]


@final
@dataclass(frozen=True)
class Metric:
    """A number about outputs and targets.

    Args:
        name: its key in the results.
        each: its value for each example, shape (n,), whose mean is the metric; or None.
        whole: its value for a party's whole set, a scalar; or None.
    """

    name: str
    each: Function | None = None
    whole: Callable[[torch.Tensor, torch.Tensor], Any] | None = None


def accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of right classes, of each example: the largest output, or the sign of a single logit.

    >>> accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])).tolist()
    [1.0, 0.0]
    """
    if output.shape == target.shape and target.is_floating_point():
        single = output.ndim == 1 or output.shape[1] == 1
        right = (output > 0) == (target > 0.5) if single else output.argmax(1) == target.argmax(1)
    elif output.ndim == 1 or (output.shape[1] == 1 and target.ndim < output.ndim):
        right = (output.reshape(target.shape) > 0) == (target > 0)
    else:
        right = output.argmax(1) == target
    return _per_example(right.to(torch.float32))


def top5_accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Whether the right class is among the five largest outputs, of each example."""
    best = output.topk(min(5, output.shape[1]), dim=1).indices
    return _per_example((best == target.unsqueeze(1)).any(1).to(torch.float32))


def mae(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each example."""
    return _per_example((output.reshape(target.shape) - target).abs())


def mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each example."""
    return _per_example((output.reshape(target.shape) - target).square())


def auc(output: torch.Tensor, target: torch.Tensor) -> float:
    """Area under the ROC curve of a binary task, ties counted half; 0.5 where only one class is present.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75

    Source: Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic curve",
    Radiology 143, 1982: the Mann-Whitney statistic.
    """
    score = (output[:, 1] - output[:, 0] if output.ndim == 2 and output.shape[1] == 2 else output).reshape(-1).double()
    positive = target.reshape(-1) > 0.5
    if len(score) != len(positive):
        raise ConfigError(f"metric 'auc' needs one output an example, or two classes, not shape {tuple(output.shape)}")
    plus, minus = score[positive], score[~positive].sort().values
    if not len(plus) or not len(minus):
        return 0.5
    below, upto = torch.searchsorted(minus, plus), torch.searchsorted(minus, plus, right=True)
    return float((below + upto).sum()) / (2.0 * len(plus) * len(minus))


METRICS = {
    "accuracy": Metric("accuracy", each=accuracy),
    "top5_accuracy": Metric("top5_accuracy", each=top5_accuracy),
    "mae": Metric("mae", each=mae),
    "mse": Metric("mse", each=mse),
    "auc": Metric("auc", whole=auc),
}

_BY_TASK = {"classes": ("accuracy",), "binary": ("accuracy",), "values": ("mae",), "free": ()}


def resolve_metrics(metrics: tuple[MetricSpec, ...] | None, loss: Loss) -> tuple[Metric, ...]:
    """The metrics of these names and callables; None picks by the loss's kind.

    Raises:
        ConfigError: no metric has this name, two have the same, or one takes the name ``loss``.
    """
    chosen = []
    for metric in _BY_TASK[loss.kind] if metrics is None else metrics:
        if isinstance(metric, str):
            if metric not in METRICS:
                raise ConfigError(f"Torch.metrics {metric!r} is not a metric; {nearest(metric, METRICS)}")
            chosen.append(METRICS[metric])
        elif callable(metric):
            chosen.append(Metric(str(getattr(metric, "__name__", type(metric).__name__)), whole=metric))
        else:
            raise ConfigError(f"Torch.metrics must be names or callables (output, target) -> number, not {metric!r}")
    names = ["loss", *(metric.name for metric in chosen)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"Torch.metrics gives {name!r} twice; 'loss' is always there, give others their own names"
            )
    return tuple(chosen)


def _per_example(values: torch.Tensor) -> torch.Tensor:
    return values if values.ndim == 1 else values.flatten(1).mean(1)
