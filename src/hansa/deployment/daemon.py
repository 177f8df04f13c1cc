"""The hub and the node as processes: from their homes to their ends.

Whatever such a process must remember is in its home, so any end is a good one; an end by a signal is in order: peers are told,
workers are ended. A disk that fails ends the process with a sentence, and its next start goes on from what was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, final

from hansa.deployment import control
from hansa.deployment.binding import absent
from hansa.deployment.disk import reason
from hansa.deployment.health import Health
from hansa.deployment.heap import one_heap
from hansa.deployment.hub import Hub, create
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.identity.files import private_folder, write_private
from hansa.deployment.identity.names import party_name
from hansa.deployment.knocks import heard
from hansa.deployment.logs import Log, written
from hansa.deployment.metrics import Metrics
from hansa.deployment.node import Node
from hansa.deployment.people import ADDRESS, is_free, listens_at
from hansa.deployment.policy import listing_nothing
from hansa.deployment.quantity import Address
from hansa.deployment.service import serving
from hansa.deployment.settings import HubSettings, NodeSettings, load_hub, load_node, parse, template_hub, template_node
from hansa.deployment.signals import Ending, run_until_signal
from hansa.deployment.worker.process import Workers
from hansa.errors import ConfigError, HansaError, IdentityError, StoreError

HUB_FILE, NODE_FILE = "hub.toml", "node.toml"
DRAINING: Final = 20.0
"""Seconds that a process has to end in order."""
HOUR: Final = 3600.0
AGAIN: Final = 60.0
"""Seconds until a certificate that could not be renewed is tried again."""
_AHEAD: Final = {"torch": "torch", "sklearn": "sklearn.linear_model"}
"""By learner, what a worker imports before its party is known."""


@final
@dataclass(frozen=True)
class Started:
    """What a process says when it is up.

    Args:
        federation: its federation's name.
        name: its own: "hub", or the node's.
        address: where the hub listens, with the real port; of a node, the hub that it has reached.
        health: where health and metrics are told; empty for nowhere.
    """

    federation: str
    name: str
    address: str
    health: str


Told = Callable[[Started], None]


def hub_settings(home: Path, listen: str = "", address: str = "") -> HubSettings:
    """The settings of the hub in ``home``; those of the template where there is no file. Nothing is written.

    Args:
        home: the hub's home.
        listen, address: in place of what the file says.

    Raises:
        ConfigError: the file or these cannot be used.
    """
    given = {name: Address.of(text) for name, text in (("listen", listen), ("address", address)) if text}
    file = home / HUB_FILE
    if not file.exists():
        return parse(HubSettings, _hub_text(given), file)
    settings = load_hub(file)
    return replace(settings, **given) if given else settings  # type: ignore[arg-type]


def _hub_text(given: Mapping[str, Address]) -> str:
    """The hub's template, with these in place of its own."""
    text = template_hub()
    for name, value in given.items():
        before = {"listen": 'listen = "127.0.0.1:7400"', "address": 'address = ""'}[name]
        assert before in text
        text = text.replace(before, f'{name} = "{value}"', 1)
    return text


def found_federation(home: Path, federation: str, operator: str, settings: HubSettings) -> bool:
    """See to it that the federation is in ``home``, and a file of its settings; whether it was made now.

    *Guarantees*: what is refused has written nothing, so that it can be asked again in other words.

    Raises:
        ConfigError: there is none, and no name for one; or one with another operator.
        IdentityError: a name cannot be used.
    """
    if not has_identity(home):
        if not federation:
            raise ConfigError(
                f"there is no federation in {home}; make one with: hansa hub --federation NAME --operator YOUR-NAME"
            )
        party_name(federation, "federation")
        party_name(operator or "operator", "operator's name")
        _write_hub_file(home, settings)
        create(home, federation, operator or "operator", settings, time.time())
        return True
    if operator and has_identity(home / "operator"):
        known = Credentials.load(home / "operator", time.time(), even_expired=True).identity.name
        if known != operator:
            raise ConfigError(
                f"the operator in {home} is '{known}', not '{operator}'; leave out --operator, and for one more: "
                f"hansa invite {operator} --kind operator"
            )
    _write_hub_file(home, settings)
    return False


def _write_hub_file(home: Path, settings: HubSettings) -> None:
    """The hub's file, with where it listens, where there is none."""
    file = private_folder(home) / HUB_FILE
    if not file.exists():
        given = {"listen": settings.listen, "address": settings.address}
        write_private(file, _hub_text({name: value for name, value in given.items() if value is not None}).encode())


def run_hub(home: Path, settings: HubSettings, told: Told, federation: str = "", ready: Path | None = None) -> Ending:
    """Be the hub of ``home`` until a signal.

    Args:
        home: where :func:`found_federation` made it.
        settings: see :func:`hub_settings`.
        told: called once it listens.
        federation: the name that it must have, if any.
        ready: a file that is written once it listens, with its address.

    Raises:
        HansaError: it cannot begin, or its disk failed.
    """
    log, metrics = Log("hub"), Metrics()

    async def being() -> Ending:
        workers = Workers()
        hub = Hub(home, settings, workers, log, metrics)
        try:
            if federation and hub.authority.federation != federation:
                raise ConfigError(f"{home} is of the federation '{hub.authority.federation}', not of '{federation}'")
            await hub.start()

            async def work() -> None:
                port = await asyncio.to_thread(_port, home, settings.listen)
                renewing = asyncio.ensure_future(_renewing(hub))
                try:
                    async with (
                        serving(hub, port) as address,
                        _health(settings.health, lambda: _hub_unready(hub), metrics, log) as health,
                    ):
                        _note(home / ADDRESS, str(address))
                        workers.warm()
                        if ready is not None:
                            _note(ready, str(address))
                        told(Started(hub.authority.federation, "hub", str(address), health))
                        raise await hub.broken()
                finally:
                    renewing.cancel()

            return await run_until_signal(work, lambda _: hub.drain(), within=DRAINING, log=log)
        finally:
            await hub.close()

    _forget(ready)
    with heard(log, metrics), written(settings.log):
        one_heap()
        return asyncio.run(being())


def node_settings(home: Path) -> NodeSettings:
    """The settings of the node in ``home``.

    Raises:
        IdentityError: nobody has joined there.
        ConfigError: its file cannot be used.
    """
    if not has_identity(home):
        raise IdentityError(f"no node has joined a federation in {home}; join with: hansa join - --home {home}")
    return load_node(home / NODE_FILE)


def write_node_file(home: Path) -> Path:
    """The node's file, written from the template where there is none."""
    file = home / NODE_FILE
    if not file.exists():
        write_private(file, template_node().encode())
    return file


def run_node(home: Path, settings: NodeSettings, told: Told, ready: Path | None = None) -> Ending:
    """Be the node of ``home`` until a signal, or until its hub refuses it for good.

    Args:
        home: where it joined.
        settings: see :func:`node_settings`.
        told: called once it has reached its hub for the first time.
        ready: a file that is written then, with the hub's address.

    Raises:
        HansaError: it cannot begin, the hub refuses it, or its disk failed.
    """

    async def being() -> Ending:
        log, metrics = Log("node"), Metrics()
        devices = ",".join(str(gpu) for gpu in settings.limits.gpus)
        workers = Workers(modules=_ahead(settings), environment={"CUDA_VISIBLE_DEVICES": devices})
        _warn(settings, log)
        node = Node(home, settings, workers, log, metrics)
        try:
            await node.start()
            workers.warm()

            async def met(health: str) -> None:
                await node.connected.wait()
                address = node.credentials.addresses[0]
                if ready is not None:
                    _note(ready, address)
                told(Started(node.credentials.identity.federation, node.name, address, health))

            async def work() -> None:
                async with (
                    control.listening(home, node, log),
                    _health(settings.health, lambda: _node_unready(node), metrics, log) as health,
                ):
                    await _first(node.run(), met(health), _raising(node.broken()))

            return await run_until_signal(work, _nothing, within=DRAINING, log=log)
        finally:
            await node.close()

    _forget(ready)
    with written(settings.log):
        one_heap()
        return asyncio.run(being())


def _warn(settings: NodeSettings, log: Log) -> None:
    """Say why a node that starts as it should will take part in nothing; data may be mounted later, so it starts."""
    if empty := listing_nothing(settings.policy):
        log.warning("this node allows no run", reason=f"[policy] {', '.join(empty)} in {NODE_FILE} lists nothing")
    for name, bound in settings.data.items():
        if missing := absent(bound):
            log.warning("data are missing; runs that need them are refused until they are there", data=name,
                        files=", ".join(missing))  # fmt: skip


async def _first(work: Awaitable[None], beside: Awaitable[None], broken: Awaitable[None]) -> None:
    """Until ``work`` or ``broken`` ends; what ``beside`` raises is raised too."""
    tasks = [asyncio.ensure_future(one) for one in (work, broken, beside)]
    try:
        while not (tasks[0].done() or tasks[1].done()):
            done, _ = await asyncio.wait([task for task in tasks if not task.done()], return_when="FIRST_COMPLETED")
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _raising(broken: Awaitable[StoreError]) -> None:
    raise await broken


async def _nothing(_: str) -> None:
    return None


async def _renewing(hub: Hub) -> None:
    """Renew the hub's own certificate and its first operator's in time, again and again."""
    while True:
        await asyncio.sleep(min(HOUR, max(1.0, hub.credentials.renew_at() - hub.clock())))
        failed = False
        for renew in (hub.founder.renew, hub.renew):  # neither keeps the other from its turn
            try:
                renew()
            except HansaError as error:
                failed = True
                hub.log.warning("certificate not renewed", reason=str(error))
            except Exception as error:
                failed = True
                hub.log.failed("certificate not renewed", error)
        if failed:
            await asyncio.sleep(AGAIN)


@contextlib.asynccontextmanager
async def _health(
    address: Address | None, unready: Callable[[], list[str]], metrics: Metrics, log: Log
) -> AsyncIterator[str]:
    """The health listener, where one is wanted; its address."""
    if address is None:
        yield ""
        return
    async with Health(str(address), unready, metrics.text, log=log) as listener:
        yield listener.address


def _hub_unready(hub: Hub) -> list[str]:
    return ["the hub is going away"] if hub.draining else []


def _node_unready(node: Node) -> list[str]:
    return [] if node.connected.is_set() else ["not connected to the hub"]


def _ahead(settings: NodeSettings) -> Sequence[str]:
    wanted = [module for learner, module in _AHEAD.items() if learner in settings.policy.learners]
    return [module for module in wanted if find_spec(module.partition(".")[0]) is not None]


def _port(home: Path, listen: Address) -> Address:
    """Where to listen: for port 0, the port of the last time if it is still free, so that a hub comes back where its nodes look."""
    last = listens_at(home)
    if listen.port or last is None:
        return listen
    return Address(listen.host, last.port) if is_free(Address(listen.host, last.port)) else listen


def _note(path: Path, text: str) -> None:
    """A small file, there as a whole or not at all."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fresh.write_text(f"{text}\n", encoding="ascii")
        os.replace(fresh, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {reason(error)}") from None


def _forget(path: Path | None) -> None:
    """A ready file of an earlier start says nothing about this one."""
    if path is not None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
