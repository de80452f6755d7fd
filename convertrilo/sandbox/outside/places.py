"""Where sources come from and outputs go besides the sandbox's own files: the web, S3 and Google Drive."""

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
    """The roads to all places that a job may name."""

    rules: Rules
    web: Sources
    s3: S3
    drive: Drive

    @property
    def fetches(self) -> bool:
        """Whether sources are brought here at all."""
        return self.web.fetches

    async def fetch(self, job: Job, target: Path) -> None:
        """Bring the source that a job names to a file.

        Raises:
            MediaError: it cannot be had; the message is for the job's owner.
        """
        if job.source_url is not None:
            await self.web.fetch(job.source_url, target)
        elif job.source is not None:
            await self._road(job.source).fetch(job.source, target, limit=self.rules.max_source_bytes)

    async def store(self, job: Job, output: Path) -> None:
        """Take a job's output where the job wants it.

        Raises:
            MediaError: it cannot be written there.
        """
        if job.destination is not None:
            media_type = mimetypes.guess_type(f"output.{job.settings['container']}")[0] or "application/octet-stream"
            await self._road(job.destination).store(job.destination, output, media_type)

    def _road(self, place: Mapping[str, Any]) -> S3 | Drive:
        return self.s3 if "bucket" in place else self.drive
