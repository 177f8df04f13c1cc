"""The plain mean: each party sends its update in the clear, the collector averages.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, algorithm 1,
the server's last line.

*Threat model*: the collector sees each party's update, its weight and its scalars. Nobody else sees anything. Use it where the
collector is trusted, or behind a stage that protects what is sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, final

import numpy as np

from hansa.errors import ConfigError, DeadlineExpired, NonFinite, QuorumNotReached
from hansa.message import Message
from hansa.party import Party
from hansa.pipeline import Form, Stage
from hansa.protocol import Aggregation, Collected, Gathering, Withdraw
from hansa.tensor import Array, Rows, SumsLater, Tensor, all_finite
from hansa.update import Bounded, Mean, Update

U = TypeVar("U", Update, Bounded)

Weights = Literal["examples", "uniform"]

_ROUNDING = 1e-4
"""How far an honest party's float32 norm may lie above the bound, relatively."""
_MOST_EXAMPLES = 2.0**53
"""More than anybody can count; a larger weight would only make the sum overflow."""
_REASON = 200
"""Characters of a party's own words that are passed on."""


class Contribution(Message, frozen=True):
    """One party's update, in the clear."""

    tag = "hansa.contribution/1"
    discloses = "one party's model update, its number of examples and its training metrics"

    round: int
    delta: Tensor
    weight: float
    scalars: Mapping[str, float]


@final
@dataclass(frozen=True)
class Averaging(Stage, Aggregation[U, Mean[U]]):
    """The plain mean as an aggregation. See :func:`mean`."""

    weights: Weights = "examples"

    flow: ClassVar[Mapping[Form, Form]] = {"update": "mean", "bounded": "bounded mean", "noised update": "noised"}
    needs: ClassVar[str] = "a mean combines single updates, once"

    effect: ClassVar[str] = (
        "averages by {weights}; the collector sees every party's update, protected by nothing after this"
    )

    def __post_init__(self) -> None:
        if self.weights not in ("examples", "uniform"):
            raise ConfigError(f"mean: weights must be 'examples' or 'uniform', not {self.weights!r}")

    @property
    def messages(self) -> tuple[type[Message], ...]:
        return (Contribution, Withdraw)

    @property
    def answers(self) -> tuple[type[Message], ...]:
        return ()

    async def contribute(self, me: Party, to: str, round: int, value: U) -> None:
        update = value.update if isinstance(value, Bounded) else value
        await me.send(to, Contribution(round, update.delta, update.weight, update.scalars))

    async def collect(self, me: Party, gathering: Gathering) -> Collected[Mean[U]]:
        fold = _InOrder(_Fold(gathering.size), gathering.invited)
        dtypes = [np.dtype(name) for name in ([gathering.dtype] if gathering.dtype else ["float32", "float64"])]
        fitting: Rows | None = None
        waiting = dict(gathering.invited)
        contributors: list[str] = []
        refused: dict[str, str] = {}
        while waiting and len(contributors) < gathering.enough:
            try:
                sender, message = await me.recv((Contribution, Withdraw), within=gathering.deadline - me.now())
            except DeadlineExpired:
                break
            # A second delivery, a late answer to an earlier round or a stranger's word changes nothing.
            if waiting.get(sender) != message.round:
                continue
            del waiting[sender]
            if isinstance(message, Withdraw):
                refused[sender] = message.reason[:_REASON]
                fold.without(sender)
                continue
            rows = message.delta.rows
            flaw = ""
            if rows is None or rows is not fitting:
                flaw = _misfit(message.delta, gathering, dtypes)
                # What fits for one row of a batch fits for all.
                fitting = rows if not flaw else None
            flaw = flaw or _flaw(message, gathering)
            if flaw:
                refused[sender] = flaw
                fold.without(sender)
                continue
            factor = 1.0 if gathering.factor is None else gathering.factor(message.round)
            fold.add(sender, message, message.weight if self.weights == "examples" else 1.0, factor)
            contributors.append(sender)
            del message  # as large as the model, as may be each that has waited for it
            fold.advance()
        if len(contributors) < max(1, gathering.quorum):
            raise _too_few(me, gathering, contributors, waiting, refused)
        return Collected(fold.mean(gathering.bound), contributors, refused)


def mean(weights: Weights = "examples") -> Aggregation[U, Mean[U]]:
    """Average the parties' updates, each weighted by its number of examples or all alike.

    *Guarantees*: the result is ``sum(w_i * delta_i) / sum(w_i)`` over the contributors, and each scalar the like over the
    contributors that sent it; over a network its last bits depend on who contributed and not on who was first, because the
    summands are added in the order of the invitations; an update of the wrong length or dtype, a weight that is not positive or is
    above 2^53, a scalar that is not finite, a non-finite norm, or a norm above the bound of the plan's own clip is refused and
    its sender named.

    Args:
        weights: ``"examples"`` or ``"uniform"``.
    """
    return Averaging(weights)


_ZEROS = (0.0, 0.0)
_UNDER_WAY = 4
"""Sums that other processes may owe at a time; they hold the summed rows for as long."""


class _Open:
    """A batch of which some rows have arrived: how much of each goes into the sum."""

    __slots__ = ("coefficients", "rows", "seen")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.coefficients = [0.0] * rows.count
        self.seen = 0


class _InOrder:
    """Hands single arrays to a fold in the order of the invitations; one that comes before its turn waits.

    Rows of a simulator's batch are not held back: it delivers them in one order anyway, and a batch is summed as a whole.
    """

    def __init__(self, fold: _Fold, invited: Mapping[str, int]) -> None:
        self.fold = fold
        self.turns = deque(invited)
        self.early: dict[str, tuple[Contribution, float, float] | None] = {}

    def add(self, sender: str, message: Contribution, weight: float, factor: float) -> None:
        if message.delta.rows is not None:
            self.fold.add(message, weight, factor)
            return
        self.early[sender] = (message, weight, factor)

    def without(self, sender: str) -> None:
        """Nobody need wait for this party."""
        self.early[sender] = None
        self.advance()

    def mean(self, bound: float | None) -> Mean[Any]:
        self.turns = deque(name for name in self.turns if name in self.early)
        self.advance()
        return self.fold.mean(bound)

    def advance(self) -> None:
        """Fold whatever's turn it is."""
        turns, early = self.turns, self.early
        while turns and turns[0] in early:
            waiting = early.pop(turns.popleft())
            if waiting is not None:
                self.fold.add(*waiting)


class _Fold:
    """Sums contributions batch by batch, so that a batch's rows are never built one by one and never kept after it is done.

    Arrays are added in the order in which they are given: as they are while all have the same factor, which then multiplies their sum, and
    each times its own factor from the first that differs. A batch is added when its last row has arrived, or at the end.
    """

    def __init__(self, size: int) -> None:
        self.total: Array | None = None
        self.size = size
        self.weight = 0.0
        self.count = 0
        self.scalars: dict[str, tuple[float, float]] = {}
        self.open: dict[int, _Open] = {}
        # Sums under way in other processes, in the order in which they are added.
        self.later: deque[Callable[[], Array]] = deque()
        # The plain sum of the arrays so far, as long as all had the same factor.
        self.alike: Array | None = None
        self.factor = 0.0
        self.uneven = False
        # The total, where nobody else has it, so that it may become the mean in place.
        self._own: Array | None = None

    def add(self, message: Contribution, weight: float, factor: float) -> None:
        self.weight += weight
        self.count += 1
        for name, value in message.scalars.items():
            summed, weights = self.scalars.get(name, _ZEROS)
            self.scalars[name] = (summed + weight * value, weights + weight)
        rows = message.delta.rows
        if rows is None:
            self._into(message.delta.array, weight * factor)
            return
        batch = self.open.get(id(rows))
        if batch is None:
            batch = self.open[id(rows)] = _Open(rows)
        delta = message.delta
        batch.coefficients[delta.index] += weight * factor * delta.scale
        batch.seen += 1
        if batch.seen == rows.count:
            self._close(id(rows))

    def mean(self, bound: float | None) -> Mean[U]:
        for key in list(self.open):
            self._close(key)
        self._settle()
        self._wait(0)
        assert self.total is not None
        with np.errstate(over="ignore", invalid="ignore"):
            delta = np.multiply(self.total, self.total.dtype.type(1.0 / self.weight), out=self._own)
        if not all_finite(delta):
            raise NonFinite(
                "the mean of finite updates overflowed", remedy="clip the updates or lower the learning rate"
            )
        scalars = {name: summed / weights for name, (summed, weights) in self.scalars.items()}
        return Mean(delta, self.weight, self.count, scalars, bound)

    def _close(self, key: int) -> None:
        batch = self.open.pop(key)
        rows, coefficients = batch.rows, np.array(batch.coefficients)
        if isinstance(rows, SumsLater):
            self.later.append(rows.begin_sum(coefficients))
            self._wait(_UNDER_WAY)
        else:
            self._add(rows.weighted_sum(coefficients))

    def _wait(self, most: int) -> None:
        """Add the oldest sums under way until at most ``most`` are left."""
        while len(self.later) > most:
            self._add(self.later.popleft()())

    def _add(self, summed: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self.total = summed if self.total is None else self.total + summed
            self._own = None

    def _into(self, array: Array, factor: float) -> None:
        # Where all weigh the same, as they mostly do, the weight is multiplied in once, at the end.
        if self.alike is None and not self.uneven:
            self.alike, self.factor = array.copy(), factor
        elif self.alike is not None and self.factor == factor and self.alike.dtype == array.dtype:
            with np.errstate(over="ignore", invalid="ignore"):
                self.alike += array
        else:
            self._settle()
            self.uneven = True
            self._plus(array, factor)

    def _settle(self) -> None:
        alike, self.alike = self.alike, None
        if alike is not None:
            self._plus(alike, self.factor, alike)

    def _plus(self, array: Array, factor: float, out: Array | None = None) -> None:
        """Add an array times a factor; the product may be written to ``out``."""
        self._wait(0)
        with np.errstate(over="ignore", invalid="ignore"):
            summand = np.multiply(array, array.dtype.type(factor), out=out)
            if self.total is None:
                self.total = self._own = summand
            elif self.total.dtype == array.dtype:
                self.total += summand
            else:
                self.total = self._own = self.total.astype(np.float64) + summand


def _misfit(delta: Tensor, gathering: Gathering, dtypes: Sequence[np.dtype[Any]]) -> str:
    """Why a contribution's vector is not of the model's kind, or nothing."""
    if delta.shape != (gathering.size,):
        return f"an update of shape {delta.shape}, expected ({gathering.size},)"
    if delta.dtype not in dtypes:
        return f"an update of dtype {delta.dtype}"
    return ""


def _flaw(message: Contribution, gathering: Gathering) -> str:
    """Why the rest of a contribution cannot be used, or nothing."""
    if not 0 < message.weight <= _MOST_EXAMPLES:
        return f"a weight of {message.weight}"
    for name, value in message.scalars.items():
        if not math.isfinite(value):
            return f"a value of {value} for '{name[:_REASON]}'"
    if not message.delta.finite():
        return "an update with NaN or infinity"
    if gathering.bound is not None:
        norm = message.delta.norm()
        if norm > gathering.bound * (1 + _ROUNDING):
            return f"an update of norm {norm:.6g}, above the bound {gathering.bound:g} of the plan"
    return ""


def _too_few(
    me: Party, gathering: Gathering, contributors: list[str], waiting: Mapping[str, int], refused: Mapping[str, str]
) -> QuorumNotReached:
    silent = ", ".join(list(waiting)[:5]) + (", ..." if len(waiting) > 5 else "")
    bad = "; ".join(f"{party}: {why}" for party, why in list(refused.items())[:5])
    what = (
        f"{len(contributors)} of {len(gathering.invited)} invited parties contributed, the quorum is {gathering.quorum}"
    )
    what += f"; silent: {silent}" if waiting else ""
    what += f"; refused: {bad}" if refused else ""
    return QuorumNotReached(
        what,
        party=me.name,
        round=max(gathering.invited.values(), default=None),
        remedy="raise the deadline, lower the quorum, or invite more parties",
    )
