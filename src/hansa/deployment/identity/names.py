"""Names, and the identities that certificates carry as URIs.

A name is a DNS label in lower case, so that it can stand in a file name, a URI, a log line and a roster without any quoting, and
no two names look alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, final, get_args

from hansa.errors import IdentityError

Kind: TypeAlias = Literal["hub", "operator", "submitter", "node", "observer", "invited"]
"""What an identity may be. ``invited`` is a stranger with an invitation: it may enrol once and do nothing else."""
MemberKind: TypeAlias = Literal["operator", "submitter", "node", "observer"]
"""The kinds that join by an invitation."""

HUB: Final = "hub"
"""The name of every federation's hub."""
RESERVED: Final = frozenset({HUB, "observer"})
"""Names with a meaning of their own in every federation: its hub, and whoever watches a run."""

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SCHEME: Final = "hansa://"
_MEMBERS: Final = frozenset(get_args(MemberKind))


def party_name(text: str, what: str = "name") -> str:
    """``text``, which must be a name that a party can have.

    Guarantees: what is returned is 1 to 63 of the ASCII characters a-z, 0-9 and, inside, the hyphen; so it is no path, no
    address, no look-alike and not empty.

    Args:
        text: what somebody typed or sent.
        what: what it is, for the sentence of the error.

    Raises:
        IdentityError: it is not such a name, or is a reserved one.

    >>> party_name("hospital-a")
    'hospital-a'
    >>> party_name("../hub")
    Traceback (most recent call last):
    hansa.errors.IdentityError: the name '../hub' cannot be used: ...
    """
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        raise IdentityError(
            f"the {what} {_shown(text)} cannot be used: it must be 1 to 63 of a-z, 0-9 and '-', with no '-' at either end"
        )
    if text in RESERVED:
        raise IdentityError(f"the {what} '{text}' cannot be used: it is reserved in every federation; choose another")
    return text


def member_kind(text: str) -> MemberKind:
    """``text``, which must be a kind of member.

    Raises:
        IdentityError: it is none.
    """
    if text not in _MEMBERS:
        raise IdentityError(f"{_shown(text)} is no kind of member; the kinds are {', '.join(sorted(_MEMBERS))}")
    return cast(MemberKind, text)


@final
@dataclass(frozen=True)
class Identity:
    """Who somebody is. There is one URI for each identity, and one identity for each URI.

    Args:
        federation: the name of the federation.
        kind: what it is there.
        name: its name there; :data:`HUB` for the hub and nobody else.
        admits: for ``invited``, the kind that its holder will be; None otherwise.

    Raises:
        IdentityError: there can be no such identity.

    >>> Identity("hearts", "node", "hospital-a").uri
    'hansa://hearts/node/hospital-a'
    >>> Identity.from_uri("hansa://hearts/invited/node/hospital-a")
    Identity(federation='hearts', kind='invited', name='hospital-a', admits='node')
    """

    federation: str
    kind: Kind
    name: str
    admits: MemberKind | None = None

    def __post_init__(self) -> None:
        party_name(self.federation, "federation")
        if self.kind == "hub":
            if self.name != HUB:
                raise IdentityError(f"a hub is called '{HUB}', not {_shown(self.name)}")
        else:
            party_name(self.name)
            if self.kind != "invited":
                member_kind(self.kind)
        if self.kind == "invited":
            member_kind(self.admits or "")
        elif self.admits is not None:
            raise IdentityError(f"only an invitation admits anybody; '{self.name}' is a {self.kind}")

    @property
    def uri(self) -> str:
        """The identity as a certificate carries it."""
        return _SCHEME + "/".join(filter(None, (self.federation, self.kind, self.admits, self.name)))

    @staticmethod
    def from_uri(uri: str) -> Identity:
        """The identity that ``uri`` says.

        Raises:
            IdentityError: it says none.
        """
        parts = uri.removeprefix(_SCHEME).split("/") if uri.startswith(_SCHEME) else []
        if len(parts) == 3:
            return Identity(parts[0], cast(Kind, parts[1]), parts[2])
        if len(parts) == 4 and parts[1] == "invited":
            return Identity(parts[0], "invited", parts[3], cast(MemberKind, parts[2]))
        raise IdentityError(f"{_shown(uri)} names no identity of a Hansa federation")

    def __str__(self) -> str:
        if self.admits is not None:
            return f"the invitation of {self.admits} '{self.name}' to federation '{self.federation}'"
        return f"{self.kind} '{self.name}' of federation '{self.federation}'"


def _shown(text: object) -> str:
    """``text`` for an error: escaped, so that it cannot forge a log line, and short."""
    return ascii(text if not isinstance(text, str) or len(text) <= 80 else text[:77] + "...")
