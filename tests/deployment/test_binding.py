"""A binding gives a party the rows that a simulation gives it, from where its owner says, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.data import IID, ByColumn, Dirichlet, FederatedData, QuantitySkew, Shards
from hansa.data import load as load_source
from hansa.deployment.binding import Binding, load, read, rooted
from hansa.errors import ConfigError, DataError, HansaError
from hansa.examples import Examples, Shard

IRIS = "sklearn:iris"


def same(left: Examples, right: Examples) -> None:
    np.testing.assert_array_equal(left.x, right.x)
    np.testing.assert_array_equal(left.y, right.y)
    assert left.x.dtype == right.x.dtype and left.y.dtype == right.y.dtype


def same_shard(left: Shard, right: Shard) -> None:
    same(left.train, right.train)
    same(left.test, right.test)


def at_server(data: FederatedData) -> Shard:
    central = data.central_test
    return Shard(Examples(*central.base, np.zeros(0, np.int64)), central)


def table(folder: Path, name: str = "hearts.csv", rows: int = 10) -> Path:
    path = folder / name
    lines = [f"{i},{'no' if i % 2 else 'yes'},{'north' if i < 4 else 'south'}" for i in range(rows)]
    path.write_text("\n".join(["age,disease,city", *lines]) + "\n")
    return path


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("test", [0.0, 0.2, 0.5])
def test_a_whole_source_is_divided_as_iid_divides_one_party(seed: int, test: float) -> None:
    simulated = load_source(IRIS).partition(IID(), parties=1, seed=seed, test=test)
    same_shard(load(Binding(IRIS, test=test, seed=seed), many=True), simulated.shard(0))


@pytest.mark.parametrize("how", [IID(), IID(examples=60), Dirichlet(alpha=0.3), Shards(2), QuantitySkew()], ids=repr)
@pytest.mark.parametrize("party", [0, 2])
def test_a_part_is_the_simulation_s(how: Any, party: int) -> None:
    simulated = load_source(IRIS).partition(how, parties=3, seed=5, test=0.3)
    binding = Binding(IRIS, test=0.3, seed=5, partition=how, parties=3, party=party)
    same_shard(load(binding, many=True), simulated.shard(party))
    same_shard(load(binding, many=False), at_server(simulated))


def test_the_parts_of_all_parties_are_all_rows_once() -> None:
    bindings = [Binding(IRIS, partition=Dirichlet(alpha=0.3), parties=4, party=k) for k in range(4)]
    shards = [load(binding, many=True) for binding in bindings]
    rows = np.concatenate(
        [part.rows for shard in shards for part in (shard.train, shard.test) if part.rows is not None]
    )
    assert sorted(rows.tolist()) == list(range(150))


def test_a_server_has_nothing_to_train_on() -> None:
    shard = load(Binding(IRIS), many=False)
    assert len(shard.train) == 0 and len(shard.test) == 30 and shard.train.x.shape == (0, 4)


def test_a_server_takes_the_source_s_own_test_set(tmp_path: Path) -> None:
    table(tmp_path)
    table(tmp_path, "test.csv", rows=6)
    for text in ("csv:hearts.csv?test=test.csv&target=disease", "csv:hearts.csv?target=disease"):
        options = {} if "test=" in text else {"test": "test.csv"}
        assert len(load(rooted(Binding(text, options=options), tmp_path), many=False).test) == 6


def test_a_party_is_found_by_its_name(tmp_path: Path) -> None:
    table(tmp_path)
    options = {"target": "disease", "party": "city"}
    binding = rooted(Binding("csv:hearts.csv", options=options, partition=ByColumn("city"), party="south"), tmp_path)
    simulated = load_source(binding.source, **options).partition(ByColumn("city"))
    same_shard(load(binding, many=True), simulated.shard(list(simulated.names).index("south")))


def test_a_number_and_a_name_that_looks_like_one_differ(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y,site\n" + "".join(f"{i},{i % 2},{1 - i // 5}\n" for i in range(10)))
    options = {"target": "y", "party": "site"}
    name, number = (
        load(rooted(Binding("csv:t.csv", options=options, partition=ByColumn("site"), party=p), tmp_path), many=True)
        for p in ("0", 1)
    )
    simulated = load_source(f"csv:{tmp_path}/t.csv", **options).partition(ByColumn("site"))
    same_shard(name, simulated.shard(list(simulated.names).index("0")))
    same_shard(number, simulated.shard(1))


def test_classes_keep_their_numbers_where_a_table_lacks_some(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},yes\n" for i in range(6)))
    bare = load(rooted(Binding("csv:t.csv?target=y"), tmp_path), many=True)
    agreed = load(rooted(Binding("csv:t.csv?target=y", classes=("no", "yes")), tmp_path), many=True)
    assert set(bare.train.y.tolist()) == {0} and set(agreed.train.y.tolist()) == {1}
    np.testing.assert_array_equal(bare.train.x, agreed.train.x)


def test_the_agreed_order_of_classes_holds_for_the_test_set_too(tmp_path: Path) -> None:
    table(tmp_path)
    table(tmp_path, "test.csv", rows=3)
    text = "csv:hearts.csv?target=disease&drop=city&test=test.csv"
    turned = load(rooted(Binding(text, classes=("yes", "no")), tmp_path), many=False)
    assert turned.test.y.tolist() == [0, 1, 0]


NOBODY_S_PART = [Binding(IRIS, partition=IID(), parties=3, party=party) for party in (3, "client-3", "0")]
UNUSABLE = [
    Binding(IRIS, classes=("setosa", "versicolor")),
    Binding("sklearn:diabetes", classes=("a", "b")),
    Binding(IRIS, partition=IID(), party=0),
    Binding(IRIS, partition=ByColumn("city"), party="x"),
    Binding(IRIS, options={"no_such": 1}),
    Binding("csv:/nowhere/at/all.csv"),
    Binding("sklearn:irs"),
    Binding("zip:x"),
    Binding("python:os:getcwd"),
    Binding("python:json:loads"),
    Binding("python:json:loads", options={"s": "{"}),
]


@pytest.mark.parametrize(
    ("binding", "many"),
    [(binding, True) for binding in [*NOBODY_S_PART, *UNUSABLE]] + [(binding, False) for binding in UNUSABLE],
)
def test_data_that_cannot_be_used_are_one_sentence(binding: Binding, many: bool) -> None:
    with pytest.raises(HansaError) as caught:
        load(binding, many)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize("binding", NOBODY_S_PART)
def test_a_server_needs_nobody_s_part(binding: Binding) -> None:
    assert len(load(binding, many=False).test) == 30


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "hearts.csv"},
        {"source": IRIS, "test": 1.0},
        {"source": IRIS, "test": -0.1},
        {"source": IRIS, "test": float("nan")},
        {"source": IRIS, "party": 1},
        {"source": IRIS, "parties": 2},
        {"source": IRIS, "partition": IID()},
        {"source": IRIS, "partition": IID(), "parties": 2, "party": -1},
        {"source": IRIS, "partition": IID(), "parties": 0, "party": 0},
        {"source": IRIS, "classes": ("a", "a")},
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Binding(**settings)


bindings = st.one_of(
    st.builds(
        Binding,
        st.just(IRIS),
        st.floats(0, 0.9),
        st.integers(0, 2**31),
        st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans())),
        st.lists(st.text(max_size=5), max_size=3, unique=True).map(tuple),
    ),
    st.builds(
        Binding,
        st.just("csv:a.csv?x=1"),
        partition=st.sampled_from([IID(), IID(examples=3), Dirichlet(alpha=0.5), ByColumn("city")]),
        parties=st.none() | st.integers(1, 9),
        party=st.integers(0, 9) | st.text(max_size=5),
    ),
)


@given(bindings)
def test_a_binding_survives_its_message(binding: Binding) -> None:
    assert read(json.loads(json.dumps(binding.plain()))) == binding


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({}, "needs the setting 'source'"),
        ({"sorce": IRIS}, "did you mean 'source'"),
        ({"source": 3}, "expected 'str'"),
        ({"source": IRIS, "party": True, "partition": "iid"}, "expected"),
        ({"source": IRIS, "partition": "irichlet", "party": 0}, "did you mean 'dirichlet'"),
        ({"source": IRIS, "partition": {"name": "dirichlet"}, "party": 0}, "needs the setting 'alpha'"),
        ({"source": IRIS, "partition": "os:system", "party": 0}, "no partitioner is named"),
        ({"source": IRIS, "parties": 2.5}, "expected 'int'"),
        ({"source": IRIS, "options": ["x"]}, "expected a table"),
    ],
)
def test_plain_data_that_are_no_binding_are_refused(plain: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(plain)


@pytest.mark.parametrize(
    ("source", "absolute"),
    [
        ("csv:hearts.csv", "csv:/srv/hansa/hearts.csv"),
        ("csv:../hearts.csv", "csv:/srv/hansa/../hearts.csv"),
        ("csv:/data/hearts.csv", "csv:/data/hearts.csv"),
        ("csv:sites/*.csv", "csv:/srv/hansa/sites/*.csv"),
        ("npz:a.npz?x=a&y=b", "npz:/srv/hansa/a.npz?x=a&y=b"),
        ("parquet:a.parquet", "parquet:/srv/hansa/a.parquet"),
        ("parquet:a.parquet?test=t.parquet", "parquet:/srv/hansa/a.parquet?test=%2Fsrv%2Fhansa%2Ft.parquet"),
        ("sklearn:iris", "sklearn:iris"),
        ("python:module:function", "python:module:function"),
        ("hf:organisation/name?test=validation", "hf:organisation/name?test=validation"),
        ("mine:whatever", "mine:whatever"),
    ],
)
def test_relative_paths_start_at_the_file_s_folder(source: str, absolute: str) -> None:
    assert rooted(Binding(source), Path("/srv/hansa")).source == absolute


def test_rooting_twice_changes_nothing(tmp_path: Path) -> None:
    once = rooted(Binding("csv:a/*.csv?test=b.csv", options={"drop": "x"}), tmp_path)
    assert rooted(once, Path("/elsewhere")) == once


def test_a_folder_of_hf_starts_there_and_a_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    assert rooted(Binding("hf:saved"), tmp_path).source == f"hf:{tmp_path}/saved"
    assert rooted(Binding("hf:other"), tmp_path).source == "hf:other"


def test_a_folder_s_own_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "site [1]"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        table(folder, name)
    found = load(rooted(Binding("csv:*.csv?target=disease", test=0), folder), many=True)
    assert len(found.train) == 20


def test_a_path_with_a_question_mark_is_refused_and_not_read_as_options(tmp_path: Path) -> None:
    folder = tmp_path / "a?b=c"
    with pytest.raises(DataError, match="move the file"):
        rooted(Binding("csv:hearts.csv"), folder)
