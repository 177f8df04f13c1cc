"""Data: where they come from, how they are divided among parties, and how skewed the result is."""

from __future__ import annotations

from hansa.data.dataset import Dataset as Dataset
from hansa.data.dataset import arrays as arrays
from hansa.data.federated import FederatedData as FederatedData
from hansa.data.partition import Assignment as Assignment
from hansa.data.partition import Partitioner as Partitioner
from hansa.data.partitioners import IID as IID
from hansa.data.partitioners import PARTITIONERS as PARTITIONERS
from hansa.data.partitioners import ByColumn as ByColumn
from hansa.data.partitioners import Dirichlet as Dirichlet
from hansa.data.partitioners import FeatureSkew as FeatureSkew
from hansa.data.partitioners import LabelLimited as LabelLimited
from hansa.data.partitioners import QuantitySkew as QuantitySkew
from hansa.data.partitioners import Shards as Shards
from hansa.data.population import from_function as from_function
from hansa.data.population import from_parties as from_parties
from hansa.data.skew import SkewReport as SkewReport
from hansa.data.sources import SOURCES as SOURCES
from hansa.data.sources import load as load

__all__ = [
    "IID",
    "PARTITIONERS",
    "SOURCES",
    "Assignment",
    "ByColumn",
    "Dataset",
    "Dirichlet",
    "FeatureSkew",
    "FederatedData",
    "LabelLimited",
    "Partitioner",
    "QuantitySkew",
    "Shards",
    "SkewReport",
    "arrays",
    "from_function",
    "from_parties",
    "load",
]
