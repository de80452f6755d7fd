"""Webhook deduplication: each event is handled once."""

from convertrilo.dedupe.memory import LEASE, Claim, DedupeStore, Key, MemoryDedupe

__all__ = ["LEASE", "Claim", "DedupeStore", "Key", "MemoryDedupe"]
