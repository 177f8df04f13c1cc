"""Certificates are renewed again and again, whatever happened the last time: nobody would notice the end of it but by their end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hansa.deployment import daemon, node
from hansa.deployment.logs import Log
from hansa.deployment.metrics import Metrics
from hansa.errors import StoreError
from tests.deployment.adversarial.strangers import book
from tests.deployment.federation import drive

ERRORS = [RuntimeError("nobody foresaw it"), OSError(28, "No space left"), StoreError("the disk is full")]


class Renewal:
    """Fails some times, and is seen to succeed then."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left = error, times
        self.done = asyncio.Event()

    def once(self) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.done.set()

    async def later(self) -> None:
        self.once()


def told(lines: list[tuple[str, str, dict[str, Any]]], error: Exception, times: int) -> None:
    """Each failure was said; one that nobody foresaw with where it came from."""
    said = [fields for _, event, fields in lines if event == "certificate not renewed"]
    assert len(said) == times
    assert all(str(error) in fields["reason" if isinstance(error, StoreError) else "traceback"] for fields in said)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("whose", ["founder", "hub"])
def test_of_a_hub(monkeypatch: pytest.MonkeyPatch, whose: str, error: Exception) -> None:
    monkeypatch.setattr(daemon, "HOUR", 0.001)
    monkeypatch.setattr(daemon, "AGAIN", 0.001)

    async def scenario() -> None:
        own, founder = Renewal(error, 2 * (whose == "hub")), Renewal(error, 2 * (whose == "founder"))
        hub: Any = SimpleNamespace(
            credentials=SimpleNamespace(renew_at=lambda: 0.0), clock=lambda: 0.0, log=Log("hub"),
            renew=own.once, founder=SimpleNamespace(renew=founder.once),
        )  # fmt: skip
        with book() as lines:
            renewing = asyncio.ensure_future(daemon._renewing(hub))
            await (founder if whose == "hub" else own).done.wait()
            assert (own if whose == "hub" else founder).left == 1  # the one did not keep the other from its turn
            await own.done.wait()
            await founder.done.wait()
            renewing.cancel()
        told(lines, error, 2)

    drive(scenario())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_of_a_node(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(node, "AGAIN", 0.001)

    async def scenario() -> None:
        renewal = Renewal(error, 2)
        certificate = SimpleNamespace(not_after=1.0)
        this: Any = SimpleNamespace(
            metrics=Metrics(), clock=lambda: 0.0, log=Log("node"), renew=renewal.later,
            credentials=SimpleNamespace(renew_at=lambda: 0.0, renew_due=lambda _: True, certificate=certificate),
        )  # fmt: skip
        with book() as lines:
            renewing = asyncio.ensure_future(node.Node._renewing(this))
            await renewal.done.wait()
            renewing.cancel()
        told(lines, error, 2)

    drive(scenario())
