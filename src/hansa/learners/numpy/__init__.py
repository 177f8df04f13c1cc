"""Built-in learners that need NumPy alone: least squares, softmax regression and small dense networks."""

from hansa.learners.numpy.models import MLP as MLP
from hansa.learners.numpy.models import Linear as Linear
from hansa.learners.numpy.models import Softmax as Softmax

__all__ = ["MLP", "Linear", "Softmax"]
