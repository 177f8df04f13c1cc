"""Losses by name: what a batch's training loss is, what one example's loss is, and which targets are acceptable.

A loss written by the user is a callable ``(output, target) -> scalar``; a named loss also knows each example's share, which the
engines that train many parties at once need, because their batches are padded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
import torch.nn.functional as F

from hansa.errors import ConfigError, DataError, nearest

Function: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LossSpec: TypeAlias = str | Callable[[Any, Any], Any]


@final
@dataclass(frozen=True)
class Loss:
    """A loss over a batch.

    *Law* of a named loss: ``mean(output, target) == each(output, target).mean()``.

    Args:
        name: as errors name it.
        kind: what the targets are: ``"classes"``, ``"binary"``, ``"values"`` or ``"free"`` (nothing is known).
        mean: the batch's loss, a scalar.
        each: one loss an example, shape (n,); None for a callable of the user's.
    """

    name: str
    kind: str
    mean: Function
    each: Function | None = None


def _rowwise(function: Function) -> Function:
    def each(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = function(output, target)
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    return each


def _named(name: str, kind: str, function: Callable[..., torch.Tensor]) -> Loss:
    return Loss(
        name,
        kind,
        function,
        _rowwise(lambda output, target: function(output, target, reduction="none")),
    )


LOSSES = {
    loss.name: loss
    for loss in (
        _named("cross_entropy", "classes", F.cross_entropy),
        _named("nll", "classes", F.nll_loss),
        _named("bce_with_logits", "binary", F.binary_cross_entropy_with_logits),
        _named("mse", "values", F.mse_loss),
        _named("l1", "values", F.l1_loss),
        _named("huber", "values", F.huber_loss),
    )
}


def resolve_loss(loss: LossSpec) -> Loss:
    """The loss of this name, or a callable as a loss.

    >>> resolve_loss("mse").kind
    'values'

    Raises:
        ConfigError: no loss has this name, or it is neither a name nor a callable.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ConfigError(f"Torch.loss {loss!r} is not a loss that Hansa knows; {nearest(loss, LOSSES)}")
        return LOSSES[loss]
    if not callable(loss):
        raise ConfigError(f"Torch.loss must be a name or a callable (output, target) -> scalar, not {loss!r}")
    return Loss(str(getattr(loss, "__name__", type(loss).__name__)), "free", loss)


def prepare_target(loss: Loss, target: torch.Tensor, output: tuple[int, ...], floating: torch.dtype) -> torch.Tensor:
    """``target`` in the dtype and shape that ``loss`` wants, every value checked.

    Args:
        loss: the loss.
        target: the examples' targets, shape (n, ...).
        output: the shape of the model's output for one example.
        floating: the model's dtype.

    Raises:
        DataError: a label outside the output's classes, a binary target outside [0, 1], or shapes that do not belong together.
    """
    if loss.kind == "classes":
        return _classes(loss, target, output, floating)
    if loss.kind == "free":
        return target.to(floating) if target.is_floating_point() else target.long()
    target = target.to(floating)
    per_example = target.shape[1:]
    if per_example != output:
        if _squeezed(per_example) != _squeezed(output):
            raise DataError(
                f"loss {loss.name!r} compares the model's output of shape (n, {_shape(output)}) with targets of shape"
                f" (n, {_shape(per_example)}); give the model as many outputs as an example has targets"
            )
        target = target.reshape(len(target), *output)
    if loss.kind == "binary" and len(target):
        least, most = target.aminmax()
        if not (least >= 0 and most <= 1):
            raise DataError(
                f"loss {loss.name!r} needs targets between 0 and 1, but found {float(least):g} to {float(most):g}"
            )
    return target


def _classes(loss: Loss, target: torch.Tensor, output: tuple[int, ...], floating: torch.dtype) -> torch.Tensor:
    if not output:
        raise ConfigError(f"loss {loss.name!r} needs an output per class, but the model returns one number an example")
    if target.is_floating_point():
        if loss.name == "cross_entropy" and target.shape[1:] == output:
            return target.to(floating)
        raise DataError(
            f"loss {loss.name!r} needs whole-number class labels, but the targets are {str(target.dtype)[6:]}"
            f" of shape (n{''.join(f', {d}' for d in target.shape[1:])}); convert them to integers"
        )
    target = target.long()
    if target.shape[1:] != output[1:]:
        if _squeezed(target.shape[1:]) != _squeezed(output[1:]):
            raise DataError(
                f"loss {loss.name!r} with the model's output of shape (n, {_shape(output)}) needs labels of shape"
                f" (n{''.join(f', {d}' for d in output[1:])}), not (n, {_shape(target.shape[1:])})"
            )
        target = target.reshape(len(target), *output[1:])
    if len(target):
        least, most = (int(bound) for bound in target.aminmax())
        if least < 0 or most >= output[0]:
            raise DataError(
                f"label {least if least < 0 else most} is out of range: the model has {output[0]} outputs,"
                f" so labels go from 0 to {output[0] - 1}"
            )
    return target


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _shape(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) or "no further axis"
