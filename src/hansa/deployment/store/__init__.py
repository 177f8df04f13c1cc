"""Durable state: one SQLite file, written in groups, read by small interfaces that know one subject each."""

from hansa.deployment.store.database import Database as Database
from hansa.deployment.store.journal import Journal as Journal
from hansa.deployment.store.mailbox import Mailbox as Mailbox
from hansa.deployment.store.mailbox import Parcel as Parcel
from hansa.deployment.store.members import Member as Member
from hansa.deployment.store.members import MemberTable as MemberTable
from hansa.deployment.store.power import Power as Power
from hansa.deployment.store.runs import ACTIVE as ACTIVE
from hansa.deployment.store.runs import TERMINAL as TERMINAL
from hansa.deployment.store.runs import Record as Record
from hansa.deployment.store.runs import RunTable as RunTable
from hansa.deployment.store.runs import Seat as Seat
from hansa.deployment.store.works import UNDER_WAY as UNDER_WAY
from hansa.deployment.store.works import Task as Task
from hansa.deployment.store.works import WorkTable as WorkTable

__all__ = [
    "ACTIVE",
    "TERMINAL",
    "UNDER_WAY",
    "Database",
    "Journal",
    "Mailbox",
    "Member",
    "MemberTable",
    "Parcel",
    "Power",
    "Record",
    "RunTable",
    "Seat",
    "Task",
    "WorkTable",
]
