"""Folder ingest: encode every video of an S3 folder exactly once."""

from convertrilo.ingest.folder import ingest_folder
from convertrilo.ingest.progress import IngestProgress
from convertrilo.ingest.report import IngestReport, IngestRow

__all__ = ["IngestProgress", "IngestReport", "IngestRow", "ingest_folder"]
