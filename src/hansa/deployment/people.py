"""A hub as people's commands see it: plain functions for programs that have no event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from hansa.deployment import api, dial, kept
from hansa.deployment.diagnosis import obstacle
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.identity.invitation import read_invitation
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.request import make_request
from hansa.deployment.quantity import Address
from hansa.errors import ConfigError, HansaError, IdentityError, LinkError, StoreError, Unreachable, VersionMismatch
from hansa.message import Message
from hansa.params import Params

M = TypeVar("M", bound=Message)

PATIENCE: Final = 120.0
"""Seconds that a watcher waits for a hub that has gone away."""
ADDRESS: Final = "address"
"""The file in a hub's home that says where it listens, or last listened."""
_NONE: Final[Mapping[str, Params]] = {}
_PAGE: Final = 200
"""Runs that are asked for at a time."""
_NAME: Final = 16
"""Characters of a run's name."""


def credentials_at(home: Path) -> Credentials:
    """Who uses ``home``: on the hub's machine the operator, elsewhere whoever joined there.

    Raises:
        IdentityError: nobody has, or the identity is not valid any more.
    """
    now = time.time()
    if has_identity(home / "operator"):
        mine = Credentials.load(home / "operator", now)
        listening = listens_at(home)
        return mine if listening is None else replace(mine, addresses=(str(listening), *mine.addresses))
    if not has_identity(home):
        raise IdentityError(
            f"nobody has joined a federation in {home}; join with: hansa join -, or say with --home where you did"
        )
    return Credentials.load(home, now)


def listens_at(home: Path) -> Address | None:
    """Where the hub of ``home`` listens, or last listened, as this machine reaches it; None where it never did."""
    try:
        address = Address.of((home / ADDRESS).read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    if address.wildcard:
        return Address("::1" if ":" in address.host else "127.0.0.1", address.port)
    return address


def is_free(address: Address) -> bool:
    """Whether somebody could listen there now."""
    return not obstacle(address)


def ask(credentials: Credentials, request: Message, answer: type[M]) -> M:
    """One request, one answer.

    Raises:
        HansaError: the hub refused, under the name that it gave; or could not be reached.
    """

    async def asking() -> M:
        async with dial.calling(credentials) as hub:
            found = await hub.ask(request, answer)
            await _renewed(credentials, hub)
            return found

    return asyncio.run(asking())


async def _renewed(credentials: Credentials, hub: dial.Caller) -> None:
    """Renew an operator's certificate in passing: there is nobody who could invite the last operator anew."""
    now = time.time()
    if credentials.identity.kind != "operator" or not credentials.renew_due(now):
        return
    with contextlib.suppress(HansaError):  # the next command tries again
        key = make_tls_key()
        request = make_request(credentials.identity.name, key, credentials.sealing)
        certified = await hub.ask(api.Renew(request), api.Certified)
        credentials.replace_certificate(certified.certificate, key, now)


def find_run(credentials: Credentials, prefix: str) -> api.RunView:
    """The run whose name begins with ``prefix``.

    Raises:
        ConfigError: none does, or several do.
        HansaError: as :func:`ask`.
    """
    found = api.RunList(())
    if 0 < len(prefix) <= _NAME:
        found = ask(credentials, api.ListRuns(most=5, begins=prefix), api.RunList)
    if not found.runs:
        raise ConfigError(f"no run that you may see begins with {prefix[: 2 * _NAME]!r}; see: hansa runs --all")
    if len(found.runs) > 1:
        some = ", ".join(view.run for view in found.runs)
        raise ConfigError(f"{prefix!r} begins {len(found.runs) + found.more} runs: {some}")
    return found.runs[0]


def list_runs(credentials: Credentials, most: int | None = None) -> tuple[list[api.RunView], int]:
    """The newest runs that one may see, ``most`` or all of them, and how many there are besides.

    A run that is resumed while all are gathered may be left out, as it is a new one from then on.

    Raises:
        HansaError: as :func:`ask`.
    """

    async def gathering() -> tuple[list[api.RunView], int]:
        found: list[api.RunView] = []
        before: api.Before | None = None
        async with dial.calling(credentials) as hub:
            while True:
                wanted = _PAGE if most is None else min(_PAGE, most - len(found))
                answer = await hub.ask(api.ListRuns(before, wanted), api.RunList)
                found += answer.runs
                if not answer.more or not answer.runs or (most is not None and len(found) >= most):
                    await _renewed(credentials, hub)
                    return found, answer.more
                before = api.Before(found[-1].created, found[-1].run)

    return asyncio.run(gathering())


def watch(
    credentials: Credentials,
    run: str,
    each: Callable[[api.Event], None],
    *,
    after: int = 0,
    follow: bool = True,
    lost: Callable[[str], None] | None = None,
) -> None:
    """Call ``each`` with a run's events in order, each once, until it has ended; a hub that goes away and comes back is dialled again.

    Args:
        credentials: who watches.
        run: the run.
        each: what to do with an event.
        after: the number of the last event that is known.
        follow: whether to wait for events to come.
        lost: told once why the hub is gone, each time that it is.

    Raises:
        HansaError: the hub refuses, or stays away for :data:`PATIENCE` seconds.
    """

    async def watching() -> None:
        last, wait, gone = after, 0.1, 0.0
        while True:
            try:
                async with dial.calling(credentials) as hub:
                    async for event in hub.events(run, last, follow):
                        last, wait, gone = event.number, 0.1, 0.0
                        each(event)
                    return
            except (Unreachable, LinkError) as error:
                now = asyncio.get_running_loop().time()
                if isinstance(error, VersionMismatch) or not follow or (gone and now - gone > PATIENCE):
                    raise
                if not gone:
                    gone = now
                    if lost is not None:
                        lost(str(error))
            await asyncio.sleep(wait)
            wait = min(2.0, wait * 2)

    asyncio.run(watching())


def fetch(credentials: Credentials, run: str, folder: Path, own: Mapping[str, Params] = _NONE) -> list[Path]:
    """Write a run's files into ``folder``: all of them, or none.

    Args:
        credentials: whose the files will be.
        run: the whole name.
        folder: made; if it is there it is empty.
        own: models by party that are kept here, for a run whose model is not on the hub.

    Raises:
        ConfigError: the folder is there and not empty.
        StoreError: the disk does not take them.
        HansaError: as :func:`ask`.
    """
    fresh = folder.with_name(f".{folder.name}.fetching")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is there already; choose another with --out")
        fresh.mkdir(parents=True, exist_ok=True)

        async def fetching() -> list[Path]:
            async with dial.calling(credentials) as hub:
                return await hub.fetch(run, fresh)

        names = [path.name for path in asyncio.run(fetching())]
        if not any(name.endswith(".safetensors") for name in names):
            names += [path.name for path in kept.write(own, fresh)]
        fresh.rename(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        _removed(fresh)
    return [folder / name for name in names]


def _removed(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def join(home: Path, token: str) -> Credentials:
    """Become who an invitation says, in ``home``.

    Raises:
        IdentityError: the invitation is refused, here or by the hub.
        Unreachable: the hub does not answer.
    """
    return asyncio.run(dial.join(home, read_invitation(token), time.time()))
