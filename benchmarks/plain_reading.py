"""The reference of the audit's benchmark: every audio file below a folder, read and hashed in a few threads.

Responsible for: being what anybody would write who knows Python well. It imports nothing of ours. Prints how many.
"""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    with ThreadPoolExecutor(int(sys.argv[2])) as threads:
        print(len(list(threads.map(digest, Path(sys.argv[1]).rglob("*.wav")))))
