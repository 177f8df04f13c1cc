"""Real processes, real signals. Every wait is for a line or for the end of a pipe; nothing sleeps to see what happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from hansa.deployment.logs import Log
from hansa.deployment.signals import Ending, end_child, run_until_signal, start_child

PREAMBLE = """
import asyncio, os, signal, sys
from hansa.deployment.logs import Log
from hansa.deployment.signals import end_child, run_until_signal, start_child, until_signal

def say(text):
    print(text, flush=True)

async def forever():
    try:
        await asyncio.Event().wait()
    finally:
        say("work closed")
"""


@contextlib.contextmanager
def script(body: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``body``; its lines are read with :func:`line`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(body)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def rest(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    out, err = process.communicate(timeout=60)
    return out.splitlines(), err


DRAINS = """
async def drain(name):
    say(f"draining {name}")
    DRAIN

async def work():
    say("ready")
    WORK

async def main():
    ending = await run_until_signal(work, drain, within=WITHIN, log=Log("hub"))
    say(f"{ending.how} {ending.signal}")

asyncio.run(main())
"""


def drains(drain: str, work: str = "await forever()", within: float = 600) -> str:
    return DRAINS.replace("DRAIN", drain).replace("WORK", work).replace("WITHIN", str(within))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_until_signal_names_it(number: signal.Signals) -> None:
    body = """
    async def main():
        task = asyncio.ensure_future(until_signal())
        asyncio.get_running_loop().call_soon(say, "ready")
        say(await task)
    asyncio.run(main())
    """
    with script(body) as process:
        assert line(process) == "ready"
        process.send_signal(number)
        assert rest(process)[0] == [number.name]
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(number: signal.Signals) -> None:
    with script(drains('say("step saved")')) as process:
        assert line(process) == "ready"
        process.send_signal(number)
        lines, said = rest(process)
    assert lines == [f"draining {number.name}", "step saved", "work closed", f"drained {number.name}"]
    assert process.returncode == 0
    assert "Traceback" not in said


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_stops_at_once(second: signal.Signals) -> None:
    with script(drains("await asyncio.Event().wait()")) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "draining SIGTERM"
        process.send_signal(second)
        lines, _ = rest(process)
    assert lines == ["work closed", "stopped SIGTERM"]
    assert process.returncode == 0


def test_draining_has_a_deadline() -> None:
    with script(drains("await asyncio.Event().wait()", within=0.05)) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        lines, _ = rest(process)
    assert lines == ["draining SIGTERM", "work closed", "stopped SIGTERM"]


def test_a_timeout_inside_draining_is_its_own_error() -> None:
    with script(drains("raise TimeoutError('the store')")) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        lines, said = rest(process)
    assert "work closed" in lines
    assert "TimeoutError: the store" in said
    assert process.returncode == 1


def test_work_that_ends_while_it_drains_does_not_cut_the_farewell() -> None:
    body = drains("gone.set(); await closed.wait(); say('told the peers')", "await gone.wait(); closed.set()")
    with script("gone, closed = asyncio.Event(), asyncio.Event()\n" + body) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        lines, _ = rest(process)
    assert lines == ["draining SIGTERM", "told the peers", "drained SIGTERM"]


def test_the_third_signal_kills_what_does_not_close() -> None:
    work = "try:\n        await asyncio.Event().wait()\n    finally:\n        say('closing')\n        await asyncio.Event().wait()"
    with script(drains("await asyncio.Event().wait()", work)) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGINT)
        assert line(process) == "draining SIGINT"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "closing"
        process.send_signal(signal.SIGTERM)
        assert rest(process)[0] == []
    assert process.returncode == -signal.SIGTERM


def test_the_earlier_dispositions_come_back() -> None:
    async def nothing() -> None:
        pass

    async def refuse(_: str) -> None:
        raise AssertionError("nobody asked")

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with asyncio.Runner() as runner:
        ending = runner.run(run_until_signal(nothing, refuse, within=1, log=Log("hub")))
    assert ending == Ending("done")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_an_error_of_the_work_is_raised() -> None:
    async def broken() -> None:
        raise RuntimeError("the store is gone")

    async def drain(_: str) -> None:
        raise AssertionError("nobody asked")

    with pytest.raises(RuntimeError, match="the store is gone"):
        asyncio.run(run_until_signal(broken, drain, within=1, log=Log("hub")))


def child(body: str, *, stubborn: bool = False) -> list[str]:
    """A child that starts a child of its own; both hold the pipe that is given, and say so through it."""
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    code = f"import os, signal, subprocess, sys\n{deaf}pipe = int(sys.argv[1])\n{body}"
    return [sys.executable, "-c", code]


GRANDCHILD = """
inner = "import os, sys, signal; os.write(int(sys.argv[1]), b'g'); signal.pause()"
subprocess.Popen([sys.executable, "-c", inner, str(pipe)], pass_fds=[pipe])
"""


def end_of(pipe: int) -> bytes:
    """All bytes of a pipe up to its end, which comes when the last process that could write has died."""
    found = b""
    while more := os.read(pipe, 100):
        found += more
    return found


@pytest.mark.parametrize(
    ("last", "stubborn", "within", "code"),
    [
        ("signal.pause()", False, 600.0, -signal.SIGTERM),
        ("signal.pause()", True, 0.05, -signal.SIGKILL),
        ("", False, 600.0, 0),
    ],
    ids=["asked", "deaf to the asking", "ended before"],
)
def test_the_whole_group_ends(last: str, stubborn: bool, within: float, code: int) -> None:
    async def test() -> None:
        reading, writing = os.pipe()
        body = GRANDCHILD + "os.write(pipe, b'c')\n" + last
        process = await start_child([*child(body, stubborn=stubborn), str(writing)], pass_fds=[writing])
        os.close(writing)
        started = b""
        while len(started) < 2:
            started += os.read(reading, 2)
        if not last:
            await process.wait()
        assert await end_child(process, within=within) == code
        assert end_of(reading) == b""
        os.close(reading)

    asyncio.run(test())


def test_a_terminal_s_signal_does_not_reach_a_child() -> None:
    body = """
    async def main():
        r, w = os.pipe()
        process = await start_child([sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"],
                                    stdout=w)
        os.close(w)
        os.read(r, 3)
        told = asyncio.ensure_future(until_signal())
        await asyncio.sleep(0)  # from here on it is waited for
        say(f"{os.getpgid(process.pid) == process.pid != os.getpgid(0)}")
        say(await told)
        say(str(process.returncode))
        say(str(await end_child(process, within=600)))
    asyncio.run(main())
    """
    with script(body) as process:
        assert line(process) == "True"
        os.killpg(process.pid, signal.SIGINT)
        assert rest(process)[0] == ["SIGINT", "None", str(-signal.SIGTERM)]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_dies_with_a_killed_parent() -> None:
    reading, writing = os.pipe()
    inner = (
        "import os, sys, signal; from hansa.deployment.signals import die_with; die_with(int(sys.argv[1])); "
        "os.write(int(sys.argv[2]), b'c'); signal.pause()"
    )
    body = f"""
import subprocess, sys, os, signal
subprocess.Popen([sys.executable, "-c", {inner!r}, str(os.getpid()), sys.argv[1]], pass_fds=[int(sys.argv[1])],
                 start_new_session=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", body, str(writing)], pass_fds=[writing])
    os.close(writing)
    assert os.read(reading, 1) == b"c"
    parent.kill()
    parent.wait(timeout=30)
    assert end_of(reading) == b""
    os.close(reading)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_whose_parent_is_gone_already_ends() -> None:
    code = "from hansa.deployment.signals import die_with; die_with(999_999_999); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
