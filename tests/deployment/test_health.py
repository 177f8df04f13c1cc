"""Three answers, and nobody who misbehaves keeps another from having one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import urllib.request
from collections.abc import Awaitable, Callable

import pytest

from hansa.deployment.health import LONGEST_REQUEST, Health
from hansa.deployment.logs import written
from hansa.deployment.metrics import Metrics
from hansa.errors import ConfigError

LONG = 600.0
"""Seconds of patience that no test waits for."""


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def listener(
    *,
    reasons: Callable[[], list[str]] = list,
    patience: float = LONG,
    connections: int = 64,
    metrics: Metrics | None = None,
) -> Health:
    text = (metrics or Metrics()).text
    return Health("127.0.0.1:0", reasons, text, patience=patience, connections=connections)


async def connect(health: Health) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = health.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def say(health: Health, request: bytes) -> bytes:
    """All bytes that come back for ``request``, to the end of the connection."""
    reader, writer = await connect(health)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def status(answer: bytes) -> int:
    line, _, rest = answer.partition(b"\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Connection: close" in head
    return int(line.split()[1])


def test_the_three_questions() -> None:
    async def test() -> None:
        reasons = ["no hub answers", "the disk\r\nX: y"]
        metrics = Metrics()
        metrics.rounds.add(by=3)
        async with listener(reasons=lambda: reasons, metrics=metrics) as health:
            assert (await say(health, get("/healthz"))).endswith(b"\r\n\r\nalive\n")
            answer = await say(health, get("/readyz"))
            assert status(answer) == 503
            assert answer.endswith(b"no hub answers\nthe disk\\r\\nX: y\n")
            reasons.clear()
            assert status(await say(health, get("/readyz"))) == 200
            answer = await say(health, get("/metrics?x=1"))
            assert b"Content-Type: text/plain; version=0.0.4" in answer
            assert b"\nhansa_rounds_total 3.0\n" in answer

    run(test)


def test_an_ordinary_client_understands_it() -> None:
    async def test() -> None:
        async with listener() as health:

            def fetch() -> bytes:
                with urllib.request.urlopen(f"http://{health.address}/healthz", timeout=30) as answer:
                    content: bytes = answer.read()
                return content

            assert await asyncio.to_thread(fetch) == b"alive\n"

    run(test)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (get("/"), 404),
        (get("/nothing"), 404),
        (get("/healthz/"), 404),
        (get("/../../etc/passwd"), 404),
        (get("/metrics/../../etc/passwd"), 404),
        (get("/%2e%2e/etc/passwd"), 404),
        (get("//healthz"), 404),
        (get("http://h/healthz"), 404),
        (b"GET * HTTP/1.1\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", 405),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"get /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\n\r\n", 400),
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET  /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1 \r\n\r\n", 400),
        (b"GET /heal\x00thz HTTP/1.1\r\n\r\n", 400),
        ("GET /h\u00e9 HTTP/1.1\r\n\r\n".encode(), 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * (2 * LONGEST_REQUEST), 431),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * (2 * LONGEST_REQUEST) + b"\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 3000 + b"\r\n", 431),
    ],
)
def test_what_is_no_question_is_refused(request_: bytes, expected: int) -> None:
    async def test() -> None:
        async with listener() as health:
            assert status(await say(health, request_)) == expected
            assert status(await say(health, get("/healthz"))) == 200

    run(test)


@pytest.mark.parametrize("place", ["/{}", "/healthz?{}", "/readyz#{}"])
def test_nothing_of_a_request_comes_back(place: str) -> None:
    async def test() -> None:
        async with listener() as health:
            request = (
                f"GET {place.format('marked')} HTTP/1.1\r\nHost: marked\r\nOrigin: marked\r\nX-Marked: marked\r\n\r\n"
            )
            assert b"marked" not in (await say(health, request.encode())).lower()

    run(test)


def test_one_answer_a_connection_whatever_is_pipelined() -> None:
    async def test() -> None:
        async with listener() as health:
            answer = await say(health, get("/healthz") + get("/metrics") * 20)
            assert answer.count(b"HTTP/1.1") == 1
            assert answer.endswith(b"alive\n")

    run(test)


def test_a_request_cut_off_is_refused() -> None:
    async def test() -> None:
        async with listener() as health:
            reader, writer = await connect(health)
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            writer.write_eof()
            assert status(await reader.read()) == 400
            writer.close()

    run(test)


@pytest.mark.parametrize("drip", [b"", b"G", b"GET /healthz HTTP/1.1\r\nX: ", b"\r\n"])
def test_a_slow_request_is_cut_by_the_deadline(drip: bytes) -> None:
    async def test() -> None:
        async with listener(patience=0.05) as health:
            reader, writer = await connect(health)
            writer.write(drip)
            assert await reader.read() == b""
            writer.close()

    run(test)


def test_dripping_does_not_move_the_deadline() -> None:
    async def test() -> None:
        async with listener(patience=0.1) as health:
            reader, writer = await connect(health)
            writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
            ended = asyncio.ensure_future(reader.read())
            # Each byte arrives well inside the patience; the connection ends all the same.
            while not ended.done():
                writer.write(b"a")
                await asyncio.wait([ended], timeout=0.01)
            assert ended.exception() is not None or ended.result() == b""
            writer.close()

    run(test)


def test_who_reads_no_answer_is_cut_too() -> None:
    async def test() -> None:
        async with Health("127.0.0.1:0", list, lambda: "x" * 50_000_000, patience=0.2) as health:
            reader, writer = await connect(health)
            writer.write(get("/metrics"))
            assert (await reader.read(10)).startswith(b"HTTP/1.1")
            assert status(await say(health, get("/healthz"))) == 200
            while health._open:
                await asyncio.wait(list(health._open))
            writer.transport.abort()

    run(test)


def test_a_thousand_connections_keep_nobody_from_asking() -> None:
    many = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 200)
    assert many > 64

    async def test() -> None:
        async with listener(connections=32) as health:
            held = []
            for _ in range(many):
                held.append(await connect(health))
                assert len(health._open) <= 32
            assert status(await say(health, get("/healthz"))) == 200
            with contextlib.suppress(ConnectionError):  # the first had to give way
                assert await held[0][0].read() == b""
            for _, writer in held:
                writer.transport.abort()

    def quiet(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        raise AssertionError(context)

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(quiet)
        await test()

    run(watched)


def test_a_question_that_fails_is_answered_without_its_cause() -> None:
    def broken() -> list[str]:
        raise RuntimeError("the inner secret of the store")

    stream = io.StringIO()

    async def test() -> None:
        async with listener(reasons=broken) as health:
            answer = await say(health, get("/readyz"))
            assert status(answer) == 500
            assert b"secret" not in answer
            assert status(await say(health, get("/healthz"))) == 200

    with written("json", stream=stream):
        run(test)
    assert "the inner secret of the store" in stream.getvalue()


def test_leaving_ends_what_is_open_and_frees_the_port() -> None:
    async def test() -> None:
        async with listener() as health:
            address = health.address
            reader, writer = await connect(health)
            assert status(await say(health, get("/healthz"))) == 200
        assert health.address == ""
        with pytest.raises(ConnectionError):
            if not await reader.read():
                raise ConnectionResetError
        writer.close()
        async with Health(address, list, str) as again:
            assert again.address == address

    run(test)


def test_two_listeners_have_two_ports_and_a_taken_one_is_said() -> None:
    async def test() -> None:
        async with listener() as one, listener() as two:
            assert one.address != two.address
            with pytest.raises(ConfigError, match=f"cannot listen on {one.address}: Address already in use; give"):
                async with Health(one.address, list, str):
                    pass

    run(test)


@pytest.mark.parametrize(
    "address",
    ["", "9464", ":9464", "localhost:0", "0:0", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:0x1",
     "::1:0", "[127.0.0.1]:0", "[::1]", "[::1%lo]:0", "*:0", "127.0.0.1:0\n", "127.0.0.1:\u0661", "256.0.0.1:0"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match="has no address"):
            async with Health(address, list, str):
                pass

    run(test)
