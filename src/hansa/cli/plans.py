"""``hansa init`` and ``hansa explain``: plans before they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa import plan as planning
from hansa.cli.explanation import explanation
from hansa.cli.output import Json, emit, say
from hansa.errors import ConfigError
from hansa.simulation.settings import Simulation

TEMPLATE = """\
# A plan: what the parties agree to. Run it with: hansa simulate {name}
name = "digits"
seed = 7                          # of all public randomness: the same seed gives the same run

[protocol]
name = "fedavg"                   # hansa list protocols
rounds = 30
cohort = 10                       # parties in a round
deadline = 600.0                  # seconds until a round goes on with what it has
quorum = 0.5                      # the least share of the cohort that must contribute
evaluation = {{ every = 1, parties = 100 }}
# sampling = {{ name = "poisson" }}    # hansa list samplings
# stop = {{ metric = "test_accuracy", target = 0.97, patience = 20 }}

[learner]
name = "softmax"                  # hansa list learners
batch_size = 10
epochs = 1
optimizer = {{ name = "sgd", learning_rate = 0.1 }}
# name = "torch"                  # a PyTorch model of yours:
# model = "my_package.my_module:MyNet"

[[aggregation]]                   # the stages in order: hansa list stages
name = "clip"
bound = 10.0

[[aggregation]]
name = "mean"

[data]
source = "sklearn:digits"         # hansa list sources; your table: "csv:patients.csv?target=diagnosis"
parties = 100
partition = {{ name = "dirichlet", alpha = 0.3 }}   # hansa list partitioners
test = 0.2                        # the share of each party's rows kept for testing

[simulation]
workers = 1                       # processes; 0 is one a core; results do not depend on it
baselines = true                  # also train on all data in one place, and parties alone
# faults = {{ drop = 0.05, delay = [0.0, 2.0] }}
"""


def init(
    file: Annotated[Path, typer.Argument(help="The plan to write.")] = Path("plan.toml"),
    json: Json = False,
) -> None:
    """Write a commented plan to start from."""
    if file.exists():
        raise ConfigError(f"{file} is there already; name another file")
    try:
        file.write_text(TEMPLATE.format(name=file), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    if json:
        emit({"plan": str(file)})
    else:
        say(f"wrote {file}; next: hansa explain {file}, hansa simulate {file}")


def explain(
    file: Annotated[Path, typer.Argument(help="A TOML plan.")],
    json: Json = False,
) -> None:
    """Say what each party sends, who sees it and what protects it, before anything runs."""
    plan, _ = planning.load(file, {"simulation": Simulation})
    told = explanation(plan)
    if json:
        emit(told.data())
    else:
        say(told.text())
