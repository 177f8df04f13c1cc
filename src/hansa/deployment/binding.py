"""What the name of a data set means on one party's machine.

A plan names no files. The file of a node (or of the hub, for the server's own test set) binds names to local data::

    [data.hearts]
    source = "csv:hearts.csv"
    test = 0.2
    options = { target = "disease" }
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final
from urllib.parse import parse_qsl, urlencode

import numpy as np

from hansa import data as sources
from hansa import schema
from hansa.data import IID, Dataset, FederatedData, Partitioner
from hansa.data.partition import check_share
from hansa.deployment.shape import DataShape, shape_of
from hansa.errors import ConfigError, DataError, HansaError, nearest
from hansa.examples import Examples, Shard

FILES: Final = ("csv", "parquet", "npz")
"""The schemes whose rest is a file or a pattern of files."""
OWN_TEST: Final = ("csv", "parquet")
"""Those whose option ``test`` is a file too."""


@final
@dataclass(frozen=True)
class Binding:
    """One ``[data.<name>]`` table.

    Without a partition all rows of the source are this party's. With one, the source is a data set of all parties, as in a
    simulation, and this party holds the part of it that is called ``party``.

    Args:
        source: ``"scheme:rest"``, as for :func:`hansa.data.load`.
        test: the share of the rows that is kept for testing, in [0, 1).
        seed: of the division.
        options: further settings of the source.
        classes: the names of the classes in the order of their numbers. A table of texts numbers those that it has; parties
            whose tables have not the same ones must all say the same list here, or their numbers mean different things.
        partition: a registered partitioner.
        parties: among how many the source is divided; None where the data says it.
        party: whose part this is: a number from 0, or a name.

    Raises:
        DataError: two of these do not fit together.
    """

    source: str
    test: float = 0.2
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    partition: Partitioner | None = None
    parties: int | None = None
    party: int | str | None = None

    def __post_init__(self) -> None:
        if ":" not in self.source:
            raise DataError(
                f"{self.source!r} is not a data source; write scheme:what, such as sklearn:digits or csv:table.csv"
            )
        check_share(self.test)
        if len(set(self.classes)) < len(self.classes):
            raise DataError("classes: two classes have the same name")
        if self.partition is None:
            for name in ("party", "parties"):
                if getattr(self, name) is not None:
                    raise DataError(f"{name} says which part of a partition this is, but there is no partition")
        elif self.party is None:
            raise DataError("a partition divides the source among parties; say with party which of them this is")
        if isinstance(self.party, int) and self.party < 0:
            raise DataError(f"party is a number from 0 or a name, not {self.party}")
        if self.parties is not None and self.parties < 1:
            raise DataError(f"parties must be at least 1, not {self.parties}")

    def plain(self) -> dict[str, Any]:
        """The binding as plain data, for a message; :func:`read` gives it back."""
        table: dict[str, Any] = schema.write(self)
        return table


def read(table: Mapping[str, Any]) -> Binding:
    """The binding that plain data mean.

    >>> read({"source": "sklearn:iris", "partition": "iid", "parties": 3, "party": 1}).partition
    IID(examples=None)

    Raises:
        ConfigError: they mean none; every reason at once.
    """
    mistakes: list[str] = []
    found = schema.build(Binding, table, "data", lambda place, sentence: mistakes.append(f"[{place}] {sentence}"))
    if not isinstance(found, Binding):
        raise ConfigError("\n".join(mistakes))
    return found


def rooted(binding: Binding, folder: Path) -> Binding:
    """The same binding with the paths of its files made absolute: relative ones start at ``folder``.

    Paths are the files of csv, parquet and npz with the options that name files, and a folder of hf that is there. What other
    sources mean by their text is theirs.

    >>> rooted(Binding("csv:hearts.csv"), Path("/srv/hansa")).source
    'csv:/srv/hansa/hearts.csv'
    """
    scheme, _, rest = binding.source.partition(":")
    rest, mark, query = rest.partition("?")
    options = dict(binding.options)
    if scheme in FILES:
        rest = _rooted(rest, folder)
    elif scheme == "hf" and (folder / rest).is_dir():
        rest = str(folder / rest)
    if scheme in OWN_TEST:
        if isinstance(options.get("test"), str) and options["test"]:
            options["test"] = str(folder / options["test"])
        pairs = parse_qsl(query, keep_blank_values=True)
        if any(key == "test" for key, _ in pairs):
            query = urlencode(
                [(key, str(folder / value) if key == "test" and value else value) for key, value in pairs]
            )
    if "?" in rest:
        raise DataError(f"{rest}: a path with '?' cannot be read, because options follow there; move the file")
    return replace(binding, source=f"{scheme}:{rest}{mark}{query}", options=options)


def _rooted(rest: str, folder: Path) -> str:
    path = folder / rest
    if Path(rest).is_absolute() or not glob.has_magic(rest) or path.is_file():
        return str(path)
    # A folder called [a] is no pattern, whatever stands behind it.
    return str(Path(glob.escape(str(folder))) / rest)


def absent(binding: Binding) -> list[str]:
    """The files that a binding names and that are not there: of csv, parquet and npz; of other sources nothing is known.

    Args:
        binding: with absolute paths, see :func:`rooted`.

    >>> absent(Binding("csv:/no/such/hearts.csv")), absent(Binding("sklearn:iris"))
    (['/no/such/hearts.csv'], [])
    """
    scheme, _, rest = binding.source.partition(":")
    path, _, query = rest.partition("?")
    named = [path] if scheme in FILES else []
    if scheme in OWN_TEST:
        tests = [binding.options.get("test"), *(value for key, value in parse_qsl(query) if key == "test")]
        named += [test for test in tests if isinstance(test, str) and test]
    return [one for one in named if not os.path.exists(one) and not glob.glob(one)]


def load(binding: Binding, many: bool) -> Shard:
    """The data that a party's program gets.

    *Guarantees*: without a partition, the division of ``IID()`` with one party; with one, for a party that owns data the same
    rows in the same order as the shard of that party in a simulation, for another role what the simulation's has.

    Args:
        binding: with absolute paths, see :func:`rooted`.
        many: whether the role is one of those that own the data. Otherwise nothing is for training, and the test set is the
            source's own, or else the test rows of all its parties.

    Raises:
        DataError: they cannot be used; one sentence.
        MissingExtra: the source needs a library that is not installed.

    >>> shard = load(Binding("sklearn:iris"), many=True)
    >>> len(shard.train), len(shard.test), len(load(Binding("sklearn:iris"), many=False).train)
    (120, 30, 0)
    """
    divided = _divided(binding)
    if many:
        return divided.shard(0 if binding.partition is None else _number(binding, divided))
    central = divided.central_test
    return Shard(Examples(*central.base, np.zeros(0, np.int64)), central)


def measure(binding: Binding) -> DataShape:
    """The shape of the data.

    Raises:
        DataError: they cannot be used; one sentence.
        MissingExtra: the source needs a library that is not installed.
    """
    return shape_of(_divided(binding))


def _divided(binding: Binding) -> FederatedData:
    try:
        dataset = _classed(sources.load(binding.source, **binding.options), binding.classes)
        if binding.partition is None:
            return dataset.partition(IID(), parties=1, seed=binding.seed, test=binding.test)
        return dataset.partition(binding.partition, parties=binding.parties, seed=binding.seed, test=binding.test)
    except HansaError:
        raise
    except Exception as error:  # a source or a partitioner of somebody else may raise anything
        what = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{binding.source} cannot be used: {type(error).__name__}{': ' if what else ''}{what}"
        ) from error


def _number(binding: Binding, divided: FederatedData) -> int:
    if isinstance(binding.party, int):
        return binding.party
    assert binding.party is not None
    names = list(divided.names)
    if binding.party not in names:
        raise DataError(f"{binding.source} has no party {binding.party!r}; {nearest(binding.party, names)}")
    return names.index(binding.party)


def _classed(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The data set with its classes numbered as in ``classes``, which may have more."""
    if not classes:
        return dataset
    if not dataset.classes:
        raise DataError(f"{dataset.name} has real targets, so the binding's list of classes does not fit")
    unknown = [name for name in dataset.classes if name not in classes]
    if unknown:
        raise DataError(f"{dataset.name} has the class {unknown[0]!r}, which the binding's list of classes has not")
    number = np.array([classes.index(name) for name in dataset.classes], dtype=np.int64)
    own = dataset.test
    return replace(
        dataset,
        y=number[dataset.y],
        classes=classes,
        test=None if own is None else Examples(own.x, number[own.y]),
    )
