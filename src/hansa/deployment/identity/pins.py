"""Pins: the sealing keys that a party has met, so that a name keeps meaning the same party.

The authority could certify other keys for a name; then it, or whoever has its key, could read what others seal. A pin makes that
visible: the first keys that come for a name stay, and others are refused until a person has said so. (Trust on first use: RFC 7435.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, final

import msgspec

from hansa.deployment.identity.files import read_private, write_private
from hansa.deployment.identity.keys import SealingPublic
from hansa.deployment.identity.names import HUB, party_name
from hansa.errors import IdentityError, StoreError

_MAX_PINS: Final = 1 << 24


@final
class Pins:
    """The pins in one JSON file, name to 128 hex digits. One process at a time has it open.

    Args:
        path: the file; where there is none, nobody is pinned yet.

    Raises:
        StoreError: the file is damaged. It does not pass for an empty one.
    """

    __slots__ = ("_path", "_pins")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pins: dict[str, SealingPublic] = _read(path) if os.path.lexists(path) else {}

    def get(self, name: str) -> SealingPublic | None:
        """The keys pinned for ``name``, or None."""
        return self._pins.get(name)

    def names(self) -> tuple[str, ...]:
        """Who is pinned, sorted."""
        return tuple(sorted(self._pins))

    def pin(self, name: str, sealing: SealingPublic) -> None:
        """Pin ``sealing`` for ``name`` where nothing is, durably; where something is, compare.

        Raises:
            IdentityError: other keys are pinned for this name.
            StoreError: the disk does not take it; then nothing is pinned.
        """
        if name != HUB:
            party_name(name)
        known = self._pins.get(name)
        if known is None:
            self._write({**self._pins, name: sealing})
        elif not known.same_as(sealing):
            raise IdentityError(
                f"'{name}' comes with other sealing keys than before: {sealing.fingerprint}, and pinned is "
                f"{known.fingerprint}; nothing was sent. Ask its people, not over this network, which are theirs; "
                f"if they have set it up anew, remove '{name}' from {self._path} and start again"
            )

    def forget(self, name: str) -> None:
        """Pin nothing for ``name`` any more: a person has said so."""
        self._write({known: sealing for known, sealing in self._pins.items() if known != name})

    def _write(self, pins: dict[str, SealingPublic]) -> None:
        texts = {name: sealing.raw.hex() for name, sealing in sorted(pins.items())}
        write_private(self._path, msgspec.json.format(msgspec.json.encode(texts)) + b"\n", replace=True)
        self._pins = pins


def _read(path: Path) -> dict[str, SealingPublic]:
    data = read_private(path, _MAX_PINS)
    try:
        texts = msgspec.json.decode(data, type=dict[str, str])
        pins = {_name(name): SealingPublic.from_raw(bytes.fromhex(text)) for name, text in texts.items()}
    except (msgspec.DecodeError, ValueError, IdentityError) as error:
        raise StoreError(f"the pins in {path} are damaged ({error}); restore the file from its backup") from None
    return pins


def _name(name: str) -> str:
    return name if name == HUB else party_name(name)
