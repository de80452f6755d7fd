"""`convertrilo balance`: the account's tokens."""

import click

from convertrilo.cli.options import of_output, of_service
from convertrilo.cli.output import Output
from convertrilo.cli.service import Service


@click.command()
@of_output
@of_service
def balance(output: Output, service: Service) -> None:
    """Show the account's tokens: available, reserved, and what is left of a trial."""
    output.show(service.run(lambda client: client.get_balance()))
