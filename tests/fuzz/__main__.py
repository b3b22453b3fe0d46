"""Fuzz everything that reads what a stranger wrote: `make fuzz SECONDS=… KEEP=1`.

Responsible for: sharing the time out between the targets, and the exit status: 1 where anything crashed or answered
5xx, 2 where nothing can be fuzzed here.
"""

import sys

import click

from tests.fuzz import engine, http


@click.command()
@click.option("--seconds", default=600, show_default=True, help="Time to spend on all targets together.")
@click.option("--keep", is_flag=True, help="Add what reached new code to the corpus.")
def main(seconds: int, *, keep: bool) -> None:
    """Fuzz one target after the other, then print what came of it."""
    if (missing := engine.atheris_missing()) is not None:
        click.echo(missing, err=True)
        sys.exit(2)
    each = max(1, seconds // (1 + len(engine.TARGETS)))
    outcomes = [http.fuzz(seconds=each)]
    outcomes += [engine.fuzz(target, seconds=each, keep=keep) for target in engine.TARGETS]
    engine.show(outcomes)
    sys.exit(1 if any(outcome.crashes for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
