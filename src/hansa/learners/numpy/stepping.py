"""One optimizer step on flat buffers: the only place where a built-in learner changes weights.

The buffers are matrices with one party's model in each row; the parties are at the same step of their local training.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from hansa.learners.optimizers import SGD, Adam, AdamW, Optimizer
from hansa.tensor import Array

State: TypeAlias = tuple[Array, ...]
"""The optimizer's memory: matrices like the weights."""


def start(optimizer: Optimizer, weights: Array) -> State:
    """The state before the first step."""
    if isinstance(optimizer, SGD):
        return (np.zeros_like(weights),) if optimizer.momentum else ()
    return np.zeros_like(weights), np.zeros_like(weights)


def step(optimizer: Optimizer, weights: Array, gradient: Array, state: State, rate: Array | float, index: int) -> None:
    """Change ``weights`` and ``state`` in place; ``gradient`` is scratch afterwards.

    Args:
        optimizer: the rule.
        weights, gradient: shape (parties, size).
        state: from :func:`start`, its matrices cut to the same parties.
        rate: the learning rate, or one a party with shape (parties, 1).
        index: the step in this local training, from 0.
    """
    if optimizer.weight_decay and isinstance(optimizer, AdamW):
        weights -= rate * optimizer.weight_decay * weights
    elif optimizer.weight_decay:
        gradient += optimizer.weight_decay * weights
    if isinstance(optimizer, SGD):
        gradient = _momentum(optimizer, gradient, state)
        weights -= rate * gradient
    else:
        weights -= rate * _direction(optimizer, gradient, state, index)


def _momentum(optimizer: SGD, gradient: Array, state: State) -> Array:
    if not optimizer.momentum:
        return gradient
    (buffer,) = state
    buffer *= optimizer.momentum
    buffer += gradient
    if not optimizer.nesterov:
        return buffer
    gradient += optimizer.momentum * buffer
    return gradient


def _direction(optimizer: Adam | AdamW, gradient: Array, state: State, index: int) -> Array:
    first, second = state
    beta_1, beta_2 = optimizer.betas
    first *= beta_1
    first += (1.0 - beta_1) * gradient
    second *= beta_2
    second += (1.0 - beta_2) * np.square(gradient)
    scale = np.sqrt(second)
    scale /= (1.0 - beta_2 ** (index + 1)) ** 0.5
    scale += optimizer.eps
    scale *= 1.0 - beta_1 ** (index + 1)
    direction: Array = first / scale
    return direction
