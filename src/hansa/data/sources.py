"""Where data come from: ``load("scheme:rest?option=value")``, one function a scheme."""

from __future__ import annotations

import glob
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from hansa import registry
from hansa.data.dataset import Dataset, arrays
from hansa.data.table import Reading, Table, build, joined, read_csv
from hansa.errors import DataError, MissingExtra, nearest

Source = Callable[..., Dataset]
Array = npt.NDArray[Any]
Names = str | Sequence[str]

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def load(source: str | Callable[[], object], **options: object) -> Dataset:
    """The data set that ``source`` names.

    Args:
        source: ``"scheme:rest"``, with options as ``?name=value&name=value`` where they are texts; or a callable that
            returns what :func:`python` accepts.
        options: the same options as Python values.

    Raises:
        DataError: the scheme, an option or the data cannot be used.
        MissingExtra: the source needs a library that is not installed.

    >>> load("npx:table.npz")
    Traceback (most recent call last):
    hansa.errors.DataError: unknown data source 'npx': did you mean 'npz'?
    """
    if not isinstance(source, str):
        return _returned(source(**options), getattr(source, "__name__", "callable"))
    scheme, colon, rest = source.partition(":")
    if not colon:
        raise DataError(f"'{source}' is not a data source; write scheme:what, such as sklearn:digits or csv:table.csv")
    known = registry.names("sources")
    if scheme not in known:
        raise DataError(f"unknown data source '{scheme}': {nearest(scheme, known)}")
    rest, _, query = rest.partition("?")
    given: dict[str, object] = {}
    for key, value in [*parse_qsl(query, keep_blank_values=True), *options.items()]:
        if key in given:
            raise DataError(f"option '{key}' of '{source}' is given twice")
        given[key] = value
    function: Source = registry.find("sources", scheme)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        accepted = [parameter.name for parameter in parameters]
        for key in given:
            if key not in accepted:
                raise DataError(f"source '{scheme}' has no option '{key}': {nearest(key, accepted)}")
    return function(rest, **given)


def sklearn(rest: str, *, shape: Names | Sequence[int] = (), standardize: str = "none") -> Dataset:
    """One of scikit-learn's bundled sets; digits are divided by 16, so that pixels are in [0, 1].

    Args:
        rest: breast_cancer, diabetes, digits, iris or wine.
        shape, standardize: as in :func:`arrays`.
    """
    if rest not in BUNDLED:
        raise DataError(f"scikit-learn bundles no '{rest}': {nearest(rest, BUNDLED)}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtra(f"source sklearn:{rest}", "sklearn") from error
    loaders = {
        "breast_cancer": datasets.load_breast_cancer,
        "diabetes": datasets.load_diabetes,
        "digits": datasets.load_digits,
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
    }
    bunch = loaders[rest]()
    return arrays(
        bunch.data,
        bunch.target,
        features=[str(name) for name in bunch.feature_names],
        classes=[] if rest == "diabetes" else [str(name) for name in bunch.target_names],
        scale=16.0 if rest == "digits" else None,
        shape=_sizes("shape", shape),
        standardize=standardize,
        name=f"sklearn:{rest}",
    )


def npz(
    rest: str,
    *,
    x: str = "",
    y: str = "",
    x_test: str = "",
    y_test: str = "",
    party: str = "",
    scale: str | float | None = None,
    shape: Names | Sequence[int] = (),
    standardize: str = "none",
) -> Dataset:
    """A file of NumPy arrays; without options, under the keys x_train, y_train, x_test, y_test, or else x and y.

    Args:
        rest: the file.
        x, y, x_test, y_test: other keys.
        party: a key whose values name the party of each row, for ``ByColumn(party)``.
        scale, shape, standardize: as in :func:`arrays`.
    """
    name = f"npz:{rest}"
    try:
        loaded = np.load(_file(rest), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{name} is a single array; save x and y with numpy.savez")
        with loaded as archive:
            held = list(archive.files)
            key_x = x or ("x_train" if "x_train" in held else "x")
            key_y = y or ("y_train" if "y_train" in held else "y")
            keys = [key_x, key_y, *([party] if party else [])]
            tests = [x_test or "x_test", y_test or "y_test"]
            keys += tests if x_test or y_test or all(key in held for key in tests) else []
            for key in keys:
                if key not in held:
                    raise DataError(f"{name} has no array '{key}': {nearest(key, held)}; its keys: {', '.join(held)}")
            found = {key: archive[key] for key in keys}
    except (ValueError, BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{name} cannot be read as a file of plain arrays: {error}") from error
    return arrays(
        found[key_x],
        found[key_y],
        test=(found[tests[0]], found[tests[1]]) if tests[0] in found else None,
        columns={party: found[party]} if party else None,
        scale=_number("scale", scale),
        shape=_sizes("shape", shape),
        standardize=standardize,
        name=name,
    )


def csv(
    rest: str,
    *,
    target: str = "",
    party: str = "",
    drop: Names = "",
    encode: Names = "",
    header: Names = "",
    delimiter: str = ",",
    missing: str = "refuse",
    categories: str = "onehot",
    drop_first: str | bool = False,
    threshold: str | float | None = None,
    task: str = "auto",
    test: str = "",
    standardize: str = "none",
) -> Dataset:
    """A table of texts, or several of the same columns.

    Args:
        rest: the file, or a pattern of several (``hospitals/*.csv``); then each file is a party for ``ByColumn("file")``.
        target: the column to predict.
        party: the column that names the party, for ``ByColumn(party)``; not a feature.
        drop, encode: columns left out, and numeric columns that are categories; separated by commas.
        header: the columns' names, where the file has none.
        delimiter: what divides fields.
        missing: "refuse", "drop" (rows) or "mean"; missing is an empty field, ?, NA, N/A, NaN or null.
        categories: "onehot" or "ordinal", for columns of texts.
        drop_first: leave out the first category of each one-hot column.
        threshold: the target becomes 1 where it is above this, else 0.
        task: "classes", "real", or "auto": texts and at most 20 different whole numbers are classes.
        test: a file of the same columns that is the central test set.
        standardize: "none", "global" or "party".
    """
    if len(delimiter) != 1:
        raise DataError(f"csv:{rest}: delimiter must be one character, not {delimiter!r}")
    titles = _list(header)
    tables = [read_csv(path, titles, delimiter) for path in _files(rest)]
    own = read_csv(_file(test), titles, delimiter) if test else None
    how = _reading(target, party, drop, encode, missing, categories, drop_first, threshold, task, standardize)
    return _from_tables(tables, own, how, f"csv:{rest}")


def parquet(
    rest: str,
    *,
    target: str = "",
    party: str = "",
    drop: Names = "",
    encode: Names = "",
    missing: str = "refuse",
    categories: str = "onehot",
    drop_first: str | bool = False,
    threshold: str | float | None = None,
    task: str = "auto",
    test: str = "",
    standardize: str = "none",
) -> Dataset:
    """A Parquet table, or several of the same columns; options as for :func:`csv`."""
    tables = [_read_parquet(path) for path in _files(rest)]
    own = _read_parquet(_file(test)) if test else None
    how = _reading(target, party, drop, encode, missing, categories, drop_first, threshold, task, standardize)
    return _from_tables(tables, own, how, f"parquet:{rest}")


def hf(
    rest: str,
    *,
    x: str = "",
    y: str = "",
    split: str = "train",
    test: str = "",
    config: str = "",
    party: str = "",
    scale: str | float | None = None,
    shape: Names | Sequence[int] = (),
    standardize: str = "none",
) -> Dataset:
    """A data set of Hugging Face ``datasets``: a folder written by ``save_to_disk``, or a name on the hub.

    Args:
        rest: the folder or the name.
        x: columns of features, separated by commas; empty for all but the target and the party.
        y: the column to predict; empty for ``label``.
        split, test: which split to divide, and which is the central test set (empty for none).
        config: the configuration, where the hub has several.
        party: a column that names the party, for ``ByColumn(party)``.
        scale, shape, standardize: as in :func:`arrays`.
    """
    name = f"hf:{rest}"
    splits = _splits(rest, config, split)
    target = y or "label"
    parts: list[tuple[Array, Array]] = []
    column: Array | None = None
    names: list[str] = []
    for wanted in [split, *([test] if test else [])]:
        if wanted not in splits:
            raise DataError(f"{name} has no split '{wanted}': {nearest(wanted, splits)}")
        table = splits[wanted].with_format("numpy")
        inputs = _list(x) or tuple(key for key in table.column_names if key not in (target, party))
        for key in [*inputs, target, *([party] if party else [])]:
            if key not in table.column_names:
                raise DataError(f"{name} has no column '{key}': {nearest(key, table.column_names)}")
        stacked = [_stacked(table[key][:], key, name) for key in inputs]
        parts.append((stacked[0] if len(stacked) == 1 else np.column_stack(stacked), np.asarray(table[target][:])))
        if column is None:
            names = list(getattr(table.features[target], "names", None) or [])
            column = np.asarray(table[party][:]) if party else np.zeros(0)
    return arrays(
        *parts[0],
        test=parts[1] if test else None,
        classes=names,
        columns={party: column} if party and column is not None else None,
        scale=_number("scale", scale),
        shape=_sizes("shape", shape),
        standardize=standardize,
        name=name,
    )


def _splits(rest: str, config: str, split: str) -> dict[str, Any]:
    """The splits of a Hugging Face data set by name; one without splits is its ``split``."""
    name = f"hf:{rest}"
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(f"source {name}", "hf") from error
    try:
        found = datasets.load_from_disk(rest) if Path(rest).is_dir() else datasets.load_dataset(rest, config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    return dict(found) if isinstance(found, dict) else {split: found}


def python(rest: str, **options: object) -> Dataset:
    """What a function of yours returns: the way for images, text and whatever has no scheme.

    Args:
        rest: ``package.module:function``, which is imported and called.
        options: passed to the function; texts where they come from the source's own text.

    Returns: of a :class:`Dataset`, itself; of (x, y) or (x, y, x_test, y_test), what :func:`arrays` makes of them.
    """
    module, colon, attribute = rest.partition(":")
    if not (module and colon and attribute):
        raise DataError(f"'python:{rest}' must be python:package.module:function")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"python:{rest} cannot be imported: {error}") from error
    known = [name for name, value in vars(found).items() if callable(value)]
    if attribute not in known:
        raise DataError(f"module {module} has no function '{attribute}': {nearest(attribute, known)}")
    return _returned(vars(found)[attribute](**options), f"python:{rest}")


def _returned(value: object, name: str) -> Dataset:
    if isinstance(value, Dataset):
        return value
    if isinstance(value, tuple) and len(value) in (2, 4):
        return arrays(value[0], value[1], test=(value[2], value[3]) if len(value) == 4 else None, name=name)
    raise DataError(f"{name} must return (x, y), (x, y, x_test, y_test) or a Dataset, not {type(value).__name__}")


def _from_tables(tables: list[Table], own: Table | None, how: Reading, name: str) -> Dataset:
    files = [table.files[0] for table in tables]
    if len(set(files)) < len(files):
        raise DataError(f"{name}: two files have the same name, so they cannot name the parties; rename one")
    together = joined([*tables, *([own] if own else [])])
    return build(together, how, name, len(own.places) if own else 0)


def _reading(
    target: str,
    party: str,
    drop: Names,
    encode: Names,
    missing: str,
    categories: str,
    drop_first: str | bool,
    threshold: str | float | None,
    task: str,
    standardize: str,
) -> Reading:
    limit, first = _number("threshold", threshold), _flag("drop_first", drop_first)
    return Reading(target, party, _list(drop), _list(encode), missing, categories, first, limit, task, standardize)


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow import parquet as reader
    except ImportError as error:
        raise MissingExtra(f"source parquet:{path}", "parquet") from error
    try:
        table = reader.read_table(path)
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    if not table.num_rows:
        raise DataError(f"{path} has no rows")
    columns = {
        name: ["" if value is None else _text(value) for value in table[name].to_pylist()]
        for name in table.column_names
    }
    return Table(columns, [f"{path.name}, row {i}" for i in range(table.num_rows)], [path.stem] * table.num_rows)


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value).strip()


def _stacked(values: Any, column: str, name: str) -> Array:
    """A column as one array of numbers; images of one size are stacked."""
    array = np.asarray(values)
    if array.dtype != object:
        return array
    try:
        return np.stack([np.asarray(value) for value in array])
    except ValueError as error:
        raise DataError(f"{name}: values of column '{column}' differ in shape; prepare them in a function") from error


def _file(path: str) -> Path:
    found = Path(path)
    if found.is_file():
        return found
    if found.is_dir():
        raise DataError(f"{path} is a folder; name a file in it, or several with {path.rstrip('/')}/*")
    folder = found.parent
    if not folder.is_dir():
        raise DataError(f"there is no file {path}, and no folder {folder}")
    raise DataError(
        f"there is no file {path}: {nearest(found.name, [entry.name for entry in folder.iterdir()][:1000])}"
    )


def _files(pattern: str) -> list[Path]:
    if Path(pattern).is_file() or not glob.has_magic(pattern):
        return [_file(pattern)]
    found = [Path(path) for path in sorted(glob.glob(pattern)) if Path(path).is_file()]
    if not found:
        raise DataError(f"no file matches {pattern}")
    return found


def _list(value: Names) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else tuple(value)


def _number(option: str, value: str | float | None) -> float | None:
    try:
        return None if value is None or value == "" else float(value)
    except ValueError:
        raise DataError(f"option '{option}' must be a number, not '{value}'") from None


def _sizes(option: str, value: Names | Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (_list(value) if isinstance(value, str) else value))
    except ValueError:
        raise DataError(f"option '{option}' must be whole numbers separated by commas, not '{value}'") from None


def _flag(option: str, value: str | bool) -> bool:
    known = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "": True}
    text = str(value).lower()
    if text not in known:
        raise DataError(f"option '{option}' must be yes or no, not '{value}'")
    return known[text]


SOURCES: dict[str, Source] = {
    "csv": csv,
    "hf": hf,
    "npz": npz,
    "parquet": parquet,
    "python": python,
    "sklearn": sklearn,
}
"""Scheme to the function that reads it; ``hansa.registry`` adds those of other packages."""
