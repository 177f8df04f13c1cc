"""Pages of the runs that somebody may see: the newest first, as many as were asked for and as a packet holds."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from hansa.deployment import packets
from hansa.deployment.api import ListRuns, RunList, RunView
from hansa.deployment.authorization import Object, may
from hansa.deployment.runs import Runs

ROOM: Final = packets.MAX_PACKET - (64 << 10)
"""Bytes of the runs of one page."""


def page(runs: Runs, kind: str, name: str, word: ListRuns) -> RunList:
    """What ``word`` asks for.

    *Guarantees*: it fits into a packet; and where there are runs to show, it shows at least one.

    Args:
        runs: of the hub.
        kind, name: who asks, from its certificate.
        word: what it asks.
    """
    before = None if word.before is None else (word.before.created, word.before.run)
    judged: dict[tuple[tuple[str, str], bool], bool] = {}
    visible = []
    for run, owner, part in runs.table.heads(name, before, word.begins):
        if (owner, part) not in judged:
            parties = frozenset({name}) if part else frozenset[str]()
            judged[owner, part] = may(kind, name, "see", Object("run", owner, parties))
        if judged[owner, part]:
            visible.append(run)
    found, left = list[RunView](), ROOM
    for run in visible[: word.most]:
        view = fitting(runs.view(runs.ledger.known(run)))
        left -= _size(view)
        if left < 0:
            break
        found.append(view)
    return RunList(tuple(found), len(visible) - len(found))


def fitting(view: RunView, room: int = ROOM) -> RunView:
    """A run whose parties said so much that no packet holds it, with the beginnings of what they said; any other as it is."""
    if _size(view) <= room:
        return view
    bare = [replace(seat, reason="") for seat in view.participants]
    short = replace(view, cause=packets.sentence(view.cause), participants=tuple(bare))
    # A character has 4 bytes at most, and the length of a text as many.
    each = max(0, (room - _size(short)) // (4 * max(1, len(bare))) - 1)
    seats = [replace(seat, reason=seat.reason[:each]) for seat in view.participants]
    return replace(short, participants=tuple(seats))


def _size(view: RunView) -> int:
    return len(msgspec.msgpack.encode(view))
