"""`convertrilo bulk`: create the jobs of a JSON Lines file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.files import check_readable
from convertrilo.cli.options import (
    WEEK_MS,
    job_output_options,
    journal_option,
    quiet_option,
    service_options,
    timeout_option,
)

if TYPE_CHECKING:
    from convertrilo.journal import Journal


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--confirm",
    is_flag=True,
    help="Queue every job.  [default: queue only the jobs whose line sets `confirm`]",
)
@click.option("--dry-run", is_flag=True, help="Validate and estimate only; create no job and need no journal.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the jobs have ended; needs --confirm.")
@journal_option
@timeout_option(WEEK_MS)
@quiet_option
@job_output_options
@service_options
def bulk(file: Path, journal: "Journal | None", **options: Any) -> None:
    """Create the jobs of FILE, which holds one `createJob` request per line as JSON; - reads stdin.

    Each job needs an externalId, which identifies it in the journal: a rerun creates no job twice, even if lines were
    added to FILE.

    The default journal is FILE.db; with --profile NAME it is FILE.NAME.db, and with --sandbox a file in the sandbox's
    folder. If the default journal was used with another API key, nothing is sent until --journal names the file to
    use. Stdin has no default journal and needs --journal.

    With --json each job is one line of JSON on stdout: line, externalId, jobId, status, estimate, downloadUrl, code,
    error.

    Exit code 1: a job was refused or failed. Exit code 4: a job is still running after --timeout-ms.
    """
    from convertrilo.cli.bulk_flow import BulkCommand, BulkOptions

    if str(file) != "-":
        check_readable(file)
    if options["waits"] and not options["confirm"]:
        raise click.UsageError("--wait would wait forever without --confirm")
    if str(file) == "-" and journal is None and not options["dry_run"]:
        raise click.UsageError("stdin has no default journal: name one with --journal")
    BulkCommand(file, journal, BulkOptions(**options)).run()
