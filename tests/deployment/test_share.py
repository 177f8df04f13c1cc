"""The spool is shared: whoever floods waits, and nobody waits for it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.deployment import packets
from hansa.deployment.link import Link
from hansa.deployment.packets import Refused, Sending
from hansa.deployment.store import Database, Mailbox, Parcel
from hansa.deployment.worker.spool import Spool
from hansa.errors import LinkError
from hansa.message import encode

ROOM = 1000


class Hub:
    """A machine that relays everything to somebody who is away, and its links to members."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.numbers: dict[str, int] = {}
        self.loop = asyncio.Runner()
        self.open()

    def open(self) -> None:
        self.database = Database(self.folder / "hub.db")
        self.spool = Spool(self.folder / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.links: dict[str, Link] = {}

    def admit(self, peer: str, sending: Sending) -> str:
        return ""

    def take(self, peer: str, parcel: Parcel) -> str:
        self.mailbox.put("away", parcel.run, parcel.sender, parcel.receiver, parcel.body)
        self.mailbox.put("away too", parcel.run, parcel.sender, parcel.receiver, parcel.body)
        return ""

    def refused(self, peer: str, refused: Refused) -> None:
        raise AssertionError

    def link(self, peer: str, whole: bool = False) -> Link:
        if peer not in self.links:
            self.links[peer] = Link(peer, self.database, self.mailbox, self.spool, self, ROOM, ROOM, whole=whole)
        return self.links[peer]

    def send(self, peer: str, size: int, pieces: bool = True, whole: bool = False) -> str:
        """``peer`` brings a body, or announces one; why it must wait."""
        number = self.numbers[peer] = self.numbers.get(peer, 0) + 1
        run = f"{number:016x}"
        link = self.link(peer, whole)
        words = [encode(Sending(run, 1, "x", "y", True, "t/1", size, None))]
        if pieces:
            words.append(packets.piece(run, 1, 0, b"x" * size))

        async def read() -> bytes | None:
            return words.pop(0) if words else None

        async def write(packet: bytes) -> None:
            return None

        async def stream() -> None:
            await link.serve(read, write, [])

        try:
            self.loop.run(stream())
        except LinkError as error:
            return str(error)
        finally:
            self.database.commit()
        return ""

    def of(self, peer: str) -> int:
        """Bytes that a peer has here."""
        rows = self.database.read("SELECT SUM(size) FROM blobs JOIN brought USING (name) WHERE peer = ?", peer)
        return int(rows[0][0] or 0) + self.mailbox.coming.get(peer, 0)

    def close(self) -> None:
        self.database.close()
        self.loop.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path / "hub")
    yield found
    found.close()


@pytest.mark.parametrize("pieces", [True, False], ids=["whole bodies", "announced and never sent"])
def test_who_floods_leaves_half_and_another_finds_a_place(hub: Hub, pieces: bool) -> None:
    refused = [hub.send("flood", 50, pieces) for _ in range(40)]
    assert [bool(flaw) for flaw in refused] == [False] * 10 + [True] * 30
    assert "'flood' has 500 bytes" in refused[-1] and "taken later" in refused[-1]
    assert hub.of("flood") == 500
    # Another's body comes in, as large as all that is left.
    assert hub.send("modest", 500) == ""
    assert "no room" in hub.send("third", 1)


def test_two_that_flood_leave_a_third_between_them(hub: Hub) -> None:
    for _ in range(100):
        hub.send("flood", 20)
        hub.send("deluge", 20)
    assert hub.of("flood") + hub.of("deluge") <= 680
    assert hub.send("modest", 320) == ""


def test_one_body_may_be_as_large_as_the_room(hub: Hub) -> None:
    assert hub.send("large", ROOM) == ""
    assert "no room" in hub.send("large", 1)


def test_many_with_a_body_each_fill_it(hub: Hub) -> None:
    assert [hub.send(f"node-{number}", 100) for number in range(10)] == [""] * 10
    assert "no room" in hub.send("node-0", 1)


def test_the_share_is_free_again_when_what_it_was_for_has_left(hub: Hub) -> None:
    while not hub.send("flood", 100):
        pass
    assert hub.of("flood") == 500
    hub.mailbox.acknowledged("away", f"{1:016x}", 9)
    hub.database.commit()
    assert hub.of("flood") == 500, "a second receiver still needs it"
    assert hub.send("flood", 100) != ""
    hub.mailbox.acknowledged("away too", f"{1:016x}", 9)
    hub.database.commit()
    assert hub.send("flood", 100) == ""
    hub.mailbox.drop(f"{2:016x}")
    assert hub.send("flood", 100) == ""
    for number in range(1, 40):
        hub.mailbox.drop(f"{number:016x}")
    assert hub.database.read("SELECT * FROM brought") == []
    assert hub.send("flood", ROOM) == ""


def test_what_was_abandoned_counts_no_more(hub: Hub) -> None:
    while not hub.send("flood", 100, pieces=False):
        pass
    announced = len(list(hub.spool.folder.iterdir()))
    assert (hub.of("flood"), announced) == (500, 5)
    for number in range(1, 6):
        hub.link("flood").forget(f"{number:016x}")
    assert hub.of("flood") == 0
    assert hub.send("flood", ROOM) == ""


def test_the_share_is_the_same_after_a_restart(hub: Hub) -> None:
    while not hub.send("flood", 50):
        pass
    hub.database.close()
    hub.open()
    assert hub.send("flood", 50) != ""
    assert hub.send("modest", 500) == ""


def test_a_nodes_own_hub_may_have_all_of_it(hub: Hub) -> None:
    assert [hub.send("hub", 250, whole=True) for _ in range(4)] == [""] * 4
    assert "no room" in hub.send("hub", 1, whole=True)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 400), st.booleans()), max_size=25))
def test_the_room_is_never_exceeded_and_never_all_of_those_that_flood(actions: list[tuple[str, int, bool]]) -> None:

    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(Path(folder) / "hub")
        for peer, size, pieces in actions:
            before = {one: hub.of(one) for one in "abc"}
            free = ROOM - sum(before.values())
            flaw = hub.send(peer, size, pieces)
            assert bool(flaw) == (size > free or bool(before[peer] and before[peer] + size > free - size))
            assert hub.of(peer) == before[peer] + (0 if flaw else size)
        hub.close()
