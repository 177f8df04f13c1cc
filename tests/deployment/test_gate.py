"""Large bodies leave a few at a time, in order, and a slow peer keeps nobody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment import packets
from hansa.deployment.gate import Gate
from hansa.deployment.link import Link
from hansa.deployment.store import Database, Mailbox
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Spool
from tests.deployment.federation import drive

RUN = "00000000000000aa"
MIB = 1 << 20


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60))
def test_no_more_than_its_places_are_taken_and_whoever_waits_comes_in_order(
    width: int, calls: list[tuple[bool, int]]
) -> None:
    """Against the book: a list of those inside and a line of those who wait."""
    gate, woken = Gate(width), list[int]()
    inside, line = list[int](), list[int]()

    def wake(who: int) -> Callable[[], None]:
        return lambda: woken.append(who)

    for enters, who in calls:
        woken.clear()
        if enters:
            entered = gate.enter(who, wake(who))
            if who not in inside and len(inside) < width:
                inside.append(who)
            assert entered == (who in inside)
            if not entered and who not in line:
                line.append(who)
            assert woken == []
        else:
            gate.leave(who)
            expected = []
            if who in line:
                line.remove(who)
            if who in inside:
                inside.remove(who)
                if line:
                    inside.append(line[0])
                    expected = [line.pop(0)]
            assert woken == expected
        assert len(inside) <= width


def test_a_peer_that_takes_slowly_gives_its_place_up_while_it_takes(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate, woken = Gate(1, slow=0.01), asyncio.Event()
        assert gate.enter("slow", lambda: None)
        assert not gate.enter("next", woken.set)
        with gate.sending("slow"):
            await woken.wait()
        assert gate.enter("next", lambda: None)

    drive(scenario(), 5)


def test_a_peer_that_takes_at_once_keeps_its_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate, woken = Gate(1, slow=3600.0), asyncio.Event()
        assert gate.enter("quick", lambda: None)
        assert not gate.enter("next", woken.set)
        for _ in range(3):
            with gate.sending("quick"):
                await asyncio.sleep(0)
        assert not woken.is_set()

    drive(scenario(), 5)


class Sender:
    """A machine with links to many peers, whose streams take packets when they are told to."""

    def __init__(self, folder: Path, peers: int, gate: Gate) -> None:
        self.database = Database(folder / "x.db")
        self.spool = Spool(folder / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.pieces: list[str] = []
        self.takes = {f"node-{number}": asyncio.Event() for number in range(peers)}
        self.links = {
            peer: Link(peer, self.database, self.mailbox, self.spool, self, 1 << 40, 1 << 40, gate=gate)
            for peer in self.takes
        }
        for event in self.takes.values():
            event.set()

    def admit(self, *_: object) -> str:
        return ""

    take = admit

    def refused(self, *_: object) -> None:
        raise AssertionError("nobody refuses anything")

    def put(self, peer: str, size: int) -> None:
        content = bytes(size)
        self.mailbox.put(peer, RUN, "x", "y", Body("t", size, None, self.spool.write([content], size)))
        self.database.commit()

    def serve(self, peer: str) -> asyncio.Task[str]:
        async def read() -> bytes | None:
            await asyncio.get_running_loop().create_future()
            return None

        async def write(packet: bytes) -> None:
            await self.takes[peer].wait()
            if packets.is_piece(packet):
                self.pieces.append(peer)

        return asyncio.ensure_future(self.links[peer].serve(read, write, []))

    async def held_up(self) -> list[asyncio.Task[str]]:
        """A body for each peer, and the first, which has the place, takes nothing."""
        for peer in self.takes:
            self.put(peer, 3 * MIB)
        self.takes["node-0"].clear()
        tasks = [self.serve(peer) for peer in self.takes]
        for _ in range(20):
            await asyncio.sleep(0)
        return tasks

    async def until(self, condition: Callable[[], bool]) -> None:
        while True:
            if condition():
                return
            await asyncio.sleep(0.0005)

    async def close(self, *tasks: asyncio.Task[str]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.database.close()


def test_bodies_for_many_peers_leave_one_after_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, 4, Gate(1, slow=3600.0))
        for peer in sender.takes:
            sender.put(peer, 3 * MIB)
        tasks = [sender.serve(peer) for peer in sender.takes]
        await sender.until(lambda: len(sender.pieces) == 12)
        assert sender.pieces == [peer for peer in sender.takes for _ in range(3)]
        await sender.close(*tasks)

    drive(scenario())


def test_a_peer_that_takes_nothing_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, 3, Gate(1, slow=0.01))
        for peer in sender.takes:
            sender.put(peer, 3 * MIB)
        sender.takes["node-0"].clear()
        tasks = [sender.serve(peer) for peer in sender.takes]
        await sender.until(lambda: len(sender.pieces) == 6)
        assert "node-0" not in sender.pieces
        sender.takes["node-0"].set()
        await sender.until(lambda: len(sender.pieces) == 9)
        await sender.close(*tasks)

    drive(scenario())


def test_a_stream_that_ends_gives_its_place_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, 2, Gate(1, slow=3600.0))
        tasks = await sender.held_up()
        assert sender.pieces == []
        tasks[0].cancel()
        await sender.until(lambda: sender.pieces == ["node-1"] * 3)
        await sender.close(*tasks)

    drive(scenario())


def test_a_run_that_ends_gives_its_place_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, 2, Gate(1, slow=3600.0))
        tasks = await sender.held_up()
        sender.mailbox.drop(RUN, "node-0")
        sender.links["node-0"].forget(RUN)
        await sender.until(lambda: sender.pieces == ["node-1"] * 3)
        await sender.close(*tasks)

    drive(scenario())


def test_what_waits_and_is_withdrawn_takes_no_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        sender = Sender(tmp_path, 3, Gate(1, slow=3600.0))
        tasks = await sender.held_up()
        sender.mailbox.drop(RUN, "node-1")
        sender.links["node-1"].forget(RUN)
        sender.takes["node-0"].set()
        await sender.until(lambda: sender.pieces == ["node-0"] * 3 + ["node-2"] * 3)
        await sender.close(*tasks)

    drive(scenario())
