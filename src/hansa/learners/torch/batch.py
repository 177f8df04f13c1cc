"""One call's parties, sent through their engines in groups that fit the processor's caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from hansa.errors import ConfigError
from hansa.examples import Examples
from hansa.learner import LocalWork
from hansa.learners.optimizers import SGD
from hansa.learners.torch.chain import Chain, find_chain
from hansa.learners.torch.course import Course
from hansa.learners.torch.engines import SMALL, EngineName, Facts
from hansa.learners.torch.low_rank import fit_low_rank
from hansa.learners.torch.padded import Padded
from hansa.learners.torch.resident import Recent, Resident, tensor_of
from hansa.learners.torch.sequential import fit_sequential
from hansa.learners.torch.stacked import Stacked
from hansa.learners.torch.vectorized import (
    Step,
    Terms,
    compiled_step,
    fit_vectorized,
    has_compiler,
    make_step,
    why_not_vmap,
)
from hansa.params import Params
from hansa.rng import Key
from hansa.tensor import Rows, Tensor
from hansa.update import Update

if TYPE_CHECKING:
    from hansa.learners.torch.learner import Torch

_FACTOR_BYTES = 12 * 2**20
_STACK_BYTES = 2 * 2**20
_TOGETHER = 256
_COMPILED_TOGETHER = 5

_STUDIES, _STEPS = Recent(16), Recent(32)


@dataclass(frozen=True)
class Study:
    """What is known of a learner's model: for the choice of the engine, and for the low-rank engine its layers."""

    facts: Facts
    chain: Chain | None


def study(learner: Torch, resident: Resident, x_shape: tuple[int, ...]) -> Study:
    """The study of ``learner``'s model for examples of ``x_shape``."""
    key = (learner, x_shape)
    return _STUDIES.get(key, lambda: _study(learner, resident, x_shape))


def _study(learner: Torch, resident: Resident, x_shape: tuple[int, ...]) -> Study:
    names = resident.layout.names[: len(resident.trained)]
    chain = find_chain(resident.module, dict(zip(names, resident.layout.offsets, strict=False)))
    found = chain if isinstance(chain, Chain) else None
    shared = ""
    if not isinstance(learner.optimizer, SGD):
        shared = f"the optimizer is {type(learner.optimizer).__name__}, not SGD"
    elif learner.precision != "float32":
        shared = f"the precision is {learner.precision}"
    no_chain = shared or (chain if isinstance(chain, str) else "")
    if found is not None and not no_chain:
        width = 1
        for length in x_shape:
            width *= length
        if len(x_shape) != 1 and not found.flattens:
            no_chain = f"its first layer takes {len(x_shape)} axes of an example"
        elif learner.resolved_loss.each is None:
            no_chain = "its loss is a callable, which does not say what each example's share is"
        elif learner.clip_gradient is not None:
            no_chain = "gradient clipping needs each step's own norm"
    convolves = any(isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in resident.module.modules())
    gpu = resident.device.type == "cuda"
    no_vmap = shared or why_not_vmap(resident, learner.resolved_loss, x_shape)
    widths = sum(layer.inputs + layer.outputs for layer in found.layers) if found is not None else 0
    facts = Facts(resident.trained_size, widths, convolves, gpu, has_compiler(), no_chain, no_vmap)
    return Study(facts, None if no_chain else found)


@dataclass(frozen=True)
class Batch:
    """The parties of one call.

    Args:
        learner, resident, params: what trains and from where.
        datas, works, paths, rngs: one of each a party; a path is None for a party without examples.
    """

    learner: Torch
    resident: Resident
    params: Params
    datas: Sequence[Examples]
    works: Sequence[LocalWork]
    paths: Sequence[Course | None]
    rngs: Sequence[Key]

    def train(self, engine: EngineName, members: list[int], results: list[Update | None]) -> None:
        """Train the parties ``members`` with ``engine`` and put their updates into ``results``."""
        if engine == "sequential":
            self._put(members, *self._sequential(members), results)
            return
        start = tensor_of(self.params.flat).to(self.resident.device)
        x_shape = self.datas[members[0]].base[0].shape[1:]
        seen = study(self.learner, self.resident, x_shape)
        groups = self._groups(engine, members, seen.facts)
        if engine == "low_rank":
            sgd, chain = self.learner.optimizer, seen.chain
            assert isinstance(sgd, SGD)
            assert chain is not None
            for group in groups:
                works = [self.works[place] for place in group]
                data = self._padded(group)
                self._put(group, *fit_low_rank(chain, self.learner.resolved_loss, sgd, start, works, data), results)
            return
        stacks: list[list[torch.Tensor]] = []
        losses: list[float] = []
        for group in groups:
            changes, means = self._stacked(engine, group, start, x_shape)
            # Parties beyond the group's own only fill a fixed shape.
            stacks.append([part[: len(group)] for part in changes])
            losses += means[: len(group)]
        rows = Stacked(stacks, self.params.size, self.params.flat.dtype)
        self._put([place for group in groups for place in group], rows, losses, results)

    def _sequential(self, members: list[int]) -> tuple[Rows, list[float]]:
        return fit_sequential(
            self.learner,
            self.resident,
            self.params.flat,
            [self.datas[place] for place in members],
            [self.works[place] for place in members],
            [self._path(place) for place in members],
            [self.rngs[place] for place in members],
        )

    def _stacked(
        self, engine: EngineName, group: list[int], start: torch.Tensor, x_shape: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], list[float]]:
        learner = self.learner
        assert isinstance(learner.optimizer, SGD)
        works = [self.works[place] for place in group]
        terms = Terms.of(learner.optimizer, works, learner.clip_gradient)
        if engine == "vectorized":
            eager = partial(make_step, self.resident, learner.resolved_loss, terms)
            return fit_vectorized(self.resident, eager, terms, start, works, self._padded(group))
        filled = group + [group[-1]] * (_COMPILED_TOGETHER - len(group))
        works = [self.works[place] for place in filled]
        data = self._padded(filled, learner.batch_size)
        try:
            return fit_vectorized(self.resident, partial(self._compiled, x_shape, terms), terms, start, works, data)
        except RuntimeError as error:
            cause = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"Torch.engine 'compiled' cannot compile this model ({cause}); use engine='vectorized'"
            ) from error

    def _compiled(self, x_shape: tuple[int, ...], terms: Terms, shared: bool, last: bool) -> Step:
        loss = self.learner.resolved_loss
        key = (self.learner, x_shape, terms, shared, last)
        return _STEPS.get(key, lambda: compiled_step(self.resident, loss, terms, shared, last))

    def _groups(self, engine: EngineName, members: list[int], facts: Facts) -> list[list[int]]:
        """``members`` in groups: equal numbers of steps stand together, because a group is padded to its longest."""
        shapes = {(path.steps, path.batch): path for path in {id(p): p for p in self.paths if p is not None}.values()}
        if len(shapes) > 1:
            members = sorted(members, key=lambda place: (self._path(place).steps, self._path(place).batch, place))
        if engine == "compiled":
            size = _COMPILED_TOGETHER
        elif engine == "low_rank":
            rank = max(steps * batch for steps, batch in shapes)
            size = _FACTOR_BYTES // (self.params.flat.itemsize * rank * facts.widths + 1)
        elif facts.gpu or facts.size <= SMALL:
            size = _TOGETHER
        else:
            size = max(_STACK_BYTES // self.params.flat.nbytes, _COMPILED_TOGETHER)
        size = max(1, min(size, _TOGETHER))
        return [members[first : first + size] for first in range(0, len(members), size)]

    def _padded(self, group: Sequence[int], width: int | None = None) -> Padded:
        paths = [self.paths[place] for place in group]
        distinct = [path for path in {id(path): path for path in paths}.values() if path is not None]
        return Padded(
            self.resident,
            self.learner.resolved_loss,
            self.learner.optimizer,
            [self.datas[place] for place in group],
            [self.works[place] for place in group],
            cast(list[Course], paths),
            [self.rngs[place] for place in group],
            width or max(path.batch for path in distinct),
            # Where parties differ, a width for each step would be a compilation for each.
            trim=all(path is self.paths[0] for path in self.paths),
        )

    def _path(self, place: int) -> Course:
        path = self.paths[place]
        assert path is not None
        return path

    def _put(self, group: list[int], rows: Rows, losses: list[float], results: list[Update | None]) -> None:
        known: dict[int, tuple[float, float]] = {}
        paths = self.paths
        for index, place in enumerate(group):
            path = paths[place]
            numbers = known.get(id(path))
            if numbers is None:
                numbers = known[id(path)] = (float(self._path(place).examples), float(self._path(place).steps))
            scalars = {"loss": losses[index], "steps": numbers[1]}
            results[place] = Update(Tensor(None, rows, index), numbers[0], scalars)
