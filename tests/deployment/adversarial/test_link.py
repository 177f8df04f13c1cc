"""A member that breaks the protocol of the standing stream: the stream is closed by name, and nothing else happens."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.deployment import link, packets, wire
from hansa.deployment.identity import Credentials
from hansa.deployment.packets import Hello, Probe, Received, Refused, Sending
from hansa.errors import LinkError
from hansa.message import Message, encode
from hansa.protocol import Progress
from tests.deployment.adversarial.strangers import (
    STANDARD,
    Puppet,
    book,
    channel,
    hello,
    no_traceback,
    others_go_on,
    paper_of,
    puppet,
)
from tests.deployment.federation import Federation, drive, federation

RUN = "00000000000000ff"
BIG = (1 << 63) - 1


def forged(kind: type[Message], /, **fields: Any) -> bytes:
    """A frame that says ``fields`` as a ``kind``, whatever the class allows."""

    made = msgspec.defstruct(
        "Forged",
        [(name, Any) for name in fields],
        bases=(Message,),
        frozen=True,
        namespace={"tag": kind.tag, "discloses": "-"},
    )
    return encode(cast(Message, made(**fields)))


def sending(**changed: Any) -> bytes:
    usual: dict[str, Any] = {
        "run": "", "seq": 1, "sender": "", "receiver": "", "sealed": False, "kind": "t/1", "size": 1, "inline": b"x", "offset": 0,
    }  # fmt: skip
    return forged(Sending, **{**usual, **changed})


def control(word: Message, seq: int = 1) -> bytes:
    frame = encode(word)
    return sending(kind=word.tag, seq=seq, size=len(frame), inline=frame)


async def snapshot(fed: Federation) -> list[Any]:
    """All that a hub remembers."""
    tables = ("runs", "hosts", "lanes", "outbox", "blobs", "letters", "members", "invitations", "results")
    return [fed.hub.database.read(f"SELECT * FROM {table}") for table in tables]


@contextlib.asynccontextmanager
async def scene(tmp_path: Path, run: bool = False) -> Any:
    """Two good nodes at work, and node-3 in the hands of a test."""
    async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
        held = paper_of(Credentials.load(fed.folder / "node-3", fed.clock()))
        with book() as lines:
            yield fed, held, lines
            await others_go_on(fed)
        no_traceback(lines)


BROKEN: list[tuple[str, bytes, str]] = [
    ("empty", b"", "MessageError"),
    ("no frame", b"\x00" * 64, "MessageError"),
    ("too long for its header", encode(hello()) + b"x", "MessageError"),
    ("a hello twice", encode(hello()), "that is open already"),
    ("a welcome", encode(packets.Welcome(1, "0", "trial", 0.0, "e" * 32, [])), "that is open already"),
    (
        "an unknown class",
        forged(type("X", (Message,), {"tag": "no.such/1", "discloses": "-"}), a=1),
        "not accepted here",
    ),
    ("acknowledges what was never sent", encode(Received("", BIG)), "acknowledged number"),
    ("refuses what was never sent", encode(Refused(RUN, 5, "no")), "acknowledged number"),
    ("a piece never announced", packets.piece(RUN, 1, 0, b"abc"), "did not announce"),
    ("a piece without data", packets.piece(RUN, 1, 0, b""), "shorter than its head"),
    ("a piece cut short", b"HNSP" + b"\x00" * 9, "shorter than its head"),
    ("a size that is none of its body", sending(size=2), "size is not that of its body"),
    ("a size of 2**63", sending(size=1 << 63, inline=None), "hansa.link.sending/1"),
    ("a size of -1", sending(size=-1), "hansa.link.sending/1"),
    ("number 0", sending(seq=0), "hansa.link.sending/1"),
    ("number -1", sending(seq=-1), "hansa.link.sending/1"),
    ("number 2**63", sending(seq=1 << 63), "hansa.link.sending/1"),
    ("a run that is a path", sending(run="../../../../etc"), "hansa.link.sending/1"),
    ("a run that ends a line", sending(run=RUN + "\n"), "hansa.link.sending/1"),
    ("a run in capitals", sending(run=RUN.upper()), "hansa.link.sending/1"),
    ("a long name", sending(sender="x" * 1_000_000), "hansa.link.sending/1"),
    ("a long class", sending(kind="x" * 1_000_000), "hansa.link.sending/1"),
    ("large control", sending(size=1 << 20, inline=None), "control"),
    ("a body of no size", sending(run=RUN, size=0, inline=None), "of no size"),
    ("nothing known", sending(more=1), "hansa.link.sending/1"),
    ("negative acknowledgement", forged(Received, run="", seq=-5), "hansa.link.received/1"),
]


@pytest.mark.parametrize(("packet", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_packet_closes_the_stream_by_name_and_changes_nothing(
    tmp_path: Path, packet: bytes, words: str
) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, lines):
            before = await snapshot(fed)
            async with puppet(fed, held) as odd:
                await odd.say(packet)
                said = await odd.refusal()
                assert any(word in said for word in words.split("|")), said
            told = [said_ for who, event, said_ in lines if (who, event) == ("hub", "refused")]
            assert any(one["peer"] == "node-3" and str(one["reason"]) in said for one in told)
            assert before[:5] == (await snapshot(fed))[:5]

    drive(scenario())


LANES: list[tuple[str, list[Any]]] = [
    ("10,000 lanes", [{"run": f"{n:016x}", "received": 0, "partial": 0, "offset": 0} for n in range(10_000)]),
    ("a lane that is no hex", [{"run": "zz", "received": 0, "partial": 0, "offset": 0}]),
    ("a path", [{"run": "../../../../../..", "received": 0, "partial": 0, "offset": 0}]),
    ("negative", [{"run": "", "received": -1, "partial": 0, "offset": 0}]),
    ("2**63", [{"run": "", "received": 1 << 63, "partial": 0, "offset": 0}]),
    ("never sent", [{"run": RUN, "received": 7, "partial": 0, "offset": 0}]),
    ("never sent on control", [{"run": "", "received": BIG, "partial": 0, "offset": 0}]),
    ("negative offset", [{"run": "", "received": 0, "partial": 1, "offset": -1}]),
]


@pytest.mark.parametrize("lanes", [case[1] for case in LANES], ids=[case[0] for case in LANES])
def test_a_hello_that_cannot_be_true_is_refused(tmp_path: Path, lanes: list[Any]) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _):
            said = {"protocol": 1, "oldest": 1, "software": "0", "instance": "odd", "epoch": "e" * 32}
            said |= {"known": fed.hub.mailbox.epoch, "lanes": lanes}
            async with puppet(fed, held, forged(Hello, **said)) as odd:
                assert "hansa.link.hello/1" in (text := await odd.refusal()) or "set back" in text
            await fed.until(lambda: not fed.hub.connected("node-3"))

    drive(scenario())


@pytest.mark.parametrize(
    "first",
    [b"", b"garbage", encode(Probe(1)), packets.piece(RUN, 1, 0, b"x"), encode(hello())[:-3], b"HNSA" + b"\xff" * 30],
)
def test_a_first_packet_that_is_no_hello_is_refused(tmp_path: Path, first: bytes) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _):
            async with puppet(fed, held, first) as odd:
                assert await odd.refusal()
            assert not fed.hub.connected("node-3")

    drive(scenario())


def test_who_says_nothing_has_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.deployment import standing

    monkeypatch.setattr(standing, "GREETING", 0.1)

    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _), channel(fed, held) as connection:
            stream: Any = connection.stream_stream(wire.LINK)()
            assert "nothing was said within" in await Puppet(stream).refusal()

    drive(scenario())


def test_who_asks_and_reads_no_answer_is_shown_out(tmp_path: Path) -> None:
    async def ask() -> bytes:
        await asyncio.sleep(0)
        return encode(Probe(1))

    async def full(_: bytes) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            hub = fed.hub
            end = link.Link("node-3", hub.database, hub.mailbox, hub.spool, hub, 1000, 1000)
            with pytest.raises(LinkError, match="reads no answer"):
                await end.serve(ask, full, [])
            assert len(end._words) <= 2000

    drive(scenario())


def test_methods_answer_garbage_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _), channel(fed, held) as opened:
            connection: Any = opened
            import grpc.aio

            from hansa.deployment import api
            from hansa.message import decode

            for frame in (
                b"",
                b"\x00" * 100,
                encode(hello()),
                encode(api.Done()),
                forged(api.Submit, plan=1),
                b"HNSA" * 9,
            ):
                answer = decode(await connection.unary_unary(wire.CALL)(frame), api.Problem)
                assert answer.kind in ("MessageError", "LinkError"), answer
                for method in (wire.WATCH, wire.FETCH):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        async for _ in connection.unary_stream(method)(frame):
                            pass
                    assert caught.value.code() is grpc.StatusCode.ABORTED, caught.value
            for method in ("/hansa.Hub/Shell", "/hansa.Hub/", "/grpc.reflection.v1.ServerReflection/X", "/../../x"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await connection.unary_unary(method)(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connection.unary_unary(wire.CALL, request_serializer=None)(b"\x00" * (packets.MAX_PACKET + 1))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    drive(scenario())


async def joined(fed: Federation, odd: Puppet) -> str:
    """A run that the puppet takes part in, under way, with node-0."""
    run = await fed.submit(STANDARD, parties=("node-0", "node-3"), least=2)
    while True:
        word = await odd.hear(Sending)
        assert isinstance(word, Sending)
        if word.kind == packets.Offer.tag:
            break
    await odd.say(control(packets.Answer(run, 1, "accepted")))
    await fed.until(lambda: fed.hub.runs.running.seat_of(run, "node-3"), "the run begins")
    return run


Act = Callable[[Puppet, str], Awaitable[None]]


def parcel(run: str, **changed: Any) -> bytes:
    return sending(run=run, **{"sender": "node-3", "receiver": "server", **changed})


ACTS: list[tuple[str, Callable[[str], bytes], str]] = [
    ("speaks for another", lambda run: parcel(run, sender="node-0"), "not yours to speak for"),
    ("speaks for the hub's program", lambda run: parcel(run, sender="server"), "not yours to speak for"),
    ("to nobody", lambda run: parcel(run, receiver="nobody"), "no such party"),
    ("to the observer", lambda run: parcel(run, receiver="observer"), "no such party"),
    ("of a run that it has no part in", lambda _: parcel(RUN), "no such party"),
    ("sealed for the hub", lambda run: parcel(run, sealed=True), "must be sealed"),
    ("open for a peer", lambda run: parcel(run, receiver="node-0"), "must be sealed"),
    ("too large", lambda run: parcel(run, size=1 << 62, inline=None), "at most"),
    ("a word of the wrong direction", lambda run: control(packets.End(run, 1, "completed", ""), 2), "not accepted here"),
    ("control that is garbage", lambda _: sending(seq=2), "header"),
    ("trouble of another", lambda run: control(packets.Trouble(run, 1, "node-0", "X", "", fatal=True), 2), "not yours"),
    ("the end of the hub's program", lambda run: control(packets.Finished(run, 1, "server"), 2), "not yours"),
    ("the end of what never began", lambda run: control(packets.Finished(run, 1, "node-3"), 2), "does not start by itself"),
    ("a report of what it only serves",
     lambda run: control(packets.Report(run, "node-3", encode(Progress(9, {}))), 2), "does not start by itself"),
    ("a report of another", lambda run: control(packets.Report(run, "server", encode(Progress(9, {}))), 2), "not yours"),
    ("an answer for a run of others", lambda _: control(packets.Answer(RUN, 1, "accepted"), 2), "no such run"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), [case[1:] for case in ACTS], ids=[case[0] for case in ACTS])
def test_what_a_party_may_not_say_is_refused_by_name_and_the_run_stands(
    tmp_path: Path, act: Callable[[str], bytes], words: str
) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, lines), puppet(fed, held) as odd:
            run = await joined(fed, odd)
            before = (await fed.view(run)).status
            await odd.say(act(run))
            word = await odd.hear(Refused)
            assert isinstance(word, Refused)
            assert words in word.reason
            assert (await fed.view(run)).status == before == "running"
            assert any(
                words in str(said.get("reason")) or event == "spoke for another" for _, event, said in lines
            ) or ("sealed" in words or "party" in words or "most" in words)
            # What is right is still taken.
            await odd.say(control(packets.Trouble(run, 1, "node-3", "Quirk", "nothing much"), 9))
            await fed.until(lambda: fed.hub.runs.table.events(run, kind="trouble"), "it is told")
            events = await fed.events(run, "trouble")
            assert "Quirk" in events[0].text
            fed.hub.runs.stop(run, "the test")

    drive(scenario())


def test_pieces_at_wrong_places_close_the_stream_and_leave_no_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _):
            run = ""
            for offset, data in ((5, b"abc"), (0, b"x" * 200_000), (1 << 40, b"abc")):
                async with puppet(fed, held) as odd:
                    run = run or await joined(fed, odd)
                    await odd.say(parcel(run, seq=1, size=100_000, inline=None))
                    await odd.say(packets.piece(run, 1, offset, data))
                    assert "sent a piece from" in await odd.refusal()
            # A body that never ends holds a file of its own while the run lasts, and no longer.
            async with puppet(fed, held) as odd:
                await odd.say(parcel(run, seq=1, size=100_000, inline=None))
                await odd.say(packets.piece(run, 1, 0, b"x" * 1000))
                await odd.say(Probe(7))
                await odd.hear(Probe)
            spool = fed.hub.spool.folder
            fed.hub.runs.stop(run, "the test")
            await fed.until(
                lambda: not [file for file in spool.iterdir() if file.suffix == ".part"], "the file is gone"
            )

    drive(scenario())


def test_what_was_refused_fills_no_table(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _), puppet(fed, held) as odd:
            before = await snapshot(fed)
            for number in range(300):
                await odd.say(sending(run=f"{number:016x}", sender="node-3", receiver="server"))
                await odd.say(
                    sending(run=f"{number + 1000:016x}", sender="node-3", receiver="server", size=9, inline=None)
                )
                for _ in range(2):
                    await odd.hear(Refused)
            assert await snapshot(fed) == before
            assert len(fed.hub._links["node-3"]._incoming) <= 64

    drive(scenario())


def test_a_refusal_counts_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, lines), puppet(fed, held) as odd:
            run = await joined(fed, odd)
            for _ in range(20):
                await odd.say(Refused("", 1, "no"))
            await odd.say(Probe(7))
            await odd.hear(Probe)
            assert len([line for line in lines if line[1] == "a node refused a message"]) <= 1
            fed.hub.runs.stop(run, "the test")

    drive(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_bits_flipped_in_anything_never_do_more_than_close_a_stream(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)

    async def scenario() -> None:
        async with scene(tmp_path) as (fed, held, _):
            before = await snapshot(fed)
            words = [
                encode(Received("", 1)), encode(Refused(RUN, 1, "no")), encode(Probe(3)), sending(), packets.piece(RUN, 1, 0, b"abc"),
                sending(run=RUN, sender="node-3", receiver="server"), control(packets.Answer(RUN, 1, "accepted")),
                control(packets.Report(RUN, "node-3", encode(Progress(1, {"loss": 0.5})))),
                control(packets.Trouble(RUN, 1, "node-3", "X", "y", 2, "z", True)), control(packets.Finished(RUN, 1, "node-3")),
            ]  # fmt: skip
            for _ in range(25):
                async with puppet(fed, held) as odd:
                    with contextlib.suppress(Exception):
                        for _ in range(6):
                            packet = bytearray(dice.choice(words))
                            for _ in range(dice.randint(1, 4)):
                                place = dice.randrange(len(packet))
                                packet[place] ^= 1 << dice.randrange(8)
                            del packet[dice.choice([len(packet), dice.randrange(len(packet))]) :]
                            await odd.say(bytes(packet))
            await fed.until(lambda: not fed.hub.connected("node-3"))
            after = await snapshot(fed)
            for table in (0, 1, 3, 4, 5, 6, 7, 8):
                old, new = before[table], after[table]
                assert [row[:2] for row in new] == [row[:2] for row in old]

    drive(scenario(), 60)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=400))
def test_pieces_are_read_or_refused(data: bytes) -> None:
    from hansa.errors import MessageError

    with contextlib.suppress(MessageError):
        found = packets.read_piece(b"HNSP" + data)
        assert found.offset >= 0
        assert len(found.data) > 0
