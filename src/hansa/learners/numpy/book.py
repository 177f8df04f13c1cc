"""The book's version of a local training: one party, one named tensor, one batch at a time. The oracle of the batched engine."""

from __future__ import annotations

import numpy as np

from hansa.learner import LocalWork
from hansa.learners.numpy import stepping
from hansa.learners.numpy.network import Network
from hansa.learners.numpy.training import Recipe
from hansa.learners.optimizers import learning_rate
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Array


def train(recipe: Recipe, params: Params, x: Array, y: Array, work: LocalWork, rng: Key) -> tuple[Array, float, int]:
    """One party's change of the parameters, its mean loss and its number of steps.

    Args:
        recipe: the learner's network and settings.
        params: the received model.
        x: features, shape (n, features).
        y: class numbers or values, shape (n,) or (n, outputs).
        work: what the algorithm asks.
        rng: orders the minibatches.
    """
    n, start = len(x), params.flat
    if n == 0:
        return np.zeros_like(start), 0.0, 0
    batch = n if work.full_batch else recipe.batch_size
    per_epoch = -(-n // batch)
    epochs = recipe.epochs if work.epochs is None else work.epochs
    steps = per_epoch * epochs if work.steps is None else work.steps
    flat = start.copy()
    state = stepping.start(recipe.optimizer, flat[None])
    total, seen = 0.0, 0
    for index in range(steps):
        epoch, within = divmod(index, per_epoch)
        chosen = rng.permutation(n, epoch)[within * batch : (within + 1) * batch]
        losses, slopes = value_and_gradient(recipe.network, params.replaced(flat), x[chosen], y[chosen])
        slopes = slopes + work.proximal * (flat - start)
        if work.linear is not None:
            slopes = slopes + work.linear
        rate = learning_rate(recipe.optimizer, work, epoch, index)
        stepping.step(recipe.optimizer, flat[None], slopes.astype(flat.dtype)[None], state, rate, index)
        total, seen = total + float(losses.sum()), seen + len(chosen)
    return flat - start, total / max(seen, 1), steps


def value_and_gradient(network: Network, params: Params, x: Array, y: Array) -> tuple[Array, Array]:
    """Each example's loss, penalties left out, and the flat gradient of their mean plus the L2 penalty."""
    tensors = list(params.tensors().values())
    weights, biases = tensors[0::2], tensors[1::2]
    inputs: list[Array] = []
    z = x.astype(params.flat.dtype)
    for weight, bias in zip(weights, biases, strict=True):
        if inputs:
            z = np.maximum(z, 0) if network.activation == "relu" else np.tanh(z)
        inputs.append(z)
        z = z @ weight.T + bias
    losses, slope = _loss(network, z, y)
    slope = slope / len(x)
    parts: list[Array] = []
    for place in reversed(range(len(weights))):
        parts = [(slope.T @ inputs[place] + network.l2 * weights[place]).ravel(), slope.sum(axis=0), *parts]
        if place:
            bend = (inputs[place] > 0) if network.activation == "relu" else 1 - inputs[place] ** 2
            slope = (slope @ weights[place]) * bend
    return losses, np.concatenate(parts)


def _loss(network: Network, z: Array, y: Array) -> tuple[Array, Array]:
    if network.loss == "mse":
        error = z - y
        return np.mean(error**2, axis=1), 2 * error / z.shape[1]
    shifted = z - z.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]
    return losses, probabilities - np.eye(z.shape[1], dtype=z.dtype)[y]
