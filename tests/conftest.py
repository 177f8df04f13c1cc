"""What every test shares: one thread, no chance, and the way to the real data sets."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"

# One thread a process, so that two workers do not fight over two cores. No numerical library is imported yet: this file comes
# before every test.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Hansa's own import of gRPC must be the first of a process, because it says there what to speak; some other packages import it too. Each
# test has an event loop of its own, and a call may end with its loop: when the last of gRPC's objects in a process is collected it
# waits for all calls, and for such a one it would wait for ever. So one stays.
importlib.import_module("hansa.deployment")
init_grpc_aio: Callable[[], None] = importlib.import_module("grpc.aio").init_grpc_aio
init_grpc_aio()

# Derandomized, so that the same code gives the same verdict; no deadline, because a busy machine is no finding.
settings.register_profile(
    "hansa", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("hansa"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "hansa"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set by name; the test is skipped where it is not at hand."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            pytest.skip(f"the data set {name} is not beside this checkout")
        return path

    return folder
