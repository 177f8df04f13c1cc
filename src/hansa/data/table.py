"""From the columns of a table to features and targets: numbers, categories, missing values.

A column whose present values all read as numbers is numeric; any other is text. What was done to texts is recorded in
``Dataset.mappings``.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hansa.data.dataset import Dataset, arrays
from hansa.errors import DataError, nearest
from hansa.examples import Examples

Array = npt.NDArray[Any]
MISSING = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "NULL", "null"})
MOST_CATEGORIES = 1000
MOST_CLASS_VALUES = 20
ABSENT = "missing"


@final
@dataclass(frozen=True, slots=True)
class Table:
    """Columns of texts by name, and where each row came from.

    Args:
        columns: name to the values, stripped of blanks.
        places: for each row, its file and line, for messages.
        files: for each row, its file's name without folder and ending.
    """

    columns: Mapping[str, Sequence[str]]
    places: Sequence[str]
    files: Sequence[str]


@final
@dataclass(frozen=True, slots=True)
class Reading:
    """How a table becomes a data set; the options of ``csv:`` and ``parquet:`` in their final types.

    Args:
        target: the column to predict.
        party: the column that names the party; empty for none, or for the file where there are several.
        drop: columns left out.
        encode: numeric columns that are categories nevertheless.
        missing: ``"refuse"``, ``"drop"`` (rows) or ``"mean"`` (of the column; texts get a category of their own).
        categories: ``"onehot"`` or ``"ordinal"`` (numbered in sorted order).
        drop_first: leave out the first category of each one-hot column.
        threshold: the target becomes 1 where it is above this, else 0.
        task: ``"classes"``, ``"real"``, or ``"auto"``: texts and at most 20 different whole numbers are classes.
        standardize: as in :class:`Dataset`.
    """

    target: str
    party: str = ""
    drop: tuple[str, ...] = ()
    encode: tuple[str, ...] = ()
    missing: str = "refuse"
    categories: str = "onehot"
    drop_first: bool = False
    threshold: float | None = None
    task: str = "auto"
    standardize: str = "none"


def read_csv(path: Path, header: tuple[str, ...], delimiter: str) -> Table:
    """The columns of one file; ``header`` names them where the file does not.

    Raises:
        DataError: the file is not text, is empty, or a line has too few or too many fields.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            names = list(header) or [name.strip() for name in next(reader, [])]
            rows, places = [], []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} fields where there are {len(names)} columns"
                    )
                rows.append(row)
                places.append(f"{path.name}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named '{twice}'; name the columns with header=a,b,...")
    if not rows:
        raise DataError(f"{path} has no rows")
    columns = {
        name: [value.strip() for value in column] for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    return Table(columns, places, [path.stem] * len(rows))


def joined(tables: Sequence[Table]) -> Table:
    """Tables one below the other.

    Raises:
        DataError: their columns differ.
    """
    first = tables[0]
    for table in tables[1:]:
        odd = set(first.columns) ^ set(table.columns)
        if odd:
            raise DataError(
                f"{table.places[0].split(',')[0]} and {first.places[0].split(',')[0]} differ in columns: {', '.join(sorted(odd))}"
            )
    columns = {name: [value for table in tables for value in table.columns[name]] for name in first.columns}
    places = [place for table in tables for place in table.places]
    return Table(columns, places, [file for table in tables for file in table.files])


def build(table: Table, how: Reading, name: str, held_out: int = 0) -> Dataset:
    """The data set that ``table`` is under ``how``; the last ``held_out`` rows are its own test set.

    Raises:
        DataError: a column or an option is unknown, a value is missing or unreadable.
    """
    _check(table, how, name)
    by_file = not how.party and len(set(table.files)) > 1
    skipped = {how.target, how.party, *how.drop}
    inputs = [column for column in table.columns if column not in skipped]
    if not inputs:
        raise DataError(f"{name} has no feature columns left after target, party and drop")
    tests = np.arange(len(table.places)) >= len(table.places) - held_out
    used = [*inputs, how.target, *([how.party] if how.party else [])]
    table, tests = _without_missing(table, tests, used, inputs, how, name)
    blocks: list[Array] = []
    features: list[str] = []
    mappings: dict[str, tuple[str, ...]] = {}
    for column in inputs:
        block, titles, mapping = _column(column, table.columns[column], how, name)
        blocks.append(block)
        features += titles
        if mapping:
            mappings[column] = mapping
    x = np.concatenate(blocks, axis=1)
    _finite(x, features, table.places, name)
    y, classes = _target(table.columns[how.target], table.places, how, name)
    columns = {how.party: np.asarray(table.columns[how.party])} if how.party else {}
    if by_file:
        columns["file"] = np.asarray(table.files)
    train = ~tests
    if not train.any():
        raise DataError(f"{name} has no rows left")
    dataset = arrays(
        x[train],
        y[train],
        features=features,
        classes=classes,
        columns={key: values[train] for key, values in columns.items()},
        standardize=how.standardize,
        name=name,
    )
    own = Examples(x[tests], y[tests]) if tests.any() else None
    return replace(dataset, mappings=mappings, test=own)


def _check(table: Table, how: Reading, name: str) -> None:
    if not how.target:
        raise DataError(f"{name} needs target=, the column to predict; columns: {', '.join(table.columns)}")
    asked = [
        ("target", how.target),
        ("party", how.party),
        *(("drop", c) for c in how.drop),
        *(("encode", c) for c in how.encode),
    ]
    for option, column in asked:
        if column and column not in table.columns:
            hint = nearest(column, table.columns)
            known = "" if hint.startswith("known") else f" (columns: {', '.join(table.columns)})"
            raise DataError(f"{name} has no column '{column}' for {option}: {hint}{known}")
    for option, value, allowed in (
        ("missing", how.missing, ("refuse", "drop", "mean")),
        ("categories", how.categories, ("onehot", "ordinal")),
        ("task", how.task, ("auto", "classes", "real")),
    ):
        if value not in allowed:
            raise DataError(f"{name}: {option} cannot be '{value}'; {nearest(value, allowed)}")


def _without_missing(
    table: Table, tests: npt.NDArray[np.bool_], used: list[str], inputs: list[str], how: Reading, name: str
) -> tuple[Table, npt.NDArray[np.bool_]]:
    """The table under the policy for missing values: rows dropped, or refused; means are filled in later."""
    keep = np.ones(len(table.places), bool)
    count = 0
    first = ""
    for column in used:
        if how.missing == "mean" and column in inputs:
            continue
        absent = np.fromiter((value in MISSING for value in table.columns[column]), bool, len(keep))
        if absent.any() and not first:
            first = f"column '{column}', {table.places[int(np.argmax(absent))]}"
        count += int(absent.sum())
        keep &= ~absent
    if not count:
        return table, tests
    if how.missing != "drop":
        advice = "choose missing=drop" + (" or missing=mean" if how.missing == "refuse" else "")
        raise DataError(f"{name} has {count} missing values, the first in {first}; {advice}")
    kept = np.flatnonzero(keep).tolist()
    columns = {key: [values[i] for i in kept] for key, values in table.columns.items()}
    if not kept:
        raise DataError(f"{name} has no row without a missing value; drop the columns that lack them")
    return Table(columns, [table.places[i] for i in kept], [table.files[i] for i in kept]), tests[keep]


def _numbers(values: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """The values as numbers, missing ones as NaN; None where one is not a number."""
    try:
        return np.array([np.nan if value in MISSING else float(value) for value in values])
    except ValueError:
        return None


def _column(column: str, values: Sequence[str], how: Reading, name: str) -> tuple[Array, list[str], tuple[str, ...]]:
    """A column's features, their names, and its categories if it has such."""
    numbers = _numbers(values)
    if numbers is not None and column not in how.encode:
        absent = np.isnan(numbers) & np.array([value in MISSING for value in values])
        if absent.all():
            raise DataError(f"{name}: column '{column}' has no values; drop it")
        if absent.any():
            numbers[absent] = numbers[~absent].mean()
        return numbers[:, None], [column], ()
    if numbers is None:
        filled = [ABSENT if value in MISSING else value for value in values]
        known = tuple(sorted(set(filled)))
    else:  # equal numbers may be written in several ways: 1 and 1.0
        filled = [ABSENT if np.isnan(number) else _plain(number) for number in numbers.tolist()]
        known = tuple(
            sorted(set(filled), key=lambda value: (value == ABSENT, 0.0 if value == ABSENT else float(value)))
        )
    order = {value: i for i, value in enumerate(known)}
    codes = np.array([order[value] for value in filled])
    if how.categories == "ordinal":
        return codes[:, None].astype(np.float64), [column], known
    if len(known) > MOST_CATEGORIES:
        raise DataError(
            f"{name}: column '{column}' has {len(known)} different texts, too many for one-hot features; "
            f"drop={column} leaves it out, categories=ordinal numbers them"
        )
    start = 1 if how.drop_first else 0
    onehot = codes[:, None] == np.arange(start, len(known))
    return onehot.astype(np.float64), [f"{column}={value}" for value in known[start:]], known


def _plain(number: float) -> str:
    return str(int(number)) if number.is_integer() else str(number)


def _finite(x: Array, features: Sequence[str], places: Sequence[str], name: str) -> None:
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(x.astype(np.float32)))
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(f"{name}: feature '{features[column]}' is {x[row, column]} ({places[row]}); correct or drop it")


def _target(values: Sequence[str], places: Sequence[str], how: Reading, name: str) -> tuple[Array, tuple[str, ...]]:
    """The targets: class numbers with class names, or float32 with none."""
    numbers = _numbers(values)
    if numbers is None and (how.threshold is not None or how.task == "real"):
        raise DataError(f"{name}: target '{how.target}' holds texts, so it has no threshold and no real values")
    if numbers is not None and not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DataError(f"{name}: target '{how.target}' is {values[row]} ({places[row]})")
    if numbers is not None and how.threshold is not None:
        limit = f"{how.threshold:g}"
        return (numbers > how.threshold).astype(np.int64), (f"<= {limit}", f"> {limit}")
    if numbers is None:
        known = tuple(sorted(set(values)))
        order = {value: i for i, value in enumerate(known)}
        return np.array([order[value] for value in values], dtype=np.int64), known
    distinct, codes = np.unique(numbers, return_inverse=True)
    whole = bool((distinct == np.floor(distinct)).all())
    if how.task == "classes" and not whole:
        raise DataError(
            f"{name}: target '{how.target}' holds fractions, so it is no class; set task=real or threshold="
        )
    if how.task == "classes" or (how.task == "auto" and whole and len(distinct) <= MOST_CLASS_VALUES):
        return codes.reshape(-1).astype(np.int64), tuple(_plain(value) for value in distinct.tolist())
    return numbers.astype(np.float32), ()
