"""Everything the sandbox fetches from or sends to other hosts."""
