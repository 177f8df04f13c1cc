"""Who is not let in by TLS: each is told why by name, is seen, and disturbs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hansa.deployment.diagnosis import diagnose
from hansa.deployment.dial import calling
from hansa.deployment.identity import Authority, Credentials, SealingKeys, make_tls_key
from hansa.deployment.identity.keys import private_pem
from hansa.errors import ConfigError, HansaError, IdentityError, Unreachable
from tests.deployment.adversarial.strangers import Paper, book, no_traceback, others_go_on, paper, paper_of
from tests.deployment.federation import Federation, drive, federation


async def found(fed: Federation, held: Paper, address: str = "") -> HansaError:
    return await diagnose(
        address or str(fed.address), held.authority_pem, held.certificate_pem, held.key_pem, patience=2.0
    )


@contextlib.contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """Somebody who takes a connection, says ``answer`` and closes; or says nothing, for None."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    taken.append(connection)
                    if answer is not None:
                        connection.recv(65536)
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(2.0)
        for connection in taken:
            connection.close()


def test_whoever_cannot_get_in_is_told_which_of_both_certificates_is_wrong(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            own = fed.hub.authority
            other = Authority.create(tmp_path / "other", "trial", time.time())
            expired = paper(own, "node-2", issued=-3000, lifetime=1000)
            foreign = replace(paper(other, "node-2"), authority_pem=own.certificate_pem)
            with book() as lines:
                error = await found(fed, expired)
                assert isinstance(error, IdentityError)
                assert "expired on" in str(error)
                error = await found(fed, foreign)
                assert isinstance(error, IdentityError)
                assert "did not issue" in str(error)
                error = await found(fed, paper(other, "node-2"))
                assert isinstance(error, IdentityError)
                assert "of another authority than ours" in str(error)
                odd = replace(paper(own, "node-2"), key_pem=private_pem(make_tls_key()))
                error = await found(fed, odd)
                assert isinstance(error, IdentityError)
                assert "does not fit the key" in str(error)
                # One that is valid here, and that the hub refuses for what only it knows.
                error = await found(fed, paper(own, "node-2"))
                assert isinstance(error, Unreachable)
                assert "accepts us now" in str(error)
                await others_go_on(fed)
            no_traceback(lines)

    drive(scenario())


@pytest.mark.parametrize("kind", ["expired", "foreign"])
def test_calls_and_nodes_say_why_they_are_refused(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            good = Credentials.load(fed.folder / "node-2", fed.clock())
            sealing = SealingKeys.make()
            key = make_tls_key()
            authority = fed.hub.authority
            if kind == "foreign":
                authority = Authority.create(tmp_path / "other", "trial", time.time())
            from hansa.deployment.identity import make_request, read_request
            from hansa.deployment.identity.certificates import read_undated

            issued, lifetime = (-3000.0, 1000.0) if kind == "expired" else (0.0, 600.0)
            request = read_request(make_request("node-2", key, sealing))
            pem = authority.issue_member(request, "node", "node-2", time.time() + issued, lifetime)
            bad = Credentials(
                good.home, authority.certificate_pem, read_undated(pem, authority.certificate_pem), private_pem(key), sealing,
                (str(fed.address),),
            )  # fmt: skip
            words = {"expired": "expired on", "foreign": "of another authority than ours"}[kind]
            with pytest.raises(IdentityError, match=words):
                async with calling(bad):
                    pass
            with book() as lines:
                node = await fed.start_node("node-2", connect=False)
                await fed.cut("node-2")
                node.credentials = bad
                running = asyncio.ensure_future(node.run())
                if kind == "expired":
                    with pytest.raises(IdentityError, match=words):
                        await running
                else:
                    # The node goes on trying: somebody else at the address may go away again.
                    await fed.until(lambda: any(words in str(line[2].get("reason")) for line in lines), "it says why")
                    running.cancel()
                    await asyncio.wait([running])
                await others_go_on(fed)
            no_traceback(lines)

    drive(scenario())


def test_the_way_to_a_hub_is_diagnosed_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            held = paper_of(Credentials.load(fed.folder / "node-0", fed.clock()))
            for address, kind, words in (
                ("127.0.0.1:1", Unreachable, "connection refused"),
                ("no-such-machine.invalid:7400", Unreachable, "no machine called no-such-machine.invalid"),
                ("nonsense", ConfigError, "no address"),
            ):
                error = await found(fed, held, address)
                assert isinstance(error, kind), error
                assert words in str(error)
            for answer, words in (
                (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
                (b"", "closes connections before it says anything"),
                (b"\x15\x03\x03\x00\x02\x02\x30", "does not know the authority"),
                (b"\x15\x03\x03\x00\x02\x02\x2d", "has expired"),
                (None, "says nothing"),
            ):
                with listener(answer) as address:
                    error = await diagnose(
                        address, held.authority_pem, held.certificate_pem, held.key_pem, patience=0.3
                    )
                assert words in str(error), (answer, error)
                assert isinstance(error, IdentityError if answer and answer[:1] == b"\x15" else Unreachable)

    drive(scenario())


def test_a_hub_that_shows_a_members_certificate_is_no_hub(tmp_path: Path) -> None:
    import ssl

    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            held = paper_of(Credentials.load(fed.folder / "node-0", fed.clock()))
            file = tmp_path / "a-member.pem"
            file.write_bytes(held.key_pem + held.certificate_pem)
            shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            shown.load_cert_chain(file)
            server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=shown)
            port = server.sockets[0].getsockname()[1]
            error = await found(fed, held, f"127.0.0.1:{port}")
            assert isinstance(error, IdentityError)
            with pytest.raises(IdentityError):
                async with calling(
                    replace(Credentials.load(fed.folder / "node-0", fed.clock()), addresses=(f"127.0.0.1:{port}",))
                ):
                    pass
            server.close()
            await server.wait_closed()

    drive(scenario())
