"""What trains a model: one file or package an ML library, and the optimizers, schedules and objectives they share.

Importing this package imports no ML library: ``Torch`` and ``Sklearn`` are loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hansa.learners import metrics as metrics
from hansa.learners import objectives as objectives
from hansa.learners import schedules as schedules
from hansa.learners.numpy import MLP as MLP
from hansa.learners.numpy import Linear as Linear
from hansa.learners.numpy import Softmax as Softmax
from hansa.learners.optimizers import SGD as SGD
from hansa.learners.optimizers import Adam as Adam
from hansa.learners.optimizers import AdamW as AdamW
from hansa.learners.server_optimizers import ServerAdagrad as ServerAdagrad
from hansa.learners.server_optimizers import ServerAdam as ServerAdam
from hansa.learners.server_optimizers import ServerSGD as ServerSGD
from hansa.learners.server_optimizers import ServerYogi as ServerYogi

if TYPE_CHECKING:
    from hansa.learners.sklearn import Sklearn as Sklearn
    from hansa.learners.torch import Torch as Torch

__all__ = [
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "Linear",
    "ServerAdagrad",
    "ServerAdam",
    "ServerSGD",
    "ServerYogi",
    "Sklearn",
    "Softmax",
    "Torch",
    "metrics",
    "objectives",
    "schedules",
]


def __getattr__(name: str) -> object:
    try:
        if name == "Torch":
            from hansa.learners.torch import Torch

            return Torch
        if name == "Sklearn":
            from hansa.learners.sklearn import Sklearn

            return Sklearn
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("torch", "sklearn"):
            from hansa.errors import MissingExtra

            raise MissingExtra(name, library) from error
        raise
    raise AttributeError(f"module 'hansa.learners' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
