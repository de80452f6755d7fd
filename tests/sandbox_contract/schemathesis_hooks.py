"""Hooks that put values which schemathesis cannot know into most valid cases: ids, tokens, passwords, combinations."""

import json
import os
import zlib
from typing import Any

import schemathesis

KNOWN: dict[str, Any] = json.loads(os.environ["CONVERTRILO_KNOWN"])
"""For each operation: `ids` for it to use up, `query` and `body` to put in, and `without`, the fields to leave out."""


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Put known values into three of four valid cases."""
    known = KNOWN.get(case.operation.definition.raw["operationId"])
    number = zlib.crc32(repr((case.path_parameters, case.query, case.headers, case.body)).encode(errors="replace"))
    if known is None or case.meta is None or not case.meta.generation.mode.is_positive or number % 4 == 0:
        return case
    if case.meta.phase.name.value == "stateful":  # this phase uses the objects that it created itself
        return case
    one = known["ids"][number // 4 % len(known["ids"])] if "ids" in known else None
    if case.path_parameters and one:
        name = "jobId" if "jobId" in case.path_parameters else "id"
        case.path_parameters = {**case.path_parameters, name: one}
    if "query" in known:
        case.query = {**(case.query or {}), **known["query"]}
    if isinstance(case.body, dict):
        body = {name: value for name, value in case.body.items() if name not in known.get("without", ())}
        case.body = {**body, **known.get("body", {}), **({"jobId": one} if "jobId" in body else {})}
    return case
