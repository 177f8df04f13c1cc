"""``python -m bench``: measure and print.

python -m bench                      everything
python -m bench simulation/cnn       one suite
python -m bench simulation peers     all suites below these names
python -m bench --json               one JSON object a line
python -m bench --list               the suites
python -m bench --quick              tiny sizes: does it work?
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from bench import averaging, cores, deployment, peers, population, scheduler, training
from bench.figure import Disagreement, Figure, Size, Unavailable, as_json, as_row, as_text
from bench.quality import digits, heart, mnist
from hansa.errors import nearest

SUITES: Final[dict[str, Callable[[Size], Iterable[Figure]]]] = {
    "simulation/logistic": partial(training.measure, "logistic"),
    "simulation/cnn": partial(training.measure, "cnn"),
    "simulation/mlp": partial(training.measure, "mlp"),
    "simulation/scheduler": scheduler.measure,
    "simulation/cores": cores.measure,
    "simulation/population": population.measure,
    "aggregation/mean": averaging.measure,
    "deployment/small_round": deployment.small_round,
    "deployment/large_round": deployment.large_round,
    "deployment/hub_memory": deployment.hub_memory,
    "deployment/idle_nodes": deployment.idle_nodes,
    "deployment/recovery": deployment.recovery,
    "quality/heart": heart.measure,
    "quality/mnist": mnist.measure,
    "quality/digits": digits.measure,
    "peers/pfl": peers.pfl,
    "peers/flower": peers.flower,
}


def selected(names: Sequence[str]) -> list[str]:
    """The suites called by ``names``: a suite's own name, or the part before a slash; all of them for none.

    Raises:
        SystemExit: there is no such suite.
    """
    if not names:
        return [*SUITES]
    chosen: dict[str, None] = {}
    for name in names:
        found = [suite for suite in SUITES if suite == name or suite.startswith(name.rstrip("/") + "/")]
        if not found:
            raise SystemExit(f"there is no suite {name!r}; {nearest(name, [*SUITES])}")
        chosen.update(dict.fromkeys(found))
    return [*chosen]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites; 0 if all gave their figures, 1 if one could not."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, each figure beside its reference.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="simulation/cnn, or simulation for all below it")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--table", action="store_true", help="rows of a Markdown table")
    parser.add_argument("--list", action="store_true", help="print the suites' names and stop")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    given = parser.parse_args(arguments)
    names = selected(given.suites)
    if given.list:
        print("\n".join(names))
        return 0
    shown = as_json if given.json else as_row if given.table else as_text
    failed = 0
    for name in names:
        try:
            for figure in SUITES[name](Size(given.quick)):
                print(shown(figure), flush=True)
        except (Unavailable, Disagreement) as reason:
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
