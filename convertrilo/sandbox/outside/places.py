"""Places outside the sandbox that sources come from and outputs go to: the web, S3 and Google Drive."""

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from convertrilo.sandbox.outside.drive import Drive
from convertrilo.sandbox.outside.s3 import S3
from convertrilo.sandbox.outside.sources import Sources
from convertrilo.sandbox.state.records import Job
from convertrilo.sandbox.state.rules import Rules


@attrs.frozen(eq=False)
class Places:
    """Fetches sources from, and stores outputs to, the place that a job names."""

    rules: Rules
    web: Sources
    s3: S3
    drive: Drive

    @property
    def fetches(self) -> bool:
        """Whether sources are fetched at all."""
        return self.web.fetches

    async def fetch(self, job: Job, target: Path) -> None:
        """Fetch a job's source into a file; do nothing for an upload.

        Raises:
            MediaError: the source cannot be fetched.
        """
        if job.source_url is not None:
            await self.web.fetch(job.source_url, target)
        elif job.source is not None:
            await self._client_of(job.source).fetch(job.source, target, limit=self.rules.max_source_bytes)

    async def store(self, job: Job, output: Path) -> None:
        """Write a job's output to the job's destination, if it has one.

        Raises:
            MediaError: the output cannot be written.
        """
        if job.destination is not None:
            media_type = mimetypes.guess_type(f"output.{job.settings['container']}")[0] or "application/octet-stream"
            await self._client_of(job.destination).store(job.destination, output, media_type)

    def _client_of(self, place: Mapping[str, Any]) -> S3 | Drive:
        return self.s3 if "bucket" in place else self.drive
