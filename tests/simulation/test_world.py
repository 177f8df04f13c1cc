"""The scheduler: what each effect does in virtual time, and what happens when a program goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from hansa.errors import DeadlineExpired, Deadlock, PartyFailed, RunError
from hansa.examples import Examples, Shard
from hansa.learner import LocalWork
from hansa.message import Message
from hansa.party import Party, Roster
from hansa.protocol import Role
from hansa.rng import Key
from hansa.simulation.batching import Batching
from hansa.simulation.log import MessageLog
from hansa.simulation.network import Crash, Device, Devices, FaultPlan, Network, Partition
from hansa.simulation.world import Failure, World
from tests.protocols import LeastSquares


class Ping(Message, frozen=True):
    tag = "test.ping/1"
    discloses = "a number"

    number: int


class Pong(Message, frozen=True):
    tag = "test.pong/1"
    discloses = "a number"

    number: int


class Note(Message, frozen=True):
    tag = "test.note/1"
    discloses = "a text"

    text: str


Program = Callable[[Party], Coroutine[Any, Any, Any]]
NOTHING = Shard(Examples(np.zeros((0, 1)), np.zeros(0)), Examples(np.zeros((0, 1)), np.zeros(0)))


@dataclass
class Stage:
    """A world of one starting server and some clients, and what came of it."""

    server: Program
    client: Program
    clients: int = 3
    faults: FaultPlan | None = None
    devices: Devices | None = None
    receives: tuple[type[Message], ...] = (Ping, Pong, Note)
    invitations: tuple[type[Message], ...] = (Ping,)
    shard: Shard = NOTHING
    epochs: int = 1
    batch_size: int = 0
    failures: list[Failure] = field(default_factory=list)
    stop: bool = False

    def __post_init__(self) -> None:
        rosters: Mapping[str, Sequence[str]] = {"server": ["server"], "client": Roster("client", self.clients)}
        roles = {
            "server": Role(self.server, self.receives, starts=True, saves=Note),
            "client": Role(self.client, self.receives, invitations=self.invitations, many=True, saves=Note),
        }
        network = None
        if self.faults or self.devices:
            key = Key.root(0)
            network = Network(self.faults or FaultPlan(), self.devices or Devices(), key, self.epochs, self.batch_size)
        self.network = network
        self.log = MessageLog(["server", *(f"client-{i}" for i in range(self.clients))])
        self.world = World(
            roles, rosters, lambda role, place: self.shard, Key.root(0), Batching(LeastSquares()), network, self.log,
            lambda sender, message: None, lambda name: None, self._failed,
        )  # fmt: skip

    def _failed(self, failure: Failure) -> None:
        self.failures.append(failure)
        if self.stop:
            raise RunError("stopped", party=failure.party)

    def run(self) -> Any:
        return self.world.run()["server"]


async def echo(me: Party) -> None:
    sender, ping = await me.recv(Ping, within=None)
    await me.send(sender, Pong(ping.number))


async def silent(me: Party) -> None:
    await me.recv(Ping, within=None)


async def invite(me: Party) -> None:
    for name in me.roster["client"]:
        await me.send(name, Ping(0))


async def gather(me: Party, kind: type[Message] = Pong, within: float = 100.0) -> list[tuple[float, str, Message]]:
    """All that comes within a time, with the moment of each."""
    found: list[tuple[float, str, Message]] = []
    deadline = me.now() + within
    while True:
        try:
            sender, message = await me.recv(kind, within=deadline - me.now())
        except DeadlineExpired:
            return found
        found.append((me.now(), sender, message))


async def watch(me: Party) -> list[tuple[float, str]]:
    await invite(me)
    return [(time, sender) for time, sender, _ in await gather(me)]


# ---- receiving


def test_recv_takes_the_oldest_that_fits_and_leaves_the_rest() -> None:
    async def server(me: Party) -> list[Any]:
        await me.send("client-0", Ping(1))
        await me.sleep(1.0)
        first = await me.recv(Note, within=1.0)
        second = await me.recv(Pong, within=1.0, sender="client-0")
        third = await me.recv((Note, Pong), within=1.0)
        fourth = await me.recv((Note, Pong), within=1.0)
        return [first, second, third, fourth]

    async def client(me: Party) -> None:
        await me.recv(Ping, within=None)
        for message in (Pong(1), Pong(2), Note("a"), Note("b")):
            await me.send("server", message)

    found = Stage(server, client).run()
    assert [message for _, message in found] == [Note("a"), Pong(1), Pong(2), Note("b")]


@pytest.mark.parametrize("wait", [True, False])
def test_recv_from_one_sender_passes_over_the_others(wait: bool) -> None:
    async def server(me: Party) -> Any:
        await invite(me)
        if wait:
            await me.sleep(1.0)
        wanted = await me.recv(Pong, within=5.0, sender="client-2")
        rest = [await me.recv(Pong, within=5.0) for _ in range(2)]
        return [wanted[0], *(sender for sender, _ in rest)]

    assert Stage(server, echo).run() == ["client-2", "client-0", "client-1"]


def test_a_class_is_not_taken_for_its_parent() -> None:
    class Special(Ping, frozen=True):
        tag = "test.special/1"

    async def server(me: Party) -> Any:
        await me.send("client-0", Special(1))

    async def client(me: Party) -> None:
        await me.recv(Ping, within=None)

    with pytest.raises(RunError, match="Special"):
        run = Stage(server, client)
        run.run()
        raise RunError("Special was taken")


@pytest.mark.parametrize("within", [0.0, -1.0, 0.25, 7.5, 1e9])
def test_a_deadline_is_exact(within: float) -> None:
    async def server(me: Party) -> tuple[float, str]:
        await me.sleep(1.5)
        with pytest.raises(DeadlineExpired) as caught:
            await me.recv(Pong, within=within, sender="client-1")
        return me.now(), str(caught.value)

    time, text = Stage(server, echo).run()
    assert time == 1.5 + max(0.0, within)
    assert "server" in text and "Pong" in text and "client-1" in text


def test_a_wait_of_no_time_takes_what_is_there() -> None:
    async def server(me: Party) -> Any:
        await invite(me)
        await me.sleep(1.0)
        return [await me.recv(Pong, within=0.0) for _ in range(3)]

    assert len(Stage(server, echo).run()) == 3


def test_an_earlier_deadline_does_not_end_a_later_wait() -> None:
    async def server(me: Party) -> Any:
        times = []
        await invite(me)
        await me.recv(Pong, within=2.0)  # comes at once; its deadline is left behind
        await me.recv(Pong, within=1.0)
        await me.recv(Pong, within=50.0)
        for within in (10.0, 3.0, 0.5):
            with pytest.raises(DeadlineExpired):
                await me.recv(Pong, within=within)
            times.append(me.now())
        return times

    assert Stage(server, echo).run() == [10.0, 13.0, 13.5]


def test_a_shorter_wait_after_a_longer_one_ends_in_time() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-0", Ping(0))
        await me.recv(Pong, within=600.0)
        with pytest.raises(DeadlineExpired):
            await me.recv(Pong, within=2.0)
        first = me.now()
        with pytest.raises(DeadlineExpired):
            await me.recv(Pong, within=598.0)
        return first, me.now()

    assert Stage(server, echo).run() == (2.0, 600.0)


def test_what_comes_after_a_deadline_waits_until_it_is_asked_for() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-0", Ping(1))
        with pytest.raises(DeadlineExpired):
            await me.recv(Pong, within=1.0)
        await me.sleep(5.0)
        slept = me.now()
        return slept, await me.recv(Pong, within=0.0)

    async def client(me: Party) -> None:
        await me.sleep(3.0)
        await echo(me)

    assert Stage(server, client).run() == (6.0, ("client-0", Pong(1)))


def test_messages_of_one_moment_arrive_in_the_order_of_sending() -> None:
    async def server(me: Party) -> Any:
        for number in range(20):
            await me.send(f"client-{number % 3}", Note(str(number)) if number >= 3 else Ping(number))
        return [(sender, message.text) for _, sender, message in await gather(me, Note)]  # type: ignore[attr-defined]

    async def client(me: Party) -> None:
        await me.recv(Ping, within=None)
        while True:
            try:
                _, note = await me.recv(Note, within=1.0)
            except DeadlineExpired:
                return
            await me.send("server", note)

    assert [text for _, text in Stage(server, client).run()] == [str(n) for n in range(3, 20)]


@pytest.mark.parametrize("seconds", [0.0, -5.0, 0.1, 1e6])
def test_sleep_is_exact_and_never_backwards(seconds: float) -> None:
    async def server(me: Party) -> float:
        await me.sleep(2.0)
        await me.sleep(seconds)
        return me.now()

    assert Stage(server, echo).run() == 2.0 + max(0.0, seconds)


# ---- parties come and go


def test_a_program_runs_once_for_each_invitation_with_what_it_saved() -> None:
    async def server(me: Party) -> Any:
        for number in range(3):
            await me.send("client-1", Ping(number))
        return [message.text for _, _, message in await gather(me, Note)]  # type: ignore[attr-defined]

    async def client(me: Party) -> None:
        sender, ping = await me.recv(Ping, within=None)
        before = me.saved.text if isinstance(me.saved, Note) else ""
        await me.save(Note(f"{before}{ping.number}"))
        await me.sleep(1.0)
        await me.send(sender, Note(f"{before}{ping.number}"))

    stage = Stage(server, client)
    assert stage.run() == ["0", "01", "012"]
    assert list(stage.world.states) == ["client-1"]


def test_a_view_holds_each_message_once_however_long_it_waited() -> None:
    async def server(me: Party) -> Any:
        for number in range(3):
            await me.send("client-1", Ping(number))
        return await gather(me)

    async def client(me: Party) -> None:
        await me.sleep(1.0)
        await echo(me)

    stage = Stage(server, client)
    stage.run()
    assert stage.log.view("client-1").of(Ping) == [Ping(0), Ping(1), Ping(2)]
    assert len(stage.log.view("server").messages) == 3


def test_a_message_that_nobody_waits_for_any_more_is_stale_and_starts_nobody() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-0", Note("nobody is there"))
        await me.send("client-0", Ping(1))
        await me.send("client-0", Note("unread"))
        return [sender for _, sender, _ in await gather(me)]

    stage = Stage(server, echo)
    assert stage.run() == ["client-0"]
    assert stage.world.stale == 2
    assert not [name for name in stage.world.actors if name != "server"]


def test_parties_that_were_never_messaged_cost_nothing() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-999999999", Ping(5))
        return await me.recv(Pong, within=1.0)

    stage = Stage(server, echo, clients=3)
    stage.world.rosters = {"server": ["server"], "client": Roster("client", 10**9)}
    stage.world._rosters = list(stage.world.rosters.items())
    assert stage.run() == ("client-999999999", Pong(5))


def test_randomness_is_by_party_label_and_number() -> None:
    async def server(me: Party) -> Any:
        first = [me.rng("a", 1), me.rng("a", 2), me.rng("b", 1)]
        await me.sleep(5.0)
        return [*first, me.rng("a", 1)]

    a1, a2, b1, again = Stage(server, echo).run()
    assert a1 == again == Key.root(0).child("server/a", 1)
    assert len({a1, a2, b1}) == 3


# ---- going wrong


def test_a_deadlock_names_who_waits_for_what() -> None:
    async def server(me: Party) -> None:
        await invite(me)
        await me.recv((Pong, Note), within=None, sender="client-2")

    async def client(me: Party) -> None:
        await me.recv(Ping, within=None)
        await me.recv(Note, within=None)

    with pytest.raises(Deadlock) as caught:
        Stage(server, client).run()
    for part in ("server for Pong or Note from client-2", "client-0 for Note", "client-2 for Note"):
        assert part in str(caught.value)


def test_a_wait_with_a_deadline_is_no_deadlock() -> None:
    async def server(me: Party) -> float:
        with pytest.raises(DeadlineExpired):
            await me.recv(Pong, within=1e12)
        return me.now()

    assert Stage(server, silent).run() == 1e12


def planted(number: int) -> float:
    return 1.0 / number


async def failing(me: Party) -> None:
    sender, ping = await me.recv(Ping, within=None)
    if me.name == "client-1":
        planted(ping.number)
    await me.send(sender, Pong(ping.number))


def test_a_failing_party_shows_its_own_traceback_and_the_run_goes_on() -> None:
    stage = Stage(watch, failing)
    assert [sender for _, sender in stage.run()] == ["client-0", "client-2"]
    (failure,) = stage.failures
    assert failure.party == "client-1" and isinstance(failure.error, ZeroDivisionError)
    assert "in planted" in failure.traceback and "1.0 / number" in failure.traceback


def test_a_failing_party_can_stop_the_run() -> None:
    stage = Stage(watch, failing, stop=True)
    with pytest.raises(RunError, match="client-1"):
        stage.run()


def test_a_failing_party_can_be_invited_again() -> None:
    async def server(me: Party) -> list[str]:
        await me.send("client-1", Ping(0))
        await me.send("client-1", Ping(1))
        return [sender for _, sender, _ in await gather(me)]

    assert Stage(server, failing).run() == ["client-1"]


def test_the_failure_of_a_starting_party_is_the_runs() -> None:
    async def server(me: Party) -> None:
        planted(0)

    with pytest.raises(PartyFailed, match="server: ZeroDivisionError") as caught:
        Stage(server, echo).run()
    assert "in planted" in caught.value.traceback
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_error_of_pure_work_is_raised_where_it_was_asked_for() -> None:
    async def server(me: Party) -> str:
        try:
            await me.compute(planted, 0)
        except ZeroDivisionError as error:
            return f"{error} at {me.now()}"
        return "nothing"

    assert Stage(server, echo).run() == "float division by zero at 0.0"


def test_a_class_that_the_role_does_not_accept_is_refused() -> None:
    async def server(me: Party) -> None:
        await me.send("client-0", Note("no"))
        await me.recv(Pong, within=1.0)

    with pytest.raises(RunError, match=r"client-0.*server sent Note"):
        Stage(server, echo, receives=(Ping, Pong)).run()


def test_a_class_that_a_running_program_does_not_accept_is_refused() -> None:
    async def server(me: Party) -> None:
        await me.send("client-0", Ping(0))
        await me.send("client-0", Note("no"))
        await me.recv(Pong, within=1.0)

    async def client(me: Party) -> None:
        await me.sleep(1.0)

    with pytest.raises(RunError, match=r"client-0.*server sent Note"):
        Stage(server, client, receives=(Ping, Pong)).run()


@pytest.mark.parametrize("network", [None, Devices()])
def test_an_unknown_recipient_is_named_with_the_sender(network: Devices | None) -> None:
    async def server(me: Party) -> None:
        await me.send("client-0", Ping(0))
        await me.recv(Pong, within=1.0)

    async def client(me: Party) -> None:
        await me.send("client-3", Pong(0))

    with pytest.raises(RunError, match=r"client-0: sent Pong to 'client-3'"):
        Stage(server, client, devices=network).run()


# ---- devices


def test_links_and_latency_add_up() -> None:
    devices = Devices(
        named={
            "server": Device(up=1000.0, down=500.0, latency=0.25),
            "client-0": Device(up=100.0, down=200.0, latency=0.5),
            "client-1": Device(latency=3.0),
        }
    )
    stage = Stage(watch, echo, devices=devices)
    found = {sender: time for time, sender in stage.run()}
    ping, pong = (stage.log.counts[kind][1] // 3 for kind in (Ping, Pong))
    down, up = ping / 1000 + ping / 200 + 0.75, pong / 100 + pong / 500 + 0.75
    assert found["client-0"] == pytest.approx(down + up, abs=1e-12)
    assert found["client-1"] == pytest.approx(ping / 1000 + 3.25 + pong / 500 + 3.25, abs=1e-12)
    assert found["client-2"] == pytest.approx(ping / 1000 + 0.25 + pong / 500 + 0.25, abs=1e-12)


def shard_of(count: int) -> Shard:
    x, y = np.ones((count, 3)), np.ones(count)
    return Shard(Examples(x, y), Examples(x, y))


@pytest.mark.parametrize(
    ("work", "examples"),
    [
        (LocalWork(), 40),
        (LocalWork(epochs=3), 60),
        (LocalWork(steps=7), 28),
        (LocalWork(steps=7, full_batch=True), 140),
    ],
)
def test_training_takes_the_time_of_its_examples(work: LocalWork, examples: int) -> None:
    learner = LeastSquares()

    async def server(me: Party) -> Any:
        await invite(me)
        return [(time, sender) for time, sender, _ in await gather(me)]

    async def client(me: Party) -> None:
        sender, _ = await me.recv(Ping, within=None)
        params = learner.init(me.rng("init"), me.data.train)
        await me.compute(learner.fit, params, me.data.train, work, me.rng("fit"))
        await me.compute(learner.evaluate, params, me.data.test)
        await me.send(sender, Pong(0))

    speeds = {"client-0": Device(examples_per_second=8.0), "client-1": Device(examples_per_second=2.0)}
    stage = Stage(server, client, devices=Devices(named=speeds), shard=shard_of(20), epochs=2, batch_size=4)
    assert stage.run() == [(0.0, "client-2"), ((examples + 20) / 8, "client-0"), ((examples + 20) / 2, "client-1")]


def test_what_is_sent_to_a_sleeping_device_is_lost_and_what_it_sends_waits() -> None:
    async def server(me: Party) -> Any:
        found = []
        for _ in range(4):
            await invite(me)
            found += [(time, sender) for time, sender, _ in await gather(me, within=10.0)]
        return found

    async def client(me: Party) -> None:
        sender, _ = await me.recv(Ping, within=None)
        await me.sleep(6.0)
        await me.send(sender, Pong(0))

    night = Device(available=((0.0, 5.0), (30.0, 40.0)), period=50.0)
    stage = Stage(server, client, clients=1, devices=Devices(named={"client-0": night}))
    # Invited at 0 and at 30; at 10 and 20 it cannot be reached. Its first answer is ready at 6 and leaves at 30.
    assert stage.run() == [(30.0, "client-0"), (36.0, "client-0")]
    assert stage.network is not None and stage.network.dropped == 2


@pytest.mark.parametrize(
    ("time", "expected"),
    [(0, 2), (2, 2), (4.9, 4.9), (5, 8), (8.5, 8.5), (9, 12), (12, 12), (19, 22), (1002, 1002), (1006, 1008)],
)
def test_windows_repeat(time: float, expected: float) -> None:
    assert Device(available=((8.0, 9.0), (2.0, 5.0)), period=10.0).next_available(time) == expected


def test_windows_without_a_period_end() -> None:
    device = Device(available=((1.0, 2.0),))
    assert [device.next_available(t) for t in (0.0, 1.5, 2.0)] == [1.0, 1.5, math.inf]


def test_a_fleet_is_drawn_by_name_and_in_its_shares() -> None:
    slow, fast = Device(latency=2.0), Device(latency=1.0)
    fleet = Devices(kinds=((1.0, slow), (3.0, fast)), named={"client-7": Device(latency=9.0)})
    drawn = [fleet.of(f"client-{i}", Key.root(1)) for i in range(2000)]
    assert drawn[7].latency == 9.0
    assert drawn == [fleet.of(f"client-{i}", Key.root(1)) for i in range(2000)]
    assert abs(sum(device == slow for device in drawn) / 2000 - 0.25) < 0.03


# ---- faults


def test_everything_dropped_is_nothing_received() -> None:
    stage = Stage(watch, echo, faults=FaultPlan(drop=1.0))
    assert stage.run() == []
    assert stage.network is not None and stage.network.dropped == 3
    assert stage.log.traffic()["Ping"].messages == 3


def test_only_the_named_class_is_dropped() -> None:
    stage = Stage(watch, echo, faults=FaultPlan(drop=1.0, only=("Pong",)))
    assert stage.run() == []
    assert len(stage.log.view("client-0").of(Ping)) == 1


def test_drops_have_their_probability() -> None:
    async def server(me: Party) -> int:
        for _ in range(1000):
            await me.send("client-0", Ping(0))
        return len(await gather(me))

    stage = Stage(server, silent, faults=FaultPlan(drop=0.3))
    stage.run()
    assert abs(len(stage.log.view("client-0").messages) - 700) < 60


def test_a_duplicate_arrives_twice() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-0", Ping(3))
        return [message for _, _, message in await gather(me)]

    stage = Stage(server, echo, faults=FaultPlan(duplicate=1.0))
    assert stage.run() == [Pong(3)] * 4
    assert stage.log.traffic()["Ping"].messages == 1


def test_delays_stay_in_their_bounds_and_reorder() -> None:
    async def server(me: Party) -> Any:
        for number in range(200):
            await me.send("client-0", Ping(number))
        return [(time, message.number) for time, _, message in await gather(me)]  # type: ignore[attr-defined]

    stage = Stage(server, echo, faults=FaultPlan(delay=(2.0, 5.0), only=("Ping",)))
    found = stage.run()
    times = [time for time, _ in found]
    assert len(times) == 200 and min(times) >= 2.0 and max(times) <= 5.0
    assert max(times) - min(times) > 2.5
    assert [number for _, number in found] != sorted(number for _, number in found)


def test_a_crashed_party_is_silent_and_comes_back_from_its_last_save() -> None:
    async def server(me: Party) -> Any:
        found = []
        for number in range(4):
            await me.send("client-0", Ping(number))
            found += [(time, m.text) for time, _, m in await gather(me, Note, within=10.0)]  # type: ignore[attr-defined]
        return found

    async def client(me: Party) -> None:
        sender, ping = await me.recv(Ping, within=None)
        before = me.saved.text if isinstance(me.saved, Note) else ""
        await me.save(Note(f"{before}{ping.number}"))
        await me.sleep(5.0)
        await me.save(Note("never, if it crashed in between"))
        await me.save(Note(f"{before}{ping.number}"))
        await me.send(sender, Note(f"{before}{ping.number}"))

    # Round 1 begins at 10; the crash at 12 finds "01" saved. Round 2 begins at 20, while it is down; round 3 at 30.
    stage = Stage(server, client, faults=FaultPlan(crashes=(Crash("client-0", 12.0, restart=13.0),)))
    assert stage.run() == [(5.0, "0"), (35.0, "013")]


def test_a_crashed_party_that_does_not_restart_is_gone() -> None:
    async def server(me: Party) -> Any:
        found = []
        for _ in range(3):
            await invite(me)
            found += [(time, sender) for time, sender, _ in await gather(me, within=10.0)]
        return found

    stage = Stage(server, echo, clients=2, faults=FaultPlan(crashes=(Crash("client-1", 5.0),)))
    assert stage.run() == [(0.0, "client-0"), (0.0, "client-1"), (10.0, "client-0"), (20.0, "client-0")]


def test_the_starting_party_restarts_from_its_last_save() -> None:
    starts: list[str] = []

    async def server(me: Party) -> Any:
        starts.append(me.saved.text if isinstance(me.saved, Note) else "fresh")
        if me.saved is None:
            await me.sleep(1.0)
            await me.save(Note("one"))
            await me.sleep(10.0)
            await me.save(Note("two"))
        await me.sleep(1.0)
        return me.now()

    stage = Stage(server, echo, faults=FaultPlan(crashes=(Crash("server", 5.0, restart=2.0),)))
    assert stage.run() == 8.0
    assert starts == ["fresh", "one"]


def test_the_run_ends_by_name_when_its_only_starting_party_is_gone() -> None:
    async def server(me: Party) -> None:
        await me.sleep(10.0)

    with pytest.raises(PartyFailed, match="server: crashed"):
        Stage(server, echo, faults=FaultPlan(crashes=(Crash("server", 5.0),))).run()


def test_what_was_under_way_to_a_crashed_party_is_lost_and_what_it_sent_arrives() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-0", Ping(0))
        await me.sleep(3.0)
        await me.send("client-0", Ping(1))
        return [(time, message.number) for time, _, message in await gather(me)]  # type: ignore[attr-defined]

    stage = Stage(
        server,
        echo,
        devices=Devices(named={"client-0": Device(latency=2.0)}),
        faults=FaultPlan(crashes=(Crash("client-0", 3.0, restart=1.0), Crash("client-0", 4.5, restart=1.0))),
    )
    # The first answer leaves at 2 and arrives at 4, after the crash; the second ping arrives at 5, while it is down.
    assert stage.run() == [(4.0, 0)]


def test_a_partition_cuts_both_ways_for_its_time() -> None:
    async def server(me: Party) -> Any:
        found = []
        for _ in range(3):
            await invite(me)
            found += [(time, sender) for time, sender, _ in await gather(me, within=10.0)]
        return found

    cut = Partition(("client-0", "client-2"), 5.0, 15.0)
    stage = Stage(server, echo, faults=FaultPlan(partitions=(cut,)))
    assert stage.run() == [(0.0, f"client-{i}") for i in range(3)] + [(10.0, "client-1")] + [
        (20.0, f"client-{i}") for i in range(3)
    ]


def test_those_cut_off_together_reach_each_other() -> None:
    async def server(me: Party) -> Any:
        await me.send("client-0", Ping(0))
        return [sender for _, sender, _ in await gather(me)]

    async def client(me: Party) -> None:
        _, ping = await me.recv(Ping, within=None)
        if me.name == "client-0":
            await me.sleep(6.0)
            await me.send("client-1", Ping(1))
            await me.send("client-2", Ping(2))
        else:
            await me.sleep(10.0)
            await me.send("server", Pong(ping.number))

    stage = Stage(server, client, faults=FaultPlan(partitions=(Partition(("client-0", "client-1"), 5.0, 15.0),)))
    assert stage.run() == ["client-1"]


def test_faults_are_the_same_every_time() -> None:
    plan = FaultPlan(drop=0.2, duplicate=0.3, delay=(0.0, 9.0))
    runs = [Stage(watch, echo, clients=50, faults=plan) for _ in range(2)]
    first, second = (stage.run() for stage in runs)
    assert first == second
    assert runs[0].log.entries == runs[1].log.entries
