"""The table of docs/MIGRATING.md is what `OPERATIONS` says; `python tests/test_migrating.py` writes it anew."""

import inspect
import re
from pathlib import Path

import pytest

from convertrilo import OPERATIONS, AsyncClient, Repeat
from convertrilo.operations import Auth

PAGE = Path(__file__).parents[1] / "docs" / "MIGRATING.md"
AGAIN = {
    Repeat.SAFE: "yes",
    Repeat.IDEMPOTENT: "yes",
    Repeat.KEYED: "yes, under its key",
    Repeat.ONCE: "unless it may have happened",
}


def table() -> str:
    """The table, as Markdown."""
    rows = ["| TypeScript | Python | API | sent again |", "| --- | --- | --- | --- |"]
    for row in OPERATIONS.values():
        name = re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", row.id)
        parameters = list(inspect.signature(getattr(AsyncClient, name)).parameters.values())[1:]
        call = ", ".join(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)
        theirs = "" if row.auth is Auth.NONE and row.path.startswith("/public") else f"`{row.id}`"
        rows.append(f"| {theirs} | `{name}({call})` | `{row.method} {row.path}` | {AGAIN[row.repeat]} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    return re.sub(
        "(<!-- table -->\n).*?(<!-- end of table -->)", lambda m: f"{m[1]}\n{table()}\n\n{m[2]}", page, flags=re.S
    )


def test_the_table_is_what_the_operations_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "python tests/test_migrating.py writes it anew"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_its_row(operation: str) -> None:
    row = OPERATIONS[operation]
    assert table().count(f"| `{row.method} {row.path}` |") == 1


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
