"""The models that stay on a node: those with which programs of its own ended, where the server of a run was placed there or the
parties have none. They are nobody's but its owner's, so they leave its home by the owner's socket and not by way of the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import save_file

from hansa.deployment import control
from hansa.deployment.worker.frames import Result
from hansa.deployment.worker.letters import read
from hansa.deployment.worker.spool import Spool
from hansa.params import Params


def models(home: Path, run: str) -> dict[str, Params]:
    """What the node that runs in ``home`` keeps of a run, by party; large ones lie in its files, not in memory.

    Raises:
        Unreachable: no node runs there.
        NotAuthorized: it is another user's.
        StoreError: its files do not hold what it says.
    """
    spool = Spool(home / "spool")
    found: dict[str, Params] = {}
    for kept in control.ask(home, control.ShowKept(run), control.KeptList).results:
        result, _ = read(kept.body, (Result,), spool)
        assert isinstance(result, Result)
        if result.params is not None:
            found[kept.party] = result.params
    return found


def write(found: Mapping[str, Params], folder: Path) -> list[Path]:
    """Write models into a folder: one as ``model.safetensors``, several under their parties' names."""
    written = []
    for party, params in found.items():
        path = folder / f"{'model' if len(found) == 1 else party}.safetensors"
        save_file(params.tensors(), path)
        written.append(path)
    return written
