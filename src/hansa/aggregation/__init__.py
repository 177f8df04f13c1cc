"""Aggregation: typed pipelines from the parties' updates to one aggregate."""

from hansa.aggregation.clip import Clip as Clip
from hansa.aggregation.clip import clip as clip
from hansa.aggregation.mean import Averaging as Averaging
from hansa.aggregation.mean import Contribution as Contribution
from hansa.aggregation.mean import mean as mean
from hansa.pipeline import ClientStage as ClientStage
from hansa.pipeline import ServerStage as ServerStage
from hansa.pipeline import Stage as Stage
from hansa.pipeline import compose as compose
from hansa.pipeline import stages as stages

__all__ = [
    "Averaging",
    "ClientStage",
    "Clip",
    "Contribution",
    "ServerStage",
    "Stage",
    "clip",
    "compose",
    "mean",
    "stages",
]
