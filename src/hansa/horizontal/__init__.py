"""Horizontal federated learning: parties with the same features and different examples train one model through a server."""

from hansa.horizontal.cyclic import Cyclic as Cyclic
from hansa.horizontal.evaluation import EvaluateTask as EvaluateTask
from hansa.horizontal.evaluation import Evaluation as Evaluation
from hansa.horizontal.evaluation import Scores as Scores
from hansa.horizontal.fedavg import FedAvg as FedAvg
from hansa.horizontal.fedbuff import FedBuff as FedBuff
from hansa.horizontal.fednova import FedNova as FedNova
from hansa.horizontal.fedopt import FedAdagrad as FedAdagrad
from hansa.horizontal.fedopt import FedAdam as FedAdam
from hansa.horizontal.fedopt import FedAvgM as FedAvgM
from hansa.horizontal.fedopt import FedYogi as FedYogi
from hansa.horizontal.fedprox import FedProx as FedProx
from hansa.horizontal.fedsgd import FedSGD as FedSGD
from hansa.horizontal.rounds import Algorithm as Algorithm
from hansa.horizontal.rounds import Local as Local
from hansa.horizontal.rounds import PartyState as PartyState
from hansa.horizontal.rounds import RoundState as RoundState
from hansa.horizontal.rounds import Synchronous as Synchronous
from hansa.horizontal.rounds import TrainTask as TrainTask
from hansa.horizontal.sampling import Fixed as Fixed
from hansa.horizontal.sampling import Poisson as Poisson
from hansa.horizontal.sampling import Sampling as Sampling
from hansa.horizontal.sampling import Uniform as Uniform
from hansa.horizontal.sampling import Weighted as Weighted
from hansa.horizontal.scaffold import Scaffold as Scaffold
from hansa.horizontal.stopping import Best as Best
from hansa.horizontal.stopping import Stop as Stop

__all__ = [
    "Algorithm",
    "Best",
    "Cyclic",
    "EvaluateTask",
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
    "Fixed",
    "Local",
    "PartyState",
    "Poisson",
    "RoundState",
    "Sampling",
    "Scaffold",
    "Scores",
    "Stop",
    "Synchronous",
    "TrainTask",
    "Uniform",
    "Weighted",
]
