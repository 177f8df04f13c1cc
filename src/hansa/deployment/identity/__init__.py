"""Identity: who is who in a federation, and how each proves it.

``names`` says what a name is, ``keys`` what a party can prove with, ``files`` how secrets lie on disk, ``certificates`` what the
authority says about a key, ``authority`` how it comes to say so, ``invitation`` how a stranger gets in, ``credentials`` what a
party keeps at home. Everything here is a pure function or a file: nothing listens, nothing dials, and time comes in as an argument.
"""

from hansa.deployment.identity.authority import LIFETIME as LIFETIME
from hansa.deployment.identity.authority import Authority as Authority
from hansa.deployment.identity.certificates import BACKDATE as BACKDATE
from hansa.deployment.identity.certificates import HUB_TLS_NAME as HUB_TLS_NAME
from hansa.deployment.identity.certificates import Anchor as Anchor
from hansa.deployment.identity.certificates import Certificate as Certificate
from hansa.deployment.identity.certificates import read as read
from hansa.deployment.identity.certificates import read_anchor as read_anchor
from hansa.deployment.identity.certificates import read_undated as read_undated
from hansa.deployment.identity.credentials import Credentials as Credentials
from hansa.deployment.identity.enrolment import Enrolment as Enrolment
from hansa.deployment.identity.invitation import Invitation as Invitation
from hansa.deployment.identity.invitation import hub_address as hub_address
from hansa.deployment.identity.invitation import make_invitation as make_invitation
from hansa.deployment.identity.invitation import read_invitation as read_invitation
from hansa.deployment.identity.keys import SealingKeys as SealingKeys
from hansa.deployment.identity.keys import SealingPublic as SealingPublic
from hansa.deployment.identity.keys import make_tls_key as make_tls_key
from hansa.deployment.identity.names import HUB as HUB
from hansa.deployment.identity.names import RESERVED as RESERVED
from hansa.deployment.identity.names import Identity as Identity
from hansa.deployment.identity.names import Kind as Kind
from hansa.deployment.identity.names import MemberKind as MemberKind
from hansa.deployment.identity.names import party_name as party_name
from hansa.deployment.identity.pins import Pins as Pins
from hansa.deployment.identity.request import EnrolmentRequest as EnrolmentRequest
from hansa.deployment.identity.request import make_request as make_request
from hansa.deployment.identity.request import read_request as read_request
from hansa.deployment.identity.request import renewable as renewable

__all__ = [
    "BACKDATE",
    "HUB",
    "HUB_TLS_NAME",
    "LIFETIME",
    "RESERVED",
    "Anchor",
    "Authority",
    "Certificate",
    "Credentials",
    "Enrolment",
    "EnrolmentRequest",
    "Identity",
    "Invitation",
    "Kind",
    "MemberKind",
    "Pins",
    "SealingKeys",
    "SealingPublic",
    "hub_address",
    "make_invitation",
    "make_request",
    "make_tls_key",
    "party_name",
    "read",
    "read_anchor",
    "read_invitation",
    "read_request",
    "read_undated",
    "renewable",
]
