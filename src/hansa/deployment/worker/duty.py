"""What a setup asks for, made of what is installed here: the role's program, the party's data, the run's names and key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from hansa import plan as plans
from hansa.deployment import binding
from hansa.deployment.terms import terms_of
from hansa.deployment.worker.frames import Described, Measured, RoleTerms, Setup, Unusable
from hansa.deployment.worker.party import MOST_TEXT, Resident, Surroundings
from hansa.errors import ConfigError, HansaError, nearest
from hansa.examples import Examples, Shard
from hansa.party import Named
from hansa.plan import Plan
from hansa.protocol import Role
from hansa.rng import Key

Load = Callable[[Mapping[str, Any], bool], Shard]
"""The data that a binding means, for a party that is one of many that own data, or for a server."""


@final
@dataclass(frozen=True)
class Duty:
    """A party's part in a run, ready to be taken up."""

    setup: Setup
    plan: Plan
    role: Role
    shard: Shard
    rosters: Mapping[str, Sequence[str]]

    def resident(self, around: Surroundings) -> Resident:
        """The party, where it stood.

        Raises:
            HansaError: what it had saved cannot be read.
        """
        key = Key.root(self.plan.seed)
        return Resident(self.setup, self.role, self.shard, self.rosters, key, around)


def describe(text: str) -> Described | Unusable:
    """What the plan in ``text`` is; or why it cannot be used here."""
    try:
        plan, _ = plans.parse(text, {})
        roles = plan.protocol.roles(plan.learner, plan.aggregation)
        terms = terms_of(plan)
        needed, setting = plan.protocol.needed_parties()
    except Exception as error:
        said = str(error) if isinstance(error, HansaError) else f"plan: {type(error).__name__}: {error}"
        return Unusable(said[:MOST_TEXT])
    if sum(role.many for role in roles.values()) != 1:
        return Unusable("plan: a network runs protocols in which exactly one role owns the data")
    return Described(
        plan=plan.to_toml(),
        name=plan.name,
        terms=terms,
        roles={name: RoleTerms(role.many, role.starts, role.peers) for name, role in roles.items()},
        rounds=None if terms.rounds is None else int(terms.rounds),
        classes={kind.tag: kind.discloses for role in roles.values() for kind in role.receives},
        needed=needed,
        setting=setting,
    )


def measured(data: Mapping[str, Any]) -> Measured | Unusable:
    """The shape of the data that a binding means; or why they cannot be used."""
    try:
        return Measured(binding.measure(binding.read(data)))
    except Exception as error:
        said = str(error) if isinstance(error, HansaError) else f"data: {type(error).__name__}: {error}"
        return Unusable(said[:MOST_TEXT])


def duty(setup: Setup, load: Load) -> Duty:
    """Read a setup's plan and load its data.

    Raises:
        HansaError: the plan does not load here, has no such role, or the data cannot be used.
    """
    plan, _ = plans.parse(setup.plan, {})
    roles = plan.protocol.roles(plan.learner, plan.aggregation)
    if setup.role not in roles:
        raise ConfigError(f"the plan's protocol has no role {setup.role!r}; {nearest(setup.role, roles)}")
    for name, names in setup.rosters.items():
        if name not in roles:
            raise ConfigError(f"the plan's protocol has no role {name!r}, which has a roster; {nearest(name, roles)}")
        if len(set(names)) < len(names):
            raise ConfigError(f"the roster of the role {name!r} names a party twice")
    if setup.party not in setup.rosters.get(setup.role, ()):
        raise ConfigError(f"{setup.party!r} is not in the roster of its role {setup.role!r}")
    role = roles[setup.role]
    shard = load(setup.data, role.many) if setup.data else _without(setup)
    return Duty(setup, plan, role, shard, {name: Named(names) for name, names in setup.rosters.items()})


def unusable(setup: Setup, error: Exception) -> Unusable:
    """The word for an error before the party's programs could run."""
    said = str(error) if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"
    return Unusable(f"{setup.party}: {said}"[:MOST_TEXT])


def _without(setup: Setup) -> Shard:
    """What a party has that no data is bound for: nothing, of the shape that the others have."""
    none = _NONE if setup.shape is None else setup.shape.example()
    return Shard(none, none)


_NONE = Examples(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))
EMPTY = Shard(_NONE, _NONE)
"""What a party has that no data is bound for."""
