"""The table of operations agrees with itself and with the client's methods, where openapi.yaml has no words for it."""

import inspect
import re
import typing
from typing import Any

import pytest
from samples import ANSWERS, MODELS, REQUESTS

from convertrilo._model import field_specs
from convertrilo.client import AsyncClient
from convertrilo.operations import OPERATIONS, Operation, Repeat

by_operation = pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in OPERATIONS.values()])


def method_name(row: Operation[Any]) -> str:
    return re.sub("[A-Z]", lambda match: f"_{match[0].lower()}", row.id)


# ---- requests and answers


def test_every_model_is_part_of_requests_or_of_answers() -> None:
    assert set(MODELS) == {*REQUESTS, *ANSWERS}
    assert set(REQUESTS).isdisjoint(ANSWERS)


def test_requests_hold_only_values_that_are_allowed() -> None:
    assert [f"{cls.__name__}.{spec.name}" for cls in REQUESTS for spec in field_specs(cls) if spec.facts.known] == []


def test_answers_may_hold_values_that_this_version_does_not_know() -> None:
    assert [f"{cls.__name__}.{spec.name}" for cls in ANSWERS for spec in field_specs(cls) if spec.allowed] == []


# ---- what may be repeated


@by_operation
def test_who_must_not_ask_twice_is_told_how_to_find_out(row: Operation[Any]) -> None:
    assert bool(row.find_out) is (row.repeat is Repeat.ONCE)
    for method in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row.find_out):
        assert hasattr(AsyncClient, method)


@by_operation
def test_what_is_read_is_safe_and_what_is_put_or_deleted_is_idempotent(row: Operation[Any]) -> None:
    assert (row.repeat is Repeat.SAFE) is (row.method == "GET")
    if row.method in {"PUT", "DELETE"}:
        assert row.repeat is Repeat.IDEMPOTENT


# ---- the client's methods


@by_operation
def test_every_operation_has_a_method_of_its_name(row: Operation[Any]) -> None:
    method = getattr(AsyncClient, method_name(row))
    signature = inspect.signature(method)
    assert inspect.iscoroutinefunction(method)
    assert f"`{row.id}`" in (inspect.getdoc(method) or "")
    assert signature.return_annotation == row.returns
    assert {"idempotency_key", "operation"} & set(signature.parameters) == (
        {"idempotency_key", "operation"} if row.repeat is Repeat.KEYED else set()
    )
    if row.body not in (None, bytes):
        body = signature.parameters["body"]
        assert row.body in typing.get_args(body.annotation)
        assert (body.default is inspect.Parameter.empty) is row.body_required


class Recorder(AsyncClient):
    """Notes what its methods would send."""

    async def _call(self, operation: Operation[Any], **arguments: Any) -> Any:
        self.sent = operation, arguments


@by_operation
async def test_every_method_sends_its_operation_with_all_of_its_parameters(row: Operation[Any]) -> None:
    client = Recorder("key")
    method = getattr(client, method_name(row))
    given: dict[str, Any] = {name: f"a {name}" for name in inspect.signature(method).parameters}
    given |= {
        name: value for name, value in {"index": 7, "job_ids": ["a job"], "data": b"data"}.items() if name in given
    }
    await method(**given)
    operation, sent = client.sent
    assert operation is row
    assert list(sent.pop("path", {})) == re.findall(r"\{(\w+)\}", row.path)
    assert tuple(sent.pop("query", {})) == row.query
    body = {} if row.body is None else {"body": b"data" if row.body is bytes else "a body"}
    keyed = {"idempotency_key": "a idempotency_key", "name": "a operation"} if row.repeat is Repeat.KEYED else {}
    assert sent == body | keyed
