"""Evaluation: one forward over many parties' examples, in bounded batches, and one mean a party."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hansa.examples import Examples
from hansa.learner import Metrics
from hansa.learners.torch.losses import Loss
from hansa.learners.torch.metrics import Metric
from hansa.learners.torch.resident import Resident

_ROWS, _ELEMENTS = 4096, 2**22
_CONVOLVED_ROWS = 64
"""Rows at once where the model convolves: its activations are many times its input, and should stay in the cache."""


def evaluate_parties(
    resident: Resident,
    loss: Loss,
    metrics: tuple[Metric, ...],
    datas: Sequence[Examples],
    autocast: torch.dtype | None,
) -> list[Metrics]:
    """Each party's loss and metrics over its own examples, none of them without examples."""
    resident.training(False)
    whole = loss.each is None or any(metric.whole for metric in metrics)
    columns: dict[str, list[torch.Tensor]] = {m.name: [] for m in metrics if m.each is not None}
    if loss.each is not None:
        columns["loss"] = []
    outputs: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    with torch.no_grad():
        for x, y in _batches(resident, loss, datas):
            with torch.autocast(resident.device.type, autocast, enabled=autocast is not None):
                output = resident.module(x).to(resident.dtype)
            if loss.each is not None:
                columns["loss"].append(loss.each(output, y))
            for metric in metrics:
                if metric.each is not None:
                    columns[metric.name].append(metric.each(output, y))
            if whole:
                outputs.append(output)
                targets.append(y)
        starts = np.cumsum([0, *(len(data) for data in datas)])
        means = {name: _means(parts, starts) for name, parts in columns.items()}
        results = [
            {name: means[name][party] for name in ("loss", *columns) if name in means} for party in range(len(datas))
        ]
        if whole:
            _whole(loss, metrics, torch.cat(outputs), torch.cat(targets), starts.tolist(), results)
    return [{name: found[name] for name in ("loss", *(m.name for m in metrics))} for found in results]


def _batches(resident: Resident, loss: Loss, datas: Sequence[Examples]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches over all parties' examples in order; parties that share their arrays are gathered together."""
    base_x, base_y = datas[0].base
    shape = base_x.shape[1:]
    convolves = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in resident.module.modules())
    most = _CONVOLVED_ROWS if convolves and resident.device.type == "cpu" else _ROWS
    limit = max(1, min(most, _ELEMENTS // max(1, math.prod(shape))))
    shared = all(d.rows is not None and d.base[0] is base_x and d.base[1] is base_y for d in datas)
    if shared:
        rows = np.concatenate([d.rows for d in datas if d.rows is not None])
        for first in range(0, len(rows), limit):
            x = resident.features(np.take(base_x, rows[first : first + limit], axis=0))
            yield x, resident.targets(loss, tuple(x.shape[1:]), np.take(base_y, rows[first : first + limit], axis=0))
        return
    for data in datas:
        for first in range(0, len(data), limit):
            part = slice(first, first + limit)
            x_base, y_base = data.base
            pick = part if data.rows is None else data.rows[part]
            x = resident.features(x_base[pick])
            yield x, resident.targets(loss, tuple(x.shape[1:]), y_base[pick])


def _means(parts: list[torch.Tensor], starts: npt.NDArray[np.int64]) -> list[float]:
    values = torch.cat(parts).double().cpu().numpy()
    sums: list[float] = (np.add.reduceat(values, starts[:-1]) / np.diff(starts)).tolist()
    return sums


def _whole(
    loss: Loss,
    metrics: tuple[Metric, ...],
    output: torch.Tensor,
    target: torch.Tensor,
    starts: list[int],
    results: list[dict[str, float]],
) -> None:
    for found, first, last in zip(results, starts, starts[1:], strict=False):
        if loss.each is None:
            found["loss"] = float(loss.mean(output[first:last], target[first:last]))
        for metric in metrics:
            if metric.whole is not None:
                found[metric.name] = float(metric.whole(output[first:last], target[first:last]))
