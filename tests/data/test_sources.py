"""Sources read what they say, and refuse the rest with one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa.data as d
from hansa.errors import DataError, MissingExtra

PLAIN = "age,sex,site,sick\n30,f,north,no\n40,m,south,yes\n50,f,north,yes\n60,m,south,no\n"
COLUMNS = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num"


def write(folder: Path, text: str, name: str = "table.csv") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_csv_encodes_texts_and_remembers_how(tmp_path: Path) -> None:
    data = d.load(f"csv:{write(tmp_path, PLAIN)}?target=sick&party=site")
    assert data.features == ("age", "sex=f", "sex=m")
    assert data.x.tolist() == [[30, 1, 0], [40, 0, 1], [50, 1, 0], [60, 0, 1]]
    assert data.x.dtype == np.float32
    assert data.classes == ("no", "yes")
    assert data.y.tolist() == [0, 1, 1, 0]
    assert data.mappings == {"sex": ("f", "m")}
    assert list(data.partition(d.ByColumn("site"), test=0.0).names) == ["north", "south"]


def test_csv_options(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN)
    assert d.load(f"csv:{path}", target="sick", categories="ordinal", drop=["site"]).features == ("age", "sex")
    assert d.load(f"csv:{path}?target=sick&drop=site,age&drop_first=yes").features == ("sex=m",)
    assert d.load(f"csv:{path}?target=age&threshold=45&drop=site").y.tolist() == [0, 0, 1, 1]
    real = d.load(f"csv:{path}?target=age&task=real&drop=site")
    assert real.classes == () and real.y.dtype == np.float32
    assert d.load(f"csv:{path}?target=age").classes == ("30", "40", "50", "60")
    own = d.load(f"csv:{path}?target=sick&test={write(tmp_path, PLAIN[:50].rsplit(chr(10), 1)[0], 'more.csv')}")
    assert own.test is not None and len(own.test) == 2 and len(own) == 4


def test_equal_numbers_written_differently_are_one_category(tmp_path: Path) -> None:
    path = write(tmp_path, "cp,y\n1,0\n1.0,1\n10,1\n2.5,0\n")
    assert d.load(f"csv:{path}?target=y&encode=cp").features == ("cp=1", "cp=2.5", "cp=10")


def test_missing_values_follow_the_policy(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,y\n1,u,0\n?,v,1\n3, ,1\n")
    with pytest.raises(DataError, match=r"2 missing values, the first in column 'a', table\.csv, line 3"):
        d.load(f"csv:{path}?target=y")
    assert d.load(f"csv:{path}?target=y&missing=drop").x.tolist() == [[1.0, 1.0]]
    mean = d.load(f"csv:{path}?target=y&missing=mean")
    assert mean.features == ("a", "b=missing", "b=u", "b=v")
    assert mean.x[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert len(d.load(f"csv:{path}?target=y&missing=drop&drop=b")) == 2


def test_several_files_are_parties(tmp_path: Path) -> None:
    write(tmp_path, "a,y\n1,0\n2,1\n", "north.csv")
    write(tmp_path, "a,y\n3,0\n", "south.csv")
    fed = d.load(f"csv:{tmp_path}/*.csv?target=y").partition(d.ByColumn("file"), test=0.0)
    assert list(fed.names) == ["north", "south"]
    assert fed.sizes.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "query", "words"),
    [
        (PLAIN, "", "needs target="),
        (PLAIN, "?target=sik", "did you mean 'sick'?"),
        (PLAIN, "?target=zzz", "known: age, sex, sick, site"),
        (PLAIN, "?target=sick&party=sit", "for party: did you mean 'site'?"),
        (PLAIN, "?target=sick&drop=age,foo", "no column 'foo' for drop"),
        (PLAIN, "?target=sick&encode=aeg", "for encode"),
        (PLAIN, "?taget=sick", "no option 'taget': did you mean 'target'?"),
        (PLAIN, "?target=sick&target=age", "given twice"),
        (PLAIN, "?target=sick&missing=skip", "missing cannot be 'skip'"),
        (PLAIN, "?target=sick&categories=hot", "categories cannot be 'hot'"),
        (PLAIN, "?target=sick&task=guess", "task cannot be"),
        (PLAIN, "?target=sick&standardize=all", "standardize must be one of"),
        (PLAIN, "?target=sick&threshold=x", "'threshold' must be a number"),
        (PLAIN, "?target=sick&threshold=1", "holds texts"),
        (PLAIN, "?target=sick&drop_first=maybe", "yes or no"),
        (PLAIN, "?target=sick&delimiter=", "one character"),
        (PLAIN, "?target=sick&drop=age,sex,site", "no feature columns left"),
        ("a,y\n1,0\n2\n", "?target=y", "line 3: 1 fields where there are 2 columns"),
        ("a,a,y\n1,1,0\n", "?target=y", "two columns named 'a'"),
        ("a,y\n", "?target=y", "has no rows"),
        ("", "?target=y", "has no rows"),
        ("a,y\ninf,0\n", "?target=y", "feature 'a' is inf (table.csv, line 2)"),
        ("a,y\n1,inf\n", "?target=y", "target 'y' is inf"),
        ("a,y\n1,?\n", "?target=y&missing=mean", "1 missing values, the first in column 'y'"),
        ("a,y\n?,1\n", "?target=y&missing=drop", "no row without a missing value"),
        ("a,y\n?,1\n", "?target=y&missing=mean", "has no values"),
        ("a,y\n1,0.5\n", "?target=y&task=classes", "holds fractions"),
        ('a,y\n"1,0\n', "?target=y", "cannot be read as CSV"),
        ("id,y\n" + "".join(f"p{i},0\n" for i in range(1001)), "?target=y", "1001 different texts"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, query: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        d.load(f"csv:{write(tmp_path, text)}{query}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a,y\n1,0\n", "one.csv")
    write(tmp_path, "b,y\n1,0\n", "two.csv")
    (tmp_path / "latin.txt").write_bytes(b"a,y\n\xe9,1\n")
    for source, words in (
        (f"csv:{tmp_path}/*.csv?target=y", "differ in columns: a, b"),
        (f"csv:{tmp_path}/ona.csv?target=y", "did you mean 'one.csv'?"),
        (f"csv:{tmp_path}?target=y", "is a folder"),
        (f"csv:{tmp_path}/nowhere/x.csv?target=y", "no folder"),
        (f"csv:{tmp_path}/*.tsv?target=y", "no file matches"),
        (f"csv:{tmp_path}/latin.txt?target=y", "cannot be read as CSV"),
    ):
        with pytest.raises(DataError) as caught:
            d.load(source)
        assert words in str(caught.value)


def test_parquet_reads_as_the_same_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {"age": [30, 40, 50, None], "sex": ["f", "m", "f", "m"], "ok": [True, False, True, True], "y": [0, 1, 1, 0]}
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    text = write(tmp_path, "age,sex,ok,y\n30,f,1,0\n40,m,0,1\n50,f,1,1\n,m,1,0\n")
    one = d.load(f"parquet:{tmp_path}/t.parquet?target=y&missing=mean")
    two = d.load(f"csv:{text}?target=y&missing=mean")
    assert one.features == two.features
    assert np.array_equal(one.x, two.x) and np.array_equal(one.y, two.y)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        d.load(f"parquet:{text}?target=y")


def test_npz_keys(tmp_path: Path) -> None:
    x, y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1], who=y)
    data = d.load(f"npz:{tmp_path}/a.npz?party=who")
    assert data.test is not None and len(data.test) == 1
    fed = data.partition(d.ByColumn("who"), test=0.0)
    assert list(fed.names) == ["0", "1"] and len(fed.central_test) == 1
    np.savez(tmp_path / "b.npz", x=x, y=y)
    assert d.load(f"npz:{tmp_path}/b.npz?scale=2&shape=2,1").x.tolist() == (x / 2).reshape(3, 2, 1).tolist()
    np.savez(tmp_path / "c.npz", x=np.array([{}], object), y=y[:1])
    np.save(tmp_path / "d.npy", x)
    write(tmp_path, "text", "e.npz")
    for rest, words in (
        ("b.npz?x=xx", "no array 'xx'"),
        ("b.npz?shape=a", "whole numbers"),
        ("c.npz", "cannot be read"),
        ("d.npy", "single array"),
        ("e.npz", "cannot be read"),
    ):
        with pytest.raises(DataError, match=words):
            d.load(f"npz:{tmp_path}/{rest}")


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "digits", "iris", "wine"])
def test_bundled_sets(name: str) -> None:
    pytest.importorskip("sklearn")
    data = d.load(f"sklearn:{name}")
    assert data.x.dtype == np.float32
    assert bool(data.classes) == (name != "diabetes")
    if name == "digits":
        assert data.x.shape == (1797, 64) and data.x.max() == 1.0
        assert d.load("sklearn:digits?shape=1,8,8").x.shape == (1797, 1, 8, 8)


def test_hugging_face_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "a": datasets.Value("float32"),
            "b": datasets.Value("int64"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"a": [0.5, 1.5, 2.5], "b": [1, 2, 3], "label": [0, 1, 1]}
    both = datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(rows, features=features) for split in ("train", "test")}
    )
    both.save_to_disk(str(tmp_path / "set"))
    data = d.load(f"hf:{tmp_path}/set?test=test")
    assert data.classes == ("no", "yes")
    assert data.x.tolist() == [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]]
    assert data.test is not None and len(data.test) == 3
    for query, words in (
        ("?y=lable", "did you mean 'label'?"),
        ("?split=trian", "no split 'trian'"),
        ("?x=c", "no column 'c'"),
    ):
        with pytest.raises(DataError) as caught:
            d.load(f"hf:{tmp_path}/set{query}")
        assert words in str(caught.value)


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, source, extra in (
        ("sklearn", "sklearn:digits", "sklearn"),
        ("pyarrow", f"parquet:{write(tmp_path, PLAIN)}?target=sick", "parquet"),
        ("datasets", "hf:mnist", "hf"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtra) as caught:
            d.load(source)
        assert caught.value.extra == extra


def test_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        "def rows(n='2'):\n    return [[0.0]] * int(n), [0] * int(n)\ndef bad():\n    return 3\n",
        "mine_77.py",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(d.load("python:mine_77:rows?n=5")) == 5
    assert len(d.load(lambda: ([[1.0]], [0], [[1.0]], [0]))) == 1
    for source, words in (
        ("python:mine_77:row", "did you mean 'rows'?"),
        ("python:mine_77:bad", "must return"),
        ("python:mine_77", "must be python:package"),
        ("python:no_such_module_77:f", "cannot be imported"),
    ):
        with pytest.raises(DataError) as caught:
            d.load(source)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digits", "write scheme:what"),
        ("scv:a.csv", "did you mean 'csv'?"),
        ("sklearn:digts", "did you mean 'digits'?"),
    ],
)
def test_unknown_sources(source: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        d.load(source)
    assert words in str(caught.value)


def test_four_hospitals_have_the_published_counts(real_data: Callable[[str], Path]) -> None:
    """FLamby v0.1.0, Fed-Heart-Disease: 13 features; train/test rows 199/104, 172/89, 30/16, 85/45."""
    selection = pytest.importorskip("sklearn.model_selection")
    data = d.load(
        f"csv:{real_data('heart-disease-4-hospitals')}/processed.*.data", header=COLUMNS, target="num", threshold=0, drop="slope,ca,thal",
        missing="drop", encode="cp,restecg", drop_first=True,
    )  # fmt: skip
    assert data.x.shape == (740, 13)
    given: dict[str, Any] = {}
    for name in np.unique(data.columns["file"]).tolist():
        mine = data.columns["file"] == name
        x, y = data.x[mine], data.y[mine]
        rows = np.arange(len(y))
        rare = np.bincount(y).min() < 2
        train, test = selection.train_test_split(rows, test_size=0.34, random_state=43, stratify=None if rare else y)
        given[name.removeprefix("processed.")] = (x[train], y[train], x[test], y[test])
    fed = d.from_parties(given, features=data.features, classes=data.classes, standardize="party")
    assert list(fed.names) == ["cleveland", "hungarian", "switzerland", "va"]
    counts = [(len(fed.shard(i).train), len(fed.shard(i).test)) for i in range(4)]
    assert counts == [(199, 104), (172, 89), (30, 16), (85, 45)]
    assert np.abs(fed.shard(3).train.x.mean(axis=0)).max() < 1e-5
