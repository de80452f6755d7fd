"""File transfers: upload a source, download an output."""

from convertrilo.transfers.download import Target, download
from convertrilo.transfers.progress import OnProgress, Progress, Stage
from convertrilo.transfers.upload import upload, upload_chunked

__all__ = ["OnProgress", "Progress", "Stage", "Target", "download", "upload", "upload_chunked"]
