"""``hansa join``: what it says of an invitation, and which keys it leaves in a home."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc")

from hansa.cli import main
from hansa.deployment import api, dial
from hansa.deployment.identity import read_invitation
from hansa.deployment.identity.enrolment import joined
from hansa.errors import HansaError, IdentityError, LinkError, Unreachable
from tests.deployment.federation import Federation, drive, federation


async def invited(fed: Federation) -> str:
    return (await fed.caller.ask(api.Invite("clinic"), api.Invited)).token


async def command(*arguments: str) -> int:
    """A command, which has an event loop of its own; its exit code."""

    def run() -> int:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        return int(stopped.value.code or 0)

    return await asyncio.to_thread(run)


def keys(home: Path) -> list[str]:
    return [path.name for path in home.iterdir() if path.name.startswith("enrolment-")]


def files(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_who_has_joined_already_is_told_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            token, home = await invited(fed), tmp_path / "clinic"
            assert await command("join", token, "--home", str(home)) == 0
            before = files(home)
            capfd.readouterr()
            monkeypatch.setattr("sys.stdin", io.StringIO(token + "\n"))
            assert await command("join", "-", "--home", str(home)) == 0
            told = capfd.readouterr().out
            assert told.startswith(f"{home} has joined already as node 'clinic'") and "nothing to do" in told
            assert await command("join", token, "--home", str(home), "--json") == 0
            assert json.loads(capfd.readouterr().out)["name"] == "clinic"
            assert files(home) == before
            # Invited again, after it was shut out, it is not there already; and then it is.
            await fed.caller.ask(api.Revoke("clinic"), api.Done)
            second = await invited(fed)
            assert await command("join", second, "--home", str(home)) == 0
            assert capfd.readouterr().out.startswith("joined as node 'clinic'")
            assert await command("join", second, "--home", str(home)) == 0
            assert "nothing to do" in capfd.readouterr().out
            # Its certificate has run out meanwhile, so there is something to do.
            with pytest.raises(IdentityError, match="new invitation"):
                joined(home, read_invitation(second), fed.clock() + 8 * 86400.0)

    drive(scenario())


def test_whoever_else_has_the_invitation_is_refused_and_keeps_no_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            token = await invited(fed)
            assert await command("join", token, "--home", str(tmp_path / "clinic")) == 0
            assert await command("join", token, "--home", str(tmp_path / "thief")) == 2
            assert "was used already" in capfd.readouterr().err
            assert keys(tmp_path / "thief") == []

    drive(scenario())


def answers_are_lost(patch: pytest.MonkeyPatch, error: HansaError) -> None:
    """The hub certifies, and nobody hears it."""
    ask = dial.Caller.ask

    async def unheard(self: dial.Caller, request: Any, answer: Any, seconds: float = 30.0) -> Any:
        found = await ask(self, request, answer, seconds)
        if isinstance(request, api.Enrol):
            raise error
        return found

    patch.setattr(dial.Caller, "ask", unheard)


@pytest.mark.parametrize("error", [Unreachable("it went away"), LinkError("it broke off"), None])
def test_what_was_interrupted_is_repeated_though_the_hub_refused_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HansaError | None
) -> None:
    """A hub whose clock is wrong for a while lets nobody in; the key that it has certified before must outlive that."""

    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            home, invitation, clock = tmp_path / "clinic", read_invitation(await invited(fed)), fed.hub.clock
            if error is not None:
                with monkeypatch.context() as patch:
                    answers_are_lost(patch, error)
                    with pytest.raises(LinkError):
                        await dial.join(home, invitation, clock())
                assert len(keys(home)) == 1
            fed.hub.clock = lambda: clock() + 3 * 86400.0
            with pytest.raises(IdentityError, match="expired"):
                await dial.join(home, invitation, clock())
            assert len(keys(home)) == (0 if error is None else 1)
            fed.hub.clock = clock
            assert (await dial.join(home, invitation, clock())).identity.name == "clinic"
            assert keys(home) == []

    drive(scenario())


def test_a_key_that_was_kept_goes_when_the_invitation_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            home, invitation = tmp_path / "clinic", read_invitation(await invited(fed))
            with monkeypatch.context() as patch:
                answers_are_lost(patch, Unreachable("it went away"))
                with pytest.raises(Unreachable):
                    await dial.join(home, invitation, fed.clock())
            assert len(keys(home)) == 1
            await fed.caller.ask(api.Revoke("clinic"), api.Done)
            with pytest.raises(IdentityError, match="revoked"):
                await dial.join(home, invitation, fed.clock())
            assert keys(home) == []

    drive(scenario())


def test_a_file_in_place_of_an_invitation_is_pointed_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tok.a"
    file.write_text("hansa1-abc")
    with pytest.raises(SystemExit) as stopped:
        main(["join", str(file), "--home", str(tmp_path / "h")])
    assert stopped.value.code == 2 and f"hansa join - < {file} --home {tmp_path / 'h'}" in capfd.readouterr().err
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("token", ["hansa1-" + "x" * 7000, "hansa1-\0", "", "no/such/file"])
def test_what_is_neither_is_a_mistyped_invitation(
    token: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["join", token, "--home", str(tmp_path / "h")])
    assert stopped.value.code == 2 and "invitation" in capfd.readouterr().err
