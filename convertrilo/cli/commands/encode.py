"""`convertrilo encode`: its arguments and options."""

from pathlib import Path
from typing import Any

import click

from convertrilo.cli.options import choice, of_encoding, of_job_output, of_s3_output, of_service, of_waiting
from convertrilo.models import Priority


@click.command()
@click.argument("source")
@click.option(
    "-o", "--output", "path", type=click.Path(dir_okay=False, path_type=Path), help="Where to put the result."
)
@of_encoding
@click.option("--priority", type=choice(Priority), help="For a URL.")
@click.option("--external-id", help="Your own name for the job; the same one twice is the same job.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE|JSON", help="Given back with the job; may be repeated.")
@click.option("--idempotency-key", help="The same key twice is the same job.")
@click.option("--webhook", metavar="URL", help="For a URL: called once when the job has ended.")
@click.option(
    "--output-expiry", type=click.IntRange(3600, 604800), help="For a URL: seconds for which the result stays."
)
@of_s3_output("key", "For a URL")
@click.option("--wait", "waits", is_flag=True, help="For a URL: wait until the job has ended. For a file always.")
@of_waiting
@of_job_output
@of_service
def encode(source: str, **options: Any) -> None:
    """Encode SOURCE, a local file or an http(s) URL.

    A file is uploaded, encoded and downloaded, by default to a name that is made from its own. A URL is only sent to
    the service, and its job printed, unless --wait waits for it or --output downloads the result too.
    """
    from convertrilo.cli.encode_flow import Encoding

    Encoding.of(source, options).run()
