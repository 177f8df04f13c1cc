"""``hansa hub``, ``invite``, ``join``, ``node``, ``members``, ``revoke``: a federation and who belongs to it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.cli.home import Home, date, hint, home_of, same_home, table
from hansa.cli.output import Json, emit, say
from hansa.errors import ConfigError

if TYPE_CHECKING:
    from hansa.deployment.daemon import Started
    from hansa.deployment.signals import Ending

ReadyFile = Annotated[Path | None, typer.Option(help="A file to write when it is up, for scripts that wait for it.")]


def hub(
    home: Home = None,
    federation: Annotated[str, typer.Option(help="The federation's name, when it is made.")] = "",
    operator: Annotated[str, typer.Option(help="The operator's name, when it is made; 'operator' if not said.")] = "",
    listen: Annotated[str, typer.Option(help="HOST:PORT instead of what hub.toml says; port 0 takes a free one.")] = "",
    address: Annotated[str, typer.Option(help="HOST:PORT by which others reach it, where that differs.")] = "",
    ready_file: ReadyFile = None,
    json: Json = False,
) -> None:
    """Run the federation's hub; the first time, make the federation."""
    place = home_of(home, "hansa hub")
    from hansa.deployment import daemon

    settings = daemon.hub_settings(place, listen, address)
    if daemon.found_federation(place, federation, operator, settings) and not json:
        say(f"made the federation '{federation}' in {place}; its settings are {place / daemon.HUB_FILE}")

    def told(started: Started) -> None:
        if json:
            emit({"federation": started.federation, "address": started.address, "health": started.health})
            return
        say(f"the hub of '{started.federation}' listens at {started.address}")
        if started.health:
            say(f"health at http://{started.health}/readyz, metrics at http://{started.health}/metrics")
        say(f"invite a party: hansa invite NAME{same_home(home)}")

    _exit(daemon.run_hub(place, settings, told, federation, ready_file))


def node(home: Home = None, ready_file: ReadyFile = None, json: Json = False) -> None:
    """Run a party's node: it dials the hub and takes part in what its own node.toml allows."""
    place = home_of(home, "hansa node")
    from hansa.deployment import daemon

    settings = daemon.node_settings(place)

    def told(started: Started) -> None:
        if json:
            told = {"federation": started.federation, "name": started.name, "hub": started.address}
            emit({**told, "health": started.health})
            return
        say(f"node '{started.name}' of '{started.federation}' is connected to the hub at {started.address}")
        if started.health:
            say(f"health at http://{started.health}/readyz, metrics at http://{started.health}/metrics")
        if settings.policy.approval == "manual":
            say(f"each run waits for your answer: hansa pending{same_home(home)}")

    _exit(daemon.run_node(place, settings, told, ready_file))


def _exit(ending: Ending) -> None:
    raise typer.Exit(1 if ending.how == "stopped" else 0)


def invite(
    name: Annotated[str, typer.Argument(help="The name that the party will have: a-z, 0-9 and '-'.")],
    kind: Annotated[str, typer.Option(help="node, submitter, observer or operator.")] = "node",
    within: Annotated[float, typer.Option(help="Seconds until it is void; what hub.toml says, if 0.")] = 0.0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Print a token by which somebody may join, once; hand it over by a channel that others do not read."""
    place = home_of(home, "hansa invite")
    from hansa.deployment import api, people

    invited = people.ask(people.credentials_at(place), api.Invite(name, kind, within), api.Invited)
    if json:
        emit({"name": name, "kind": kind, "token": invited.token, "expires": invited.expires})
        return
    say(invited.token)
    hint(f"for {kind} '{name}', once, until {date(invited.expires)} UTC; there: hansa join -, and paste it")


def join(
    token: Annotated[str, typer.Argument(help="The invitation; '-' reads it from standard input, unseen by others.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Become a member of a federation by an invitation; the keys are made here and stay here."""
    place = home_of(home, "hansa join")
    from hansa.deployment import people
    from hansa.deployment.identity.enrolment import joined
    from hansa.deployment.identity.invitation import read_invitation

    if os.path.isfile(token):  # unlike a path's own method, it takes a text of any length
        raise ConfigError(
            f"{token} is a file; an invitation in it is used with: hansa join - < {token}{same_home(home)}"
        )
    text = sys.stdin.read() if token == "-" else token  # noqa: S105
    known = joined(place, read_invitation(text), time.time())
    mine = known or people.join(place, text)
    who, keys = mine.identity, mine.certificate.sealing
    assert keys is not None
    file: Path | None = None
    if who.kind == "node":
        from hansa.deployment.daemon import write_node_file

        file = write_node_file(place)
    if json:
        emit(
            {"federation": who.federation, "kind": who.kind, "name": who.name, "fingerprint": keys.fingerprint,
             "expires": mine.certificate.not_after, "file": None if file is None else str(file)}
        )  # fmt: skip
        return
    if known is not None:
        say(f"{place} has joined already as {who} by this very invitation; there is nothing to do")
        return
    say(f"joined as {who}")
    say(f"fingerprint of your keys: {keys.fingerprint}")
    say("the operator sees the same one with: hansa members")
    if file is not None:
        say(f"next: say in {file} what data you bind and what you allow,")
        say(f"      then hansa doctor{same_home(home)}, then hansa node{same_home(home)}")
    else:
        say(f"next: hansa runs{same_home(home)}")


def members(home: Home = None, json: Json = False) -> None:
    """List who belongs to the federation and who is connected."""
    place = home_of(home, "hansa members")
    from hansa.deployment import api, people

    found = people.ask(people.credentials_at(place), api.ListMembers(), api.MemberList).members
    if json:
        emit([{name: getattr(member, name) for name in member.__struct_fields__} for member in found])
        return
    rows = [(one.name, one.kind, one.state, date(one.expires), date(one.seen), one.fingerprint) for one in found]
    say(table(rows, ("name", "kind", "state", "certificate until", "last seen", "fingerprint")))


def revoke(
    name: Annotated[str, typer.Argument(help="The member.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Shut a member out at once: neither its certificate nor its unused invitations count any more."""
    place = home_of(home, "hansa revoke")
    from hansa.deployment import api, membership, people

    if not name:
        raise ConfigError("say whom to revoke; see: hansa members")
    stopped = membership.revoke_at(place, name, time.time())
    if not stopped:
        people.ask(people.credentials_at(place), api.Revoke(name), api.Done)
    if json:
        emit({"revoked": name})
    elif stopped:
        say(f"'{name}' is revoked; the hub does not run, and knows it when it starts")
    else:
        say(f"'{name}' is revoked; it was disconnected if it was connected")
