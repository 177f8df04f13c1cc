"""Lanes of runs that have ended are forgotten, on each side when it hears of it: nothing is lost, taken twice, or taken for a set-back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.deployment import api
from hansa.deployment.settings import HubSettings
from tests.deployment.federation import PLAN, Federation, drive, federation
from tests.deployment.test_mailbox import Machine
from tests.deployment.test_runs import round_of

RUN, OTHER = "00000000000000aa", "00000000000000bb"
FEDAVG = PLAN.format(name="fedavg")
LONG = FEDAVG.replace("rounds = 3", "rounds = 40")


ACTIONS = ("deliver", "end", "reconnect", "write", "send", "receive", "hear", "crash a", "crash b")


class World:
    """A writes to B in the attempts at one run. One of them, the hub, ends it; the other, a node, hears of it later.

    The streams are in order, as the real ones are, and break with all that is on them. A hub repeats the end on the next stream, and
    a node its answer, because the lane of control keeps both.
    """

    def __init__(self, folder: Path, hub: str) -> None:
        self.a, self.b, self.hub = Machine(folder / "a"), Machine(folder / "b"), hub
        self.attempts, self.open = {"a": 1, "b": 1}, True
        self.count, self.past = 0, 0
        self.put: dict[int, list[int]] = {1: []}
        self.taken: dict[int, list[int]] = {1: []}
        self.down: list[tuple[str, int, int]] = []
        self.up: list[tuple[str, int]] = []
        self.reconnect()

    def reconnect(self) -> None:
        self.a.database.commit()
        self.b.database.commit()
        received = self.b.mailbox.lanes("a", 10).get(RUN, 0)
        assert received <= self.a.mailbox.sent("b", RUN), "that would be taken for a set-back"
        self.a.mailbox.acknowledged("b", RUN, received)
        self.past, self.down, self.up = received, [], []
        if self.hub == "a" and self.attempts["b"] < self.attempts["a"]:
            self.down.append(("end", self.attempts["a"], 0))
        if self.hub == "b" and self.attempts["a"] < self.attempts["b"]:
            self.up.append(("end", self.attempts["b"]))
        elif self.hub == "b" and not self.open:
            self.down.append(("answer", self.attempts["a"], 0))

    def end(self) -> None:
        """The hub ends the run, and resumes it."""
        machine = self.a if self.hub == "a" else self.b
        machine.mailbox.end(RUN)
        machine.database.commit()
        attempt = self.attempts[self.hub] = self.attempts[self.hub] + 1
        if self.hub == "a":
            self.put[attempt] = []
            self.down.append(("end", attempt, 0))
        else:
            self.open, self.taken[attempt] = False, []
            self.up.append(("end", attempt))

    def write(self) -> None:
        self.count += 1
        self.a.mailbox.put("b", RUN, "x", "y", self.a.body(self.count, large=False))
        self.a.database.commit()
        self.put[self.attempts["a"]].append(self.count)

    def send(self) -> None:
        parcel = self.a.mailbox.next("b", RUN, self.past)
        if parcel is not None:
            self.past = parcel.seq
            self.down.append(("letter", parcel.seq, int(parcel.body.inline or b"")))

    def receive(self) -> None:
        if not self.down:
            return
        kind, number, text = self.down.pop(0)
        if kind == "end":
            self.b.mailbox.end(RUN)
            self.attempts["b"], self.taken[number] = number, []
        elif kind == "answer":
            self.open = number == self.attempts["b"]
        elif self.open or self.b.mailbox.met("a", RUN):  # as a link does with what is refused
            if self.b.mailbox.take("a", RUN, number) and self.open:
                self.taken[self.attempts["b"]].append(text)
            self.up.append(("got", number))
        else:
            self.up.append(("got", number))
        self.b.database.commit()

    def hear(self) -> None:
        if not self.up:
            return
        kind, number = self.up.pop(0)
        if kind == "got":
            self.a.mailbox.acknowledged("b", RUN, number)
        elif number > self.attempts["a"]:
            self.a.mailbox.end(RUN)
            self.attempts["a"], self.put[number] = number, []
            self.down.append(("answer", number, 0))
        self.a.database.commit()

    def deliver(self) -> None:
        """A letter arrives, and what was under way before it; nobody has heard that it did."""
        self.write()
        self.send()
        while self.down:
            self.receive()

    def crash(self, machine: Machine) -> None:
        machine.crash()
        self.reconnect()


@settings(max_examples=150)
@given(st.sampled_from("ab"), st.lists(st.sampled_from(ACTIONS), min_size=10, max_size=80))
def test_each_letter_of_an_attempt_arrives_once_in_it_and_in_order(hub: str, actions: list[str]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        world = World(folder, hub)
        for action in actions:
            if action.startswith("crash"):
                world.crash(world.a if action == "crash a" else world.b)
            else:
                getattr(world, action)()
            for attempt, texts in world.taken.items():
                assert texts == world.put.get(attempt, [])[: len(texts)]
        world.reconnect()
        for _ in range(4):
            while world.down or world.up:
                world.receive()
                world.hear()
            for _ in range(world.count):
                world.send()
        assert world.attempts["a"] == world.attempts["b"]
        assert world.taken[world.attempts["a"]] == world.put[world.attempts["a"]]
        for machine in (world.a, world.b):
            machine.mailbox.end(RUN)
            assert machine.database.read("SELECT * FROM lanes") == []
            assert machine.database.read("SELECT * FROM outbox") == []
            machine.database.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "a")


def write(machine: Machine, run: str, peer: str = "b") -> int:
    machine.mailbox.put(peer, run, "x", "y", machine.body(1, large=False))
    return machine.mailbox.sent(peer, run)


def test_later_lanes_go_on_above_all_that_were_forgotten(machine: Machine) -> None:
    assert [write(machine, RUN) for _ in range(3)] == [1, 2, 3]
    assert [write(machine, OTHER) for _ in range(2)] == [1, 2]
    machine.mailbox.end(RUN)
    assert write(machine, OTHER) == 3  # a lane that stands goes on as it was
    machine.mailbox.end(OTHER)
    machine.mailbox.end(OTHER)
    assert write(machine, RUN) == 4
    assert write(machine, OTHER) == 4
    assert write(machine, "") == 1  # the lane of control never ends
    assert write(machine, RUN, "c") == 1  # with another machine nothing was forgotten
    machine.database.close()


def test_a_lane_that_begins_with_a_letter_of_the_other_side_goes_on_above_too(machine: Machine) -> None:
    for _ in range(3):
        write(machine, RUN)
    machine.mailbox.end(RUN)
    assert machine.mailbox.take("b", RUN, 9)
    assert machine.mailbox.sent("b", RUN) == 3
    assert write(machine, RUN) == 4
    machine.database.close()


def test_a_smaller_lane_that_ends_lowers_nothing(machine: Machine) -> None:
    for _ in range(5):
        write(machine, RUN)
    write(machine, OTHER)
    machine.mailbox.end(RUN)
    machine.mailbox.end(OTHER)
    assert write(machine, OTHER) == 6
    machine.database.close()


def test_who_has_another_home_begins_with_one(machine: Machine) -> None:
    for _ in range(5):
        write(machine, RUN)
    machine.mailbox.end(RUN)
    machine.mailbox.part("b")
    assert write(machine, RUN) == 1
    machine.database.close()


def test_numbers_of_envelopes_go_with_their_run_alone(machine: Machine) -> None:
    for run in (RUN, OTHER):
        for attempt in (1, 2):
            machine.mailbox.number(f"{run}/{attempt}", "x", "y")
    machine.mailbox.end(RUN)
    assert {run for (run,) in machine.database.read("SELECT run FROM sequences")} == {f"{OTHER}/1", f"{OTHER}/2"}
    machine.database.close()


def left(fed: Federation) -> dict[str, list[str]]:
    """The runs of which a machine still keeps lanes or numbers."""
    machines = {"hub": fed.hub.database, **{name: node.database for name, node in fed.nodes.items()}}
    query = "SELECT run FROM lanes WHERE run != '' UNION SELECT run FROM sequences"
    return {name: [run for (run,) in database.read(query)] for name, database in machines.items()}


@pytest.mark.parametrize("server", ["hub", "node-1"])
def test_nothing_is_left_of_runs_that_have_ended_however(tmp_path: Path, server: str) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            for _ in range(2):
                assert (await fed.end(await fed.submit(FEDAVG, server=server))).status == "completed"
            stopped = await fed.submit(LONG, server=server)
            await round_of(fed, stopped, 2)
            assert all(runs for runs in left(fed).values())
            await fed.caller.ask(api.StopRun(stopped), api.Done)
            await fed.until(lambda: not any(left(fed).values()), "nothing is left")
            # And it is not for want of a memory that a resumed run goes on.
            undisturbed = await fed.run(LONG, server=server)
            for _ in range(2):
                await fed.caller.ask(api.ResumeRun(stopped), api.Submitted)
                await fed.until(lambda: fed.hub.runs.table.get(stopped).status == "running", "it runs")  # type: ignore[union-attr]
                await fed.caller.ask(api.StopRun(stopped), api.Done)
            await fed.caller.ask(api.ResumeRun(stopped), api.Submitted)
            view = await fed.end(stopped)
            assert view.status == "completed", view.cause
            np.testing.assert_array_equal(fed.model(stopped).flat, undisturbed.flat)
            await fed.until(lambda: not any(left(fed).values()), "nothing is left")

    drive(scenario(), 60.0)


@pytest.mark.parametrize("crash", [False, True])
def test_a_node_that_was_away_at_the_end_names_a_lane_that_the_hub_forgot(tmp_path: Path, crash: bool) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            undisturbed = await fed.run(LONG)
            run = await fed.submit(LONG)
            await round_of(fed, run, 3)
            await fed.stop_node("node-0", crash=crash)
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert left(fed)["hub"] == []
            # Hub and node disagree about the lanes now, each in its own way, and meet again after a restart of the hub.
            await fed.stop_hub(crash=crash)
            await fed.start_hub(HubSettings(data=fed.hub_settings.data))
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)
            node = await fed.start_node("node-0")
            for name in fed.names[1:]:
                await fed.cut(name)
                await fed.dial(name)
            view = await fed.end(run)
            assert view.status == "completed", (view.cause, view.party)
            np.testing.assert_array_equal(fed.model(run).flat, undisturbed.flat)
            assert "node-0" not in fed.ended and node.connected.is_set()
            await fed.until(lambda: not any(left(fed).values()), "nothing is left")

    drive(scenario(), 60.0)
