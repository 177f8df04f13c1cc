"""A machine's programs: kept alive, brought back, and silent once their run is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hansa.deployment.host import ATTEMPTS, Host, Work
from hansa.deployment.logs import Log
from hansa.deployment.shape import DataShape
from hansa.deployment.store import Database, Journal, Mailbox
from hansa.deployment.worker.frames import (
    Began,
    Body,
    Described,
    Ended,
    Failed,
    Letter,
    Lost,
    Saved,
    Sent,
    Setup,
    Unusable,
)
from hansa.deployment.worker.spool import Spool
from hansa.message import Message
from hansa.protocol import OBSERVER
from tests.deployment.federation import drive

RUN = "00000000000000aa"
BODY = Body("t", 1, b"1")
WORK = Work(
    RUN, 1, "", {"server": ("server",), "client": ("c", "d")}, frozenset(("server",)),
    {"server": "here", "c": "here", "d": "there"},
)  # fmt: skip


class Puppet:
    """A worker that says what the test says."""

    def __init__(self, setup: Setup, heard: Callable[[Message | Lost], None]) -> None:
        self.setup = setup
        self.say = heard
        self.letters: list[Letter] = list(setup.letters)
        self.stopped = False

    def give(self, letter: Letter) -> None:
        self.letters.append(letter)

    async def stop(self, grace: float = 0.0) -> None:
        await asyncio.sleep(0)
        self.stopped = True


class Stage:
    """A host whose workers are puppets; it is the courier too."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "a.db")
        self.spool = Spool(folder / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.journal = Journal(self.database, self.mailbox)
        self.puppets: list[Puppet] = []
        self.sent: list[tuple[str, str]] = []
        self.reports: list[str] = []
        self.ended: list[str] = []
        self.troubles: list[tuple[str, Failed, bool]] = []
        self.host = Host(
            "here", self.database, self.mailbox, self.journal, self, self, self.spool.folder, Log("test")
        )  # fmt: skip

    async def describe(self, plan: str) -> Described:
        raise AssertionError(plan)

    async def measure(self, data: Mapping[str, Any]) -> DataShape:
        raise AssertionError(data)

    async def start(self, setup: Setup, heard: Callable[[Message | Lost], None]) -> Puppet:
        self.puppets.append(Puppet(setup, heard))
        return self.puppets[-1]

    async def close(self) -> None:
        pass

    def send(self, work: Work, sender: str, receiver: str, body: Body) -> None:
        self.sent.append((sender, receiver))

    def report(self, work: Work, party: str, body: Body) -> None:
        self.reports.append(party)

    def finished(self, work: Work, party: str, result: Body) -> None:
        self.ended.append(party)

    def trouble(self, work: Work, party: str, failed: Failed, fatal: bool) -> None:
        self.troubles.append((party, failed, fatal))

    def puppet(self, party: str) -> Puppet:
        return [puppet for puppet in self.puppets if puppet.setup.party == party][-1]

    async def turns(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def end(self) -> None:
        await self.host.close()
        self.database.close()


def test_only_this_machines_parties_are_run_and_each_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        stage.host.begin(WORK)
        await stage.turns()
        assert sorted(puppet.setup.party for puppet in stage.puppets) == ["c", "server"]
        assert stage.host.running() == {RUN}
        assert not stage.host.deliver(RUN, "server", "d", BODY)
        assert not stage.host.deliver("00000000000000bb", "server", "c", BODY)
        await stage.end()

    drive(scenario())


def test_letters_go_to_neighbours_to_the_courier_and_to_the_observer(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        await stage.turns()
        server = stage.puppet("server")
        server.say(Began(1.0, False))
        for to in ("c", "d", OBSERVER, "nobody"):
            server.say(Sent(to, BODY, 1.0))
        await stage.turns()
        assert [letter.sender for letter in stage.puppet("c").letters] == ["server"]
        assert stage.sent == [("server", "d")]
        assert stage.reports == ["server"]
        assert stage.journal.standing(RUN, "server")["sent"] == 4
        await stage.end()

    drive(scenario())


def test_a_letter_that_comes_before_the_worker_is_given_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        stage.host.deliver(RUN, "d", "server", BODY)  # its task has had no turn yet
        await stage.turns()
        stage.host.deliver(RUN, "d", "server", BODY)
        numbers = [letter.number for letter in stage.puppet("server").letters]
        assert len(numbers) == 2
        assert numbers == sorted(set(numbers))
        await stage.end()

    drive(scenario())


def test_a_lost_worker_is_replaced_where_it_stood_and_gets_what_came_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        await stage.turns()
        first = stage.puppet("server")
        stage.host.deliver(RUN, "d", "server", BODY)
        first.say(Began(1.0, False))
        first.say(Saved(BODY, 2.0))
        first.say(Sent("d", BODY, 2.0))
        first.say(Lost("killed"))
        await stage.turns()
        second = stage.puppet("server")
        assert second is not first
        assert (second.setup.live, second.setup.sent, second.setup.saved) == (True, 1, BODY)
        assert [letter.sender for letter in second.letters] == ["d"]
        assert not stage.troubles
        await stage.end()

    drive(scenario())


def test_a_worker_that_dies_again_and_again_at_one_place_is_given_up_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        for number in range(ATTEMPTS + 2):
            await stage.turns()
            puppet = stage.puppet("server")
            if number < 2:  # it comes further each time: that is no standing still
                puppet.say(Began(1.0 + number, False))
            puppet.say(Lost("killed by signal 9"))
        await stage.turns()
        ((party, failed, fatal),) = stage.troubles
        assert (party, failed.kind, fatal) == ("server", "WorkerLost", True)
        assert f"{ATTEMPTS} times at the same place: killed by signal 9" in failed.what
        assert failed.remedy
        await stage.end()

    drive(scenario())


def test_nothing_that_a_program_says_after_the_end_of_its_run_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        await stage.turns()
        first = stage.puppet("server")
        first.say(Began(1.0, False))
        first.say(Saved(BODY, 2.0))
        await stage.turns()
        # Words that wait in the queue when the end comes, and words that come while the worker is being stopped.
        first.say(Sent("d", BODY, 2.0))
        ending = stage.host.end(RUN)
        stage.journal.rewind(RUN)
        first.say(Saved(Body("t", 1, b"2"), 3.0))
        # The next attempt begins at once, before the old workers have ended.
        stage.host.begin(WORK)
        first.say(Ended(4.0, BODY))
        await ending
        await stage.turns()
        assert first.stopped
        assert not stage.sent
        assert not stage.ended
        second = stage.puppet("server")
        assert second is not first
        assert (second.setup.live, second.setup.sent, second.setup.saved) == (False, 0, BODY)
        second.say(Began(5.0, False))
        second.say(Ended(6.0, BODY))
        await stage.turns()
        assert stage.ended == ["server"]
        await stage.end()

    drive(scenario())


def test_a_party_that_has_ended_is_not_run_again_after_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        await stage.turns()
        stage.puppet("server").say(Began(1.0, False))
        stage.puppet("server").say(Ended(2.0, BODY))
        await stage.turns()
        assert stage.puppet("server").stopped
        await stage.end()
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        await stage.turns()
        assert [puppet.setup.party for puppet in stage.puppets] == ["c"]
        await stage.end()

    drive(scenario())


def test_who_fails_is_fatal_where_it_starts_by_itself_and_a_word_where_it_was_invited(tmp_path: Path) -> None:
    async def scenario() -> None:
        stage = Stage(tmp_path)
        stage.host.begin(WORK)
        await stage.turns()
        stage.puppet("c").say(Began(1.0, True))
        stage.puppet("c").say(Failed("E", "it broke", "", 1.0))
        stage.puppet("c").say(Began(2.0, True))  # the next invitation finds it at work
        stage.puppet("server").say(Unusable("no such data"))
        await stage.turns()
        assert sorted((party, failed.what, fatal) for party, failed, fatal in stage.troubles) == [
            ("c", "it broke", False),
            ("server", "no such data", True),
        ]
        assert stage.puppet("server").stopped
        assert not stage.puppet("c").stopped
        await stage.end()

    drive(scenario())
