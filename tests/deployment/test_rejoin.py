"""A member who was revoked comes back under its name, with its own home or another; and who cannot be revoked."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs the extra 'net'")

from hansa.deployment import api, dial
from hansa.deployment.identity import read_invitation
from hansa.errors import ConfigError, IdentityError
from tests.deployment.federation import drive, federation

NAME = "node-0"


@pytest.mark.parametrize("home_is_lost", [True, False])
def test_who_was_revoked_comes_back_and_is_asked_again(tmp_path: Path, home_is_lost: bool) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            plan = PLAN
            first = await fed.submit(plan)
            assert (await fed.end(first)).status == "completed"
            # What both sides have said of the first run is numbered; a new home begins with 1 again.
            assert fed.hub.mailbox.sent(NAME, "") > 0 and fed.hub.mailbox.lanes(NAME, 10)[""] > 0
            home = fed.nodes[NAME].credentials.home
            await fed.stop_node(NAME)
            await fed.caller.ask(api.Revoke(NAME), api.Done)
            token = (await fed.caller.ask(api.Invite(NAME), api.Invited)).token
            if home_is_lost:
                home.rename(tmp_path / "lost")
            invitation = dataclasses.replace(read_invitation(token), addresses=(str(fed.address),))
            await dial.join(home, invitation, time.time())
            for name in set(fed.names) - {NAME} if home_is_lost else ():
                # What their owners do, once they have asked.
                pins = fed.nodes[name].credentials.pins()
                await fed.stop_node(name)
                pins.forget(NAME)
                await fed.start_node(name)
            await fed.start_node(NAME)
            second = await fed.end(await fed.submit(plan))
            assert second.status == "completed", second.cause
            assert next(seat.answer for seat in second.participants if seat.party == NAME) == "accepted"

    drive(scenario())


def test_the_only_operator_cannot_be_shut_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            (only,) = [member.name for member in fed.hub.members.all() if member.kind == "operator"]
            with pytest.raises(ConfigError, match="the only operator"):
                await fed.caller.ask(api.Revoke(only), api.Done)
            async with fed.person("second", "operator") as second:
                await second.ask(api.Revoke(only), api.Done)
                with pytest.raises(ConfigError, match="the only operator"):
                    await second.ask(api.Revoke("second"), api.Done)
                with pytest.raises(IdentityError, match="revoked"):
                    await fed.caller.ask(api.ListRuns(), api.RunList)

    drive(scenario())


PLAN = """
name = "again"
seed = 7
[protocol]
name = "fedavg"
rounds = 1
cohort = 4
[learner]
name = "softmax"
optimizer = { name = "sgd", learning_rate = 0.05 }
"""
