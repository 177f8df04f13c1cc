"""Decentralized learning: peers train with their neighbours over a topology, and nobody is a server."""

from hansa.decentralized.dpsgd import DPSGD as DPSGD
from hansa.decentralized.dpsgd import PeerModel as PeerModel
from hansa.decentralized.dpsgd import PeerScores as PeerScores
from hansa.decentralized.dpsgd import PeerState as PeerState
from hansa.decentralized.topology import Complete as Complete
from hansa.decentralized.topology import ErdosRenyi as ErdosRenyi
from hansa.decentralized.topology import Exponential as Exponential
from hansa.decentralized.topology import Graph as Graph
from hansa.decentralized.topology import Grid as Grid
from hansa.decentralized.topology import Ring as Ring
from hansa.decentralized.topology import SmallWorld as SmallWorld
from hansa.decentralized.topology import Star as Star
from hansa.decentralized.topology import Topology as Topology
from hansa.decentralized.topology import Torus as Torus
from hansa.decentralized.topology import connected as connected
from hansa.decentralized.topology import mixing_matrix as mixing_matrix
from hansa.decentralized.topology import spectral_gap as spectral_gap
from hansa.decentralized.topology import weights_of as weights_of

__all__ = [
    "Complete",
    "DPSGD",
    "ErdosRenyi",
    "Exponential",
    "Graph",
    "Grid",
    "PeerModel",
    "PeerScores",
    "PeerState",
    "Ring",
    "SmallWorld",
    "Star",
    "Topology",
    "Torus",
    "connected",
    "mixing_matrix",
    "spectral_gap",
    "weights_of",
]
