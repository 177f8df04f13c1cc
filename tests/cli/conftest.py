"""What is said of gRPC beside the tests of the deployment holds here too."""

from __future__ import annotations

import tests.deployment.conftest  # noqa: F401
