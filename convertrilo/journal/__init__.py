"""The journal: the durable record of keyed operations."""

from convertrilo.journal.journal import Entry, Journal, State

__all__ = ["Entry", "Journal", "State"]
