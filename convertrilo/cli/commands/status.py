"""`convertrilo status`: where a job stands."""

import click

from convertrilo.cli.options import of_job_output, of_service
from convertrilo.cli.output import Output
from convertrilo.cli.service import Service


@click.command()
@click.argument("job_id")
@of_job_output
@of_service
def status(job_id: str, output: Output, service: Service) -> None:
    """Show where a job stands, on-demand or not."""
    output.show(service.run(lambda client: client.find_job(job_id)))
