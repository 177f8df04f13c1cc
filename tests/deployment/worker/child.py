"""A worker process whose data are the tests' own."""

import sys

from hansa.deployment.worker.serve import main
from tests.deployment.worker.cases import load

if __name__ == "__main__":
    main(sys.argv[1:], load)
