"""`wavekeep`, the operator's command line.

Responsible for: the commands and their options. What a command does is in the module of its name, which is imported
only where it is asked for: the libraries of all together take longer than many a command. It must not hold any of a
service's decisions.
"""

import sys
from importlib import import_module
from typing import Final

import click

_COMMANDS: Final = {
    "status": "cli.status",
    "show": "cli.status",
    "parked": "cli.parked",
    "unrecognised": "cli.unrecognised",
    "replace": "cli.replace",
    "retention": "cli.retention",
    "audit": "cli.audit",
    "backup": "cli.backup",
    "topology": "cli.topology",
    "events": "cli.events",
}
"""Where each command is, under its own name."""


class Commands(click.Group):
    """The commands that are here, and those of `_COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click."""
        return sorted({*super().list_commands(ctx), *_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click."""
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command


def _tell_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's
    if wanted and not context.resilient_parsing:
        from shared.operations import product_version  # noqa: PLC0415 - imported only where it is used

        click.echo(f"wavekeep, version {product_version()}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Wavekeep takes custody of generated audio.

    The commands read the same WAVEKEEP_… settings as the services (docs/configuration.md) and work beside them.
    """


@main.command()
def run() -> None:
    """Run everything in one process, on an embedded queue and a local folder."""
    from shared.lifecycle import run as run_process  # noqa: PLC0415 - imported only where it is used
    from standalone.app import main as standalone_main  # noqa: PLC0415 - so is this

    sys.exit(run_process(standalone_main))


if __name__ == "__main__":
    main()
