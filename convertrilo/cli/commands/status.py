"""`convertrilo status`: show the status of a job."""

import click

from convertrilo.cli.options import job_output_options, service_options
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget


@click.command()
@click.argument("job_id")
@job_output_options
@service_options
def status(job_id: str, output: Output, service: ServiceTarget) -> None:
    """Show the status of a job of either kind, on-demand or not."""
    output.show(service.run(lambda client: client.find_job(job_id)))
