"""Durable storage behind the journal and webhook deduplication."""
