"""Folder ingest: encode every video of an S3 folder exactly once."""

from convertrilo.ingest.folder import ingest_folder
from convertrilo.ingest.report import IngestReport, IngestRow
from convertrilo.ingest.run import IngestProgress

__all__ = ["IngestProgress", "IngestReport", "IngestRow", "ingest_folder"]
