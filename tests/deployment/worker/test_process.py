"""Workers as real processes: the same runs, real kills, and processes that are no workers."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

import hansa as hs
from hansa.deployment.worker import pipe
from hansa.deployment.worker.frames import (
    Began,
    Body,
    Heard,
    Letter,
    Lost,
    Ready,
    Setup,
    Stepped,
    Unusable,
)
from hansa.deployment.worker.process import Workers
from hansa.errors import StoreError
from hansa.horizontal import FedBuff
from hansa.message import Message, encode
from tests.deployment.worker.cases import DATA, PARTIES, deploy, plan
from tests.deployment.worker.test_recovery import PLANS, model, undisturbed

ROOT = Path(__file__).resolve().parents[3]
CHILD = (sys.executable, "-m", "tests.deployment.worker.child")
LONGEST = 20.0


def processes(spares: int = 0) -> Workers:
    return Workers(CHILD, environment={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}, spares=spares)


def setup(folder: Path, **changes: object) -> Setup:
    whole = PLANS["fedavg"]
    names: dict[str, tuple[str, ...]] = {"server": ("server",), "client": tuple(DATA.names)}
    fields: dict[str, object] = {
        "run": "run", "party": "client-0", "role": "client", "plan": whole.to_toml(), "rosters": names,
        "data": {"party": 0}, "spool": str(folder), "inline": 1 << 16,
    }  # fmt: skip
    return Setup(**{**fields, **changes})  # type: ignore[arg-type]


class Ear:
    """What was heard, and a way to wait for it."""

    def __init__(self) -> None:
        self.words: list[Message | Lost] = []
        self.news = asyncio.Event()

    def __call__(self, word: Message | Lost) -> None:
        self.words.append(word)
        self.news.set()

    async def until(self, kind: type[Message] | type[Lost]) -> Message | Lost:
        async with asyncio.timeout(LONGEST):
            while True:
                for word in self.words:
                    if isinstance(word, kind):
                        return word
                self.news.clear()
                await self.news.wait()


def gone(pid: int) -> bool:
    """Whether a process ends within the time that a test has; a dead one is gone already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], LONGEST)[0])
    finally:
        os.close(descriptor)


def run(test: Callable[[Workers], Awaitable[None]], workers: Workers | None = None) -> None:
    async def whole() -> None:
        started = workers or processes()
        try:
            await test(started)
        finally:
            await started.close()

    asyncio.run(whole())


@pytest.mark.parametrize("name", PLANS)
def test_a_run_over_processes_is_the_run_in_one(name: str, tmp_path: Path) -> None:
    whole = undisturbed(name)
    after = deploy(PLANS[name], tmp_path, processes(), inline=200)
    assert model(after) == model(whole)
    assert after.posted == whole.posted


@pytest.mark.parametrize(("party", "word"), [("server", 7), ("client-1", 3)])
def test_a_process_killed_on_the_way_changes_nothing(party: str, word: int, tmp_path: Path) -> None:
    whole = undisturbed("scaffold")
    after = deploy(PLANS["scaffold"], tmp_path, processes(), inline=200, kill=(party, word))
    assert after.killed == 1
    assert model(after) == model(whole)
    assert after.posted == whole.posted


def test_kill_9_from_outside_is_heard_and_survived(tmp_path: Path) -> None:
    """The kernel's own kill: the owner hears of it, starts another worker, and the run ends as it would have."""
    whole = undisturbed("fedavg")
    shot: list[int] = []

    class Shooting:
        def __init__(self) -> None:
            self.real = processes(spares=1)

        async def start(self, setup: Setup, heard: Heard) -> object:
            def listening(word: Message | Lost) -> None:
                heard(word)
                if isinstance(word, Stepped) and setup.party == "server" and not shot:
                    shot.append(worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)

            worker = await self.real.start(setup, listening)
            return worker

        async def close(self) -> None:
            await self.real.close()

    after = deploy(PLANS["fedavg"], tmp_path, Shooting(), inline=200)
    assert shot and after.seats["server"].lives > 1
    assert model(after) == model(whole)
    assert after.posted == whole.posted


def test_fedbuff_ends_near_its_simulation(tmp_path: Path) -> None:
    """Who is in a step depends on who was first, so the models are close and not the same."""
    asynchronous = plan(FedBuff(rounds=6, concurrency=PARTIES, buffer=2))
    after = deploy(asynchronous, tmp_path, inline=200)
    simulated = hs.simulate(asynchronous, DATA).raise_if_failed()
    assert after.results["server"] is not None and simulated.params is not None
    distance = np.linalg.norm(after.results["server"].flat - simulated.params.flat)
    assert distance < 0.5 * np.linalg.norm(simulated.params.flat)
    assert len(after.progress) == len(simulated.history)


def test_a_worker_binds_data_by_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(20, 4)).astype(np.float32), y=np.arange(20) % 3)

    async def test(workers: Workers) -> None:
        ear = Ear()
        data = {"source": f"npz:{tmp_path / 'rows.npz'}", "test": 0.25}
        await workers.start(setup(tmp_path / "spool", data=data), ear)
        ready = await ear.until(Ready)
        assert isinstance(ready, Ready) and ready.examples == 15

    run(test, Workers(environment={"PYTHONPATH": str(ROOT / "src")}, spares=0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plan": "seed = "}, "is not TOML"),
        ({"role": "sever"}, "did you mean 'server'"),
        ({"party": "stranger"}, "is not in the roster"),
        ({"data": {"party": 99}}, "there are 3 parties"),
        ({"data": {"perty": 0}}, "KeyError"),
        ({"saved": Body("nothing/1", 3, b"abc")}, "shorter than its header"),
        ({"spool": "/dev/null/spool"}, "cannot be made"),
        (
            {"letters": [Letter(1, "server", Body("hansa.train-task/1", 10, None, "../../etc/passwd"))]},
            "32 hexadecimal",
        ),
        ({"memory": 1 << 20}, "below the"),
    ],
)
def test_a_setup_that_cannot_be_used_is_one_sentence(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        ear = Ear()
        worker = await workers.start(setup(tmp_path, **changes), ear)
        word = await ear.until(Unusable)
        assert isinstance(word, Unusable) and sentence in word.reason, word
        assert word.reason.count("\n") < 3
        await worker.stop(LONGEST)

    run(test)


def naughty(mode: str, **environment: str) -> Workers:
    command = (sys.executable, "-I", "-S", str(Path(__file__).with_name("naughty.py")), mode)
    return Workers(command, spares=0, environment=environment)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("dies", "status 7"),
        ("garbage", "no word of a worker"),
        ("tag", "'nope/1' is not accepted"),
        ("huge", "4611686018427387904 bytes"),
        ("partial", "in the middle of a frame"),
        ("closes", "SIGKILL"),
        ("kills itself", "SIGKILL"),
    ],
)
def test_what_is_no_worker_is_killed_and_named(mode: str, reason: str, tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        ear = Ear()
        worker = await workers.start(setup(tmp_path), ear)
        lost = await ear.until(Lost)
        assert isinstance(lost, Lost) and reason in lost.reason, lost
        assert ear.words == [lost]
        assert gone(worker.pid)
        worker.give(Letter(1, "server", Body("nothing/1", 0, b"")))  # nobody hears it, and nothing breaks

    run(test, naughty(mode))


def test_what_a_worker_has_started_dies_with_it(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        ear = Ear()
        await workers.start(setup(tmp_path), ear)
        await ear.until(Lost)
        assert gone(int((tmp_path / "child").read_text()))

    run(test, naughty("has a child", CHILD=str(tmp_path / "child")))


def test_a_flood_does_not_stop_the_owner(tmp_path: Path) -> None:
    """The owner hears thousands of words and still turns to others; a stop ends the flood at once."""

    async def test(workers: Workers) -> None:
        ear = Ear()
        worker = await workers.start(setup(tmp_path), ear)
        turns = 0
        async with asyncio.timeout(LONGEST):
            while len(ear.words) < 20_000:
                turns += 1
                ear.news.clear()
                await ear.news.wait()
        assert turns > 5
        await worker.stop()
        heard = len(ear.words)
        assert gone(worker.pid)
        assert len(ear.words) == heard and all(isinstance(word, Began) for word in ear.words)

    run(test, naughty("floods", FRAME=encode(Began(1.0)).hex()))


def test_one_that_ignores_its_stop_is_killed(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        ear = Ear()
        worker = await workers.start(setup(tmp_path), ear)
        await worker.stop(grace=0.05)
        assert gone(worker.pid)
        assert ear.words == []

    run(test, naughty("deaf"))


def test_a_worker_ends_by_itself_when_its_pipe_ends(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        ear = Ear()
        worker = await workers.start(setup(tmp_path), ear)
        await ear.until(Ready)
        await worker.stop(grace=LONGEST)
        assert worker.status == 0

    run(test)


@pytest.mark.parametrize("content", [b"\x00" * 40, b"", b"HNSA"])
def test_a_worker_leaves_an_owner_that_it_cannot_understand(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(workers: Workers) -> None:
        ear = Ear()
        worker = await workers.start(setup(tmp_path), ear)
        await ear.until(Ready)
        worker._child.writer.write(len(content).to_bytes(8, "little") + content)
        lost = await ear.until(Lost)
        assert isinstance(lost, Lost) and "status 3" in lost.reason

    run(test)
    assert "the owner's word cannot be read" in capfd.readouterr().err


def test_no_worker_can_be_started() -> None:
    async def test(workers: Workers) -> None:
        with pytest.raises(StoreError, match="no worker can be started"):
            await workers.start(setup(Path("/tmp")), Ear())

    run(test, Workers(("/nowhere/python",)))


def test_whoever_asks_and_goes_away_leaves_no_process(tmp_path: Path) -> None:
    async def test(workers: Workers) -> None:
        child = await workers._spawn()
        given = asyncio.Event()

        async def spawned() -> object:
            given.set()
            return child

        workers._spawn = spawned  # type: ignore[method-assign, assignment]
        asking = asyncio.ensure_future(workers.describe("name = 'trial'"))
        await given.wait()
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert await child.process.wait() == -signal.SIGKILL
        assert child.writer.is_closing()

    run(test)


def test_the_environment_of_a_worker_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSA_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in Workers(CHILD)._environment.values()


OWNER = """
import asyncio, os, sys
from pathlib import Path
from tests.deployment.worker.test_process import Ear, processes, setup
from hansa.deployment.worker.frames import Ready

async def main():
    workers = processes(spares=1)
    ear = Ear()
    await workers.start(setup(Path(sys.argv[1])), ear)
    await ear.until(Ready)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_children_die_with_their_owner(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == "ready\n"
        children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
        assert len(children) == 2
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert all(gone(int(child)) for child in children)


def test_a_frame_above_the_bound_is_refused_before_it_is_read() -> None:
    async def test() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data((pipe.MOST + 1).to_bytes(8, "little"))
        with pytest.raises(hs.errors.OversizedMessage):
            await pipe.read(reader)

    asyncio.run(test())
