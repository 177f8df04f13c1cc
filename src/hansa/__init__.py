"""Hansa: federated learning. Parties that may not share their data train one model together.

A run in a few lines::

    import hansa as hs

    data = hs.data.load("sklearn:digits").partition(hs.data.Dirichlet(alpha=0.3), parties=100, seed=0)
    plan = hs.Plan(
        protocol=hs.FedAvg(rounds=50, cohort=10),
        learner=hs.learners.Softmax(optimizer=hs.SGD(0.05), batch_size=10, epochs=1),
        aggregation=hs.clip(10.0) | hs.mean(),
    )
    print(hs.simulate(plan, data, seed=7).summary())
"""

from hansa import aggregation as aggregation
from hansa import data as data
from hansa import decentralized as decentralized
from hansa import errors as errors
from hansa import horizontal as horizontal
from hansa import learners as learners
from hansa import monitoring as monitoring
from hansa import simulation as simulation
from hansa.aggregation import clip as clip
from hansa.aggregation import mean as mean
from hansa.decentralized import DPSGD as DPSGD
from hansa.horizontal import Cyclic as Cyclic
from hansa.horizontal import Evaluation as Evaluation
from hansa.horizontal import FedAdagrad as FedAdagrad
from hansa.horizontal import FedAdam as FedAdam
from hansa.horizontal import FedAvg as FedAvg
from hansa.horizontal import FedAvgM as FedAvgM
from hansa.horizontal import FedBuff as FedBuff
from hansa.horizontal import FedNova as FedNova
from hansa.horizontal import FedProx as FedProx
from hansa.horizontal import FedSGD as FedSGD
from hansa.horizontal import FedYogi as FedYogi
from hansa.horizontal import Scaffold as Scaffold
from hansa.horizontal import Stop as Stop
from hansa.learners.optimizers import SGD as SGD
from hansa.learners.optimizers import Adam as Adam
from hansa.learners.optimizers import AdamW as AdamW
from hansa.plan import Plan as Plan
from hansa.simulation.run import Run as Run
from hansa.simulation.settings import Simulation as Simulation
from hansa.simulation.simulate import simulate as simulate

__version__ = "0.1.0"

__all__ = [
    "DPSGD",
    "SGD",
    "Adam",
    "AdamW",
    "Cyclic",
    "Evaluation",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedNova",
    "FedProx",
    "FedSGD",
    "FedYogi",
    "Plan",
    "Run",
    "Scaffold",
    "Simulation",
    "Stop",
    "aggregation",
    "clip",
    "data",
    "decentralized",
    "errors",
    "horizontal",
    "learners",
    "mean",
    "monitoring",
    "simulate",
    "simulation",
]
