"""`convertrilo encode`: encode a local file or a URL."""

from pathlib import Path
from typing import Any

import click

from convertrilo.cli.options import (
    choice,
    encoding_options,
    job_output_options,
    s3_output_options,
    service_options,
    wait_options,
)
from convertrilo.models import Priority


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The output file.  [default: for a file NAME.CODEC.CONTAINER, for a URL no download]",
)
@encoding_options
@click.option("--priority", type=choice(Priority), help="For a URL: priority in the queue.  [default: normal]")
@click.option("--external-id", help="Your own id for the job; repeating it continues the same job.")
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE|JSON", help="Data returned with the job; may be repeated."
)
@click.option(
    "--idempotency-key",
    help="The idempotency key of the job; repeating it continues the same job.  [default: a random key]",
)
@click.option("--webhook", metavar="URL", help="For a URL: the service calls this URL once, when the job has ended.")
@click.option(
    "--output-expiry",
    type=click.IntRange(3600, 604800),
    help="For a URL: how long the output can be downloaded, in seconds.  [default: 86400]",
)
@s3_output_options("key", "For a URL")
@click.option(
    "--wait", "waits", is_flag=True, help="For a URL: wait until the job has ended; for a file this is always so."
)
@wait_options
@job_output_options
@service_options
def encode(source: str, **options: Any) -> None:
    """Encode SOURCE, a local file or an http(s) URL.

    A file is uploaded, encoded and downloaded, by default to NAME.CODEC.CONTAINER. The service
    fetches and encodes a URL, and the command prints the job; with --wait it also waits for the job, and with --output
    it waits and downloads the output.
    """
    from convertrilo.cli.encode_flow import EncodeCommand

    EncodeCommand.from_options(source, options).run()
