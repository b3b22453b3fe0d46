"""The process in which a target is fuzzed: `python -m tests.fuzz.worker TARGET libFuzzer's options…`.

Responsible for: instrumenting our code while it is imported, and handing the target over to libFuzzer, which ends the
process. It must not import anything of ours before.
"""

import sys
from importlib import import_module

import atheris

_OURS = ["ingress", "downloader", "shared"]


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    target, *options = sys.argv[1:]
    with atheris.instrument_imports(include=_OURS):
        harness = import_module(f"tests.fuzz.{target}")
    # libFuzzer calls itself by the first of these when it merges
    command = [f"{sys.executable} -m tests.fuzz.worker {target}", *options]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed: bytes | None = harness.mutate(data, max_size, seed) if seed % 4 else None
        return atheris.Mutate(data, max_size) if changed is None else changed

    atheris.Setup(command, harness.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
