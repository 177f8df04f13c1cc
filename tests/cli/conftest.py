"""Hansa's own import of gRPC must be the first of a process; some tests import it too."""

from __future__ import annotations

import hansa.deployment  # noqa: F401
