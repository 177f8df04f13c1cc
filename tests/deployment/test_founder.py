"""The operator that was made with the hub is never locked out of it; and nobody gets a certificate by lying in its place."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment import api, daemon
from hansa.deployment.dial import calling
from hansa.deployment.hub import Hub, create
from hansa.deployment.identity import Credentials
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.deployment.people import credentials_at
from hansa.deployment.quantity import Address
from hansa.deployment.service import serving
from hansa.deployment.settings import DAY, HubSettings
from hansa.deployment.store import Database, MemberTable
from hansa.deployment.worker.inline import InlineWorkers
from hansa.errors import IdentityError, StoreError
from tests.deployment.adversarial.strangers import book
from tests.deployment.federation import certify, drive, enrol

NOT_RENEWED = "operator's certificate not renewed"


def made(folder: Path, days: float) -> Path:
    """The home of a hub that was made so many days ago."""
    create(folder / "hub", "trial", "grace", HubSettings(), time.time() - days * DAY)
    return folder / "hub"


@contextlib.asynccontextmanager
async def hub(home: Path, clock: Callable[[], float] = time.time) -> AsyncIterator[Hub]:
    """The hub of a home."""
    found = Hub(home, HubSettings(), InlineWorkers(lambda *_: None), Log("hub"), Metrics(), clock)  # type: ignore[arg-type]
    try:
        await found.start()
        yield found
    finally:
        await found.close()


def seen(home: Path) -> Credentials:
    return Credentials.load(home / "operator", time.time(), even_expired=True)


async def another(home: Path, before: int) -> None:
    """Wait for another certificate."""
    for _ in range(2000):
        if seen(home).certificate.serial != before:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("there is no other")


def started(home: Path) -> list[str]:
    """Start the hub and end it; why it renewed nothing."""

    async def scenario() -> None:
        async with hub(home) as found:
            found.founder.renew()  # and an hour later: it says the same once

    with book() as lines:
        drive(scenario())
    return [said["reason"] for _, event, said in lines if event == NOT_RENEWED]


@pytest.mark.parametrize("days", [61, 89.99, 91, 1000])
def test_who_gave_no_command_for_long_still_can(tmp_path: Path, days: float) -> None:
    home = made(tmp_path, days)
    before = seen(home)
    with contextlib.nullcontext() if days < 90 else pytest.raises(IdentityError, match="expired"):
        credentials_at(home)

    async def scenario() -> None:
        async with hub(home) as found, serving(found, Address("127.0.0.1", 0)) as address:
            now = replace(credentials_at(home), addresses=(str(address),))
            assert now.certificate.serial != before.certificate.serial
            assert now.sealing.public.same_as(before.sealing.public)
            async with calling(now) as caller:
                (member,) = (await caller.ask(api.ListMembers(), api.MemberList)).members
                assert (member.name, member.kind) == ("grace", "operator")
                await caller.ask(api.Invite("second", "operator"), api.Invited)

    drive(scenario())


@pytest.mark.parametrize("days", [0, 59])
def test_nothing_is_renewed_before_its_time(tmp_path: Path, days: float) -> None:
    home = made(tmp_path, days)
    before = seen(home).certificate.serial
    assert started(home) == []
    assert seen(home).certificate.serial == before


def test_it_is_renewed_while_the_hub_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, ahead = made(tmp_path, 0), [0.0]
    before = seen(home).certificate.serial
    monkeypatch.setattr(daemon, "HOUR", 0.005)

    async def scenario() -> None:
        async with hub(home, lambda: time.time() + ahead[0]) as found:
            renewing = asyncio.ensure_future(daemon._renewing(found))
            await asyncio.sleep(0.05)
            assert seen(home).certificate.serial == before
            ahead[0] = 61 * DAY
            await another(home, before)
            # A clock that was wrong and is right again leaves a certificate that begins too late.
            late = seen(home).certificate.serial
            ahead[0] = 0.0
            await another(home, late)
            seen(home).certificate.require_valid(time.time())
            renewing.cancel()

    drive(scenario())


def test_who_was_revoked_is_not_renewed(tmp_path: Path) -> None:
    home = made(tmp_path, 61)
    enrol(home, tmp_path / "second", "second", "operator")
    with contextlib.closing(Database(home / "hub.db")) as database, database.at_once():
        MemberTable(database).revoke("grace", time.time())
    before = seen(home).certificate.serial
    (reason,) = started(home)
    assert "revoked" in reason
    assert seen(home).certificate.serial == before


def test_who_was_revoked_and_invited_elsewhere_is_not_renewed_here(tmp_path: Path) -> None:
    home = made(tmp_path, 61)
    with contextlib.closing(Database(home / "hub.db")) as database, database.at_once():
        MemberTable(database).revoke("grace", time.time())
        certify(home, MemberTable(database), tmp_path / "laptop", "grace", "operator")
    (reason,) = started(home)
    assert "revoked" in reason


def test_who_expired_and_joined_from_another_home_is_not_renewed_here(tmp_path: Path) -> None:
    home = made(tmp_path, 91)
    enrol(home, tmp_path / "laptop", "grace", "operator")
    (reason,) = started(home)
    assert "another home" in reason
    with pytest.raises(IdentityError, match="expired"):
        credentials_at(home)


def foreign(home: Path, folder: Path) -> None:
    create(folder / "other", "trial", "grace", HubSettings(), time.time() - 61 * DAY)
    shutil.copytree(folder / "other" / "operator", home / "operator")


def second(home: Path, folder: Path) -> None:
    enrol(home, home / "operator", "second", "operator", seconds=61.0)


def node(home: Path, folder: Path) -> None:
    enrol(home, home / "operator", "clinic", "node", seconds=61.0)


def namesake(home: Path, folder: Path) -> None:
    enrol(home, home / "operator", "grace", "operator", seconds=61.0)


@pytest.mark.parametrize("lay", [foreign, second, node, namesake])
def test_what_lies_in_its_place_is_not_renewed(tmp_path: Path, lay: Callable[[Path, Path], None]) -> None:
    home = made(tmp_path, 0)
    shutil.rmtree(home / "operator")
    lay(home, tmp_path)
    before = seen(home).certificate.serial

    async def scenario() -> None:
        async with hub(home, lambda: time.time() + 60.9) as found:
            members = found.members.all()
            assert not any(found.members.founded(member.name, "") for member in members)

    with book() as lines:
        drive(scenario())
    assert [event for _, event, _ in lines if event == NOT_RENEWED] == [NOT_RENEWED]
    assert seen(home).certificate.serial == before


def test_a_hub_serves_without_an_operator_at_home(tmp_path: Path) -> None:
    home = made(tmp_path, 61)
    (home / "operator").rename(tmp_path / "kept elsewhere")
    assert started(home) == []


@pytest.mark.parametrize("harm", ["others can read", "cut", "no folder"])
def test_damaged_credentials_keep_no_hub_from_starting(tmp_path: Path, harm: str) -> None:
    home = made(tmp_path, 61)
    file = home / "operator" / "identity" / "tls.pem"
    if harm == "others can read":
        file.chmod(0o644)
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:300])
    else:
        shutil.rmtree(file.parent)
        file.parent.write_text("")
    assert len(started(home)) == 1


def test_the_new_certificate_counts_before_anybody_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = made(tmp_path, 61)
    before, truly, tried = seen(home).certificate.serial, Credentials.replace_certificate, []

    def crash(own: Credentials, pem: bytes, key: Any, now: float) -> Credentials:
        if own.identity.kind != "operator":
            return truly(own, pem, key, now)
        with contextlib.closing(sqlite3.connect(home / "hub.db")) as other:
            tried.append(other.execute("SELECT count(*) FROM serials WHERE name = 'grace'").fetchone()[0])
        raise StoreError("the disk is full")

    monkeypatch.setattr(Credentials, "replace_certificate", crash)
    assert started(home) == ["the disk is full"]
    assert tried == [2, 3]
    assert seen(home).certificate.serial == before
    monkeypatch.undo()
    assert started(home) == []
    assert seen(home).certificate.serial != before
