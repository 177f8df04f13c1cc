"""Who belongs to a federation, where that is not what an enrolment or a renewal says: revoked, or known again by a restored hub."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from hansa.deployment import packets
from hansa.deployment.audit import AuditLog
from hansa.deployment.identity.certificates import BACKDATE, Certificate, date, read_undated
from hansa.deployment.identity.credentials import Credentials
from hansa.deployment.store import Database, Mailbox, MemberTable
from hansa.deployment.worker.spool import Spool
from hansa.errors import ConfigError, StoreError

_SECOND: Final = 1.0
"""A certificate's times are whole seconds."""


def revoke(members: MemberTable, mailbox: Mailbox, audit: AuditLog, name: str, by: str, now: float) -> None:
    """Nothing of this member counts any more, and the nodes will hear it.

    Args:
        members, mailbox, audit: of the hub.
        name: the member, or who is invited.
        by: who says so.
        now: POSIX seconds.

    Raises:
        ConfigError: there is no such member, or it is the only operator.
    """
    operators = {member.name for member in members.all() if member.kind == "operator" and member.revoked is None}
    if operators == {name}:
        raise ConfigError(
            f"{name!r} is the only operator; without one nobody can be invited or revoked: invite another first"
        )
    if not members.revoke(name, now):
        raise ConfigError(f"no member and no invitation is called {name!r}; see: hansa members")
    audit.append("revoked", name=name, by=by)
    recall = packets.Recall([name])
    for member in members.all():
        if member.kind == "node" and member.revoked is None:
            mailbox.put(member.name, "", "", "", packets.control(recall))


def adopted(members: MemberTable, audit: AuditLog, certificate: Certificate, authority_pem: bytes) -> bool:
    """Whether a certificate that is not known here was issued in the time that this hub forgot, to a member that it knows.

    *Guarantee*: none counts again that was revoked before the copy was taken, and none with other sealing keys than the member
    had then.

    Args:
        members, audit: of the hub.
        certificate: whose signature, form and dates were verified.
        authority_pem: the federation's authority.
    """
    who, issued = certificate.identity, certificate.not_before + BACKDATE
    forgotten = any(taken - _SECOND <= issued <= restored + BACKDATE for taken, restored in members.copies())
    member = members.get(who.name)
    if not forgotten or members.known(certificate.serial) or member is None:
        return False
    before = read_undated(member.certificate, authority_pem)
    if member.revoked is not None or member.kind != who.kind or certificate.sealing is None or before.sealing is None:
        return False
    if not certificate.sealing.same_as(before.sealing):
        return False
    newer = certificate.not_before > before.not_before
    members.adopt(who.name, certificate.serial, certificate.pem if newer else None)
    audit.append("adopted", name=who.name, member=who.kind, serial=f"{certificate.serial:x}")
    return True


def unknown(members: MemberTable, certificate: Certificate) -> str:
    """Why a certificate does not count that is not known to have been revoked."""
    who, copies = certificate.identity, members.copies()
    if members.known(certificate.serial) or not copies:
        return f"the certificate of {who.kind} '{who.name}' was revoked; ask the operator for a new one"
    return (
        f"the certificate of {who.kind} '{who.name}' is not known to this hub, which was restored from a backup of "
        f"{date(max(taken for taken, _ in copies))}; ask the operator for a new invitation, and join with the same home"
    )


def revoke_at(home: Path, name: str, now: float) -> bool:
    """Revoke at the home of a hub that does not run; False where one runs, or it is no hub's home.

    Raises:
        ConfigError: there is no such member, or it is the only operator.
    """
    if not (home / "authority").exists() or not (home / "hub.db").exists():
        return False
    try:
        database = Database(home / "hub.db")
    except StoreError:
        return False  # whoever asks the hub that has it open learns why, if that is not the reason
    with contextlib.closing(database), database.at_once():
        own = Credentials.load(home, now, even_expired=True)
        with AuditLog(home / "audit.log", lambda: now, key=own.sealing.sign) as audit:
            mailbox = Mailbox(database, Spool(home / "spool"))
            revoke(MemberTable(database), mailbox, audit, name, "whoever has the hub's home", now)
    return True
