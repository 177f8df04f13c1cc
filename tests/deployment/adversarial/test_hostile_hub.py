"""A hub that lies to its nodes: whatever it says, a node does what its owner agreed to, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
import pytest

from hansa.deployment import packets, wire
from hansa.deployment.audit import records
from hansa.deployment.identity import Credentials, SealingKeys, make_request, make_tls_key, read_request
from hansa.deployment.identity.authority import Authority
from hansa.deployment.node import Node
from hansa.deployment.packets import (
    Answer,
    End,
    Hello,
    Offer,
    Recall,
    Received,
    Refused,
    Sending,
    Start,
    Trouble,
    Welcome,
)
from hansa.deployment.sealing import Envelope, seal
from hansa.deployment.settings import NodeLimits
from hansa.deployment.worker.duty import describe
from hansa.deployment.worker.frames import Described
from hansa.message import Message, decode, encode
from tests.deployment.adversarial.strangers import STANDARD, book, no_traceback
from tests.deployment.adversarial.test_link import forged, sending
from tests.deployment.federation import ANYTHING, Federation, drive, federation

RUN = "00000000000000aa"
EPOCH = "e" * 32


class Impostor:
    """What answers in place of the hub, with the hub's own certificate: a hub that has changed sides."""

    def __init__(self, fed: Federation, credentials: Credentials, authority: Authority) -> None:
        self.fed = fed
        self.credentials = credentials
        self.authority = authority
        self.stream: Any = None
        self.numbers: dict[str, int] = {}
        self.heard: list[Message] = []
        self.answers: list[Message] = []
        self.came = asyncio.Event()
        self.one = asyncio.Lock()
        self.welcome = Welcome(packets.PROTOCOL, "0", "trial", fed.clock(), EPOCH, [])

    async def link(self, _: object, stream: Any) -> None:
        decode(await stream.read(), Hello)
        self.stream = stream
        await stream.write(encode(self.welcome))
        self.came.set()
        while (packet := await stream.read()) is not grpc.aio.EOF:
            word = decode(packet, packets.LINK)
            self.heard.append(word)
            if isinstance(word, Sending) and not word.run:
                self.answers.append(decode(word.inline or b"", packets.TO_HUB))
                await self.say(Received(word.run, word.seq))
        if self.stream is stream:
            self.stream = None
            self.came.clear()

    async def say(self, packet: bytes | Message) -> None:
        async with self.one:  # gRPC writes one packet at a time
            await self.stream.write(packet if isinstance(packet, bytes) else encode(packet))

    async def parcel(self, run: str, **fields: Any) -> None:
        self.numbers[run] = number = self.numbers.get(run, 0) + 1
        await self.say(sending(run=run, **{"seq": number, **fields}))

    async def control(self, word: Message) -> None:
        frame = encode(word)
        await self.parcel("", kind=word.tag, size=len(frame), inline=frame)

    async def answer(self, kind: type[Message]) -> Any:
        """The next word of control of a kind."""
        await self.fed.until(lambda: any(isinstance(word, kind) for word in self.answers), f"{kind.__name__} is heard")
        found = next(word for word in self.answers if isinstance(word, kind))
        self.answers.remove(found)
        return found

    async def refused(self) -> str:
        await self.fed.until(lambda: any(isinstance(word, Refused) for word in self.heard), "it is refused")
        found = next(word for word in self.heard if isinstance(word, Refused))
        self.heard.remove(found)
        return found.reason


@contextlib.asynccontextmanager
async def captured(tmp_path: Path, policy: Any = ANYTHING, **given: Any) -> AsyncIterator[tuple[Impostor, Node]]:
    """node-0, whose hub is an impostor; afterwards the true one comes back, and the node serves it."""
    async with federation(tmp_path, start=[], policy=policy, **given) as fed:
        credentials, authority = fed.hub.credentials, fed.hub.authority
        made = Impostor(fed, credentials, authority)
        await fed.stop_hub()
        server = grpc.aio.server(options=wire.SERVER_OPTIONS)
        handlers: dict[str, Any] = {"Link": grpc.stream_stream_rpc_method_handler(made.link)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
        server.add_secure_port(str(fed.address), wire.server_credentials(lambda: credentials))
        await server.start()
        with book() as lines:
            node = await fed.start_node("node-0", connect=False)
            await asyncio.wait_for(made.came.wait(), 10)
            yield made, node
            assert "node-0" not in fed.ended, fed.ended
            await server.stop(0)
        no_traceback([line for line in lines if line[0] != "grpc._cython.cygrpc" and line[0] != "grpc"])


PLAN = STANDARD.replace("cohort = 2", "cohort = 2\nquorum = 1.0")


def described() -> Described:
    found = describe(PLAN)
    assert isinstance(found, Described)
    return found


def offer(made: Impostor, names: tuple[str, ...] = ("node-0", "node-1"), server: str = "hub", **changed: Any) -> Offer:
    """An honest offer to node-0, but for what is changed."""
    plan = described()
    (single,) = set(plan.roles) - {plan.many}
    hosts = {single: server, **{name: name for name in names}}
    certificates = {
        name: Credentials.load(made.fed.folder / name, made.fed.clock()).certificate.pem.decode()
        for name in plan.partners(plan.roles_at("node-0", hosts), hosts) - {"hub", "node-0"}
    }
    certificates["hub"] = made.credentials.certificate.pem.decode()
    usual = Offer(
        RUN, 1, "trial", plan.plan, plan.terms.digest, "ada", "iris", {single: (single,), plan.many: names},
        hosts, certificates, 60.0,
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changed)


def start(whole: Offer, **changed: Any) -> Start:
    return msgspec.structs.replace(Start(whole.run, whole.attempt, whole.roles, {}, None, {"node-1": EPOCH}), **changed)


def another(made: Impostor, name: str, kind: Any = "node") -> str:
    """A certificate that the hub's own authority signs for keys of its own."""
    request = read_request(make_request(name, make_tls_key(), SealingKeys.make()))
    return made.authority.issue_member(request, kind, name, made.fed.clock()).decode()


def with_node_1(made: Impostor, pem: str) -> Offer:
    """An offer in which node-1 serves, with this for its certificate."""
    return offer(made, server="node-1", certificates={**offer(made).certificates, "node-1": pem})


MANY, SINGLE = described().many, next(name for name in described().roles if name != described().many)

LIES: list[tuple[str, Callable[[Impostor], Offer], str]] = [
    ("another digest", lambda made: offer(made, digest="0" * 64), "somebody changed the plan"),
    ("a plan that names code", lambda made: offer(made, plan=STANDARD.replace('"softmax"', '"os:system"')), ""),
    ("a plan that is none", lambda made: offer(made, plan="rm -rf /"), ""),
    ("other roles", lambda made: offer(made, roles={"boss": ("node-0",)}), "roles of its plan"),
    ("no roles", lambda made: offer(made, roles={}), "roles of its plan"),
    ("a party in two roles", lambda made: offer(made, roles={SINGLE: ("node-0",), MANY: ("node-0", "node-1")}), "one role"),
    ("a party twice", lambda made: offer(made, roles={SINGLE: (SINGLE,), MANY: ("node-0", "node-0", "node-1")}), "one role"),
    ("a peer on the hub", lambda made: offer(made, hosts={SINGLE: "hub", "node-0": "node-0", "node-1": "hub"}), "its own machine"),
    ("a machine for a stranger", lambda made: offer(made, hosts={**offer(made).hosts, "x": "hub"}), "one role and one machine"),
    ("a path for a party", lambda made: offer(made, roles={SINGLE: (SINGLE,), MANY: ("node-0", "../../x")},
     hosts={SINGLE: "hub", "node-0": "node-0", "../../x": "../../x"}), "no machine can have"),
    ("certificates of those it never meets",
     lambda made: offer(made, certificates={**offer(made).certificates, "node-1": another(made, "node-1")}), "certificates"),
    ("a part for others only", lambda made: offer(made, names=("node-1", "node-2")), "no part"),
    ("no certificates", lambda made: offer(made, certificates={}), "certificates"),
    ("certificates of all the world",
     lambda made: offer(made, certificates={**offer(made).certificates, "eve": another(made, "eve")}), "certificates"),
    ("another's certificate", lambda made: with_node_1(made, another(made, "eve")),
     "is that of node 'eve'"),
    ("a person's certificate",
     lambda made: with_node_1(made, another(made, "node-1", "submitter")), "is that of"),
    ("garbage for a certificate", lambda made: with_node_1(made, "x" * 9000), "certificate"),
    ("data that are not bound", lambda made: offer(made, data="secrets"), "bound here"),
]  # fmt: skip


@pytest.mark.parametrize(("lie", "words"), [case[1:] for case in LIES], ids=[case[0] for case in LIES])
def test_an_offer_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, lie: Callable[[Impostor], Offer], words: str
) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            await made.control(lie(made))
            answer = await made.answer(Answer)
            assert answer.verdict == "refused"
            assert words in answer.reason, answer.reason
            await made.control(start(lie(made)))
            # And an honest one is still taken.
            good = offer(made, run="00000000000000bb")
            await made.control(good)
            assert (await made.answer(Answer)).verdict == "accepted"
            assert not node.host.running()

    drive(scenario())


def test_a_run_begins_as_it_was_offered_or_not_at_all(tmp_path: Path) -> None:
    policy = replace(ANYTHING, least_parties=2)
    eight = f"{0:015x}"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"roles": {SINGLE: (SINGLE,), MANY: ("node-0",)}}, "least_parties"),
        ({"roles": {SINGLE: (SINGLE,), MANY: ("node-0", "eve")}}, "others as"),
        ({"roles": {SINGLE: (SINGLE,), MANY: ("node-1",)}}, "without a party of this node"),
        ({"roles": {SINGLE: ("node-0",), MANY: ("node-1",)}}, "others as"),
        ({"roles": {"boss": ("node-0",)}}, "other roles"),
        ({"roles": {SINGLE: (SINGLE,), MANY: ("node-0", "node-1", "node-1")}}, "others as"),
        ({"addresses": {"eve": "127.0.0.1:1"}}, "strangers"),
    ]

    async def scenario() -> None:
        async with captured(tmp_path, policy) as (made, node):
            for number, (change, words) in enumerate(changes, 1):
                good = offer(made, run=eight + str(number))
                await made.control(start(good))  # before it was offered
                await made.control(good)
                assert (await made.answer(Answer)).verdict == "accepted"
                await made.control(start(good, **change))
                trouble = await made.answer(Trouble)
                assert trouble.fatal
                assert words in trouble.cause
                assert not node.host.running()
                await made.control(End(good.run, 1, "failed", ""))

    drive(scenario())


async def begun(made: Impostor, node: Node, server: str = "hub") -> Offer:
    good = offer(made, server=server)
    await made.control(good)
    assert (await made.answer(Answer)).verdict == "accepted"
    await made.control(start(good))
    await made.fed.until(node.host.running, "the run begins")
    return good


def test_what_was_agreed_on_is_not_exchanged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            good = await begun(made, node)
            work = node.begun[RUN].work
            await made.control(msgspec.structs.replace(good, hosts={**good.hosts, SINGLE: "node-1"}))
            assert "offered already" in await made.refused()
            await made.control(msgspec.structs.replace(good, attempt=2))
            assert "under way" in await made.refused()
            await made.control(start(good, roles={SINGLE: (SINGLE,), MANY: ("node-0",)}))
            await made.control(End(RUN, 9, "completed", ""))
            await made.control(Recall(["../../x", "node-1", "nobody"]))
            await made.control(offer(made, run="00000000000000bb"))
            await made.answer(Answer)
            assert node.begun[RUN].work is work

    drive(scenario())


def test_a_recall_of_very_many_is_recorded_name_by_name(tmp_path: Path) -> None:
    names = [f"nobody-{number}" for number in range(500)]

    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            await begun(made, node)
            await made.control(Recall(names))
            await made.control(offer(made, run="00000000000000bb"))
            assert (await made.answer(Answer)).verdict == "accepted"
            found = [record.fields["name"] for record in records(node.audit.path) if record.kind == "recalled"]
            assert found == names

    drive(scenario())


def test_changed_keys_of_a_peer_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            await begun(made, node, server="node-1")
            await made.control(End(RUN, 1, "stopped", ""))
            changed = with_node_1(made, another(made, "node-1"))
            await made.control(msgspec.structs.replace(changed, run="00000000000000bb"))
            answer = await made.answer(Answer)
            assert answer.verdict == "refused"
            assert "other sealing keys than before" in answer.reason

    drive(scenario())


def test_letters_of_strangers_unsealed_replayed_and_redirected_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            await begun(made, node, server="node-1")
            peer = Credentials.load(made.fed.folder / "node-1", made.fed.clock()).sealing
            mine = node.credentials.sealing.public

            def letter(number: int, keys: SealingKeys = peer, **changed: Any) -> bytes:
                usual = Envelope(
                    "trial",
                    f"{RUN}/1/{EPOCH}/{node.mailbox.epoch}",
                    "node-1",
                    "node-0",
                    SINGLE,
                    "node-0",
                    "t/1",
                    number,
                )
                return seal(replace(usual, **changed), b"hello", keys, mine)

            async def give(run: str = RUN, **fields: Any) -> None:
                body = fields.pop("body", b"x")
                usual = {"sender": SINGLE, "receiver": "node-0", "sealed": True, "inline": body, "size": len(body)}
                await made.parcel(run, **{**usual, **fields})

            for fields, words in (
                ({"run": "00000000000000cc"}, "takes no part"),
                ({"sender": "eve"}, "takes no part|no such party"),
                ({"receiver": "node-1"}, "takes no part|no such party"),
                ({"sealed": False}, "must be sealed"),
                ({"body": b"garbage"}, "not an envelope"),
                ({"body": letter(2)}, "2"),
                ({"body": letter(1, SealingKeys.make())}, "keys"),
                ({"body": letter(1, run=f"{RUN}/2/{EPOCH}/{node.mailbox.epoch}")}, "for the"),
                ({"body": letter(1, run=f"{RUN}/1/{EPOCH}/{EPOCH}")}, "for the"),
                ({"body": letter(1, run=f"{RUN}/1/{node.mailbox.epoch}/{node.mailbox.epoch}")}, "for the"),
                ({"body": letter(1, receiver="node-2")}, "for the"),
                ({"body": letter(1, federation="other")}, "for the"),
                ({"body": letter(1), "kind": "other/1"}, "for the"),
                ({"body": letter(1)[:-1] + b"\x00"}, "sign"),
            ):
                await give(**fields)
                reason = await made.refused()
                assert any(word in reason for word in words.split("|")), (fields, reason)
            first = letter(1)
            await give(body=first)
            await made.fed.until(lambda: Received(RUN, made.numbers[RUN]) in made.heard, "the true one is taken")
            await give(body=first)
            assert "1" in await made.refused()
            assert node.host.running()

    drive(scenario())


def test_parties_that_never_talk_cannot_be_made_to(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            await begun(made, node)
            peer = Credentials.load(made.fed.folder / "node-1", made.fed.clock()).sealing
            envelope = Envelope(
                "trial", f"{RUN}/1/{EPOCH}/{node.mailbox.epoch}", "node-1", "node-0", "node-1", "node-0", "t/1", 1
            )
            body = seal(envelope, b"hello", peer, node.credentials.sealing.public)
            await made.parcel(RUN, sender="node-1", receiver="node-0", sealed=True, inline=body, size=len(body))
            assert "not known" in await made.refused()
            await made.parcel(RUN, sender=SINGLE, receiver="node-0", sealed=True, inline=body, size=len(body))
            assert "must not" in await made.refused()
            assert node.host.running()

    drive(scenario())


def test_recalled_keys_are_not_written_to(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            await begun(made, node, server="node-1")
            await made.control(Recall(["node-1"]))
            await made.fed.until(lambda: (RUN, "node-1") not in node.envelopes._keys, "it is recalled")
            from hansa.deployment.worker.frames import Body

            with node.database.at_once():
                node.courier.send(node.begun[RUN].work, "node-0", SINGLE, Body("t/1", 1, b"x"))
            assert node.mailbox.next("hub", RUN, 0) is None
            assert node.host.running()

    drive(scenario())


@pytest.mark.parametrize(
    "packet",
    [
        b"", b"\x00" * 99, encode(Hello(1, 1, "0", "x", EPOCH, "", [])), encode(Received("", 1 << 62)), packets.piece(RUN, 1, 0, b"x"),
        sending(run="../x"), forged(Recall, names=5), sending(size=1 << 63, inline=None), sending(sender="x" * 99),
    ],
)  # fmt: skip
def test_garbage_of_a_hub_ends_the_stream_and_the_node_dials_again(tmp_path: Path, packet: bytes) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            first = made.stream
            await made.say(packet)
            await made.fed.until(lambda: made.stream not in (None, first), "the node dials again")
            await made.fed.until(node.connected.is_set, "the node is connected")

    drive(scenario())


def test_a_node_ends_when_it_is_told_to_though_its_hub_leaves_at_that_instant(tmp_path: Path) -> None:
    """Between a node's first packet and the answer, gRPC may take the node's own end for that of the call."""

    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            credentials = fed.hub.credentials
            await fed.stop_hub()
            greeted, never = asyncio.Event(), asyncio.Event()

            async def link(_: object, stream: Any) -> None:
                await stream.read()
                greeted.set()
                await never.wait()

            for _ in range(20):
                greeted.clear()
                server = grpc.aio.server(options=wire.SERVER_OPTIONS)
                handlers: dict[str, Any] = {"Link": grpc.stream_stream_rpc_method_handler(link)}
                server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, handlers),))
                server.add_secure_port(str(fed.address), wire.server_credentials(lambda: credentials))
                await server.start()
                await fed.start_node("node-0", connect=False)
                await greeted.wait()
                await server.stop(0)
                async with asyncio.timeout(5):
                    await fed.stop_node("node-0")

    drive(scenario())


def test_waiting_offers_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.deployment import offers

    monkeypatch.setattr(offers, "MOST", 5)

    async def scenario() -> None:
        async with captured(tmp_path, replace(ANYTHING, approval="manual")) as (made, node):
            for number in range(8):
                await made.control(offer(made, run=f"{number:016x}"))
            assert "which is its limit" in await made.refused()
            assert len(node.works.all(("offered", "looked at", "pending"))) <= 5

    drive(scenario())


@pytest.mark.parametrize("again", [False, True], ids=["ended", "ended and offered anew"])
@pytest.mark.parametrize("step", ["describe", "measure"])
def test_nothing_is_kept_of_an_offer_that_ends_while_it_is_looked_at(tmp_path: Path, step: str, again: bool) -> None:
    """Otherwise a hub that offers and ends fills the node's memory, or has another plan run than the one that was agreed on."""

    async def scenario() -> None:
        async with captured(tmp_path, replace(ANYTHING, approval="manual")) as (made, node):
            workers: Any = made.fed.workers["node-0"]
            truly, looking, go = getattr(workers, step), asyncio.Event(), asyncio.Event()

            async def slow(what: Any) -> Any:
                setattr(workers, step, truly)
                looking.set()
                await go.wait()
                return msgspec.structs.replace(await truly(what), **stale)

            stale: dict[str, Any] = {"plan": "stale"} if step == "describe" else {}
            setattr(workers, step, slow)
            await made.control(offer(made, server="node-1"))
            await looking.wait()
            await made.control(End(RUN, 1, "stopped", ""))
            await made.fed.until(lambda: node.works.state(RUN) == "ended", "it hears of the end")
            assert not node.envelopes._keys
            if again:
                await made.control(offer(made, server="node-1", attempt=2))
                await made.fed.until(lambda: node.works.state(RUN) == "pending", "it is looked at anew")
            go.set()
            await made.control(offer(made, run="00000000000000bb"))
            await made.fed.until(lambda: node.works.state("00000000000000bb") == "pending", "the next is looked at")
            assert not node.envelopes._keys
            plan = node.works.described(RUN)
            assert (plan is not None and plan.plan != "stale") if again else (plan is None or step == "measure")
            assert node.works.shape(RUN) is None or again
            assert node.works.state(RUN) == ("pending" if again else "ended")

    drive(scenario())


def test_no_keys_are_kept_of_offers_that_do_not_begin(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path) as (made, node):
            for number, data in enumerate(("secrets", "iris", "secrets", "iris")):
                await made.control(offer(made, run=f"{number:016x}", server="node-1", data=data))
                assert (await made.answer(Answer)).verdict == ("accepted" if data == "iris" else "refused")
            assert not node.envelopes._keys
            await begun(made, node, server="node-1")
            assert {run for run, _ in node.envelopes._keys} == {RUN}
            # Of one that begins otherwise than it was offered neither, nor does it keep its place.
            await made.control(start(offer(made, run=f"{1:016x}", server="node-1"), addresses={"eve": "127.0.0.1:1"}))
            await made.answer(Trouble)
            assert {run for run, _ in node.envelopes._keys} == {RUN}
            assert node.works.state(f"{1:016x}") == "ended"

    drive(scenario())


def test_a_hub_that_never_says_the_end_does_not_keep_the_place(tmp_path: Path) -> None:
    limits = NodeLimits(run=0.05, runs_at_once=1)

    async def scenario() -> None:
        async with captured(tmp_path, limits=limits) as (made, node):
            for number in range(3):
                good = offer(made, run=f"{number:016x}", server="node-1")
                await made.control(good)
                while (answer := await made.answer(Answer)).verdict == "pending":
                    continue  # it is busy with the one before
                assert (answer.run, answer.verdict) == (good.run, "accepted")
                await made.control(start(good))
                trouble = await made.answer(Trouble)
                assert (trouble.run, trouble.kind, trouble.fatal) == (good.run, "Overdue", True)
                assert "longer than this node's limit" in trouble.cause
            assert not node.works.all(("started",)) and not node.begun and not node.envelopes._keys
            await made.fed.until(lambda: not node.host.running(), "its programs end")
            # The end comes late, or once more; and a further attempt is another run's equal.
            await made.control(End(f"{0:016x}", 1, "failed", "late"))
            await made.control(offer(made, run=f"{0:016x}", attempt=2))
            assert (await made.answer(Answer)).verdict == "accepted"

    drive(scenario())


def test_a_run_that_began_otherwise_than_it_was_offered_does_not_keep_the_place(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with captured(tmp_path, limits=NodeLimits(runs_at_once=1)) as (made, _):
            good = offer(made)
            await made.control(good)
            assert (await made.answer(Answer)).verdict == "accepted"
            await made.control(offer(made, run="00000000000000bb"))
            assert (await made.answer(Answer)).verdict == "pending"
            await made.control(start(good, addresses={"eve": "127.0.0.1:1"}))
            await made.answer(Trouble)
            answer = await made.answer(Answer)
            assert (answer.run, answer.verdict) == ("00000000000000bb", "accepted")

    drive(scenario())
