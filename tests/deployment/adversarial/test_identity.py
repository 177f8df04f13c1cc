"""Members and guests who are not what they say: revoked, doubled, with another's name, a stolen token, another version."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hansa.deployment import api, hub, packets, wire
from hansa.deployment.dial import Caller, calling, join
from hansa.deployment.identity import Credentials, SealingKeys, make_request, make_tls_key, read_invitation
from hansa.deployment.identity.enrolment import Enrolment
from hansa.errors import HansaError, IdentityError, LinkError, NotAuthorized, VersionMismatch
from hansa.message import encode
from tests.deployment.adversarial.strangers import (
    STANDARD,
    Puppet,
    book,
    channel,
    hello,
    no_traceback,
    others_go_on,
    paper,
    paper_of,
    puppet,
)
from tests.deployment.federation import Federation, drive, federation


def known(fed: Federation, name: str) -> Credentials:
    return replace(Credentials.load(fed.folder / name, fed.clock()), addresses=(str(fed.address),))


def refusals(lines: list[Any]) -> list[str]:
    return [str(said["reason"]) for who, event, said in lines if who == "hub" and event == "refused"]


def test_a_node_that_is_revoked_while_connected_is_cut_and_told_and_does_not_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-2"]) as fed:
            with book() as lines:
                run = await fed.submit(STANDARD, parties=("node-0", "node-1"))
                async with asyncio.timeout(hub.ALIVE + 1):
                    await fed.caller.ask(api.Revoke("node-2"), api.Done)
                    await fed.until(lambda: "node-2" in fed.ended, "node-2 ends")
                assert isinstance(fed.ended["node-2"], IdentityError)
                assert "revoked" in str(fed.ended["node-2"])
                assert not fed.hub.connected("node-2")
                assert (await fed.end(run)).status == "completed"
                assert any("was revoked" in reason for reason in refusals(lines))
            no_traceback(lines)
            with pytest.raises(IdentityError, match="revoked"):
                async with calling(known(fed, "node-2")):
                    pass
            with pytest.raises(IdentityError, match="revoked"):
                async with fed_puppet(fed, "node-2"):
                    pass
            fed.ended.clear()

    drive(scenario())


@contextlib.asynccontextmanager
async def fed_puppet(fed: Federation, name: str, **said: Any) -> AsyncIterator[Puppet]:
    """A stream of ``name``; raises what the hub says of it."""
    try:
        async with puppet(fed, paper_of(known(fed, name)), hello(**said)) as made:
            assert isinstance(await made.stream.read(), bytes)
            yield made
    except grpc.aio.AioRpcError as error:
        raise wire.translated(error, str(fed.address)) from None


def test_a_puppet_that_ignores_its_farewell_is_cut_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ALIVE", 0.1)

    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed, fed_puppet(fed, "node-2") as made:
            await fed.caller.ask(api.Revoke("node-2"), api.Done)
            farewell = await made.hear(packets.Farewell)
            assert isinstance(farewell, packets.Farewell)
            assert "revoked" in farewell.reason
            assert not fed.hub.connected("node-2")

    drive(scenario())


def test_whoever_greets_while_being_revoked_gets_no_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed, channel(fed, paper_of(known(fed, "node-2"))) as connection:
            stream: Any = connection.stream_stream("/hansa.Hub/Link")()
            # The stream is open, and its first packet is waited for.
            await fed.until(lambda: fed.hub.members.get("node-2") is not None)
            for _ in range(20):
                await asyncio.sleep(0)
            await fed.caller.ask(api.Revoke("node-2"), api.Done)
            with contextlib.suppress(Exception):
                await stream.write(encode(hello()))
                while isinstance(await stream.read(), bytes):
                    pass
            # A write into a stream that has just been cut ends it in gRPC's own words; whoever dials again reads ours.
            if "Internal error from Core" not in str(await stream.details()):
                assert "revoked" in str(await stream.details())
            assert not fed.hub.connected("node-2")

    drive(scenario())


def test_a_watcher_who_is_revoked_sees_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed, fed.person("eve", "observer") as eve:
            run = await fed.submit(STANDARD, parties=("node-0", "node-1"), seconds=600.0)  # node-1 never comes
            seen: list[api.Event] = []

            async def watch() -> None:
                async for event in eve.events(run):
                    seen.append(event)  # noqa: PERF401 - seen while it grows

            watching = asyncio.ensure_future(watch())
            await fed.until(lambda: seen, "the run is seen")
            await fed.caller.ask(api.Revoke("eve"), api.Done)
            with pytest.raises(IdentityError, match="revoked"):
                await asyncio.wait_for(watching, 3)
            await fed.caller.ask(api.StopRun(run), api.Done)
            assert not any("stopped" in event.text for event in seen)

    drive(scenario())


def test_of_two_processes_with_one_identity_the_first_stays_while_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            with book() as lines:
                with pytest.raises(IdentityError, match="connected from another process"):
                    async with fed_puppet(fed, "node-1", instance="another"):
                        pass
                assert any("another process" in reason for reason in refusals(lines))
                await others_go_on(fed)
                assert fed.nodes["node-1"].connected.is_set()
                # One that says nothing any more gives way, to one of two that come at once.
                monkeypatch.setattr(hub, "ALIVE", 0.2)
                async with fed_puppet(fed, "node-2", instance="silent"):
                    came: list[str] = []

                    async def come(instance: str) -> None:
                        async with fed_puppet(fed, "node-2", instance=instance) as made:
                            came.append(instance)
                            with contextlib.suppress(AssertionError):
                                while True:
                                    probe = await made.hear(packets.Probe)
                                    assert isinstance(probe, packets.Probe)
                                    await made.say(packets.Probe(probe.nonce, answer=True))

                    tries = [asyncio.ensure_future(come(f"try-{n}")) for n in range(3)]
                    await fed.until(lambda: sum(each.done() for each in tries) == 2, "two are refused")
                    assert len(came) == 1
                    for each in tries:
                        if each.done():
                            assert isinstance(each.exception(), IdentityError)
                        else:
                            each.cancel()
                    await asyncio.wait(tries)
            no_traceback(lines)

    drive(scenario())


def test_only_nodes_hold_links(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            for name, kind in (("ada", "submitter"), ("eve", "observer")):
                async with fed.person(name, kind):  # type: ignore[arg-type]
                    with pytest.raises(NotAuthorized):
                        async with fed_puppet(fed, f"home of {name}"):
                            pass
            # Signed by the authority, and known to no table.
            made = paper(fed.hub.authority, "node-1")
            async with puppet(fed, made, hello()) as odd:
                assert "IdentityError: the certificate of node 'node-1' was revoked" in await odd.refusal()
            token = await fed.caller.ask(api.Invite("mallory"), api.Invited)
            invited = read_invitation(token.token)
            shown = replace(made, certificate_pem=invited.certificate.pem, key_pem=invited.key_pem)
            async with puppet(fed, shown, hello()) as odd:
                assert "NotAuthorized" in await odd.refusal()
            hubs = fed.hub.credentials
            # A hub's certificate is good for a server only, and TLS knows that.
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with puppet(fed, paper_of(hubs), hello()) as odd:
                    assert not isinstance(await odd.stream.read(), bytes)
            assert fed.hub.nodes() == 2
            await others_go_on(fed)

    drive(scenario())


def test_a_token_is_good_once_for_one_name_and_one_set_of_keys(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            token = (await fed.caller.ask(api.Invite("mallory"), api.Invited)).token
            invitation = read_invitation(token)

            async def enrol(request: bytes) -> None:
                async with channel(
                    fed,
                    replace(
                        paper(fed.hub.authority, "x"),
                        certificate_pem=invitation.certificate.pem,
                        key_pem=invitation.key_pem,
                    ),
                ) as connection:
                    await Caller(connection, str(fed.address)).ask(api.Enrol(request), api.Certified)

            with book() as lines:
                # Another's name, rubbish, and too much of it.
                for request, words in (
                    (make_request("node-0", make_tls_key(), SealingKeys.make()), "not for 'node-0'"),
                    (b"", "not an enrolment request"),
                    (b"\x30\x82\xff\xff" + b"\x00" * 100, "not an enrolment request"),
                    (b"x" * 100_000, "bytes"),
                ):
                    with pytest.raises(IdentityError, match=words):
                        await enrol(request)
                first = Enrolment.begin(tmp_path / "mallory", invitation, fed.clock())
                await enrol(first.request())
                await enrol(first.request())  # its answer was lost
                with pytest.raises(IdentityError, match="used already"):
                    await enrol(make_request("mallory", make_tls_key(), SealingKeys.make()))
                with pytest.raises(IdentityError, match="used already"):
                    await join(tmp_path / "thief", replace(invitation, addresses=(str(fed.address),)), fed.clock())
                assert any("used already" in reason for reason in refusals(lines))
                for flipped in (
                    token[:-1] + ("A" if token[-1] != "A" else "B"),
                    token[:200],
                    token + "AAAA",
                    "hansa1-",
                ):
                    with pytest.raises(IdentityError):
                        read_invitation(flipped)
                # Not used in time, and withdrawn.
                fed.clock = fed.hub.clock
                withdrawn = read_invitation((await fed.caller.ask(api.Invite("nobody"), api.Invited)).token)
                await fed.caller.ask(api.Revoke("nobody"), api.Done)
                with pytest.raises(IdentityError, match="revoked"):
                    await join(tmp_path / "nobody", withdrawn, fed.clock())
                short = read_invitation((await fed.caller.ask(api.Invite("late", seconds=5.0), api.Invited)).token)
                with pytest.raises(IdentityError, match="expired"):
                    await join(tmp_path / "late", short, fed.clock() + 10)
                for name in ("../etc/passwd", "a/b", "hub", "observer", "", "A", "x" * 64, "node-0", "a\nb", "ünï"):
                    with pytest.raises(HansaError):
                        await fed.caller.ask(api.Invite(name), api.Invited)
                await others_go_on(fed)
            no_traceback(lines)
            assert {member.name for member in fed.hub.members.all()} == {"mallory", "operator", *fed.names}

    drive(scenario())


def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            most = fed.hub.settings.limits.enrolments_per_minute
            found = []
            for _ in range(most + 2):
                with pytest.raises(HansaError) as caught:
                    await fed.caller.ask(api.Enrol(b"guess"), api.Certified)
                found.append(type(caught.value))
            assert found == [NotAuthorized] * most + [LinkError] * 2
            await others_go_on(fed)

    drive(scenario())


@pytest.mark.parametrize(("newest", "oldest", "words"), [(0, 0, "it is older"), (9, 7, "it is newer")])
def test_another_version_is_refused_by_name_on_both_sides(tmp_path: Path, newest: int, oldest: int, words: str) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1"]) as fed:
            with book() as lines:
                with pytest.raises(VersionMismatch, match=words):
                    async with fed_puppet(fed, "node-2", protocol=newest, oldest=oldest):
                        pass
                assert any(words in reason for reason in refusals(lines))
                await others_go_on(fed)
            no_traceback(lines)
            # One that speaks this version too is welcome.
            async with fed_puppet(fed, "node-2", protocol=9, oldest=1):
                assert fed.hub.connected("node-2")

    drive(scenario())
