"""What schemathesis cannot know: ids, tokens, passwords, and what goes together. Most of the valid cases get them."""

import json
import os
import zlib
from typing import Any

import schemathesis

KNOWN: dict[str, Any] = json.loads(os.environ["CONVERTRILO_KNOWN"])
"""For an operation: `ids` that it can work with and use up, `query`, `body` to put in, and `without`, to leave out."""


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Put what is known into three of four cases that are valid."""
    known = KNOWN.get(case.operation.definition.raw["operationId"])
    number = zlib.crc32(repr((case.path_parameters, case.query, case.headers, case.body)).encode(errors="replace"))
    if known is None or case.meta is None or not case.meta.generation.mode.is_positive or number % 4 == 0:
        return case
    if case.meta.phase.name.value == "stateful":  # it goes on with what it has made itself
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
