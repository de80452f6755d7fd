"""Waiting for jobs: all tasks of a client share one poller."""

from convertrilo.waiting.wait import HasJobId, JobResult, notify, wait_for_job, wait_for_jobs, wait_for_on_demand

__all__ = ["HasJobId", "JobResult", "notify", "wait_for_job", "wait_for_jobs", "wait_for_on_demand"]
