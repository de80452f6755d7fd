"""The journal: the durable record of keyed operations."""

from convertrilo.journal.entries import Entry, State
from convertrilo.journal.journal import Journal

__all__ = ["Entry", "Journal", "State"]
