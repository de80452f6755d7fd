"""Everything that the sandbox fetches from, or sends to, other hosts."""
