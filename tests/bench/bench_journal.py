"""Client CPU that the journal adds to a create, by recording the operation and its answer."""

import itertools

from convertrilo import AsyncClient, Journal

from . import data
from .harness import Bench, awaited, in_turns, micro, typical

_COUNTS = {1: 100, 64: 640}


async def run(bench: Bench) -> None:
    """Print the CPU of a create without and with a journal, alone and among concurrent ones."""
    page = bench.page
    numbers = itertools.count()
    journal = Journal(bench.directory / "bench.db")
    async with (
        AsyncClient("a-key", base_url=bench.url) as plain,
        AsyncClient("a-key", base_url=bench.url, journal=journal) as journaled,
    ):
        page.table("journal: CPU us a create", ["in flight", "without", "with", "added, ms"])
        for in_flight, full in _COUNTS.items():
            count = bench.scale.count(full)
            contestants = {
                "without": awaited(lambda: plain.create_job(data.job(next(numbers))), count, in_flight),
                "with": awaited(lambda: journaled.create_job(data.job(next(numbers))), count, in_flight),
            }
            await in_turns(contestants, 1)  # opens connections, starts threads, fills caches
            rounds = await in_turns(contestants, bench.scale.rounds(9))
            added = [
                (ours.cpu - alone.cpu) * 1e3 for alone, ours in zip(rounds["without"], rounds["with"], strict=True)
            ]
            cells = [micro(typical(rounds, name, "cpu")) for name in contestants]
            page.row(str(in_flight), *cells, page.against(str(in_flight), added, at_most=1.0))
