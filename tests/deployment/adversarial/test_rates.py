"""A member who asks for what it may not have, or for certificates, as fast as it can: answered, and the disk is not for it alone."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment import api, service
from hansa.deployment.audit import records
from hansa.deployment.dial import calling
from hansa.deployment.identity import Credentials
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.request import make_request
from hansa.deployment.rates import Rates
from hansa.errors import IdentityError, LinkError, NotAuthorized
from tests.deployment.federation import Federation, drive, federation


def recorded(fed: Federation, kind: str, **fields: str) -> list[dict[str, Any]]:
    """The records of a kind at the hub, of somebody."""
    found = [dict(record.fields) for record in records(fed.hub.audit.path) if record.kind == kind]
    return [one for one in found if fields.items() <= one.items()]


def test_each_has_a_bucket_and_is_told_how_many_were_too_many() -> None:
    now = [0.0]
    rates = Rates(2, lambda: now[0], "member")
    assert [rates.take("a") for _ in range(5)] == [0, 0, None, None, None]
    assert rates.take("b") == 0
    now[0] = 30.0
    assert [rates.take("a") for _ in range(2)] == [3, None]
    now[0] = 90.0
    assert [rates.take("a") for _ in range(3)] == [1, 0, None]
    with pytest.raises(LinkError, match="more than 2 renewals in a minute from one member"):
        rates.count("a", "renewals")


def test_who_is_refused_again_and_again_is_answered_and_recorded_so_often_and_no_more(tmp_path: Path) -> None:
    now, most = [time.time()], service.RECORDED

    async def scenario() -> None:
        async with (
            federation(tmp_path, start=[], clock=lambda: now[0]) as fed,
            fed.person("ada", "submitter") as ada,
            fed.person("bob", "submitter") as bob,
        ):
            for _ in range(most):
                with pytest.raises(NotAuthorized):
                    await ada.ask(api.Invite("eve"), api.Invited)
            # One call is as good as another, and the answer is always the same.
            for _ in range(10):
                with pytest.raises(NotAuthorized):
                    await ada.ask(api.Invite("eve"), api.Invited)
                with pytest.raises(NotAuthorized):
                    async for _event in ada.events("0" * 16):
                        pass
            assert len(recorded(fed, "refused", peer="ada")) == most
            with pytest.raises(NotAuthorized):
                await bob.ask(api.Invite("eve"), api.Invited)
            assert len(recorded(fed, "refused", peer="bob")) == 1
            now[0] += 60.0
            for _ in range(2):
                with pytest.raises(NotAuthorized):
                    await ada.ask(api.Invite("eve"), api.Invited)
            found = recorded(fed, "refused", peer="ada")[most:]
            assert [record.get("left_out", 0) for record in found] == [20, 0]

    drive(scenario())


def test_who_was_revoked_knocks_as_often_and_no_more(tmp_path: Path) -> None:
    now, most = [time.time()], service.RECORDED

    async def scenario() -> None:
        async with federation(tmp_path, start=[], clock=lambda: now[0]) as fed, fed.person("ada", "submitter") as ada:
            await fed.caller.ask(api.Revoke("ada"), api.Done)
            before = len(recorded(fed, "refused"))
            for _ in range(most + 10):
                with pytest.raises(IdentityError, match="revoked"):
                    await ada.ask(api.ListRuns(), api.RunList)
            assert len(recorded(fed, "refused")) - before == most

    drive(scenario())


def test_one_member_has_so_many_certificates_in_a_minute_and_no_more(tmp_path: Path) -> None:
    now, most = [time.time()], service.RENEWALS

    async def scenario() -> None:
        async with federation(tmp_path, start=[], clock=lambda: now[0]) as fed, contextlib.AsyncExitStack() as stack:
            held = {name: Credentials.load(fed.folder / name, now[0]) for name in ("node-0", "node-1")}
            hubs = {
                name: await stack.enter_async_context(calling(replace(own, addresses=(str(fed.address),))))
                for name, own in held.items()
            }

            async def renew(name: str) -> None:
                request = make_request(name, make_tls_key(), held[name].sealing)
                await hubs[name].ask(api.Renew(request), api.Certified)

            before = len(fed.hub.database.read("SELECT * FROM serials"))
            for _ in range(most):
                await renew("node-0")
            for _ in range(5):
                with pytest.raises(LinkError, match=f"more than {most} renewals in a minute from one member"):
                    await renew("node-0")
            assert len(recorded(fed, "certified", name="node-0")) == most
            assert len(fed.hub.database.read("SELECT * FROM serials")) == before + most
            assert not recorded(fed, "refused")
            await renew("node-1")
            now[0] += 60.0
            await renew("node-0")

    drive(scenario())
