"""The operator that was made with the hub: its credentials lie in the hub's own home, and the hub renews them there.

Whoever has that home has the authority's key, so the renewal gives nobody a right. Without it, a federation whose only operator
gave no command for some weeks could never again be joined.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

from hansa.deployment.identity.certificates import read_undated
from hansa.deployment.identity.credentials import Credentials, has_identity
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.request import make_request
from hansa.deployment.logs import Log
from hansa.deployment.store import Database, MemberTable
from hansa.errors import HansaError


@final
class Founder:
    """The operator's credentials in the hub's home; they may lie elsewhere by now, or be another's.

    Args:
        home: of the operator.
        database, members: of the hub.
        certify: makes a certificate by a request, a kind and a name, and notes it in ``members``.
        log: where a renewal is noted, and once why there is none.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        home: Path,
        database: Database,
        members: MemberTable,
        certify: Callable[[bytes, str, str], bytes],
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._home = home
        self._database = database
        self._members = members
        self._certify = certify
        self._log = log
        self._clock = clock
        self._said = ""

    def renew(self) -> None:
        """Give the operator a new certificate if it is time, also where the old one has expired.

        *Guarantees*: nobody else gets one, nor whoever was revoked; a crash at any instant leaves credentials that count.
        """
        flaw = ""
        try:
            flaw = self._renewed()
        except HansaError as error:  # the hub serves without an operator too
            flaw = str(error)
        if flaw and flaw != self._said:
            self._log.warning("operator's certificate not renewed", home=str(self._home), reason=flaw)
        self._said = flaw

    def _renewed(self) -> str:
        if not has_identity(self._home):
            return ""
        now = self._clock()
        mine = Credentials.load(self._home, now, even_expired=True)
        # One that is not valid yet was made when the clock was wrong, and nobody can use it either.
        if mine.certificate.not_before <= now and not mine.renew_due(now):
            return ""
        who = mine.identity
        if who.kind != "operator" or not self._members.founded(who.name, mine.sealing.public.fingerprint):
            return f"they are of {who}, which was not made with this hub; it renews its own"
        if not self._members.counts(mine.certificate.serial):
            return f"the certificate of {who} was revoked; another operator can invite it again"
        member = self._members.get(who.name)
        if member is None or read_undated(member.certificate, mine.authority_pem).sealing != mine.certificate.sealing:
            return f"{who} has joined from another home since; these credentials are not its own any more"
        key = make_tls_key()
        pem = self._certify(make_request(who.name, key, mine.sealing), who.kind, who.name)
        # It counts before anybody has it: otherwise a crash between the two would lock the operator out.
        self._database.commit()
        mine.replace_certificate(pem, key, now)
        return ""
