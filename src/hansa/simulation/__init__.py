"""The simulator: the roles of any protocol on a virtual clock, in one process or one a core."""

from hansa.simulation.log import MessageLog as MessageLog
from hansa.simulation.log import mermaid as mermaid
from hansa.simulation.network import Crash as Crash
from hansa.simulation.network import Device as Device
from hansa.simulation.network import Devices as Devices
from hansa.simulation.network import FaultPlan as FaultPlan
from hansa.simulation.network import Partition as Partition
from hansa.simulation.replay import replay as replay
from hansa.simulation.run import Run as Run
from hansa.simulation.settings import Simulation as Simulation
from hansa.simulation.world import Failure as Failure

__all__ = [
    "Crash",
    "Device",
    "Devices",
    "Failure",
    "FaultPlan",
    "MessageLog",
    "Partition",
    "Run",
    "Simulation",
    "mermaid",
    "replay",
]
