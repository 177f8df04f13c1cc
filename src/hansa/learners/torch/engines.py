"""Which engine trains a party: a pure function of the model, the work and the number of examples.

==========  ===========================================================================================================
engine      runs
==========  ===========================================================================================================
sequential  everything
low_rank    chains of dense layers and elementwise activations; a named loss; SGD, momentum, Nesterov, weight decay, the
            proximal term; no linear term, no gradient clipping
vectorized  models that ``torch.func.vmap`` takes, without buffers and without randomness; a named loss; SGD and every
            term of the work
compiled    the same in fixed shapes, so no full batch; needs a C++ compiler
==========  ===========================================================================================================

With ``"auto"`` on a CPU:

1. ``low_rank`` where it can and pays: the examples that a party sees are at most ``size / sum(inputs + outputs)``, where its
   factors are smaller than the weights; or the model is small and they are at most 128.
2. ``compiled`` for a convolutional model of at most 300,000 parameters where at least 20,000 fits are expected.
3. ``vectorized`` for a model of at most 30,000 parameters and four parties or more in the call: for fewer, stacking costs
   more than it saves.
4. ``sequential`` for all others.

On a GPU 2 is left out and 3 goes to 2,000,000 parameters, because there the number of calls is what costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from hansa.errors import ConfigError
from hansa.learner import LocalWork
from hansa.learners.torch.course import Course

EngineName: TypeAlias = Literal["sequential", "low_rank", "vectorized", "compiled"]
ENGINES: tuple[str, ...] = get_args(EngineName)

SMALL = 30_000
SMALL_RANK = 128
FEW = 4
COMPILED_SIZE = 300_000
COMPILED_FITS = 20_000
GPU_SIZE = 2_000_000


@dataclass(frozen=True)
class Facts:
    """What the choice depends on, of a learner and its model.

    Args:
        size: trained parameters.
        widths: the sum of inputs and outputs over the layers of a dense chain.
        convolves: whether the model has a convolution.
        gpu: whether it trains on a GPU.
        compiler: whether a C++ compiler is there.
        no_chain: why it cannot run low-rank, whatever the work; empty where it can.
        no_vmap: why it cannot run vectorized, whatever the work; empty where it can.
    """

    size: int
    widths: int
    convolves: bool
    gpu: bool
    compiler: bool
    no_chain: str
    no_vmap: str


def why_not(engine: EngineName, facts: Facts, work: LocalWork) -> str:
    """Why ``engine`` cannot do ``work``; empty where it can."""
    if engine == "low_rank":
        return facts.no_chain or ("the work has a linear term" if work.linear is not None else "")
    if engine == "vectorized":
        return facts.no_vmap
    if engine == "compiled":
        if not facts.compiler:
            return facts.no_vmap or "there is no C++ compiler; install g++ or clang++"
        return facts.no_vmap or ("a full batch has no fixed shape" if work.full_batch else "")
    return ""


def choose(facts: Facts, work: LocalWork, path: Course, expected_fits: int, parties: int) -> EngineName:
    """The engine that ``"auto"`` stands for; see this module's rules.

    Args:
        facts: of the learner and its model.
        work: what the algorithm asks.
        path: the party's course.
        expected_fits: fits that the whole run will make.
        parties: parties in the call.
    """
    if not why_not("low_rank", facts, work):
        if path.steps * path.batch * facts.widths <= facts.size:
            return "low_rank"
        if facts.size <= SMALL and path.steps * path.batch <= SMALL_RANK:
            return "low_rank"
    earned = facts.convolves and facts.size <= COMPILED_SIZE and expected_fits >= COMPILED_FITS and not facts.gpu
    if earned and not why_not("compiled", facts, work):
        return "compiled"
    stacks = parties >= FEW and facts.size <= (GPU_SIZE if facts.gpu else SMALL)
    if stacks and not why_not("vectorized", facts, work):
        return "vectorized"
    return "sequential"


def demand(engine: EngineName, facts: Facts, work: LocalWork) -> EngineName:
    """The engine that the user named.

    Raises:
        ConfigError: it cannot do the work; the sentence says why.
    """
    reason = why_not(engine, facts, work)
    if reason:
        raise ConfigError(f"Torch.engine {engine!r} cannot train this model: {reason}; use engine='auto'")
    return engine
