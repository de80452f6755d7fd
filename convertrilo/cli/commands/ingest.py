"""`convertrilo ingest`: encode every video of an S3 folder exactly once."""

from pathlib import Path
from typing import Any

import click

from convertrilo.cli.options import (
    ENCODING,
    WEEK_MS,
    encoding_options,
    output_options,
    quiet_option,
    s3_output_options,
    service_options,
    timeout_option,
)


@click.command()
@click.argument("source")
@click.option(
    "--journal",
    "journal_file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file that records objects, requests and answers; a rerun with the same file continues the run.",
)
@encoding_options
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE|JSON", help="Data returned with each job; may be repeated."
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Take only keys that match; may be repeated.  [default: video files]",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Skip keys that match; may be repeated.")
@click.option("--min-size", type=click.IntRange(0), help="Skip objects smaller than this, in bytes.")
@click.option("--max-size", type=click.IntRange(0), help="Skip objects larger than this, in bytes.")
@click.option(
    "--modified-since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z"]),
    help="Skip objects last modified before this time; in UTC unless it has a time zone.",
)
@click.option(
    "--max-files", type=click.IntRange(1), help="Maximum number of objects in the journal.  [default: no limit]"
)
@click.option(
    "--shard", metavar="I/N", help="Take only this share of the folder, 0/N to N-1/N; each share needs its own journal."
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="A file that lists the objects, read instead of listing the folder.",
)
@click.option(
    "--endpoint",
    metavar="URL",
    envvar=["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
    show_envvar=True,
    help="Endpoint of an S3-compatible store.",
)
@click.option("--region", help="The bucket's region.")
@click.option(
    "--anonymous", is_flag=True, help="List without credentials.  [default: use AWS's standard credential chain]"
)
@click.option("--on-demand", is_flag=True, help="Let the service list the folder, once and at most 1,000 files.")
@s3_output_options("prefix", "With --on-demand")
@click.option("--dry-run", is_flag=True, help="List and estimate only; create no job.")
@click.option("--from-scratch", is_flag=True, help="Forget what the journal holds, and create every job again.")
@click.option("--wait", "waits", is_flag=True, help="Wait until all jobs have ended.")
@timeout_option(WEEK_MS)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a file with one row per object.")
@quiet_option
@output_options
@service_options
def ingest(source: str, **options: Any) -> None:
    """Encode every video below SOURCE, s3://bucket/prefix, exactly once.

    A rerun with the same journal continues where the last run stopped, and encodes only the objects that are new.
    A --report whose name ends in .csv is written as CSV, any other as JSON Lines.

    Exit code 1: an object was refused, a job failed, or it is unknown whether an object has a job. Exit code 4: jobs
    are still running after --timeout-ms.
    """
    from convertrilo.cli.ingest_flow import IngestCommand, IngestOptions

    encoding = {name: options.pop(name) for name in (*ENCODING, "metadata")}
    IngestCommand(source, encoding, IngestOptions(**options)).run()
