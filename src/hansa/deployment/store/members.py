"""Who belongs to the federation: members, the serials of their certificates, and invitations that wait to be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from hansa.deployment.store.database import Database
from hansa.errors import IdentityError


@final
@dataclass(frozen=True)
class Member:
    """A member: ``certificate`` is the newest, as PEM; ``revoked`` when that was, or None."""

    name: str
    kind: str
    serial: str
    certificate: bytes
    since: float
    seen: float | None
    revoked: float | None


@final
class MemberTable:
    """Members and invitations."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def get(self, name: str) -> Member | None:
        """The member called ``name``."""
        rows = self._db.read(
            "SELECT name, kind, serial, certificate, since, seen, revoked FROM members WHERE name = ?", name
        )
        return Member(*rows[0]) if rows else None

    def all(self) -> list[Member]:
        """Everybody, by name."""
        rows = self._db.read("SELECT name, kind, serial, certificate, since, seen, revoked FROM members ORDER BY name")
        return [Member(*row) for row in rows]

    def certified(self, name: str, kind: str, serial: int, certificate: bytes, now: float) -> None:
        """``name`` has a new certificate; earlier ones count until they expire or the member is revoked."""
        text = f"{serial:x}"
        self._db.write(
            "INSERT INTO members (name, kind, serial, certificate, since) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, serial = excluded.serial,"
            " certificate = excluded.certificate, revoked = NULL",
            name, kind, text, certificate, now,
        )  # fmt: skip
        self._db.write("INSERT INTO serials (serial, name) VALUES (?, ?)", text, name)

    def found(self, name: str, sealing: str) -> None:
        """``name`` is the operator that was made with the hub, with sealing keys of this fingerprint."""
        self._db.write("INSERT INTO founders VALUES (?, ?)", name, sealing)

    def founded(self, name: str, sealing: str) -> bool:
        """Whether this is the operator that was made with the hub."""
        return bool(self._db.read("SELECT 1 FROM founders WHERE name = ? AND sealing = ?", name, sealing))

    def counts(self, serial: int) -> bool:
        """Whether a certificate was issued here and has not been revoked."""
        return bool(self._db.read("SELECT 1 FROM serials WHERE serial = ? AND revoked IS NULL", f"{serial:x}"))

    def adopt(self, name: str, serial: int, certificate: bytes | None) -> None:
        """A certificate counts that was issued here, and forgotten; it is the member's newest, where it is given."""
        self._db.write("INSERT INTO serials (serial, name) VALUES (?, ?)", f"{serial:x}", name)
        if certificate is not None:
            self._db.write(
                "UPDATE members SET serial = ?, certificate = ? WHERE name = ?", f"{serial:x}", certificate, name
            )

    def known(self, serial: int) -> bool:
        """Whether a certificate was issued here, as far as is remembered, whatever became of it."""
        return bool(self._db.read("SELECT 1 FROM serials WHERE serial = ?", f"{serial:x}"))

    def void(self, now: float) -> int:
        """No invitation that waits to be used counts any more; how many there were."""
        ((count,),) = self._db.read("SELECT COUNT(*) FROM invitations WHERE used = '' AND revoked IS NULL")
        self._db.write("UPDATE invitations SET revoked = ? WHERE used = '' AND revoked IS NULL", now)
        return int(count)

    def copies(self) -> list[tuple[float, float]]:
        """When the copies were taken that this home was restored from, and when that was."""
        return [(taken, restored) for taken, restored in self._db.read("SELECT taken, restored FROM copies")]

    def restored(self, taken: float, now: float) -> None:
        """This home was restored from a copy: what was issued between the two times is forgotten here."""
        self._db.write("INSERT INTO copies VALUES (?, ?)", taken, now)

    def revoke(self, name: str, now: float) -> bool:
        """No certificate and no invitation of ``name`` counts any more; False if there was nothing to revoke."""
        known = self.get(name) is not None
        invited = bool(self._db.read("SELECT 1 FROM invitations WHERE name = ? AND revoked IS NULL", name))
        self._db.write("UPDATE members SET revoked = ? WHERE name = ? AND revoked IS NULL", now, name)
        self._db.write("UPDATE serials SET revoked = ? WHERE name = ? AND revoked IS NULL", now, name)
        self._db.write("UPDATE invitations SET revoked = ? WHERE name = ? AND revoked IS NULL", now, name)
        return known or invited

    def saw(self, name: str, now: float) -> None:
        """A member was here."""
        self._db.write("UPDATE members SET seen = ? WHERE name = ?", now, name)

    def invite(self, serial: int, name: str, kind: str, expires: float) -> None:
        """An invitation was given out."""
        self._db.write(
            "INSERT INTO invitations (serial, name, kind, expires) VALUES (?, ?, ?, ?)",
            f"{serial:x}",
            name,
            kind,
            expires,
        )

    def used(self, serial: int, fingerprint: str, now: float) -> bytes | None:
        """The certificate that an invitation already gave to this very request, or None if it is unused.

        A request that is repeated because its answer was lost gets the same answer; anybody else's is refused.

        Args:
            serial: of the invitation's own certificate.
            fingerprint: of the request.
            now: POSIX seconds.

        Raises:
            IdentityError: the invitation is unknown, expired, revoked, or was used by another request.
        """
        rows = self._db.read(
            "SELECT name, expires, used, certificate, revoked FROM invitations WHERE serial = ?", f"{serial:x}"
        )
        if not rows:
            raise IdentityError("this invitation was not given out by this hub; ask the operator for a new one")
        name, expires, used, certificate, revoked = rows[0]
        if revoked is not None:
            raise IdentityError(f"the invitation of {name} was revoked; ask the operator for a new one")
        if used and used != fingerprint:
            raise IdentityError(
                f"the invitation of {name} was used already; if that was not you, tell the operator: somebody else has it"
            )
        if not used and now > expires:
            raise IdentityError(f"the invitation of {name} has expired; ask the operator for a new one")
        return bytes(certificate) if used else None

    def burn(self, serial: int, fingerprint: str, certificate: bytes) -> None:
        """An invitation was used."""
        self._db.write(
            "UPDATE invitations SET used = ?, certificate = ? WHERE serial = ?", fingerprint, certificate, f"{serial:x}"
        )
