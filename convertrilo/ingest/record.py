"""The record of a folder in a journal, shared by all processes that work on it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from convertrilo.journal import Journal
from convertrilo.journal import folders as _folder_rows
from convertrilo.journal.folders import Ended, New, Row, Submitted, Totals

_NOT_RECORDED = "Run it again: what was listed and submitted is found again, and nothing is made twice."


class FolderRecord:
    """The record of one folder in an open journal, shared by all processes that work on it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.run: str | None = None
        """The name of the folder's operations, if they have one."""

    async def begin(self, identity: dict[str, Any], *, from_scratch: bool) -> None:
        """Begin the record, or go on with it.

        Args:
            identity: What is done with which folder, as JSON; it stays the same until the end.
            from_scratch: Whether to forget all objects first.

        Raises:
            ConfigurationError: The record is of another folder, or of other jobs.
            JournalError: The journal cannot be used.
        """
        self.run = await self.journal.do(partial(_folder_rows.begin, identity=identity, from_scratch=from_scratch))

    async def add(self, objects: Sequence[New], most: int | None) -> list[Row]:
        """Write objects down, and return those that were not there; `most` is how many there may be in all."""
        return await self.journal.do(partial(_folder_rows.add, objects=objects, most=most), _NOT_RECORDED)

    async def submitted(self, results: Sequence[Submitted], *, dry_run: bool = False) -> None:
        """Write down what became of objects' jobs when they were submitted, or estimated."""
        await self.journal.do(partial(_folder_rows.submitted, results=results, dry_run=dry_run), _NOT_RECORDED)

    async def ended(self, results: Sequence[Ended]) -> None:
        """Write down how jobs ended."""
        await self.journal.do(partial(_folder_rows.ended, results=results), _NOT_RECORDED)

    async def last_id(self) -> int:
        """Return the number of the object that was added last."""
        return await self.journal.do(_folder_rows.last_id)

    async def page(self, after: int) -> list[Row]:
        """Return objects in the order in which they were added, from behind a number."""
        return await self.journal.do(partial(_folder_rows.page, after=after))

    async def page_without_job(self, after: int, up_to: int) -> list[Row]:
        """Return objects that have no job yet and may have one, from behind a number up to another one."""
        return await self.journal.do(partial(_folder_rows.page_without_job, after=after, up_to=up_to))

    async def unended(self, after: int, count: int) -> list[tuple[int, str]]:
        """Return jobs that have not ended, in the order in which they were submitted, each with its number."""
        return await self.journal.do(partial(_folder_rows.unended, after=after, count=count))

    async def totals(self) -> Totals:
        """Count."""
        return await self.journal.do(_folder_rows.totals)
