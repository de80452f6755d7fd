"""`convertrilo ingest`: every video of a folder in S3, each encoded once."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from convertrilo.cli.options import A_WEEK_MS, of_encoding, of_output, of_quiet, of_s3_output, of_service, of_timeout


@click.command()
@click.argument("source")
@click.option(
    "--journal",
    "journal_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file that keeps what was listed, submitted and answered: the same one again goes on.",
)
@of_encoding
@click.option("--metadata", multiple=True, metavar="KEY=VALUE|JSON", help="Given back with each job.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Keys to encode.  [default: the endings of videos]")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keys to leave out.")
@click.option("--min-size", type=click.IntRange(0), help="Bytes.")
@click.option("--max-size", type=click.IntRange(0), help="Bytes.")
@click.option("--modified-since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z"]), help="By UTC.")
@click.option("--max-files", type=click.IntRange(1), help="Objects that the journal holds at most.")
@click.option("--shard", metavar="I/N", help="This share, from 0/N to N-1/N; each has a journal of its own.")
@click.option("--manifest", type=click.Path(path_type=Path), help="A file that says which objects there are.")
@click.option(
    "--endpoint",
    metavar="URL",
    envvar=["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
    show_envvar=True,
    help="Of an S3-compatible store.",
)
@click.option("--region", help="Of the bucket.")
@click.option("--anonymous", is_flag=True, help="Without credentials; else those of AWS's standard chain are used.")
@click.option("--on-demand", is_flag=True, help="Let the service list the folder: at most 1,000 files.")
@of_s3_output("prefix", "With --on-demand")
@click.option("--dry-run", is_flag=True, help="List and estimate; create nothing.")
@click.option("--from-scratch", is_flag=True, help="Forget what the journal knows, and make every job anew.")
@click.option("--wait", "waits", is_flag=True, help="Wait until all jobs have ended.")
@of_timeout(A_WEEK_MS)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Where to write a row for each object.")
@of_quiet
@of_output
@of_service
def ingest(source: str, modified_since: datetime | None, **options: Any) -> None:
    """Have every video below SOURCE, s3://bucket/prefix, encoded once.

    Run again with the same journal it goes on where it stopped, and of a folder that has grown only what is new is
    encoded. A --report whose name ends in .csv is CSV, any other JSON lines.
    Exit code 1 if objects were refused, jobs have failed, or it is not known whether there is one, 4 if jobs go on
    after --timeout-ms.
    """
    from convertrilo.cli.ingest_flow import Ingestion

    Ingestion(source, modified_since, options).run()
