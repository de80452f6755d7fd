"""Recovery after a restart: queue interrupted jobs again, and remove files that a crash left behind."""

from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.records import SUCCESS
from convertrilo.sandbox.state.store import Tx


def requeue_interrupted(tx: Tx) -> None:
    """Queue again the jobs that were running when the sandbox ended."""
    tx.run("UPDATE jobs SET status = 'queued', started_at = NULL, encoder = NULL WHERE status = 'running'")


def remove_leftovers(tx: Tx, files: Files) -> None:
    """Remove the sources and parts of jobs that have ended, and the outputs of jobs that should have none."""
    for path in files.sources():
        job = tx.job(path.name)
        if job is None or job.ended:
            path.unlink()
    for job_id in files.jobs_with_parts():
        job = tx.job(job_id)
        if job is None or job.ended:
            files.drop_parts(job_id)
    for path in files.outputs():
        job = tx.job(path.name)
        if job is None or job.status != SUCCESS or job.destination is not None:
            path.unlink()
