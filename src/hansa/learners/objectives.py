"""Terms that an algorithm adds to a party's local objective, as values that add.

A :class:`Term` is ``proximal / 2 * ||w - w0||^2 + <linear, w - w0>``, with ``w0`` the received model; its gradient is affine:
``proximal * (w - w0) + linear``. Every algorithm that corrects client drift through the gradient is such a term, so a learner
honours all of them by honouring :class:`hansa.learner.LocalWork`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import msgspec

from hansa.errors import ConfigError
from hansa.learner import LocalWork
from hansa.learners import checks
from hansa.tensor import Array


@final
@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """An affine gradient term of the local objective.

    *Laws*: ``+`` is commutative and, within rounding, associative; ``Term()`` is its identity.

    >>> work = (proximal(0.1) + proximal(0.2)).work(round=3)
    >>> work.round, round(work.proximal, 12), work.linear is None
    (3, 0.3, True)

    Args:
        proximal: the factor of the quadratic term, 0 or above.
        linear: the linear term, shape (size,), or None for zero.
    """

    proximal: float = 0.0
    linear: Array | None = None

    def __add__(self, other: Term) -> Term:
        return Term(self.proximal + other.proximal, _sum(self.linear, other.linear))

    def apply(self, work: LocalWork) -> LocalWork:
        """``work`` with this term added to the terms it has."""
        total = Term(work.proximal, work.linear) + self
        return msgspec.structs.replace(work, proximal=total.proximal, linear=total.linear)

    def work(
        self,
        round: int = 0,
        epochs: int | None = None,
        steps: int | None = None,
        full_batch: bool = False,
        learning_rate: float = 1.0,
    ) -> LocalWork:
        """A local work with this term and the given settings; see :class:`hansa.learner.LocalWork` for each."""
        return LocalWork(round, self.proximal, self.linear, epochs, steps, full_batch, learning_rate)


def proximal(mu: float) -> Term:
    """FedProx: ``mu / 2 * ||w - w0||^2``.

    Args:
        mu: 0 or above; 0 is FedAvg.

    Raises:
        ConfigError: ``mu`` below 0.

    Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated optimization in heterogeneous networks",
    MLSys 2020, equation 2.
    """
    checks.not_negative("proximal.mu", mu)
    return Term(proximal=float(mu))


def control_variate(global_c: Array, local_c: Array) -> Term:
    """SCAFFOLD: the step ``y -= rate * (g - c_i + c)``.

    >>> import numpy as np
    >>> control_variate(np.array([3.0, 3.0]), np.array([1.0, 5.0])).linear.tolist()
    [2.0, -2.0]

    Args:
        global_c: the server's control variate ``c``, shape (size,).
        local_c: the party's own ``c_i``, shape (size,).

    Raises:
        ConfigError: the two differ in shape.

    Source: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic controlled averaging for federated
    learning", ICML 2020, algorithm 1, line 10.
    """
    if global_c.shape != local_c.shape:
        raise ConfigError(
            f"the server's control variate has shape {global_c.shape} and the party's {local_c.shape}; both must be (size,)"
        )
    return Term(linear=global_c - local_c)


def dynamic_regularizer(alpha: float, history: Array) -> Term:
    """FedDyn: ``alpha / 2 * ||w - w0||^2 - <history, w>``.

    After training, the party's next history is ``history - alpha * delta`` with its ``delta = w - w0``.

    >>> import numpy as np
    >>> term = dynamic_regularizer(0.1, np.array([1.0, -2.0]))
    >>> term.proximal, term.linear.tolist()
    (0.1, [-1.0, 2.0])

    Args:
        alpha: above 0.
        history: the gradient of the party's loss at its last local model, zeros at first, shape (size,).

    Raises:
        ConfigError: ``alpha`` is not above 0.

    Source: Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama, "Federated learning based on dynamic
    regularization", ICLR 2021, equation 1 and algorithm 1.
    """
    checks.positive("dynamic_regularizer.alpha", alpha)
    return Term(proximal=float(alpha), linear=-history)


def _sum(left: Array | None, right: Array | None) -> Array | None:
    if left is None or right is None:
        return right if left is None else left
    if left.shape != right.shape:
        raise ConfigError(
            f"two terms of one local objective have linear parts of shapes {left.shape} and {right.shape};"
            f" both must be the model's (size,)"
        )
    total: Array = left + right
    return total
