"""Bulk submission: submits jobs from an iterable in frozen batches, and returns one result per job."""

from convertrilo.bulk.results import SubmitProgress, SubmittedJob
from convertrilo.bulk.run import OnSubmit, submit_jobs
from convertrilo.bulk.send import SendBatch

__all__ = ["OnSubmit", "SendBatch", "SubmitProgress", "SubmittedJob", "submit_jobs"]
