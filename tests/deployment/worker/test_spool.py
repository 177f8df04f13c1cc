"""The spool: whole frames, names that lead nowhere else, and files that are never written while somebody reads them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hansa.deployment.worker.spool import Spool
from hansa.errors import StoreError

BIG = 1 << 20


def test_what_is_written_is_mapped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    name = spool.write([b"head", memoryview(b"tail")])
    assert bytes(spool.map(name)) == b"headtail"
    assert spool.path(name).read_bytes() == b"headtail"
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(spool.path(name).stat().st_mode) == 0o600


def test_a_mapping_cannot_be_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    pages = spool.map(spool.write([b"frame"]))
    with pytest.raises(TypeError):
        pages[0] = 0
    assert memoryview(pages).readonly


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 32 + "\n", "0" * 31 + "/",
     "0" * 32 + ".free", "\0" * 32],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for use in (spool.path, spool.map, spool.remove):
        with pytest.raises(StoreError, match="32 hexadecimal"):
            use(name)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    (tmp_path / "secret").write_bytes(b"secret")
    (spool.folder / ("a" * 32)).symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match="no frame"):
        spool.map("a" * 32)
    (spool.folder / ("b" * 32 + ".free")).symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match="takes no frame"):
        spool.write([bytes(BIG)], BIG)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_what_is_not_there_cannot_be_mapped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(StoreError, match="no frame"):
        spool.map("0" * 32)
    spool.remove("0" * 32)  # twice is once
    with pytest.raises(StoreError, match="empty"):
        spool.map(spool.write([]))


def test_a_half_written_frame_has_no_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    draft = spool.draft()
    draft.write(b"half")
    with pytest.raises(StoreError):
        spool.map(draft.name)
    draft.abandon()
    assert list(tmp_path.iterdir()) == []
    draft.abandon()


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> object:
        yield b"first"
        raise KeyError

    with pytest.raises(KeyError):
        Spool(tmp_path).write(parts())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_removed_file_is_written_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first = spool.write([b"a" * BIG], BIG)
    inode = spool.path(first).stat().st_ino
    spool.remove(first)
    second = spool.write([b"b" * (BIG + 5)], BIG + 5)
    assert spool.path(second).stat().st_ino == inode
    assert spool.path(second).read_bytes() == b"b" * (BIG + 5)
    spool.remove(second)
    third = spool.write([b"c" * BIG], BIG)
    assert spool.path(third).read_bytes() == b"c" * BIG, "nothing of the longer one is left"
    with pytest.raises(StoreError):
        spool.map(first)


def test_a_file_that_is_mapped_is_never_written_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first = spool.write([b"a" * BIG], BIG)
    pages = spool.map(first)
    view = memoryview(pages)[10:20]
    del pages
    spool.remove(first)
    second = spool.write([b"b" * BIG], BIG)
    assert bytes(view) == b"a" * 10
    assert len(list(tmp_path.iterdir())) == 2
    # The last view is gone, and the mapping with it.
    view.release()
    spool.remove(second)
    before = {path.stat().st_ino for path in tmp_path.iterdir()}
    third, fourth = (spool.write([bytes(BIG)], BIG) for _ in range(2))
    assert {spool.path(name).stat().st_ino for name in (third, fourth)} == before


def test_removed_files_are_kept_up_to_a_bound(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spare=2 * BIG)
    names = [spool.write([bytes(BIG)], BIG) for _ in range(4)] + [spool.write([b"small"])]
    for name in names:
        spool.remove(name)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sweep_deletes_what_nobody_wants(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    kept, lost, removed = (spool.write([bytes(BIG)], BIG) for _ in range(3))
    spool.remove(removed)
    spool.draft().write(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert spool.sweep({kept}) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept, "notes.txt"])
    assert lost not in os.listdir(tmp_path)


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    draft = Spool(tmp_path).draft()
    os.close(draft._descriptor)
    draft._descriptor = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(StoreError, match="No space left"):
        draft.write(b"frame")
    draft.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(StoreError, match="cannot be made"):
        Spool("/dev/null/spool")


def test_a_name_is_drawn_anew_each_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert len({spool.write([b"same"]) for _ in range(50)}) == 50
