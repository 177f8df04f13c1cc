"""Following runs: their folders, reports, comparisons, and trackers of other tools."""

from hansa.monitoring.folder import RunFolder as RunFolder
from hansa.monitoring.records import RoundRecord as RoundRecord
from hansa.monitoring.records import RunEnd as RunEnd
from hansa.monitoring.records import RunInfo as RunInfo
from hansa.monitoring.records import Status as Status
from hansa.monitoring.records import Tracker as Tracker

__all__ = ["RoundRecord", "RunEnd", "RunFolder", "RunInfo", "Status", "Tracker"]
