"""The audit log: nothing is lost in a crash, and no line is altered unnoticed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.deployment.audit import MAX_LINE, AuditLog, Head, LogFile, Outflow, records, summary, verify
from hansa.errors import AuditError, StoreError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def clock() -> float:
    return 1_772_357_400.25


def opened(path: Path, **settings: Any) -> AuditLog:
    return AuditLog(path, clock, **({"durable": False} | settings))


def written(path: Path, count: int = 6, **settings: Any) -> Head:
    """A log of ``count`` records in all."""
    with opened(path, **settings) as log:
        while log.head.n < count:
            log.append("admitted", party=f"hospital-{log.head.n}")
        return log.head


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def chained(found: list[bytes], start: int) -> list[bytes]:
    """The lines with numbers and hashes from ``start`` on made good, as somebody without the key can."""
    done = found[:start]
    for line in found[start:]:
        record = json.loads(line)
        record["n"] = len(done) + 1
        record["previous"] = hashlib.sha256(done[-1][:-1]).hexdigest() if done else "0" * 64
        done.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")
    return done


# What is written


def test_the_bytes_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with opened(path) as log:
        first = log.head
        assert (
            log.append("refused", party="caf\u00e9\u2028\x1b", line=7, share=0.5, plan=None, why=["a", True])
            == log.head
        )
    assert lines(path)[1] == (
        b'{"n":2,"time":"2026-03-01T09:30:00.250000Z","previous":"' + first.hash.encode() + b'","kind":"refused",'
        b'"fields":{"party":"caf\\u00e9\\u2028\\u001b","line":7,"share":0.5,"why":["a",true]}}\n'
    )
    assert lines(path)[0].startswith(
        b'{"n":1,"time":"2026-03-01T09:30:00.250000Z","previous":"' + b"0" * 64
        + b'","kind":"opened","fields":{"format":"hansa.audit/1","log":"'
    )  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (verify(path), log.head) == (2, Head(2, hashlib.sha256(lines(path)[1][:-1]).hexdigest()))


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    heads = [written(path, count) for count in (1, 2, 5, 9)]
    assert [head.n for head in heads] == [1, 2, 5, 9]
    assert verify(path) == 9
    assert all(verify(path, head) == 9 for head in heads)
    assert [record.kind for record in records(path)] == ["opened", *["admitted"] * 8]


@settings(deadline=None, max_examples=50)
@given(fields=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), JSON, max_size=4))
def test_what_is_recorded_is_read_back(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.log"
    with opened(path) as log:
        log.append("noted", **{f"x_{name}": value for name, value in fields.items()})
    assert path.read_bytes().count(b"\n") == 2
    assert path.read_bytes().isascii()
    [_, record] = records(path)
    assert record.fields == {f"x_{name}": value for name, value in fields.items() if value is not None}


def test_the_summary_is_by_run_receiver_and_class(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with opened(path) as log:
        for round_, size in ((1, 100), (2, 150)):
            log.sent(run="run-7", receiver="server", tag="fit/1", discloses="a model", bytes=size, round=round_)
        log.sent(run="run-7", receiver="client-2", tag="fit/1", discloses="a model", bytes=1)
        log.sent(run="run-3", receiver="server", tag="count/1", discloses="a number", bytes=0, protection="sum")
        log.append("refused", run="run-7", receiver="server", bytes=99)
    assert summary(path) == (
        Outflow("run-3", "server", "count/1", "a number", 1, 0),
        Outflow("run-7", "client-2", "fit/1", "a model", 1, 1),
        Outflow("run-7", "server", "fit/1", "a model", 2, 250),
    )


@pytest.mark.parametrize(
    "wrong", [{"bytes": "1"}, {"bytes": -1}, {"bytes": True}, {"receiver": 1}, {"tag": None}, {"run": None}]
)
def test_a_summary_never_leaves_out_what_it_cannot_read(wrong: dict[str, Any], tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.append("sent", **({"run": "r", "receiver": "s", "tag": "t/1", "discloses": "x", "bytes": 1} | wrong))
    with pytest.raises(AuditError, match="line 2 does not say"):
        summary(tmp_path / "log")


# What is altered


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("n", range(1, 8))
def test_an_edited_line_is_named(n: int, noted: bool, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 7)
    found = lines(path)
    found[n - 1] = found[n - 1].replace(b"09:30", b"09:31")
    path.write_bytes(b"".join(found))
    if n == 7 and not noted:
        assert verify(path) == 7  # what a head is noted for
        return
    with pytest.raises(AuditError, match=f"line {n} (is not|or line 7 is not)"):
        verify(path, head if noted else None)


@pytest.mark.parametrize("at", [0, 5, 40, 70, 140, 160, -5, -2])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_byte_anywhere_in_a_line_is_named(n: int, at: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 6)
    found = lines(path)
    line = bytearray(found[n - 1])
    line[at] ^= 1
    path.write_bytes(b"".join([*found[: n - 1], bytes(line), *found[n:]]))
    with pytest.raises(AuditError, match=rf"line {n} (is not|holds)"):
        verify(path, head)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_edit_is_found_against_a_noted_head(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.log"
    head = written(path, 4)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    forged = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    path.write_bytes(forged)
    if forged.startswith(whole):  # the head is of the first four; what comes after is another affair
        assert forged == whole or not forged.endswith(b"\n") or isinstance(_verified(path, head), AuditError)
    else:
        assert isinstance(_verified(path, head), AuditError)


def _verified(path: Path, head: Head) -> object:
    try:
        return verify(path, head)
    except AuditError as error:
        return error


@pytest.mark.parametrize("n", range(1, 7))
def test_a_deleted_line_is_named(n: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 6)
    found = lines(path)
    path.write_bytes(b"".join(found[: n - 1] + found[n:]))
    with pytest.raises(AuditError, match=f"line {n} (holds record {n + 1}|is missing)"):
        verify(path, head)


@pytest.mark.parametrize("n", range(1, 6))
def test_swapped_lines_are_named(n: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 6)
    found = lines(path)
    found[n - 1], found[n] = found[n], found[n - 1]
    path.write_bytes(b"".join(found))
    with pytest.raises(AuditError, match=f"line {n} holds record {n + 1}"):
        verify(path)


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("n", range(1, 6))
def test_an_inserted_line_is_named(n: int, linked: bool, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 6)
    found = lines(path)
    forged = b'{"n":%d,"time":"2026-03-01T09:30:00.000000Z","previous":"%s","kind":"approved","fields":{}}\n'
    previous = hashlib.sha256(found[n - 1][:-1]).hexdigest() if linked else "ab" * 32
    path.write_bytes(b"".join([*found[:n], forged % (n + 1, previous.encode()), *found[n:]]))
    with pytest.raises(AuditError, match=f"line {n + 1} (was inserted|is not)"):
        verify(path)


@pytest.mark.parametrize("n", range(1, 7))
@pytest.mark.parametrize("junk", [b"\n", b"{}\n", b"null\n", b"\xff\n", b" ", b"\0", b"[" * 9000, b'{"n":' * 9000])
def test_junk_before_a_line_is_named(n: int, junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 6)
    found = lines(path)
    path.write_bytes(b"".join([*found[: n - 1], junk, *found[n - 1 :]]))
    with pytest.raises(AuditError, match=f"line {n} is not"):
        verify(path, head)


@pytest.mark.parametrize("n", range(6))
def test_a_cut_is_found_against_a_noted_head(n: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 6)
    path.write_bytes(b"".join(lines(path)[:n]))
    with pytest.raises(AuditError, match=f"line {n + 1} is missing"):
        verify(path, head)
    assert n == 0 or verify(path) == n


@pytest.mark.parametrize("start", range(6))
def test_a_log_written_anew_is_found_against_a_noted_head(start: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 6)
    found = lines(path)
    found[start] = found[start].replace(b"09:30", b"09:31")
    path.write_bytes(b"".join(chained(found, start)))
    assert verify(path) == 6
    with pytest.raises(AuditError, match="line 6 is not the one that was noted"):
        verify(path, head)


def test_a_line_longer_than_any_record_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 2)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 50 * MAX_LINE)
    with pytest.raises(AuditError, match="line 3 is not a record"):
        verify(path)
    with pytest.raises(AuditError, match="longer than any record"):
        opened(path)


def test_an_altered_end_is_refused_when_the_log_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 6)
    found = lines(path)
    for forged in (
        [*found[:4], found[4].replace(b"09:30", b"09:31"), found[5]],
        found[:4] + found[5:],
        found[5:],
        [*found, b"{}\n"],
        [*found, b"\n"],
    ):
        path.write_bytes(b"".join(forged))
        with pytest.raises(AuditError):
            opened(path)
        assert path.read_bytes() == b"".join(forged)


# Signed heads


def test_checkpoints_come_at_their_intervals_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 10, key=KEY, every=4)
    assert [record.n for record in records(path) if record.kind == "checkpoint"] == [5, 10, 12]
    written(path, 13, key=KEY, every=4)
    assert [record.n for record in records(path) if record.kind == "checkpoint"] == [5, 10, 12, 14]
    assert verify(path, signer=KEY.public_key(), every=4) == 14
    opened(path, key=KEY, every=4).close()
    assert verify(path) == 14


def test_a_signed_log_cannot_be_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 12, key=KEY, every=4)
    found = lines(path)
    found[1] = found[1].replace(b"09:30", b"09:31")
    path.write_bytes(b"".join(chained(found, 1)))
    with pytest.raises(AuditError, match="line 5 signs another head"):
        verify(path)
    without = [line for line in found if b'"checkpoint"' not in line]
    path.write_bytes(b"".join(chained(without, 1)))
    assert verify(path) == 10
    with pytest.raises(AuditError, match="line 5 comes more than 4 records after the last signed head"):
        verify(path, signer=KEY.public_key(), every=4)


def test_a_checkpoint_of_another_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 6, key=OTHER, every=4)
    assert verify(path, signer=OTHER.public_key()) == 7
    with pytest.raises(AuditError, match="line 5 is not signed by the key"):
        verify(path, signer=KEY.public_key())


@pytest.mark.parametrize("signature", ["", "zz", "00" * 64, 7, None])
def test_a_checkpoint_without_a_signature_is_refused(signature: object, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 6, key=KEY, every=4)
    found = lines(path)
    record = json.loads(found[4])
    record["fields"]["signature"] = signature
    path.write_bytes(b"".join(chained([*found[:4], json.dumps(record).encode() + b"\n"], 4)))
    with pytest.raises(AuditError, match="line 5 is not signed"):
        verify(path, signer=KEY.public_key())


def test_what_was_altered_while_the_log_was_closed_is_not_signed_over(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 12, key=KEY, every=4)
    found = lines(path)
    found[1] = found[1].replace(b"09:30", b"09:31")
    for forged in (found, chained(found, 1)):
        path.write_bytes(b"".join(forged))
        with pytest.raises(AuditError, match=r"line 2 is not|line 5 signs another"):
            opened(path, key=KEY, every=4)


# Crashes


def test_a_last_line_torn_at_any_byte_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 3)
    whole = path.read_bytes()
    start = len(b"".join(lines(path)[:2]))
    for end in range(start + 1, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(AuditError, match="line 3"):
            verify(path)
        with opened(path) as log:
            assert log.head.n == 3
            log.append("admitted")
        assert verify(path) == 4
        torn = list(records(path))[2]
        aside = tmp_path / "audit.log.torn-3"
        assert aside.read_bytes() == whole[start:end]
        assert torn.kind == "torn"
        assert torn.fields == {
            "bytes": end - start, "sha256": hashlib.sha256(whole[start:end]).hexdigest(), "kept": "audit.log.torn-3"
        }  # fmt: skip
        aside.unlink()


@pytest.mark.parametrize("size", [1, 50, 170])
def test_a_first_line_that_is_torn_is_set_aside(size: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 1)
    torn = path.read_bytes()[:size]
    path.write_bytes(torn)
    opened(path).close()
    assert [record.kind for record in records(path)] == ["opened", "torn"]
    assert (tmp_path / "audit.log.torn-2").read_bytes() == torn


def test_a_crash_at_any_step_of_the_setting_aside_loses_nothing(tmp_path: Path) -> None:
    path, aside = tmp_path / "audit.log", tmp_path / "audit.log.torn-3"
    written(path, 2)
    good = path.read_bytes()
    torn = b'{"n":3,'
    for left, kept in ((good + torn, torn), (good, torn), (good + b'{"n":3,"ti', torn + b'{"n":3,"ti')):
        # Set aside, and: not yet cut off; cut off, but not yet said; the saying of it torn as well.
        path.write_bytes(left)
        aside.write_bytes(torn)
        opened(path).close()
        assert [record.kind for record in records(path)] == ["opened", "admitted", "torn"]
        assert aside.read_bytes() == kept
        assert list(records(path))[2].fields["bytes"] == len(kept)


KILLED = """
import os, signal, sys
from pathlib import Path
from hansa.deployment.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), lambda: 0.0)
for i in range(20):
    print(log.append("admitted", party=f"hospital-{i}"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_append_returned_outlives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False)
    heads = [Head.parse(line) for line in ended.stdout.splitlines()]
    assert len(heads) == 20
    assert all(verify(path, head) == 21 for head in heads)
    with opened(path) as log:  # the lock went with the process
        assert log.head == heads[-1]


# A disk that is full or broken


class Full:
    """A file on a disk with room for ``room`` bytes more, which takes ``step`` at a time."""

    def __init__(self, path: Path, room: int, step: int = 1 << 20) -> None:
        self.file = path.open("a+b", buffering=0)
        self.room, self.step = room, step
        self.instead: list[int] = []

    def fileno(self) -> int:
        return self.instead.pop(0) if self.instead else self.file.fileno()

    def write(self, data: memoryview, /) -> int | None:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.file.write(data[: min(self.room, self.step)])
        self.room -= done
        return done

    def close(self) -> None:
        self.file.close()


def on(full: Callable[[Path], Full]) -> tuple[list[Full], Callable[[Path], LogFile]]:
    kept: list[Full] = []

    def opener(path: Path) -> LogFile:
        kept.append(full(path))
        return kept[-1]

    return kept, opener


@pytest.mark.parametrize("room", [0, 1, 60, 150])
def test_a_full_disk_counts_no_half_record(room: int, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 3)
    whole = path.read_bytes()
    disks, opener = on(lambda path: Full(path, room))
    with opened(path, opener=opener) as log:
        for _ in range(2):
            with pytest.raises(StoreError, match="No space left"):
                log.append("admitted", party="x" * 100)
            assert log.head == head
            assert path.read_bytes() == whole
            disks[0].room = room
        disks[0].room = 1000
        log.append("admitted")
    assert verify(path, head) == 4


def test_a_record_written_in_pieces_is_one_record(tmp_path: Path) -> None:
    _, opener = on(lambda path: Full(path, 1 << 20, step=7))
    with opened(tmp_path / "log", opener=opener) as log:
        log.append("admitted", party="x" * 100)
    assert verify(tmp_path / "log") == 2


def test_a_full_disk_at_a_checkpoint_refuses_the_record_that_would_follow(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    disks, opener = on(lambda path: Full(path, 1 << 20))
    log = opened(path, opener=opener, key=KEY, every=4)
    for _ in range(3):
        log.append("admitted")
    disks[0].room = 100
    with pytest.raises(StoreError):
        log.append("approved")
    assert [record.kind for record in records(path)] == ["opened", *["admitted"] * 3]
    disks[0].room = 1 << 20
    log.append("approved")
    log.close()
    assert verify(path, signer=KEY.public_key(), every=4) == 7


def test_a_log_that_cannot_be_synced_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 2)
    whole = path.read_bytes()
    disks, opener = on(lambda path: Full(path, 1 << 20))
    log = opened(path, opener=opener, durable=True)
    reader, writer = os.pipe()
    disks[0].instead.append(writer)  # a pipe cannot be synced
    with pytest.raises(StoreError):
        log.append("admitted")
    assert path.read_bytes() == whole
    with pytest.raises(StoreError, match="open it again"):
        log.append("admitted")
    assert log.head == head
    log.close()
    os.close(reader)
    os.close(writer)
    assert written(path, 3).n == 3


def test_a_log_that_can_neither_be_synced_nor_cut_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    head = written(path, 2)
    disks, opener = on(lambda path: Full(path, 1 << 20))
    log = opened(path, opener=opener, durable=True)
    reader, writer = os.pipe()
    disks[0].instead += [writer, writer]
    with pytest.raises(StoreError):
        log.append("admitted")
    with pytest.raises(StoreError, match="open it again"):
        log.append("admitted")
    assert log.head == head
    log.close()
    os.close(reader)
    os.close(writer)
    assert verify(path, head) == 3  # written, though not counted: a reader finds a whole record, never half of one


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        opened(tmp_path / "nowhere" / "audit.log")
    with pytest.raises(StoreError, match="nowhere"):
        verify(tmp_path / "nowhere")


# Several writers


def test_one_process_writes_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = opened(path)
    with pytest.raises(StoreError, match="another process writes"):
        opened(path)
    assert verify(path) == 1  # reading needs no lock
    log.close()
    log.close()
    with pytest.raises(StoreError, match="closed"):
        log.append("admitted")
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(StoreError, match="another process writes"):
            opened(path)
    opened(path).close()


def test_threads_share_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with opened(path, key=KEY, every=10) as log:
        threads = [threading.Thread(target=lambda: [log.append("admitted") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(record.kind == "admitted" for record in records(path)) == 200
    assert verify(path, signer=KEY.public_key(), every=10) == log.head.n


# Hostile fields


@pytest.mark.parametrize(
    "text", ["a\nb", "\r\n", '"}\n{"n":9', "\u2028\u2029\x85", "\x1b[2J", "\x00", "\u202e", "\ud800", "\U0001f600"]
)
def test_no_text_ends_a_line(text: str, tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.append("refused", why=text, more={text: [text]})
    assert len(lines(tmp_path / "log")) == 2
    assert all(32 <= byte < 127 for byte in lines(tmp_path / "log")[1][:-1])
    assert list(records(tmp_path / "log"))[1].fields["why"] == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("text", ["x" * 10_000, "\U0001f600" * 10_000, "\n" * 3000])
def test_a_peer_cannot_make_a_record_too_long_to_be_written(text: str, tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.append("refused", **{f"field_{i}": text for i in range(40)})
    record = list(records(tmp_path / "log"))[1]
    kept = record.fields["field_0"]
    assert kept.endswith(f"... [{len(text)} characters, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}]")
    assert text.startswith(kept.split("...")[0])
    assert (tmp_path / "log").stat().st_size < MAX_LINE


@pytest.mark.parametrize(
    "value",
    [
        math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, 10**5000, b"bytes", object(), {1, 2}, [0] * 201,
        [[[[1]]]], [math.nan], {"a": math.inf}, {"a": {"b": {"c": {"d": 1}}}}, 1j,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_is_no_record_is_refused(value: object, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with opened(path) as log:
        head, before = log.head, path.read_bytes()
        with pytest.raises(AuditError, match="the field 'x' holds"):
            log.append("noted", x=value)
        assert (log.head, path.read_bytes()) == (head, before)


def test_a_record_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log, pytest.raises(AuditError, match=f"{MAX_LINE} are allowed"):
        log.append("noted", x=["y" * 900] * 100)
    assert verify(tmp_path / "log") == 1


@pytest.mark.parametrize("kind", ["", "Sent", "a b", "a\n", "x" * 41, "opened", "torn", "checkpoint", "\u00e9"])
def test_a_kind_that_is_the_logs_own_or_no_word_is_refused(kind: str, tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log, pytest.raises(AuditError, match="a kind of record"):
        log.append(kind)


@pytest.mark.parametrize("name", ["A", "a-b", "", "a b", "_a", "\u00e9", "x" * 41])
def test_a_field_name_that_is_no_word_is_refused(name: str, tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log, pytest.raises(AuditError, match="a field's name"):
        log.append("noted", **{name: 1})


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 1e20, -1e20])
def test_a_clock_that_is_mad_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="is no time"):
        AuditLog(tmp_path / "log", lambda: seconds)


@pytest.mark.parametrize(
    "text", ["", "7", "7:", "7:" + "a" * 63, "-1:" + "a" * 64, "7:" + "g" * 64, "7:" + "A" * 64, "\u0667:" + "a" * 64]
)
def test_a_head_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(AuditError, match="a head is"):
        Head.parse(text)


def test_a_head_is_noted_as_text(tmp_path: Path) -> None:
    head = written(tmp_path / "log")
    assert Head.parse(f" {head}\n") == head
