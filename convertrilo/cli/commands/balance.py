"""`convertrilo balance`: show the token balance."""

import click

from convertrilo.cli.options import output_options, service_options
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget


@click.command()
@output_options
@service_options
def balance(output: Output, service: ServiceTarget) -> None:
    """Show the account's tokens: available, reserved, and the rest of a trial grant."""
    output.show(service.run(lambda client: client.get_balance()))
