"""Graphs that are mutual, weights that keep the average, gaps that say how fast peers agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.decentralized.topology import (
    Complete,
    ErdosRenyi,
    Exponential,
    Grid,
    Ring,
    SmallWorld,
    Star,
    Topology,
    Torus,
    connected,
    mixing_matrix,
    spectral_gap,
    weights_of,
)
from hansa.errors import ConfigError

STATIC: list[Topology] = [
    Ring(),
    Ring(reach=3),
    Torus(),
    Grid(),
    Complete(),
    Star(),
    Exponential(),
    ErdosRenyi(0.7, seed=3),
    SmallWorld(seed=4),
    SmallWorld(reach=1, rewire=0.2, seed=1),
]
CHANGING: list[Topology] = [Exponential(one_at_a_time=True), ErdosRenyi(0.3, redraw=True)]


@given(topology=st.sampled_from(STATIC + CHANGING), peers=st.integers(1, 40), round=st.integers(1, 50))
def test_mixing_matrices_are_symmetric_and_doubly_stochastic(topology: Topology, peers: int, round: int) -> None:
    graph = topology.graph(peers, round)
    assert len(graph) == peers
    for i, neighbours in enumerate(graph):
        assert list(neighbours) == sorted(set(neighbours))
        assert i not in neighbours
        assert all(i in graph[j] for j in neighbours)
    matrix = mixing_matrix(graph)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    edges = {(i, j) for i in range(peers) for j in graph[i]}
    assert {(i, j) for i, j in np.argwhere(matrix > 0).tolist() if i != j} == edges
    assert (np.diag(matrix) > 0).all()
    assert graph == topology.graph(peers, round), "the same round is the same graph"


@given(topology=st.sampled_from(STATIC), peers=st.integers(2, 40))
def test_fixed_topologies_are_connected_and_so_reach_consensus(topology: Topology, peers: int) -> None:
    graph = topology.graph(peers, 1)
    assert connected(graph)
    assert graph == topology.graph(peers, 17)
    matrix = mixing_matrix(graph)
    gap = spectral_gap(matrix)
    assert 0 < gap <= 1 + 1e-12
    x = np.random.default_rng(peers).normal(size=(peers, 2))
    mixed = matrix @ x
    np.testing.assert_allclose(mixed.mean(axis=0), x.mean(axis=0), atol=1e-12)
    before, after = (np.linalg.norm(v - x.mean(axis=0)) for v in (x, mixed))
    assert after <= (1 - gap) * before + 1e-9


@given(seed=st.integers(0, 10**6), peers=st.integers(2, 20), probability=st.floats(0.01, 1.0))
def test_a_gap_of_zero_is_a_graph_that_fell_apart(seed: int, peers: int, probability: float) -> None:
    graph = ErdosRenyi(probability, seed=seed, redraw=True).graph(peers, 1)
    assert (spectral_gap(mixing_matrix(graph)) > 1e-9) == connected(graph)


def test_known_gaps() -> None:
    def gap(topology: Topology, peers: int) -> float:
        return spectral_gap(mixing_matrix(topology.graph(peers, 1)))

    assert gap(Complete(), 16) == pytest.approx(1.0)
    # A ring's matrix is circulant: its eigenvalues are (1 + 2 cos(2 pi k / n)) / 3.
    assert gap(Ring(), 16) == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / 16)) / 3)
    assert gap(Ring(), 16) < gap(Torus(), 16) < gap(Exponential(), 16) < gap(Complete(), 16)
    assert gap(Star(), 16) < gap(Torus(), 16)
    assert spectral_gap(np.ones((1, 1))) == 1.0


def test_one_distance_at_a_time_has_two_neighbours_and_takes_turns() -> None:
    turns = [Exponential(one_at_a_time=True).graph(16, round) for round in range(1, 9)]
    assert [graph[0] for graph in turns[:4]] == [(1, 15), (2, 14), (4, 12), (8,)]
    assert turns[:4] == turns[4:]


def test_redrawn_graphs_differ_and_come_from_the_seed() -> None:
    graphs = [ErdosRenyi(0.4, seed=s, redraw=True).graph(12, r) for s, r in [(0, 1), (0, 2), (1, 1), (0, 1)]]
    assert graphs[0] == graphs[3]
    assert graphs[0] != graphs[1]
    assert graphs[0] != graphs[2]


def test_the_share_of_edges_is_the_probability() -> None:
    edges = sum(len(row) for r in range(1, 60) for row in ErdosRenyi(0.3, redraw=True).graph(20, r)) / 2
    expected, pairs = 0.3, 59 * 190
    assert abs(edges / pairs - expected) < 5 * math.sqrt(expected * (1 - expected) / pairs)


def test_a_small_world_is_between_a_ring_and_chance() -> None:
    ring, small = (mixing_matrix(t.graph(40, 1)) for t in (Ring(reach=2), SmallWorld(rewire=0.3, seed=2)))
    assert spectral_gap(small) > 2 * spectral_gap(ring)
    assert np.count_nonzero(small) == np.count_nonzero(ring), "rewiring keeps the number of edges"


@pytest.mark.parametrize(("peers", "rows"), [(12, 3), (16, 4), (7, 1), (1, 1), (2, 1)])
def test_a_grid_is_as_square_as_its_number_allows(peers: int, rows: int) -> None:
    degrees = [len(row) for row in Grid().graph(peers, 1)]
    assert sum(degrees) // 2 == rows * (peers // rows - 1) + (rows - 1) * (peers // rows)


def test_weights_of_one_peer_are_its_row() -> None:
    graph = SmallWorld(seed=9).graph(15, 1)
    matrix = mixing_matrix(graph)
    for i in range(15):
        row = weights_of(graph, i)
        np.testing.assert_array_equal([row.get(j, 0.0) for j in range(15)], matrix[i])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Ring, {"reach": 0}),
        (ErdosRenyi, {"probability": 0.0}),
        (ErdosRenyi, {"probability": 1.1}),
        (ErdosRenyi, {"probability": float("nan")}),
        (SmallWorld, {"reach": 0}),
        (SmallWorld, {"rewire": -0.1}),
        (SmallWorld, {"rewire": float("nan")}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        kind(**arguments)


def test_a_probability_too_small_to_connect_is_refused_with_a_better_one() -> None:
    with pytest.raises(ConfigError, match="raise probability to 0"):
        ErdosRenyi(0.01).graph(30, 1)
