"""FLamby's Fed-Heart-Disease table: the data as FLamby prepares it, and every row beside the published one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

from bench.quality import heart  # noqa: E402 (needs both libraries)
from hansa.learners import Torch  # noqa: E402
from hansa.learners.optimizers import SGD  # noqa: E402

WITHIN = 0.03
PUBLISHED = sorted(name for name, row in heart.rows().items() if row.published)
# The others take some seconds each.
QUICK = {"fedadagrad", "cyclic-as-programmed", "local-2", "local-3"}


@pytest.fixture(scope="module")
def data(real_data: Callable[[str], Path]) -> heart.Hospitals:
    return heart.hospitals(real_data("heart-disease-4-hospitals"))


@pytest.fixture(scope="module")
def table() -> Mapping[str, heart.Row]:
    return heart.rows()


def test_the_hospitals_have_the_published_sizes(data: heart.Hospitals) -> None:
    shards = [data.parties.shard(i) for i in range(4)]
    assert [len(shard.train) for shard in shards] == [199, 172, 30, 85]
    assert [len(shard.test) for shard in shards] == [104, 89, 16, 45]
    assert {shard.train.x.shape[1] for shard in shards} == {13}
    assert len(data.pooled) == 486
    assert len(data.parties.central_test) == 254


def test_each_hospital_is_standardised_by_itself_and_the_pool_by_the_pool(data: heart.Hospitals) -> None:
    for i in range(4):
        x = data.parties.shard(i).train.x
        deviation = x.std(0, ddof=1)
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(deviation[deviation > 0], 1, rtol=1e-4)
    np.testing.assert_allclose(data.pooled.x.mean(0), 0, atol=1e-5)
    own = np.concatenate([data.parties.shard(i).test.x for i in range(4)])
    pooled = data.parties.central_test
    np.testing.assert_array_equal(np.concatenate([data.parties.shard(i).test.y for i in range(4)]), pooled.y)
    # The trap that moves the last hospital's accuracy by 0.17.
    assert np.abs(own - pooled.x).max() > 1


def test_a_holdout_divides_the_training_rows_alone(tmp_path: Path) -> None:
    # The first feature numbers the rows; its order and gaps survive any standardising.
    for name in heart.HOSPITALS:
        rows = [f"{i * i},1,{i % 2 + 1},1,{i},0,0,100,0,0,1,1,1,{i % 3}" for i in range(20)]
        (tmp_path / f"processed.{name}.data").write_text("\n".join(rows), encoding="utf-8")
    whole, held = heart.hospitals(tmp_path), heart.hospitals(tmp_path, holdout=0.25)
    for i in range(4):
        train, again = whole.parties.shard(i).train, held.parties.shard(i)
        assert (len(train), len(again.train), len(again.test)) == (13, 9, 4)
        both = np.concatenate([again.train.x, again.test.x])
        np.testing.assert_allclose(gaps(both[:, 0]), gaps(train.x[:, 0]), atol=1e-4)


def gaps(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    ranked = np.sort(values.astype(float))
    scaled: npt.NDArray[np.float64] = np.diff(ranked) / (ranked[-1] - ranked[0])
    return scaled


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_each_row_is_the_published_one(name: str, data: heart.Hospitals, table: Mapping[str, heart.Row]) -> None:
    row = table[name]
    assert row.published is not None
    found = heart.mean_of(row.train, data)
    assert found.pooled == pytest.approx(row.published.pooled, abs=WITHIN)
    for own, published in zip(found.hospitals, row.published.hospitals, strict=False):
        assert own == pytest.approx(published, abs=WITHIN)


def test_handing_the_model_on_gives_another_row_than_the_published_cyclic(
    data: heart.Hospitals, table: Mapping[str, heart.Row]
) -> None:
    real = heart.mean_of(table["cyclic"].train, data)
    published = table["cyclic-as-programmed"].published
    assert published is not None
    assert 0.65 < real.pooled < published.pooled - WITHIN
    assert real.hospitals[2] > published.hospitals[2] + WITHIN


@pytest.mark.slow
def test_equal_weights_are_what_sets_scaffold_apart(data: heart.Hospitals, table: Mapping[str, heart.Row]) -> None:
    uniform = heart.mean_of(table["scaffold-uniform"].train, data)
    weighted = heart.mean_of(table["scaffold"].train, data)
    assert weighted.pooled - uniform.pooled > WITHIN


@pytest.mark.slow
def test_a_larger_learning_rate_alone_gets_above_078(data: heart.Hospitals) -> None:
    assert heart.mean_of(heart.federated(heart.tunable()["fedavg"], 3e-2), data).pooled > 0.78


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(heart.tunable()))
def test_a_learning_rate_chosen_without_the_test_rows_gets_above_078(
    name: str, data: heart.Hospitals, real_data: Callable[[str], Path]
) -> None:
    protocol = heart.tunable()[name]
    rate = heart.best_rate(protocol, heart.hospitals(real_data("heart-disease-4-hospitals"), holdout=0.25))
    assert heart.mean_of(heart.federated(protocol, rate), data).pooled > 0.78


def test_the_initial_models_are_those_of_the_seed_and_leave_torch_as_it_was() -> None:
    before = torch.random.get_rng_state()
    first, again, other = heart.initial(42), heart.initial(42), heart.initial(43)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        assert torch.equal(torch.nn.Linear(13, 1).weight, first.weight)
    learner = heart.learner(42, SGD(0.1))
    assert isinstance(learner, Torch)


def written(folder: Path, missing: str = "?") -> Path:
    """Four tiny hospitals; chest pain 3 in the second only; one row without cholesterol."""
    lines = {
        "cleveland": ["63,1,1,145,233,1,2,150,0,2.3,3,0,6,0", "67,1,2,160,286,0,0,108,1,1.5,2,3,3,2"] * 4,
        "hungarian": ["28,1,3,130,132,0,2,185,0,0,?,?,?,0", "29,1,2,120,243,0,0,160,0,0,?,?,?,3"] * 4,
        "switzerland": [f"32,1,1,95,{missing},?,0,127,0,.7,1,?,?,1", "34,1,1,115,0,0,0,154,0,.2,1,?,?,1"] * 4,
        "va": ["63,1,1,140,260,0,1,112,1,3,2,?,?,2", "44,1,1,130,209,0,1,127,0,0,?,?,?,0"] * 4,
    }
    for name, rows in lines.items():
        (folder / f"processed.{name}.data").write_text("\n".join(rows) + "\n\n", encoding="utf-8")
    return folder


def test_incomplete_rows_go_and_the_three_empty_columns_with_them(tmp_path: Path) -> None:
    tables = heart.read(written(tmp_path))
    assert [table.shape for table in tables] == [(8, 11), (8, 11), (4, 11), (8, 11)]


def test_categories_are_those_of_all_hospitals_without_the_first(tmp_path: Path) -> None:
    parts = heart.encoded(heart.read(written(tmp_path)))
    # Eight numbers, chest pain 2 and 3, electrocardiogram 1 and 2.
    assert {x.shape[1] for x, _ in parts} == {12}
    np.testing.assert_array_equal(parts[1][0][:2, 8:], [[0, 1, 0, 1], [1, 0, 0, 0]])
    np.testing.assert_array_equal(parts[2][0][:, 8:], np.zeros((4, 4)))
    assert [y.tolist()[:2] for _, y in parts] == [[0, 1], [0, 1], [1, 1], [1, 0]]


def test_a_column_that_is_constant_in_one_hospital_stays_finite(tmp_path: Path) -> None:
    found = heart.hospitals(written(tmp_path, missing="0"))
    for i in range(4):
        shard = found.parties.shard(i)
        assert np.isfinite(shard.train.x).all()
        assert np.isfinite(shard.test.x).all()


def test_a_missing_hospital_is_named(tmp_path: Path) -> None:
    (written(tmp_path) / "processed.va.data").unlink()
    with pytest.raises(FileNotFoundError, match=r"processed\.va\.data"):
        heart.hospitals(tmp_path)
