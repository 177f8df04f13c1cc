"""Who gossips with whom, and how much each word counts.

A :class:`Topology` is a value that gives an undirected graph for any number of peers, perhaps another one each round. The
weights follow from the graph by Metropolis and Hastings' rule, which needs only a peer's own degree and its neighbours', and
makes the mixing matrix symmetric and doubly stochastic, so that the peers' average is kept.

Source: Xiao, Boyd and Lashkari, "A scheme for robust distributed sensor fusion based on average consensus", IPSN 2005, equation
11 (weights); Boyd, Diaconis and Xiao, "Fastest mixing Markov chain on a graph", SIAM Review 2004 (spectral gap).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, final

import numpy as np
import numpy.typing as npt

from hansa.errors import ConfigError
from hansa.rng import Key

Graph = tuple[tuple[int, ...], ...]
"""The neighbours of each peer, by number and in order; never itself, and always mutual."""

_TRIES: Final = 100


class Topology(ABC):
    """Gives a graph for a number of peers and a round."""

    @abstractmethod
    def graph(self, peers: int, round: int) -> Graph:
        """The neighbours of each of ``peers``.

        Raises:
            ConfigError: there is no such graph for so many peers.
        """


@final
@dataclass(frozen=True)
class Ring(Topology):
    """Each peer has the next ``reach`` on both sides; with 1 a plain ring.

    >>> Ring().graph(5, round=1)[0]
    (1, 4)
    """

    reach: int = 1

    def __post_init__(self) -> None:
        _at_least("Ring.reach", self.reach, 1)

    def graph(self, peers: int, round: int) -> Graph:
        return _graph(peers, ((i, (i + k) % peers) for i in range(peers) for k in range(1, self.reach + 1)))


@final
@dataclass(frozen=True)
class Torus(Topology):
    """A grid whose borders are joined; each peer has the four beside it. The sides are the two factors of the number of peers
    that are nearest to each other, so a prime number of peers is a ring.

    >>> Torus().graph(9, round=1)[4]
    (1, 3, 5, 7)
    """

    def graph(self, peers: int, round: int) -> Graph:
        return _graph(peers, _lattice(peers, joined=True))


@final
@dataclass(frozen=True)
class Grid(Topology):
    """A grid with borders. The sides are chosen as those of :class:`Torus`.

    >>> Grid().graph(9, round=1)[0]
    (1, 3)
    """

    def graph(self, peers: int, round: int) -> Graph:
        return _graph(peers, _lattice(peers, joined=False))


@final
@dataclass(frozen=True)
class Complete(Topology):
    """Everybody has everybody: each round ends in the exact average.

    >>> Complete().graph(4, round=1)[2]
    (0, 1, 3)
    """

    def graph(self, peers: int, round: int) -> Graph:
        return _graph(peers, ((i, j) for i in range(peers) for j in range(i)))


@final
@dataclass(frozen=True)
class Star(Topology):
    """The first peer has all others, who have it alone: what a server would be, but as an equal.

    >>> Star().graph(4, round=1)
    ((1, 2, 3), (0,), (0,), (0,))
    """

    def graph(self, peers: int, round: int) -> Graph:
        return _graph(peers, ((0, i) for i in range(1, peers)))


@final
@dataclass(frozen=True)
class Exponential(Topology):
    """Each peer has those 1, 2, 4, 8, ... places away: few neighbours and a short way to everybody.

    Args:
        one_at_a_time: in each round only one of these distances, in turn (Ying, Yuan, Chen, Hu, Pan and Yin, "Exponential graph
            is provably efficient for decentralized deep training", NeurIPS 2021, with both directions of each edge).

    >>> Exponential().graph(8, round=1)[0]
    (1, 2, 4, 6, 7)
    >>> Exponential(one_at_a_time=True).graph(8, round=2)[0]
    (2, 6)
    """

    one_at_a_time: bool = False

    def graph(self, peers: int, round: int) -> Graph:
        distances = [1 << k for k in range(max(0, (peers - 1).bit_length()))]
        if self.one_at_a_time and distances:
            distances = [distances[(round - 1) % len(distances)]]
        return _graph(peers, ((i, (i + distance) % peers) for i in range(peers) for distance in distances))


@final
@dataclass(frozen=True)
class ErdosRenyi(Topology):
    """Each pair is joined with the same probability.

    Args:
        probability: above 0 and at most 1.
        seed: public; the same seed is the same graph.
        redraw: another graph each round, connected or not; otherwise one graph, drawn until it is connected.

    >>> ErdosRenyi(0.5, seed=1).graph(6, round=1) == ErdosRenyi(0.5, seed=1).graph(6, round=9)
    True
    """

    probability: float
    seed: int = 0
    redraw: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"ErdosRenyi.probability must be above 0 and at most 1, not {self.probability}")

    def graph(self, peers: int, round: int) -> Graph:
        key = Key.root(self.seed).child("erdos-renyi", peers)
        first, second = np.triu_indices(peers, 1)
        for attempt in range(1 if self.redraw else _TRIES):
            draws = key.child("edges", round if self.redraw else attempt).generator().random(len(first))
            chosen = draws < self.probability
            graph = _graph(peers, zip(first[chosen].tolist(), second[chosen].tolist(), strict=True))
            if self.redraw or connected(graph):
                return graph
        enough = min(1.0, 1.5 * math.log(max(2, peers)) / peers)
        raise ConfigError(
            f"ErdosRenyi: {_TRIES} graphs of {peers} peers with probability {self.probability:g} all fell apart;"
            f" raise probability to {enough:.2g} or more"
        )


@final
@dataclass(frozen=True)
class SmallWorld(Topology):
    """A ring with neighbours on both sides whose edges are, each with a probability, led to a random peer instead.

    Args:
        reach: neighbours on each side before rewiring, at least 1.
        rewire: the probability, from 0 to 1.
        seed: public; the same seed is the same graph.

    Source: Watts and Strogatz, "Collective dynamics of 'small-world' networks", Nature 1998; drawn until connected.

    >>> SmallWorld(rewire=0.0).graph(8, round=1) == Ring(reach=2).graph(8, round=1)
    True
    """

    reach: int = 2
    rewire: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("SmallWorld.reach", self.reach, 1)
        if not 0 <= self.rewire <= 1:
            raise ConfigError(f"SmallWorld.rewire must be from 0 to 1, not {self.rewire}")

    def graph(self, peers: int, round: int) -> Graph:
        key = Key.root(self.seed).child("small-world", peers)
        for attempt in range(_TRIES):
            graph = _graph(peers, self._edges(peers, key.child("edges", attempt).generator()))
            if connected(graph):
                return graph
        raise ConfigError(f"SmallWorld: {_TRIES} graphs of {peers} peers all fell apart; raise reach or lower rewire")

    def _edges(self, peers: int, generator: np.random.Generator) -> Iterable[tuple[int, int]]:
        edges = {tuple(sorted((i, (i + k) % peers))) for i in range(peers) for k in range(1, self.reach + 1)}
        for i, j in sorted(edge for edge in edges if edge[0] != edge[1]):
            if generator.random() < self.rewire:
                end = int(generator.integers(peers))
                moved = (min(i, end), max(i, end))
                if end != i and moved not in edges:
                    edges.discard((i, j))
                    edges.add(moved)
        return [(i, j) for i, j in edges]


def mixing_matrix(graph: Graph) -> npt.NDArray[np.float64]:
    """The weights of all peers, shape (peers, peers).

    *Guarantees*: symmetric, not negative, every row and column sums to 1, zero where there is no edge.

    >>> mixing_matrix(Star().graph(3, round=1)).round(2).tolist()
    [[0.33, 0.33, 0.33], [0.33, 0.67, 0.0], [0.33, 0.0, 0.67]]
    """
    matrix = np.zeros((len(graph), len(graph)))
    for i in range(len(graph)):
        for j, weight in weights_of(graph, i).items():
            matrix[i, j] = weight
    return matrix


def weights_of(graph: Graph, peer: int) -> dict[int, float]:
    """One row of :func:`mixing_matrix`, its own weight last: ``1 / (1 + max(degree_i, degree_j))`` for a neighbour ``j``."""
    degree = len(graph[peer])
    weights = {j: 1.0 / (1.0 + max(degree, len(graph[j]))) for j in graph[peer]}
    weights[peer] = 1.0 - sum(weights.values())
    return weights


def spectral_gap(matrix: npt.NDArray[np.float64]) -> float:
    """1 minus the second largest absolute eigenvalue of a mixing matrix: how much of the peers' disagreement a round takes away.

    1 for the complete graph, 0 for one that is not connected.

    >>> round(spectral_gap(mixing_matrix(Complete().graph(5, round=1))), 9)
    1.0
    """
    if len(matrix) < 2:
        return 1.0
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix)))
    return float(1.0 - values[-2])


def connected(graph: Graph) -> bool:
    """Whether there is a way from every peer to every other."""
    seen, border = {0}, [0]
    while border:
        new = [j for i in border for j in graph[i] if j not in seen]
        border = list(dict.fromkeys(new))
        seen.update(border)
    return len(seen) >= len(graph)


@lru_cache(maxsize=64)
def graph_of(topology: Topology, peers: int, round: int) -> Graph:
    """:meth:`Topology.graph`, remembered, for the many peers of one process."""
    return topology.graph(peers, round)


def _graph(peers: int, edges: Iterable[tuple[int, int]]) -> Graph:
    neighbours: list[set[int]] = [set() for _ in range(peers)]
    for i, j in edges:
        if i != j:
            neighbours[i].add(j)
            neighbours[j].add(i)
    return tuple(tuple(sorted(some)) for some in neighbours)


def _lattice(peers: int, *, joined: bool) -> Iterable[tuple[int, int]]:
    rows = max(side for side in range(1, math.isqrt(peers) + 1) if peers % side == 0)
    columns = peers // rows
    for place in range(peers):
        row, column = divmod(place, columns)
        if joined or column + 1 < columns:
            yield place, row * columns + (column + 1) % columns
        if joined or row + 1 < rows:
            yield place, (row + 1) % rows * columns + column


def _at_least(place: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{place} must be at least {least}, not {value}")
