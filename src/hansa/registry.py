"""Names for extension points: what a plan's text can name, whether it comes with Hansa or with another package.

A third party adds to a group by declaring an entry point in its own ``pyproject.toml``; nothing in Hansa changes::

    [project.entry-points."hansa.protocols"]
    fedmine = "fedmine:FedMine"

Entries are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal, get_args

from hansa.errors import ConfigError, nearest

Group = Literal["protocols", "learners", "stages", "partitioners", "sources", "samplings", "topologies"]

GROUPS: Final[tuple[str, ...]] = get_args(Group)

BUILT_IN: Final[Mapping[str, Mapping[str, str]]] = {
    "protocols": {
        "fedsgd": "hansa.horizontal.fedsgd:FedSGD",
        "fedavg": "hansa.horizontal.fedavg:FedAvg",
        "fedprox": "hansa.horizontal.fedprox:FedProx",
        "fedavgm": "hansa.horizontal.fedopt:FedAvgM",
        "fedadagrad": "hansa.horizontal.fedopt:FedAdagrad",
        "fedadam": "hansa.horizontal.fedopt:FedAdam",
        "fedyogi": "hansa.horizontal.fedopt:FedYogi",
        "scaffold": "hansa.horizontal.scaffold:Scaffold",
        "fednova": "hansa.horizontal.fednova:FedNova",
        "fedbuff": "hansa.horizontal.fedbuff:FedBuff",
        "cyclic": "hansa.horizontal.cyclic:Cyclic",
        "dpsgd": "hansa.decentralized.dpsgd:DPSGD",
    },
    "learners": {
        "torch": "hansa.learners:Torch",
        "sklearn": "hansa.learners:Sklearn",
        "linear": "hansa.learners:Linear",
        "softmax": "hansa.learners:Softmax",
        "mlp": "hansa.learners:MLP",
    },
    "stages": {
        "clip": "hansa.aggregation.clip:Clip",
        "mean": "hansa.aggregation.mean:Averaging",
    },
    "partitioners": {
        "iid": "hansa.data:IID",
        "dirichlet": "hansa.data:Dirichlet",
        "shards": "hansa.data:Shards",
        "label_limited": "hansa.data:LabelLimited",
        "quantity_skew": "hansa.data:QuantitySkew",
        "feature_skew": "hansa.data:FeatureSkew",
        "by_column": "hansa.data:ByColumn",
    },
    "sources": {
        "npz": "hansa.data.sources:npz",
        "csv": "hansa.data.sources:csv",
        "parquet": "hansa.data.sources:parquet",
        "sklearn": "hansa.data.sources:sklearn",
        "hf": "hansa.data.sources:hf",
        "python": "hansa.data.sources:python",
    },
    "samplings": {
        "uniform": "hansa.horizontal.sampling:Uniform",
        "weighted": "hansa.horizontal.sampling:Weighted",
        "poisson": "hansa.horizontal.sampling:Poisson",
        "fixed": "hansa.horizontal.sampling:Fixed",
    },
    "topologies": {
        "ring": "hansa.decentralized.topology:Ring",
        "torus": "hansa.decentralized.topology:Torus",
        "grid": "hansa.decentralized.topology:Grid",
        "complete": "hansa.decentralized.topology:Complete",
        "star": "hansa.decentralized.topology:Star",
        "exponential": "hansa.decentralized.topology:Exponential",
        "erdos_renyi": "hansa.decentralized.topology:ErdosRenyi",
        "small_world": "hansa.decentralized.topology:SmallWorld",
    },
}
"""What comes with Hansa: group, name, and where it is."""

ABSTRACT: Final[Mapping[str, str]] = {
    "hansa.protocol:Protocol": "protocols",
    "hansa.learner:Learner": "learners",
    "hansa.horizontal.sampling:Sampling": "samplings",
    "hansa.decentralized.topology:Topology": "topologies",
    "hansa.data.partition:Partitioner": "partitioners",
}
"""The group whose entries can stand where a field is annotated with this class."""


def find(group: str, name: str) -> Any:
    """The entry ``name`` of ``group``, imported.

    Raises:
        ConfigError: there is no such entry; suggests the nearest.
        MissingExtra: it is there, but its library is not installed.
    """
    known = names(group)
    place = known.get(_plain(name))
    if place is None:
        raise ConfigError(f"no {_singular(group)} is named {name!r}; {nearest(name, known)}")
    module, _, attribute = place.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"the {_singular(group)} {name!r} at {place} cannot be imported: {error}") from error
    try:
        return getattr(loaded, attribute)
    except AttributeError as error:
        raise ConfigError(f"the {_singular(group)} {name!r} is declared at {place}, but {error}") from error


def names(group: str) -> dict[str, str]:
    """All names of ``group`` with where each is: those of Hansa first, then those of other packages."""
    if group not in BUILT_IN:
        raise ConfigError(f"there is no group {group!r}; {nearest(group, BUILT_IN)}")
    known = dict(BUILT_IN[group])
    for point in _entry_points(group):
        known.setdefault(_plain(point.name), point.value)
    return known


def name_of(group: str, kind: type) -> str | None:
    """The name under which ``kind`` is registered in ``group``, or None. Imports an entry only if its name is the class's own."""
    place = f"{kind.__module__}:{kind.__qualname__}"
    for name, where in names(group).items():
        if where == place:
            return name
    for name in names(group):
        if name.replace("_", "") == kind.__name__.lower() and find(group, name) is kind:
            return name
    return None


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"hansa.{group}"))


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _singular(group: str) -> str:
    return {"topologies": "topology"}.get(group, group.removesuffix("s"))
