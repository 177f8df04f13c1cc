"""The lanes: whatever happens between two machines, each parcel arrives once and in order, and files go when nobody needs them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.deployment.store import Database, Mailbox
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Spool

RUNS = ("", "00000000000000aa", "00000000000000bb")


class Machine:
    """A database, a spool and a mailbox; a crash loses what was not committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.open()

    def open(self) -> None:
        self.database = Database(self.folder / "a.db")
        self.spool = Spool(self.folder / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.mailbox.sweep()

    def crash(self) -> None:
        if self.database._open:
            self.database._connection.execute("ROLLBACK")
        self.database._connection.close()
        os.close(self.database._lock)
        self.open()

    def files(self) -> set[str]:
        return {path.name for path in self.spool.folder.iterdir() if "." not in path.name}

    def body(self, number: int, large: bool) -> Body:
        text = f"{number}".encode()
        if large:
            return Body("t", len(text), None, self.spool.write([text]))
        return Body("t", len(text), text)


class World:
    """Machine A sends to machine B over streams that break; B keeps what it takes in a table of its own transaction."""

    def __init__(self, folder: Path) -> None:
        self.a, self.b = Machine(folder / "a"), Machine(folder / "b")
        self.put: dict[str, list[int]] = defaultdict(list)
        self.waiting: dict[str, list[int]] = defaultdict(list)
        self.next: dict[str, int] = {}
        self.wire: list[tuple[str, int, str]] = []
        self.acks: list[tuple[str, int]] = []
        self.count = 0
        self.reconnect()

    def reconnect(self) -> None:
        self.b.database.commit()
        self.wire, self.acks = [], []
        received = self.b.mailbox.lanes("a", 10)
        for run, seq in received.items():
            self.a.mailbox.acknowledged("b", run, seq)
        self.next = {run: received.get(run, 0) for run in RUNS}

    def do_put(self, run: str, large: bool) -> None:
        self.count += 1
        self.a.mailbox.put("b", run, "x", "y", self.a.body(self.count, large))
        self.waiting[run].append(self.count)

    def commit(self) -> None:
        self.a.database.commit()
        for run, numbers in self.waiting.items():
            self.put[run] += numbers
        self.waiting.clear()

    def send(self, run: str) -> None:
        self.commit()
        parcel = self.a.mailbox.next("b", run, self.next[run])
        if parcel is None:
            return
        self.next[run] = parcel.seq
        body = parcel.body
        text = body.inline if body.inline is not None else bytes(self.a.spool.map(body.blob))
        self.wire.append((run, parcel.seq, text.decode()))

    def receive(self, twice: bool) -> None:
        if not self.wire:
            return
        run, seq, text = self.wire.pop(0)
        for _ in range(1 + twice):
            if self.b.mailbox.take("a", run, seq):
                self.b.database.write(
                    "INSERT INTO letters (run, party, sender, tag, size, blob) VALUES (?, 'y', 'x', ?, 0, '')",
                    run,
                    text,
                )
            self.b.database.after(lambda: self.acks.append((run, seq)))

    def acknowledge(self) -> None:
        self.b.database.commit()
        while self.acks:
            self.a.mailbox.acknowledged("b", *self.acks.pop(0))

    def taken(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for run, text in self.b.database.read("SELECT run, tag FROM letters ORDER BY number"):
            found[run].append(int(text))
        return found


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(RUNS), st.booleans()),
        st.tuples(st.just("send"), st.sampled_from(RUNS)),
        st.tuples(st.just("receive"), st.booleans()),
        st.tuples(st.sampled_from(("acknowledge", "reconnect", "commit", "crash a", "crash b"))),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(ACTIONS)
def test_each_parcel_arrives_once_in_order_whatever_happens(actions: list[tuple[str, ...]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        world = World(folder)
        for action, *arguments in actions:
            if action == "put":
                world.do_put(arguments[0], bool(arguments[1]))
            elif action == "send":
                world.send(arguments[0])
            elif action == "receive":
                world.receive(bool(arguments[0]))
            elif action == "crash a":
                world.a.crash()
                world.waiting.clear()  # what was not committed was never accepted
                world.reconnect()
            elif action == "crash b":
                world.b.crash()
                world.reconnect()
            else:
                getattr(world, action)()
            for run, numbers in world.taken().items():
                assert numbers == world.put[run][: len(numbers)]
        world.commit()
        world.reconnect()
        for run in RUNS:
            for _ in world.put[run]:
                world.send(run)
                world.receive(twice=True)
        world.acknowledge()
        assert {run: numbers for run, numbers in world.taken().items() if numbers} == {
            run: numbers for run, numbers in world.put.items() if numbers
        }
        world.a.database.commit()
        assert list(world.a.mailbox.waiting("b")) == []
        assert world.a.database.read("SELECT * FROM blobs") == []
        world.a.crash()  # the files of puts that were never committed go with the sweep
        assert world.a.files() == set()
        for machine in (world.a, world.b):
            machine.database.close()
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(("put b", "put c", "put other", "ack b", "ack c", "drop", "drop b", "crash")), max_size=25)
)
def test_a_file_that_many_lanes_share_goes_with_the_last_of_them(actions: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        machine = Machine(folder / "a")
        body = machine.body(1, large=True)
        machine.mailbox.put("z", RUNS[2], "x", "y", body)  # needs the file to the end
        machine.database.commit()
        for action in actions:
            if action.startswith("put"):
                peer = action.removeprefix("put ")
                machine.mailbox.put(peer, RUNS[1], "x", "y", body if peer != "other" else machine.body(2, large=True))
            elif action.startswith("ack"):
                peer = action.removeprefix("ack ")
                parcel = machine.mailbox.next(peer, RUNS[1], 0)
                if parcel is not None:
                    machine.mailbox.acknowledged(peer, RUNS[1], parcel.seq)
            elif action == "crash":
                machine.crash()
            else:
                machine.mailbox.drop(RUNS[1], "b" if action == "drop b" else None)
            machine.database.commit()
            ((held,),) = machine.database.read("SELECT refs FROM blobs WHERE name = ?", body.blob)
            ((rows,),) = machine.database.read("SELECT count(*) FROM outbox WHERE blob = ?", body.blob)
            assert held == rows
            needed = {blob for (blob,) in machine.database.read("SELECT DISTINCT blob FROM outbox WHERE blob != ''")}
            assert machine.files() == needed
        machine.mailbox.drop(RUNS[1])
        machine.mailbox.acknowledged("z", RUNS[2], 1)
        machine.database.commit()
        assert machine.files() == set()
        machine.database.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "m")


def test_a_file_is_not_removed_before_that_is_durable(machine: Machine) -> None:
    body = machine.body(1, large=True)
    machine.mailbox.put("b", RUNS[1], "x", "y", body)
    machine.database.commit()
    machine.mailbox.acknowledged("b", RUNS[1], 1)
    assert machine.files() == {body.blob}
    machine.crash()  # the acknowledgement was lost, so the parcel goes out again: its file must be there
    parcel = machine.mailbox.next("b", RUNS[1], 0)
    assert parcel is not None
    assert bytes(machine.spool.map(parcel.body.blob)) == b"1"
    machine.database.close()


def test_a_pinned_file_stays_until_it_is_unpinned(machine: Machine) -> None:
    body = machine.body(1, large=True)
    machine.mailbox.pin(body.blob)
    machine.mailbox.hold(body)
    machine.mailbox.release(body.blob)
    machine.database.commit()
    assert machine.files() == {body.blob}
    machine.mailbox.unpin(body.blob)
    assert machine.files() == set()
    machine.database.close()


def test_nobody_is_told_of_a_parcel_before_it_is_durable(machine: Machine) -> None:
    told: list[str] = []
    machine.mailbox.listen("b", told.append)
    machine.mailbox.put("b", RUNS[1], "x", "y", Body("t", 1, b"1"))
    machine.mailbox.put("c", RUNS[1], "x", "y", Body("t", 1, b"1"))
    assert told == []
    machine.database.commit()
    assert told == [RUNS[1]]
    machine.mailbox.listen("b", None)
    machine.mailbox.put("b", RUNS[2], "x", "y", Body("t", 1, b"1"))
    machine.database.commit()
    assert told == [RUNS[1]]
    machine.database.close()


def test_numbers_go_on_after_a_drop_so_that_no_number_means_two_parcels(machine: Machine) -> None:
    for _ in range(3):
        machine.mailbox.put("b", RUNS[1], "x", "y", Body("t", 1, b"1"))
    machine.mailbox.drop(RUNS[1])
    machine.mailbox.put("b", RUNS[1], "x", "y", Body("t", 1, b"2"))
    parcel = machine.mailbox.next("b", RUNS[1], 0)
    assert parcel is not None
    assert parcel.seq == 4
    machine.database.close()


def test_a_drop_leaves_the_other_runs_and_the_other_peers(machine: Machine) -> None:
    for peer in ("b", "c"):
        for run in RUNS:
            machine.mailbox.put(peer, run, "x", "y", Body("t", 1, b"1"))
    machine.mailbox.drop(RUNS[1], "b")
    assert set(machine.mailbox.waiting("b")) == {RUNS[0], RUNS[2]}
    assert set(machine.mailbox.waiting("c")) == set(RUNS)
    machine.mailbox.drop(RUNS[1])
    assert set(machine.mailbox.waiting("c")) == {RUNS[0], RUNS[2]}
    machine.database.close()


def test_envelopes_are_numbered_for_each_pair_and_a_crash_gives_none_twice_that_left(machine: Machine) -> None:
    assert [machine.mailbox.number("r/1", "x", "y") for _ in range(3)] == [1, 2, 3]
    assert machine.mailbox.number("r/1", "y", "x") == 1
    assert machine.mailbox.number("r/2", "x", "y") == 1
    machine.database.commit()
    machine.mailbox.number("r/1", "x", "y")
    machine.crash()
    assert machine.mailbox.last_number("r/1", "x", "y") == 3
    assert machine.mailbox.last_number("r/1", "x", "z") == 0
    machine.database.close()


def test_a_sweep_leaves_what_is_needed_and_takes_the_rest(machine: Machine) -> None:
    needed, stray = machine.body(1, large=True), machine.body(2, large=True)
    half = machine.spool.draft(10)
    half.write(b"half")
    machine.mailbox.put("b", RUNS[1], "x", "y", needed)
    machine.database.commit()
    assert machine.mailbox.sweep() == 2
    assert machine.files() == {needed.blob}
    assert stray.blob not in {path.name for path in machine.spool.folder.iterdir()}
    half._close()
    machine.database.close()


def test_control_is_among_the_lanes_that_are_told_however_many_runs_there_were(machine: Machine) -> None:
    machine.mailbox.take("b", "", 5)
    for number in range(30):
        machine.mailbox.take("b", f"{number:016x}", 1)
    told = machine.mailbox.lanes("b", 10)
    assert len(told) == 10
    assert told[""] == 5
    assert f"{29:016x}" in told
    machine.database.close()
