"""Who may do what at the hub: one table, and whatever is not in it is denied.

A right is of a kind of identity, to do something (a verb) to a kind of object, of one's own, of a run that one is a party of, of
others, or of the federation as a whole. There is nothing else to it: no groups, no inheritance, no wildcard, no right that
depends on a number or on what a request says of itself. The caller takes kind and name from the verified certificate and the
object from the store.

An operator may do everything that is done to an object of anybody. What is done *as* somebody (to submit, to renew a certificate,
to hold a node's link, to use an invitation) everybody does in their own name only, operators too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NoReturn, get_args

from hansa.errors import NotAuthorized

Kind = Literal["operator", "submitter", "node", "observer", "invited"]
Verb = Literal[
    "see",
    "submit",
    "watch",
    "stop",
    "resume",
    "forget",
    "approve",
    "fetch",
    "invite",
    "revoke",
    "enrol",
    "renew",
    "link",
]
Thing = Literal["run", "model", "metrics", "logs", "member", "invitation", "audit", "link"]
Whose = Literal["own", "part", "other", "federation"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
VERBS: Final[tuple[Verb, ...]] = get_args(Verb)
THINGS: Final[tuple[Thing, ...]] = get_args(Thing)
WHOSE: Final[tuple[Whose, ...]] = get_args(Whose)


@dataclass(frozen=True)
class Object:
    """Something that the hub keeps, and whose it is.

    Args:
        thing: what it is. A run's model, metrics (its report among them) and logs have the run's owner and parties.
        owner: kind and name of whom it belongs to: of a run, who submitted it; of a member or a link, the member itself; of an
            invitation, ``("invited", name)`` for its holder. None for what is the whole federation's: the list of members, the
            invitations, the hub's audit log.
        parties: names of the nodes that take part in the run, where it is one or belongs to one.
    """

    thing: str
    owner: tuple[str, str] | None = None
    parties: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # In a text, "in" finds parts of names.
        if not isinstance(self.parties, frozenset):
            raise TypeError(f"parties is a frozenset of names, not a {type(self.parties).__name__}")


@dataclass(frozen=True)
class Right:
    """A row of the table: these kinds of identity may do these verbs to this, where it is theirs in one of these ways."""

    kind: Kind
    thing: Thing
    verbs: tuple[Verb, ...]
    whose: tuple[Whose, ...]


OWN: Final[tuple[Whose, ...]] = ("own",)
PART: Final[tuple[Whose, ...]] = ("part",)
ALL: Final[tuple[Whose, ...]] = WHOSE

RIGHTS: Final[tuple[Right, ...]] = (
    Right("operator", "run", ("submit",), OWN),
    Right("operator", "run", ("see", "watch", "stop", "resume", "forget", "approve"), ALL),
    Right("operator", "model", ("fetch",), ALL),
    Right("operator", "metrics", ("see", "watch", "fetch"), ALL),
    Right("operator", "logs", ("see",), ALL),
    Right("operator", "member", ("renew",), OWN),
    Right("operator", "member", ("see", "revoke"), ALL),
    Right("operator", "invitation", ("see", "invite", "revoke"), ALL),
    Right("operator", "audit", ("see",), ALL),
    Right("operator", "link", ("see",), ALL),
    Right("submitter", "run", ("submit", "see", "watch", "stop", "resume", "forget"), OWN),
    Right("submitter", "model", ("fetch",), OWN),
    Right("submitter", "metrics", ("see", "watch", "fetch"), OWN),
    Right("submitter", "logs", ("see",), OWN),
    Right("observer", "run", ("see", "watch"), ALL),
    Right("observer", "metrics", ("see", "watch", "fetch"), ALL),
    Right("node", "run", ("see", "approve"), PART),
    Right("node", "model", ("fetch",), PART),
    Right("node", "metrics", ("see", "fetch"), PART),
    Right("node", "member", ("renew",), OWN),
    Right("node", "link", ("link",), OWN),
    Right("invited", "invitation", ("enrol",), OWN),
)
"""The table."""

_ALLOWED: Final = frozenset(
    (right.kind, whose, verb, right.thing) for right in RIGHTS for verb in right.verbs for whose in right.whose
)


def whose(kind: str, name: str, on: Object) -> Whose:
    """In which way an object is an identity's. Kinds keep names apart: a node is no party by a submitter's name.

    >>> whose("submitter", "ada", Object("run", ("submitter", "ada")))
    'own'
    >>> whose("node", "ada", Object("run", ("submitter", "ada"), frozenset({"lund"})))
    'other'
    """
    if on.owner is None:
        return "federation"
    if on.owner == (kind, name):
        return "own"
    return "part" if kind == "node" and name in on.parties else "other"


def allow(kind: str, name: str, verb: str, on: Object) -> None:
    """Return if the identity may do ``verb`` to ``on``.

    Where a request names an object that does not exist, call :func:`refuse` instead: it says the same as a refusal here.

    Args:
        kind, name: of the identity, from its certificate.
        verb: what it wants to do.
        on: to what, from the store.

    Raises:
        NotAuthorized: it may not; nothing is told of the object.

    >>> allow("submitter", "ada", "stop", Object("run", ("submitter", "ada")))
    >>> allow("submitter", "ada", "stop", Object("run", ("submitter", "bob")))
    Traceback (most recent call last):
    hansa.errors.NotAuthorized: there is no such run, or submitter 'ada' may not stop it
    """
    texts = all(isinstance(text, str) and text for text in (kind, name, verb, on.thing))
    if not texts or (kind, whose(kind, name, on), verb, on.thing) not in _ALLOWED:
        refuse(kind, name, verb, on.thing)


def may(kind: str, name: str, verb: str, on: Object) -> bool:
    """Whether :func:`allow` would return: to leave out of a list what its reader may not see."""
    try:
        allow(kind, name, verb, on)
    except NotAuthorized:
        return False
    return True


def refuse(kind: str, name: str, verb: str, thing: str) -> NoReturn:
    """Say that an object is absent or forbidden, which from outside are one thing.

    Raises:
        NotAuthorized: always, with a sentence made of what the asker said and is, and nothing else.

    >>> refuse("observer", "olga", "submit", "run")
    Traceback (most recent call last):
    hansa.errors.NotAuthorized: observer 'olga' may not submit runs
    >>> refuse("observer", "olga", "fetch", "model")
    Traceback (most recent call last):
    hansa.errors.NotAuthorized: there is no such run, or observer 'olga' may not fetch its model
    """
    known = verb in VERBS and thing in THINGS and kind in KINDS
    if not known or not isinstance(name, str):
        raise NotAuthorized("there is no such thing, or this identity may not do that to it")
    who = f"{kind} {name!a}"
    phrase = _OF_NOTHING.get((verb, thing))
    if phrase is not None:
        raise NotAuthorized(f"{who} may not {phrase}")
    it = f"its {thing}" if thing in _OF_A_RUN else "it"
    raise NotAuthorized(f"there is no such {'run' if thing in _OF_A_RUN else thing}, or {who} may not {verb} {it}")


_OF_A_RUN: Final = ("model", "metrics", "logs")
_OF_NOTHING: Final[dict[tuple[str, str], str]] = {
    ("submit", "run"): "submit runs",
    ("invite", "invitation"): "invite anybody",
    ("revoke", "member"): "revoke anybody",
    ("see", "member"): "see who the members are",
    ("see", "audit"): "see the hub's audit log",
    ("link", "link"): "take part as a node",
    ("enrol", "invitation"): "enrol, for which one needs an invitation",
    ("renew", "member"): "renew its certificate: the operator invites it anew",
}
"""What is refused whatever there is: it is done to nothing that the asker names, but to oneself or the federation."""
