"""What may keep a home's hub, node or person from working, before it does; and what went wrong in a run, afterwards.

Each finding is one line, and says what to do. Nothing is changed, and of data only counts are told. Data are loaded in a process
of their own (``python -m hansa.deployment.doctor``), as a worker would, so that a library that crashes is a finding too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, final

from hansa.deployment import api, binding, dial, packets
from hansa.deployment.diagnosis import diagnose
from hansa.deployment.identity.certificates import BACKDATE, date
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.people import credentials_at, is_free, listens_at
from hansa.deployment.policy import listing_nothing
from hansa.deployment.quantity import Address
from hansa.deployment.settings import HubLimits, HubSettings, NodeLimits, NodeSettings, load_hub, load_node
from hansa.errors import HansaError, Unreachable

Verdict = Literal["ok", "warning", "problem"]

CLOCKS: Final = 60.0
"""Seconds that two clocks may differ without a word."""
LEAST_DISK: Final = 100 * 10**6
"""Bytes without which nothing is worth starting."""
ENOUGH_DISK: Final = 2 * 2**30
"""Bytes that are enough for runs that are not large, where the owner has not said how much they may take."""
LOADING: Final = 120.0
"""Seconds that one data set may take to load."""


@final
@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        verdict: "ok", "warning" or "problem".
        about: what was looked at.
        text: what was found, and what to do if it is not ok.
    """

    verdict: Verdict
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<8} {self.about}: {self.text}"


def examine(home: Path) -> Iterator[Finding]:
    """Look at a home, and at the hub from there."""
    yield from _software()
    yield from _folder(home)
    if not home.is_dir():
        return
    yield _disk(home, LEAST_DISK)
    is_hub = has_identity(home / "operator") or (home / "authority").exists()
    if is_hub:
        yield from _own_hub(home)
    try:
        mine = credentials_at(home)
    except HansaError as error:
        yield Finding("problem", "identity", str(error))
        return
    yield _certificate(mine)
    if mine.identity.kind == "node":
        yield from _node(home)
    if not is_hub:
        yield from _hub_from_here(mine)


def _software() -> Iterator[Finding]:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "cryptography"))
    python = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(
        "ok", "software", f"Hansa {version('hansa')}, protocol {packets.PROTOCOL}, Python {python}, {libraries}"
    )


def _folder(home: Path) -> Iterator[Finding]:
    try:
        found = home.stat()
    except OSError as error:
        yield Finding("problem", "home", f"{home}: {error.strerror}; join with: hansa join - --home {home}")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield Finding("problem", "home", f"{home} is no folder; say with --home where it is")
    elif found.st_uid != os.geteuid():
        yield Finding("problem", "home", f"{home} belongs to user {found.st_uid}; run this as that user")
    elif found.st_mode & 0o077:
        writable = found.st_mode & 0o022
        text = f"others can {'write to' if writable else 'look into'} {home}; run: chmod 700 {home}"
        yield Finding("problem" if writable else "warning", "home", text)
    else:
        yield Finding("ok", "home", f"{home} is its owner's alone")


def _disk(home: Path, least: int) -> Finding:
    free = shutil.disk_usage(home).free
    if free < least:
        return Finding("problem", "disk", f"{free / 1e6:,.0f} MB are free at {home}; make room before starting")
    return Finding("ok", "disk", f"{free / 1e9:,.1f} GB are free")


def _spool(home: Path, limit: int, default: int) -> Iterator[Finding]:
    """Whether there is room for what is under way: as much as the owner says, or where the file says what it came with, enough."""
    free, own = shutil.disk_usage(home).free, limit != default
    wanted = limit if own else min(limit, ENOUGH_DISK)
    if free >= wanted:
        return
    figures = f"{free / 1e9:,.1f} GB are free at {home}"
    if own:
        text = f"{figures}, and [limits] spool is {limit / 1e9:,.1f} GB; lower it or make room"
    else:
        text = f"{figures}, and {wanted / 1e9:,.1f} GB are little enough for what is under way; make room"
    yield Finding("warning", "disk", text)


def _certificate(mine: Credentials) -> Finding:
    who, until = mine.identity, mine.certificate.not_after
    if mine.renew_due(time.time()):
        itself = {
            "node": "it is renewed while the node runs",
            "operator": "the next command renews it, or the hub if it is its own",
        }
        what = itself.get(who.kind, "ask the operator for a new invitation before then")
        return Finding("warning", "certificate", f"{who}, until {date(until)}: {what}")
    return Finding("ok", "certificate", f"{who}, until {date(until)}")


def _node(home: Path) -> Iterator[Finding]:
    try:
        settings = load_node(home / "node.toml")
    except HansaError as error:
        for line in str(error).splitlines():
            yield Finding("problem", "settings", line)
        return
    yield Finding("ok", "settings", f"{home / 'node.toml'}")
    yield from _spool(home, settings.limits.spool, NodeLimits().spool)
    yield from _policy(settings)
    yield from _data({name: bound.plain() for name, bound in settings.data.items()}, many=True)


def _policy(settings: NodeSettings) -> Iterator[Finding]:
    policy = settings.policy
    if empty := listing_nothing(policy):
        yield Finding("warning", "policy", f"allows no run: [policy] {', '.join(empty)} in node.toml lists nothing")
        return
    asked = "each run waits for hansa approve" if policy.approval == "manual" else "runs that it allows begin at once"
    yield Finding("ok", "policy", f"{', '.join(policy.submitters)} may submit; {asked}")


def _data(bound: Mapping[str, Mapping[str, Any]], many: bool) -> Iterator[Finding]:
    if not bound and many:
        yield Finding("warning", "data", "none are bound; a run that needs data cannot use this node")
    for name, table in bound.items():
        try:
            done = subprocess.run(
                [sys.executable, "-m", "hansa.deployment.doctor"],
                input=json.dumps({"binding": table, "many": many}), capture_output=True, text=True, timeout=LOADING,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            yield Finding("problem", f"data.{name}", f"not loaded within {LOADING:g} s; a run would wait for them too")
            continue
        lines = done.stdout.strip().splitlines()
        if not lines:
            end = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            yield Finding("problem", f"data.{name}", f"the process that loads them ended: {end[:300]}")
            continue
        found = json.loads(lines[-1])
        yield Finding("problem" if found["failed"] else "ok", f"data.{name}", found["said"])


def _own_hub(home: Path) -> Iterator[Finding]:
    try:
        settings = load_hub(home / "hub.toml")
        mine = Credentials.load(home, time.time(), even_expired=True)
    except HansaError as error:
        for line in str(error).splitlines():
            yield Finding("problem", "settings", line)
        return
    yield Finding("ok", "settings", f"{home / 'hub.toml'}")
    yield from _spool(home, settings.limits.spool, HubLimits().spool)
    if time.time() > mine.certificate.not_after:
        yield Finding("warning", "hub certificate", "it has expired; the hub gives itself a new one at its next start")
    else:
        yield Finding("ok", "hub certificate", f"until {date(mine.certificate.not_after)}; the hub renews it by itself")
    yield from _listening(home, settings)
    yield from _data({name: bound.plain() for name, bound in settings.data.items()}, many=False)


def _listening(home: Path, settings: HubSettings) -> Iterator[Finding]:
    """Whether this hub runs, and if not, whether it could listen."""
    last = listens_at(home)
    wanted = settings.listen if settings.listen.port or last is None else Address(settings.listen.host, last.port)
    if not wanted.port or is_free(wanted):
        yield Finding("ok", "port", f"the hub does not run, and {settings.listen} is free for it")
        return
    here = Address("127.0.0.1" if ":" not in wanted.host else "::1", wanted.port) if wanted.wildcard else wanted
    try:
        mine = credentials_at(home)
        greeting = asyncio.run(_greeted(mine, str(here)))
    except HansaError as error:
        yield Finding("problem", "port", f"{wanted} is taken, and not by this hub: {error}")
        return
    yield Finding("ok", "port", f"this hub runs, and answers at {here} to {greeting.kind} '{greeting.name}'")


def _hub_from_here(mine: Credentials) -> Iterator[Finding]:
    for address in mine.addresses:
        try:
            greeting = asyncio.run(_greeted(mine, address))
        except HansaError as error:
            yield Finding("problem", f"hub {address}", str(error))
            continue
        yield Finding(
            "ok", f"hub {address}", f"answers, as of '{greeting.federation}', to {greeting.kind} '{greeting.name}'"
        )
        yield from _greeting(greeting)


async def _greeted(mine: Credentials, address: str) -> api.Greeting:
    """What the hub at an address says.

    Raises:
        HansaError: why it says nothing, by name.
    """
    from hansa.deployment import wire

    async with wire.channel_of(mine, address) as channel:
        hello = api.Greet(version("hansa"), packets.PROTOCOL)
        try:
            return await dial.Caller(channel, address).ask(hello, api.Greeting, 10.0)
        except Unreachable:
            pass
    raise await diagnose(address, mine.authority_pem, mine.certificate.pem, mine.tls_key_pem)


def _greeting(greeting: api.Greeting) -> Iterator[Finding]:
    apart = greeting.time - time.time()
    told = f"the hub's clock is {abs(apart):,.0f} s {'ahead of' if apart > 0 else 'behind'} this one"
    if abs(apart) > BACKDATE:
        yield Finding("problem", "clock", f"{told}; set both by NTP: certificates are refused")
    elif abs(apart) > CLOCKS:
        yield Finding("warning", "clock", f"{told}; set both by NTP")
    else:
        yield Finding("ok", "clock", f"within {CLOCKS:g} s of the hub's")
    spoken = f"the hub has Hansa {greeting.software} and speaks {greeting.oldest} to {greeting.protocol}"
    if greeting.protocol < packets.OLDEST:
        yield Finding("problem", "versions", f"{spoken}, this one needs {packets.OLDEST}; the hub must be upgraded")
    elif greeting.oldest > packets.PROTOCOL:
        yield Finding("problem", "versions", f"{spoken}, this one {packets.PROTOCOL}; upgrade Hansa here")
    else:
        yield Finding("ok", "versions", spoken)


def post_mortem(run: api.RunView, events: Sequence[api.Event]) -> Iterator[Finding]:
    """What went wrong in a run, where, and what to do."""
    for seat in run.participants:
        if seat.answer == "refused":
            yield Finding("warning", seat.party, f"refused: {seat.reason}; settle it with its owner")
        elif seat.answer == "pending" and not run.ended:
            yield Finding("warning", seat.party, f"its owner has not answered; there: hansa approve {run.run}")
        elif not seat.answer:
            yield Finding("warning", seat.party, seat.reason or "did not answer; there: hansa doctor")
        elif not run.ended and not seat.connected:
            yield Finding("warning", seat.party, f"its machine, {seat.host}, is not connected; there: hansa doctor")
    for event in events:
        if event.kind in ("trouble", "refused"):
            place = f"{event.party}{'' if event.round is None else f', round {event.round}'}"
            yield Finding("warning", place or run.run, event.text)
        elif event.kind == "round" and event.text:
            yield Finding("warning", f"round {event.round}", event.text)
    if run.status in ("failed", "stopped"):
        where = f"{run.party}: " if run.party else ""
        remedy = run.remedy or f"go on from its last saved round with: hansa resume {run.run}"
        verdict: Verdict = "problem" if run.status == "failed" else "warning"
        yield Finding(verdict, f"run {run.run}", f"{run.status}: {where}{run.cause}; {remedy}")
    else:
        rounds = "" if run.round is None else f" at round {run.round}{f' of {run.rounds}' if run.rounds else ''}"
        yield Finding("ok", f"run {run.run}", f"{run.status}{rounds}")


def _load(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is bound, in counts; in the process that is there for it."""
    try:
        shard = binding.load(binding.read(request["binding"]), bool(request["many"]))
    except HansaError as error:
        return {"failed": True, "said": " ".join(str(error).split())}
    train, test = shard.train, shard.test
    some = train if len(train) else test
    if not len(some):
        return {"failed": True, "said": "no examples; look at the file, or at the share that is kept for testing"}
    shape = "x".join(str(size) for size in some.x.shape[1:]) or "1"
    return {"failed": False, "said": f"{len(train):,} training and {len(test):,} test examples of {shape} features"}


if __name__ == "__main__":
    print(json.dumps(_load(json.load(sys.stdin))))  # noqa: T201
