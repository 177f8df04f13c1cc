"""The process of a worker: ``python -m hansa.deployment.worker DESCRIPTOR [MODULE ...]``."""

from __future__ import annotations

import sys

from hansa.deployment.worker.serve import main

if __name__ == "__main__":
    main(sys.argv[1:])
