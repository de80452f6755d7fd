"""File transfers: upload a source, download an output."""

from convertrilo.transfers.transfers import OnProgress, Progress, Stage, Target, download, upload, upload_chunked

__all__ = ["OnProgress", "Progress", "Stage", "Target", "download", "upload", "upload_chunked"]
