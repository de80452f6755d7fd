"""`convertrilo bulk`: the jobs of a JSON Lines file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convertrilo.cli.options import (
    A_WEEK_MS,
    of_job_output,
    of_journal,
    of_quiet,
    of_service,
    of_timeout,
    readable_file,
)

if TYPE_CHECKING:
    from convertrilo.journal import Journal


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--confirm", is_flag=True, help="Queue the jobs; else only those that say so themselves.")
@click.option("--dry-run", is_flag=True, help="Check and estimate; create nothing.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the jobs have ended; with --confirm.")
@of_journal
@of_timeout(A_WEEK_MS)
@of_quiet
@of_job_output
@of_service
def bulk(file: Path, journal: "Journal | None", **options: Any) -> None:
    """Create the jobs of FILE (or of stdin: -), a JSON object of `createJob` in each line.

    Each job needs an externalId, by which the journal knows it: no rerun makes it twice, whatever was added to FILE
    since. The journal is by default FILE.db, or with --profile NAME FILE.NAME.db, or with --sandbox a file in the
    sandbox's folder; where it holds what was sent with another API key, --journal must say which one to use. Stdin has
    none by default, and needs --journal. With --json each job is a line of JSON on stdout: line, externalId, jobId,
    status, estimate, downloadUrl, code, error. Exit code 1 if one was refused or has failed, 4 if one goes on after
    --timeout-ms.
    """
    from convertrilo.cli.bulk_flow import Bulk

    if str(file) != "-":
        readable_file(file)
    if options["waits"] and not options["confirm"]:
        raise click.UsageError("--wait would wait for ever without --confirm")
    if str(file) == "-" and journal is None and not options["dry_run"]:
        raise click.UsageError("for stdin, --journal must say where to keep what was submitted")
    Bulk(file, journal, options).run()
