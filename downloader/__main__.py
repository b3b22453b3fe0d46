"""`python -m downloader`."""

import sys

from downloader.app import main
from shared.lifecycle import run

if __name__ == "__main__":
    sys.exit(run(main))
