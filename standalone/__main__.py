"""`python -m standalone`."""

import sys

from shared.lifecycle import run
from standalone.app import main

if __name__ == "__main__":
    sys.exit(run(main))
