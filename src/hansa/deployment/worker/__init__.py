"""Workers: the processes in which a party's programs run."""

from hansa.deployment.worker.frames import Body as Body
from hansa.deployment.worker.frames import Heard as Heard
from hansa.deployment.worker.frames import Letter as Letter
from hansa.deployment.worker.frames import Lost as Lost
from hansa.deployment.worker.frames import Setup as Setup
from hansa.deployment.worker.inline import InlineWorker as InlineWorker
from hansa.deployment.worker.inline import InlineWorkers as InlineWorkers
from hansa.deployment.worker.journal import Journal as Journal
from hansa.deployment.worker.process import Worker as Worker
from hansa.deployment.worker.process import Workers as Workers
from hansa.deployment.worker.spool import Draft as Draft
from hansa.deployment.worker.spool import Spool as Spool

__all__ = [
    "Body",
    "Draft",
    "Heard",
    "InlineWorker",
    "InlineWorkers",
    "Journal",
    "Letter",
    "Lost",
    "Setup",
    "Spool",
    "Worker",
    "Workers",
]
