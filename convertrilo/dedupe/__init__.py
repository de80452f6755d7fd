"""Webhook deduplication: each event is handled once. `convertrilo.dedupe.sqlite` has the store in a file."""

from convertrilo.dedupe.memory import LEASE, Claim, DedupeStore, Key, MemoryDedupe

__all__ = ["LEASE", "Claim", "DedupeStore", "Key", "MemoryDedupe"]
