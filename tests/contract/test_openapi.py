"""openapi.yaml is valid, says something about every operation, and shows examples that keep to its own schemas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from openapi_spec_validator import validate

SPEC: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "openapi.yaml").read_text(encoding="utf-8"))
SCHEMAS: dict[str, Any] = SPEC["components"]["schemas"]
OPERATIONS: list[dict[str, Any]] = [operation for path in SPEC["paths"].values() for operation in path.values()]

by_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["operationId"])


def exact(node: Any) -> Any:
    """Return a schema that also refuses fields which are not declared, so that a misspelt one in an example shows.

    JSON Schema has no ``nullable``, and its OpenAPI 3.0 dialect reads the word only beside a ``type``; where it stands
    beside ``allOf`` or ``oneOf`` it is spelled out.
    """
    if isinstance(node, list):
        return [exact(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {key: exact(value) for key, value in node.items()}
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    if schema.get("nullable") is True and "type" not in schema:
        return {"anyOf": [{"enum": [None]}, schema]}
    return schema


EXACT = {"components": {"schemas": exact(SCHEMAS)}}


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, if it is one, into the document."""
    if "$ref" not in node:
        return node
    _, _, kind, name = node["$ref"].split("/")  # such as "#/components/parameters/JobId"
    component: dict[str, Any] = SPEC["components"][kind][name]
    return component


def examples(node: Any, where: str = "#") -> Iterator[Any]:
    """Find each example of the document, with the schema that it stands beside (or in)."""
    if isinstance(node, dict):
        shown = {"": node["example"]} if "example" in node else {}
        shown |= {name: example["value"] for name, example in node.get("examples", {}).items()}
        for name, value in shown.items():
            yield pytest.param(node.get("schema", node), value, id=f"{where}/{name}".removeprefix("#/").rstrip("/"))
        for key, child in node.items():
            if key not in {"example", "examples"}:
                yield from examples(child, f"{where}/{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from examples(child, f"{where}/{index}")


def parameters(operation: dict[str, Any]) -> list[dict[str, Any]]:
    return [resolve(parameter) for parameter in operation.get("parameters", [])]


def test_the_document_is_valid_openapi() -> None:
    assert SPEC["openapi"] == "3.0.3"
    validate(SPEC)


def test_nothing_of_the_contract_is_missing() -> None:
    assert len({operation["operationId"] for operation in OPERATIONS}) == len(OPERATIONS) == 35
    assert len(SCHEMAS) == 47
    codes = SCHEMAS["ErrorResponse"]["properties"]["code"]["enum"]
    assert len(set(codes)) == len(codes) == 31


@by_operation
def test_every_operation_is_described(operation: dict[str, Any]) -> None:
    assert operation["summary"].strip()
    assert operation["description"].strip()
    (tag,) = operation["tags"]
    assert tag in {declared["name"] for declared in SPEC["tags"] if declared["description"].strip()}


@by_operation
def test_parameters_are_described_and_answers_say_what_they_mean(operation: dict[str, Any]) -> None:
    described = [*parameters(operation), *map(resolve, operation["responses"].values())]
    assert all(part["description"].strip() for part in described)


@by_operation
def test_every_body_and_answer_has_an_example(operation: dict[str, Any]) -> None:
    bodies = [operation.get("requestBody", {}), *map(resolve, operation["responses"].values())]
    content = [media for body in bodies for media in body.get("content", {}).values()]
    assert all("example" in media or media.get("examples") for media in content)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_described(name: str) -> None:
    assert SCHEMAS[name]["description"].strip()


def properties(schema: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Find the properties of a schema, and of the schemas that stand inside it."""
    for name, node in schema.get("properties", {}).items():
        yield f"{where}.{name}", node
        yield from properties(node, f"{where}.{name}")
    for inner in [schema["items"]] if "items" in schema else schema.get("oneOf", []):
        yield from properties(inner, where)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_property_is_described(name: str) -> None:
    described = {where: resolve(node).get("description", "").strip() for where, node in properties(SCHEMAS[name], name)}
    assert [where for where, description in described.items() if not description] == []


@pytest.mark.parametrize("code", SCHEMAS["ErrorResponse"]["properties"]["code"]["enum"])
def test_every_error_code_is_explained(code: str) -> None:
    assert f"| `{code}` |" in SCHEMAS["ErrorResponse"]["properties"]["code"]["description"]


@pytest.mark.parametrize(("schema", "example"), list(examples(SPEC)))
def test_every_example_keeps_to_its_schema(schema: dict[str, Any], example: Any) -> None:
    validator = OAS30Validator(exact(schema) | EXACT, format_checker=oas30_format_checker)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(example)] == []


@by_operation
def test_keyed_operations_and_no_others_take_an_idempotency_key(operation: dict[str, Any]) -> None:
    takes_key = ("header", "Idempotency-Key") in [(part["in"], part["name"]) for part in parameters(operation)]
    assert takes_key is operation.get("x-keyed", False)


def test_four_operations_are_keyed() -> None:
    keyed = {operation["operationId"] for operation in OPERATIONS if operation.get("x-keyed")}
    assert keyed == {"createJob", "createJobsBulk", "onDemandEncode", "onDemandIngestFolder"}
