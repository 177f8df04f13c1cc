"""``hansa pending``, ``approve``, ``refuse``, ``audit``: a party's owner, on the party's own machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.cli.home import Home, home_of, same_home, table
from hansa.cli.output import Json, emit, say
from hansa.errors import ConfigError, Unreachable, nearest

if TYPE_CHECKING:
    from hansa.deployment.control import Waiting

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run, or the beginning of its name.")]


def pending(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Show this one's plan.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """List the runs that wait for your approval."""
    place = home_of(home, "hansa pending")
    found = _asked(place)
    if run:
        one = _chosen(found, run)
        if json:
            emit({name: getattr(one, name) for name in one.__struct_fields__})
        else:
            say(one.plan.rstrip())
        return
    if json:
        emit([{name: getattr(one, name) for name in one.__struct_fields__} for one in found])
        return
    if not found:
        say("no run waits for your answer")
        return
    say(table([(one.run, one.name, one.submitter, one.data) for one in found], ("run", "name", "submitter", "data")))
    say(f"see its plan: hansa pending RUN{same_home(home)}; then hansa approve RUN, or hansa refuse RUN")


def approve(run: Run, home: Home = None, json: Json = False) -> None:
    """Take part in a run that waits for your answer."""
    place = home_of(home, "hansa approve")
    from hansa.deployment import api, control

    one = _chosen(_asked(place), run)
    control.ask(place, control.Approve(one.run), api.Done)
    if json:
        emit({"approved": one.run})
    else:
        say(f"approved {one.run} ('{one.name}' of {one.submitter})")


def refuse(
    run: Run,
    reason: Annotated[str, typer.Option(help="What its submitter is told.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Take no part in a run that waits for your answer."""
    place = home_of(home, "hansa refuse")
    from hansa.deployment import api, control

    one = _chosen(_asked(place), run)
    control.ask(place, control.Refuse(one.run, reason[:500]), api.Done)
    if json:
        emit({"refused": one.run})
    else:
        say(f"refused {one.run} ('{one.name}' of {one.submitter})")


def _asked(place: Path) -> list[Waiting]:
    from hansa.deployment import control

    try:
        return list(control.ask(place, control.ListAsked(), control.AskedList).runs)
    except Unreachable:
        _require_node(place)
        raise


def _require_node(place: Path) -> None:
    """Go on only if a node may run in ``place``: in nobody else's home does a run wait for an answer."""
    from hansa.deployment.identity import Credentials
    from hansa.deployment.identity.credentials import has_identity

    if not has_identity(place):
        raise ConfigError(f"nobody has joined a federation in {place}; say with --home where the node's home is")
    who = Credentials.load(place, 0.0, even_expired=True).identity
    if who.kind != "node":
        raise ConfigError(
            f"{place} is the home of {who}; only a node's owner approves or refuses, on the node's own machine and in its home"
        )


def _chosen(found: list[Waiting], prefix: str) -> Waiting:
    matching = [one for one in found if prefix and one.run.startswith(prefix)]
    if len(matching) != 1:
        several = f"{len(matching)} runs that wait begin" if matching else "no run that waits begins"
        raise ConfigError(f"{several} with {prefix!r}; see: hansa pending")
    return matching[0]


def audit(
    what: Annotated[
        str, typer.Argument(help="summary: what left, verify: is it whole, head: to note elsewhere.")
    ] = "summary",
    head: Annotated[str, typer.Option(help="With verify: an end that was noted, which the log must contain.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Look at a party's own log of what left it, to whom and in which class."""
    place = home_of(home, "hansa audit")
    from hansa.deployment import audit as auditing

    if what not in ("summary", "verify", "head"):
        raise ConfigError(f"an audit log is asked for 'summary', 'verify' or 'head', not {what!r}; "
                          f"{nearest(what, ('summary', 'verify', 'head'))}")  # fmt: skip
    path = place / "audit.log"
    if not path.exists():
        raise ConfigError(
            f"there is no audit log in {place}: no hub and no node has run there; say with --home where one did"
        )
    if what == "summary":
        flows = auditing.summary(path)
        if json:
            emit(
                [
                    {n: getattr(one, n) for n in ("run", "receiver", "tag", "discloses", "messages", "bytes")}
                    for one in flows
                ]
            )
            return
        rows = [(one.run, one.receiver, one.discloses, f"{one.messages:,}", f"{one.bytes:,}") for one in flows]
        say(table(rows, ("run", "to", "what", "messages", "bytes")) if rows else "nothing has left this party")
    elif what == "head":
        end = auditing.read_head(path)
        say(str(end)) if not json else emit({"head": str(end)})
    else:
        _verify(place, path, head, json)


def _verify(place: Path, path: Path, head: str, json: bool) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from hansa.deployment import audit as auditing
    from hansa.deployment.identity import Credentials

    keys = Credentials.load(place, 0.0, even_expired=True).sealing.public
    noted = auditing.Head.parse(head) if head else None
    count = auditing.verify(path, noted, signer=Ed25519PublicKey.from_public_bytes(keys.sign))
    if json:
        emit({"records": count, "head": str(auditing.read_head(path))})
    else:
        say(f"{count:,} records, each what was written{' and with the noted end' if noted else ''}")
