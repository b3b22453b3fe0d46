"""`wavekeep`, the operator's command line.

Responsible for: the commands and their options. What a command does is in the module of its name; it must not hold
any of a service's decisions.
"""

import sys

import click

from cli import audit, backup, events, parked, replace, retention, status, topology, unrecognised
from shared.lifecycle import run as run_process
from shared.operations import product_version
from standalone.app import main as standalone_main


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(product_version(), prog_name="wavekeep")
def main() -> None:
    """Wavekeep takes custody of generated audio.

    The commands read the same WAVEKEEP_… settings as the services (docs/configuration.md) and work beside them.
    """


@main.command()
def run() -> None:
    """Run everything in one process, on an embedded queue and a local folder."""
    sys.exit(run_process(standalone_main))


main.add_command(status.status)
main.add_command(status.show)
main.add_command(parked.parked)
main.add_command(unrecognised.unrecognised)
main.add_command(replace.replace)
main.add_command(retention.retention)
main.add_command(audit.audit)
main.add_command(backup.backup)
main.add_command(topology.topology)
main.add_command(events.events)

if __name__ == "__main__":
    main()
