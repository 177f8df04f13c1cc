"""The standing stream between two machines, over a pipe in memory that a seeded adversary cuts wherever it likes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from hansa.deployment import packets
from hansa.deployment.link import Link
from hansa.deployment.packets import Farewell, Lane, Probe, Received, Refused, Sending
from hansa.deployment.store import Database, Mailbox, Parcel
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Spool
from hansa.errors import HansaError, LinkError, MalformedMessage
from hansa.message import Message, decode, encode
from tests.deployment.federation import drive

A, B = "00000000000000aa", "00000000000000bb"


class End:
    """One machine and its link; it is its own desk."""

    def __init__(self, folder: Path, name: str, peer: str, largest: int = 1 << 40) -> None:
        self.name = name
        self.database = Database(folder / f"{name}.db")
        self.spool = Spool(folder / name)
        self.mailbox = Mailbox(self.database, self.spool)
        self.peer = peer
        self.link = Link(peer, self.database, self.mailbox, self.spool, self, largest, 1 << 40)
        self.sent: dict[str, list[bytes]] = defaultdict(list)
        self.taken: dict[str, list[bytes]] = defaultdict(list)
        self.order: list[tuple[str, int]] = []
        self.refusals: list[Refused] = []
        self.flaw = ""
        self.keep = True

    def admit(self, peer: str, sending: Sending) -> str:
        assert peer == self.peer
        return self.flaw

    def take(self, peer: str, parcel: Parcel) -> str:
        body = parcel.body
        if self.keep:
            content = body.inline if body.inline is not None else bytes(self.spool.map(body.blob))
            assert len(content) == body.size
            self.taken[parcel.run].append(content)
        self.order.append((parcel.run, parcel.seq))
        return ""

    def refused(self, peer: str, refused: Refused) -> None:
        self.refusals.append(refused)

    def put(self, run: str, content: bytes, large: bool) -> None:
        body = Body("t", len(content), None if large else content, self.spool.write([content]) if large else "")
        self.mailbox.put(self.peer, run, "x", "y", body)
        self.sent[run].append(content)

    def close(self) -> None:
        self.database.close()


class Pipe:
    """Two directions; cut after some packets. A writer waits while ``room`` packets are under way."""

    def __init__(self, chance: random.Random, cut_after: int | None, room: int = 4) -> None:
        self.chance = chance
        self.left = cut_after
        self.cut = asyncio.Event()
        self.queues: tuple[asyncio.Queue[bytes], asyncio.Queue[bytes]] = (asyncio.Queue(room), asyncio.Queue(room))
        self.seen: list[tuple[int, bytes]] = []
        self.arrived = [0, 0]

    async def write(self, way: int, packet: bytes) -> None:
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.cut.set()
        if self.cut.is_set():
            raise LinkError("cut")
        self.seen.append((way, packet))
        await self.queues[way].put(packet)

    async def read(self, way: int) -> bytes | None:
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)
        get, cut = asyncio.ensure_future(self.queues[way].get()), asyncio.ensure_future(self.cut.wait())
        try:
            await asyncio.wait([get, cut], return_when=asyncio.FIRST_COMPLETED)
            if self.cut.is_set():
                return None
            self.arrived[way] += pieces([get.result()])
            return get.result()
        finally:
            get.cancel()
            cut.cancel()

    @property
    def sent(self) -> int:
        """Bytes of bodies that were sent."""
        return pieces([packet for _, packet in self.seen])


def pieces(packets_: list[bytes]) -> int:
    """Bytes of bodies in pieces."""
    return sum(len(packets.read_piece(packet).data) for packet in packets_ if packets.is_piece(packet))


async def connect(left: End, right: End, pipe: Pipe) -> None:
    """One stream between two ends, until it is cut; it is cut when both have nothing more to send and no answer is under way."""
    ours, theirs = left.link.lanes(), right.link.lanes()

    async def end(link: Link, way: int, lanes: list[Lane]) -> None:
        with contextlib.suppress(LinkError):
            await link.serve(lambda: pipe.read(1 - way), lambda packet: pipe.write(way, packet), lanes)
        pipe.cut.set()

    async def quiet() -> None:
        while not pipe.cut.is_set():
            await asyncio.sleep(0)
            for machine in (left, right):
                machine.database.commit()
            if not any(list(machine.mailbox.waiting(machine.peer)) for machine in (left, right)):
                pipe.cut.set()

    async with asyncio.timeout(20):
        await asyncio.gather(end(left.link, 0, theirs), end(right.link, 1, ours), quiet())


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[End, End]]:
    left, right = End(tmp_path, "left", "right"), End(tmp_path, "right", "left")
    yield left, right
    left.close()
    right.close()


@pytest.mark.parametrize("seed", range(12))
def test_everything_arrives_once_and_in_order_however_often_the_stream_is_cut(
    seed: int, ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 100)
    chance = random.Random(seed)
    left, right = ends

    async def scenario() -> None:
        cuts, sent, arrived, sizes = 0, 0, 0, 0
        for _ in range(25):
            for _ in range(chance.randrange(4)):
                machine, run = chance.choice(ends), chance.choice(("", A, B))
                content = chance.randbytes(chance.randrange(1, 2000))
                large = bool(run) and chance.random() < 0.6
                sizes += len(content) if large else 0
                machine.put(run, content, large)
            pipe = Pipe(chance, chance.randrange(30))
            await connect(left, right, pipe)
            cuts += 1
            sent, arrived = sent + pipe.sent, arrived + sum(pipe.arrived)
        pipe = Pipe(chance, None)
        await connect(left, right, pipe)
        sent, arrived = sent + pipe.sent, arrived + sum(pipe.arrived)
        assert cuts == 25
        assert sent > arrived
        # Nothing that arrived is sent again.
        assert arrived == sizes

    drive(scenario())
    for ours, theirs in (ends, ends[::-1]):
        assert {run: found for run, found in theirs.taken.items() if found} == {
            run: found for run, found in ours.sent.items() if found
        }
        for run in (A, B, ""):
            numbers = [seq for found, seq in theirs.order if found == run]
            assert numbers == sorted(set(numbers))
        assert list(ours.mailbox.waiting(ours.peer)) == []
        assert list(ours.spool.folder.iterdir()) == []
        assert not ours.refusals


def test_a_cut_body_goes_on_from_its_last_piece(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 1000)
    left, right = ends

    async def scenario() -> None:
        content = random.Random(1).randbytes(100_000)
        left.put(A, content, large=True)
        first, second = Pipe(random.Random(0), 61), Pipe(random.Random(0), None)
        await connect(left, right, first)
        assert not right.taken
        await connect(left, right, second)
        assert right.taken[A] == [content]
        assert first.arrived[0] >= 50_000
        assert second.sent == 100_000 - first.arrived[0]

    drive(scenario())


def test_small_letters_do_not_wait_behind_the_large_body_of_another_run_and_control_goes_first(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 1 << 10)
    left, right = ends

    async def scenario() -> None:
        left.put(A, bytes(50 << 10), large=True)
        for number in range(3):
            left.put(B, b"%d" % number, large=False)
        for number in range(3):
            left.put("", b"%d" % number, large=False)
        pipe = Pipe(random.Random(0), None)
        await connect(left, right, pipe)
        said = [packet for way, packet in pipe.seen if way == 0]
        runs = ["piece" if packets.is_piece(packet) else decode(packet, Sending).run for packet in said]
        assert runs[:3] == ["", "", ""]
        # A piece, a letter, a piece, a letter: nobody has two turns while another waits.
        assert sorted(runs[3:5]) == sorted([A, B])
        assert runs[3:].index(B) <= 1
        last = len(runs) - 1 - runs[::-1].index(B)
        assert runs[:last].count("piece") <= 3
        assert runs.count("piece") == 50

    drive(scenario())


def test_two_large_bodies_share_the_stream_evenly(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 1 << 10)
    left, right = ends

    async def scenario() -> None:
        left.put(A, bytes(40 << 10), large=True)
        left.put(B, bytes(40 << 10), large=True)
        pipe = Pipe(random.Random(0), None)
        await connect(left, right, pipe)
        runs = [packets.read_piece(packet).run for _, packet in pipe.seen if packets.is_piece(packet)]
        for length in range(1, 81):
            assert abs(runs[:length].count(A) - runs[:length].count(B)) <= 1

    drive(scenario())


@pytest.mark.slow
def test_a_body_of_two_hundred_megabytes_takes_the_memory_of_a_few_pieces(ends: tuple[End, End]) -> None:
    left, right = ends
    right.keep = False

    async def scenario() -> None:
        draft = left.spool.draft()
        for _ in range(200):
            draft.write(bytes(1 << 20))
        left.mailbox.put("right", A, "x", "y", Body("t", 200 << 20, None, draft.finish()))
        pipe = Pipe(random.Random(0), None, room=2)
        pipe.seen = Forgetful()
        tracemalloc.start()
        await connect(left, right, pipe)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert right.order == [(A, 1)]
        assert peak < 12 << 20

    drive(scenario())


class Forgetful(list[tuple[int, bytes]]):
    """Keeps nothing."""

    def append(self, item: tuple[int, bytes], /) -> None:
        pass


def test_a_refused_body_is_named_and_its_pieces_stop(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 100)
    left, right = ends

    async def scenario() -> None:
        right.flaw = "not for you"
        right.mailbox.take("left", A, 0)
        right.mailbox.put("left", A, "x", "y", Body("t", 1, b"1"))  # so that the lane is known here
        left.put(A, bytes(100_000), large=True)
        left.put(A, b"small", large=False)
        pipe = Pipe(random.Random(0), None)
        await connect(left, right, pipe)
        assert [(refused.seq, refused.reason) for refused in left.refusals] == [(1, "not for you"), (2, "not for you")]
        assert pipe.sent < 5000
        right.flaw = ""
        left.put(A, b"welcome", large=False)
        await connect(left, right, Pipe(random.Random(0), None))
        assert right.taken[A] == [b"welcome"]
        assert list(left.mailbox.waiting("right")) == []

    drive(scenario())


def test_a_body_above_the_limit_is_refused_before_a_byte_of_it_is_kept(tmp_path: Path) -> None:
    left, right = End(tmp_path, "left", "right"), End(tmp_path, "right", "left", largest=1000)

    async def scenario() -> None:
        left.put(A, bytes(1001), large=True)
        left.put(A, bytes(1001), large=False)
        left.put(A, bytes(1000), large=False)
        await connect(left, right, Pipe(random.Random(0), None))
        assert [len(content) for content in right.taken[A]] == [1000]
        assert {refused.reason for refused in left.refusals} == {"a body of 1001 bytes; at most 1000 are taken"}
        assert list(right.spool.folder.iterdir()) == []

    drive(scenario())
    left.close()
    right.close()


def test_a_run_that_ends_stops_its_bodies_on_both_sides_and_the_next_ones_pass(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 100)
    left, right = ends

    async def scenario() -> None:
        for forgetting in (left, right):
            left.put(A, bytes(50_000), large=True)
            await connect(left, right, Pipe(random.Random(0), 100))
            if forgetting is left:
                left.mailbox.drop(A)
            forgetting.link.forget(A)
            left.put(A, b"after", large=False)
            left.put(A, b"large and after" * 100, large=True)
            await connect(left, right, Pipe(random.Random(0), None))
            assert right.taken.pop(A) == [b"after", b"large and after" * 100]
            assert list(left.mailbox.waiting("right")) == []
            assert [path.name for path in right.spool.folder.iterdir()] == []

    drive(scenario())


def test_hundreds_of_runs_that_end_in_the_middle_of_a_body_do_not_use_up_the_link(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "PIECE_BYTES", 100)
    left, right = ends

    async def scenario() -> None:
        for number in range(100):
            run = f"{number:016x}"
            left.put(run, bytes(5_000), large=True)
            await connect(left, right, Pipe(random.Random(0), 20))
            left.mailbox.drop(run)
            for machine in ends:
                machine.link.forget(run)
        left.put(A, bytes(5_000), large=True)
        await connect(left, right, Pipe(random.Random(0), None))
        assert [len(content) for content in right.taken[A]] == [5_000]

    drive(scenario())


def test_what_is_told_of_the_lanes_is_durable(ends: tuple[End, End]) -> None:
    _, right = ends
    right.mailbox.take("left", A, 3)
    assert right.database._open
    assert right.link.lanes() == [Lane(A, 3)]
    assert not right.database._open


async def told(end: End, *words: Message | bytes) -> tuple[str, list[Message]]:
    """What an end answers to somebody who says these words and hangs up; the reason that it gives."""
    answers: list[Message] = []
    script = [word if isinstance(word, bytes) else encode(word) for word in words]

    async def read() -> bytes | None:
        for _ in range(5):
            await asyncio.sleep(0)
        return script.pop(0) if script else None

    async def write(packet: bytes) -> None:
        if not packets.is_piece(packet):
            answers.append(decode(packet, packets.LINK, packets.MAX_PACKET))

    return await end.link.serve(read, write, []), answers


BODY = Sending(A, 1, "x", "y", False, "t", 300, None)
HOSTILE: dict[str, list[Message | bytes]] = {
    "a piece out of nothing": [packets.piece(A, 1, 0, b"abc")],
    "a piece of another number": [BODY, packets.piece(A, 2, 0, b"abc")],
    "a piece of another run": [BODY, packets.piece(B, 1, 0, b"abc")],
    "a gap": [BODY, packets.piece(A, 1, 1, b"abc")],
    "a piece again": [BODY, packets.piece(A, 1, 0, b"abc"), packets.piece(A, 1, 0, b"abc")],
    "more than was said": [BODY, packets.piece(A, 1, 0, bytes(301))],
    "a body that goes on from nowhere": [Sending(A, 1, "x", "y", False, "t", 300, None, 7)],
    "a size that is a lie": [Sending(A, 1, "x", "y", False, "t", 300, b"abc")],
    "a large word of control": [Sending("", 1, "", "", False, "t", 300, None)],
    "a body of no size": [Sending(A, 1, "x", "y", False, "t", 0, None)],
    "thanks for what was never sent": [Received(A, 1)],
    "a refusal of what was never sent": [Refused(A, 1, "no")],
    "a second hello": [packets.Hello(1, 1, "1", "i", "e" * 32, "", [])],
    "noise": [b"\x00" * 40],
    "an empty packet": [b""],
    "a head of a piece without a body": [packets.piece(A, 1, 0, b"")],
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_whoever_breaks_the_protocol_loses_the_stream_and_nothing_else(name: str, ends: tuple[End, End]) -> None:
    left, right = ends

    async def scenario() -> None:
        with pytest.raises(HansaError):
            await told(right, *HOSTILE[name])
        assert not right.taken
        left.put(A, b"small", large=False)
        left.put(A, b"large" * 100, large=True)
        await connect(left, right, Pipe(random.Random(0), None))
        assert right.taken[A] == [b"small", b"large" * 100]

    drive(scenario())


def test_more_large_bodies_at_a_time_than_runs_are_likely_end_the_stream(ends: tuple[End, End]) -> None:
    _, right = ends
    words = [Sending(f"{number:016x}", 1, "x", "y", False, "t", 300, None) for number in range(65)]
    with pytest.raises(LinkError, match="more than 64 large bodies"):
        drive(told(right, *words))


def test_lanes_that_say_more_than_was_ever_sent_are_refused(ends: tuple[End, End]) -> None:
    left, _ = ends
    left.put(A, b"1", large=False)
    left.database.commit()

    async def silent() -> bytes | None:
        return None

    async def write(_: bytes) -> None:
        return None

    with pytest.raises(LinkError, match="older copy of its home"):
        drive(left.link.serve(silent, write, [Lane(A, 2)]))
    assert list(left.mailbox.waiting("right")) == [A]


def test_a_probe_is_answered_and_a_farewell_ends_with_its_reason(ends: tuple[End, End]) -> None:
    _, right = ends

    async def scenario() -> None:
        reason, answers = await told(right, Probe(7), Probe(8), Farewell("closing for the night"))
        assert reason == "closing for the night"
        assert answers == [Probe(7, answer=True), Probe(8, answer=True)]
        assert not right.link.probed.is_set()
        await told(right, Probe(9, answer=True))
        assert right.link.probed.is_set()

    drive(scenario())


def test_the_same_parcel_again_is_thanked_for_and_not_taken_again(ends: tuple[End, End]) -> None:
    _, right = ends
    word = Sending(A, 1, "x", "y", False, "t", 3, b"abc")

    async def scenario() -> None:
        _, answers = await told(right, word, word)
        assert answers == [Received(A, 1), Received(A, 1)]
        right.flaw = "the run has ended"
        _, answers = await told(right, word, Sending(A, 2, "x", "y", False, "t", 3, b"def"))
        assert answers == [Received(A, 1), Refused(A, 2, "the run has ended")]
        assert right.taken[A] == [b"abc"]

    drive(scenario())


def test_a_malformed_frame_is_named_as_such(ends: tuple[End, End]) -> None:
    _, right = ends
    with pytest.raises(MalformedMessage):
        drive(told(right, Sending(A, 1, "x", "y", False, "t", 300, b"abc")))


def test_an_end_that_is_cancelled_once_more_gives_up_its_place_at_the_gate(ends: tuple[End, End]) -> None:
    """The gate is the machine's: a place that nobody gives up is lost to all other peers."""
    left, _ = ends

    async def scenario() -> None:
        for run in (1, 2):
            left.put(f"{run:016x}", bytes(3 << 20), large=True)
        under_way = asyncio.Event()

        async def read() -> bytes | None:
            await asyncio.get_running_loop().create_future()
            return None

        async def write(_: bytes) -> None:
            under_way.set()
            await asyncio.get_running_loop().create_future()

        serving = asyncio.ensure_future(left.link.serve(read, write, []))
        await under_way.wait()
        serving.cancel()
        await asyncio.sleep(0)  # it waits for its two halves
        serving.cancel()
        await asyncio.wait([serving])
        gate = left.link.gate
        assert [gate.enter(other, lambda: None) for other in ("a", "b")] == [True, True]

    asyncio.run(scenario())
