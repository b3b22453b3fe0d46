"""`wavekeep events`: what other services may subscribe to.

Responsible for: printing the AsyncAPI document of this version.
"""

import click

from cli.output import print_json
from shared.asyncapi import document
from shared.operations import product_version


@click.command()
def events() -> None:
    """Print the AsyncAPI document (JSON) of every event, made from the code of this version."""
    print_json(document(product_version()))
