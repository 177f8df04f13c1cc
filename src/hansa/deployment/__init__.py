"""Deployment: one party, a real network, a real disk.

The commands ``hansa hub``, ``invite``, ``join``, ``node``, ``submit``, ``watch`` and ``fetch`` are thin over what is here. What
needs the extra ``net`` is imported when it is first used, so that this package itself can always be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hansa.deployment import forks as forks  # this and the next first of all files here: others import gRPC
from hansa.deployment import tls as tls

if TYPE_CHECKING:
    from hansa.deployment.api import Event as Event
    from hansa.deployment.api import Invite as Invite
    from hansa.deployment.api import Invited as Invited
    from hansa.deployment.api import ListRuns as ListRuns
    from hansa.deployment.api import RunList as RunList
    from hansa.deployment.api import RunView as RunView
    from hansa.deployment.api import Submit as Submit
    from hansa.deployment.api import Submitted as Submitted
    from hansa.deployment.binding import Binding as Binding
    from hansa.deployment.daemon import run_hub as run_hub
    from hansa.deployment.daemon import run_node as run_node
    from hansa.deployment.dial import Caller as Caller
    from hansa.deployment.dial import calling as calling
    from hansa.deployment.dial import join as join
    from hansa.deployment.doctor import Finding as Finding
    from hansa.deployment.doctor import examine as examine
    from hansa.deployment.hub import Hub as Hub
    from hansa.deployment.hub import create as create
    from hansa.deployment.identity.credentials import Credentials as Credentials
    from hansa.deployment.identity.invitation import read_invitation as read_invitation
    from hansa.deployment.logs import Log as Log
    from hansa.deployment.metrics import Metrics as Metrics
    from hansa.deployment.node import Node as Node
    from hansa.deployment.policy import Policy as Policy
    from hansa.deployment.service import serving as serving
    from hansa.deployment.settings import HubSettings as HubSettings
    from hansa.deployment.settings import NodeSettings as NodeSettings
    from hansa.deployment.settings import load_hub as load_hub
    from hansa.deployment.settings import load_node as load_node
    from hansa.deployment.worker.process import Workers as Workers

_FILES = {
    "api": ("Event", "Invite", "Invited", "ListRuns", "RunList", "RunView", "Submit", "Submitted"),
    "binding": ("Binding",),
    "daemon": ("run_hub", "run_node"),
    "dial": ("Caller", "calling", "join"),
    "doctor": ("Finding", "examine"),
    "hub": ("Hub", "create"),
    "identity.credentials": ("Credentials",),
    "identity.invitation": ("read_invitation",),
    "logs": ("Log",),
    "metrics": ("Metrics",),
    "node": ("Node",),
    "policy": ("Policy",),
    "service": ("serving",),
    "settings": ("HubSettings", "NodeSettings", "load_hub", "load_node"),
    "worker.process": ("Workers",),
}

__all__ = [
    "Binding",
    "Caller",
    "Credentials",
    "Event",
    "Finding",
    "Hub",
    "HubSettings",
    "Invite",
    "Invited",
    "ListRuns",
    "Log",
    "Metrics",
    "Node",
    "NodeSettings",
    "Policy",
    "RunList",
    "RunView",
    "Submit",
    "Submitted",
    "Workers",
    "calling",
    "create",
    "examine",
    "join",
    "load_hub",
    "load_node",
    "read_invitation",
    "run_hub",
    "run_node",
    "serving",
]


def __getattr__(name: str) -> object:
    """A public name, from its file."""
    for file, names in _FILES.items():
        if name in names:
            return vars(importlib.import_module(f"{__name__}.{file}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
