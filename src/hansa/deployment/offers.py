"""What a node demands of an offer and of the beginning of a run: that they fit together, and that its policy allows them.

The hub says who takes part and on which machines. A hub that lies could name itself as everybody, change the parties once the
owner has agreed, or begin with so few that an aggregate is somebody's own update; each of these is refused here.
"""

from __future__ import annotations

from typing import Final

from hansa.deployment.identity.names import HUB, party_name
from hansa.deployment.packets import Offer, Start
from hansa.deployment.policy import Policy, RunRequest, check
from hansa.deployment.worker.frames import Described
from hansa.errors import IdentityError

MOST: Final = 1000
"""Runs that may wait at a node, for a place or for its owner."""


def untimely(offer: Offer, state: str, attempt: int, waiting: int) -> str:
    """Why an offer cannot be looked at now; nothing if it can. What was agreed on in a run is not exchanged for something else.

    Args:
        offer: it.
        state: of that run at this node; empty for an unknown one.
        attempt: the last that was offered of it; 0 for none.
        waiting: runs that wait at this node.
    """
    if state and offer.attempt <= attempt:
        return f"attempt {offer.attempt} at run {offer.run} was offered already, and what was offered stands"
    if state in ("approved", "accepted", "started"):
        return f"run {offer.run} is under way here; it must end before it is offered again"
    if not state and waiting >= MOST:
        return f"{waiting} runs wait at this node already, which is its limit"
    return ""


def misfit(offer: Offer, plan: Described, me: str) -> str:
    """Why an offer does not fit its plan; nothing if it does.

    Args:
        offer: it.
        plan: what this node's own worker read in the offered plan.
        me: this node.
    """
    if set(offer.roles) != set(plan.roles):
        return "the offer does not name the roles of its plan"
    parties = [party for names in offer.roles.values() for party in names]
    if len(set(parties)) != len(parties) or set(parties) != set(offer.hosts):
        return "the offer does not give each party one role and one machine"
    for role, names in offer.roles.items():
        if role != plan.many and names != (role,):
            return f"the offer gives the role {role} to others than the one party of that name"
        if role == plan.many and any(party in plan.roles or offer.hosts[party] != party for party in names):
            return "the offer places a party that owns data elsewhere than on its own machine"
    try:
        for host in set(offer.hosts.values()) - {HUB}:
            party_name(host)
    except IdentityError as error:
        return f"the offer names what no machine can have for a name: {error}"
    if me not in offer.hosts.values():
        return "the offer has no part for this node"
    partners = plan.partners(plan.roles_at(me, offer.hosts), offer.hosts)
    if set(offer.certificates) != (partners | {HUB}) - {me}:
        return "the offer does not bring the certificates of those with whom this node would talk, and only those"
    return ""


def deviation(start: Start, offer: Offer, me: str) -> str:
    """Why a run does not begin as it was offered; nothing if it does: with fewer owners of data at most, and with this node."""
    if set(start.roles) != set(offer.roles):
        return "the run is to begin with other roles than were offered"
    for role, names in start.roles.items():
        if len(set(names)) != len(names) or not set(names) <= set(offer.roles[role]):
            return f"the run is to begin with others as {role} than were offered"
    begins = {party for names in start.roles.values() for party in names}
    if not {party for party, host in offer.hosts.items() if host == me} <= begins:
        return "the run is to begin without a party of this node, which was offered a part"
    if not set(start.addresses) | set(start.epochs) <= set(offer.hosts.values()):
        return "the run is to begin with addresses or epochs of strangers"
    return ""


def require_allowed(policy: Policy, offer: Offer, plan: Described, owners: tuple[str, ...]) -> None:
    """Go on only if a policy allows a run of these owners of data, which may be fewer than were asked.

    Raises:
        PolicyRefused: it does not.
    """
    server = next((offer.hosts[role] for role in offer.roles if role != plan.many), "")
    check(policy, plan.terms, RunRequest(offer.run, offer.digest, offer.submitter, offer.data, owners, server))
