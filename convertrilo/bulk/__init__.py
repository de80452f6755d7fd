"""Bulk submission: an iterable of jobs in, frozen batches to the service, one result per job out."""

from convertrilo.bulk.results import SubmitProgress, SubmittedJob
from convertrilo.bulk.run import Carry, OnSubmit, submit_jobs

__all__ = ["Carry", "OnSubmit", "SubmitProgress", "SubmittedJob", "submit_jobs"]
