"""Where data come from: ``load("scheme:rest?option=value")``, one function a scheme."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from urllib.parse import parse_qsl

from hansa.data.dataset import Dataset, arrays
from hansa.errors import DataError, MissingExtra, nearest

Source = Callable[..., Dataset]

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def load(source: str, **options: object) -> Dataset:
    """The data set that ``source`` names.

    Args:
        source: ``"scheme:rest"``, with options as ``?name=value&name=value`` where they are texts.
        options: the same options as Python values.

    Raises:
        DataError: the scheme, an option or the data cannot be used.
        MissingExtra: the source needs a library that is not installed.

    >>> load("npy:x.npy")
    Traceback (most recent call last):
    hansa.errors.DataError: unknown data source 'npy': did you mean 'npz'?
    """
    scheme, colon, rest = source.partition(":")
    if not colon:
        raise DataError(f"'{source}' is not a data source; write scheme:what, such as sklearn:digits or csv:table.csv")
    if scheme not in SOURCES:
        raise DataError(f"unknown data source '{scheme}': {nearest(scheme, SOURCES)}")
    rest, _, query = rest.partition("?")
    given: dict[str, object] = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in options.items():
        if key in given:
            raise DataError(f"option '{key}' of '{source}' is given twice")
        given[key] = value
    function = SOURCES[scheme]
    accepted = list(inspect.signature(function).parameters)[1:]
    for key in given:
        if key not in accepted:
            known = nearest(key, accepted) if accepted else "it has none"
            raise DataError(f"source '{scheme}' has no option '{key}': {known}")
    return function(rest, **given)


def sklearn(rest: str, *, standardize: str = "none") -> Dataset:
    """One of scikit-learn's bundled sets; digits are divided by 16, so that pixels are in [0, 1].

    Args:
        rest: breast_cancer, diabetes, digits, iris or wine.
        standardize: as in :class:`Dataset`.
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
    names = [] if rest == "diabetes" else [str(name) for name in bunch.target_names]
    return arrays(
        bunch.data,
        bunch.target,
        features=[str(name) for name in bunch.feature_names],
        classes=names,
        scale=16.0 if rest == "digits" else None,
        standardize=standardize,
        name=f"sklearn:{rest}",
    )


SOURCES: dict[str, Source] = {"sklearn": sklearn}
