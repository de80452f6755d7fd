"""`convertrilo encode`: its arguments and options."""

from pathlib import Path
from typing import Any

import click

from convertrilo.cli.options import choice, of_encoding, of_job_output, of_service, of_waiting
from convertrilo.models import Priority

_S3 = "For a URL: write the result to this"


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
@click.option("--output-s3-bucket", metavar="BUCKET", help=f"{_S3} bucket, and not to a file.")
@click.option("--output-s3-key", metavar="KEY", help=f"{_S3} key.")
@click.option("--output-s3-region", metavar="REGION")
@click.option("--output-s3-endpoint", metavar="URL", help="Of an S3-compatible store.")
@click.option("--output-s3-access-key-id", metavar="ID", envvar="CONVERTRILO_OUTPUT_S3_ACCESS_KEY_ID", show_envvar=True)
@click.option(
    "--output-s3-secret-access-key",
    metavar="SECRET",
    envvar="CONVERTRILO_OUTPUT_S3_SECRET_ACCESS_KEY",
    show_envvar=True,
    help="Better in the environment, where no other user can read it.",
)
@click.option("--output-s3-force-path-style", is_flag=True, default=None)
@click.option("--wait", "waits", is_flag=True, help="For a URL: wait until the job has ended. For a file always.")
@of_waiting
@of_job_output
@of_service
def encode(source: str, **options: Any) -> None:
    """Encode SOURCE, a local file or an http(s) URL.

    A file is uploaded, encoded and downloaded, by default to a name that is made from its own. A URL is only sent to
    the service, and its job printed, unless --wait waits for it or --output downloads the result too.
    """
    from convertrilo.cli.encoding import Encoding

    Encoding.of(source, options).run()
