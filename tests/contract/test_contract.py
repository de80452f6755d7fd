"""The code says what openapi.yaml says: operations, methods, models and every field of them, in both directions.

Both sides are put into the same plain form (`said_by_code`, `said_by`) and compared. The second half shows that the
comparison can fail: every single fact of the document is altered once, and so is its structure.
"""

import copy
import functools
import re
import typing
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from samples import MODELS

from convertrilo import models
from convertrilo._base_client import DEFAULT_BASE_URL
from convertrilo._model import Facts, FieldSpec, Model, field_specs
from convertrilo.codec import wire_name
from convertrilo.operations import OPERATIONS, Auth, Operation, Repeat

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "openapi.yaml").read_text(encoding="utf-8"))


# ---- what the document says and the code has no words for

PROSE = {"summary", "description", "example", "examples", "tags"}
SECTIONS = {"openapi", "info", "servers", "tags", "paths", "components"}
SECURITY_SCHEMES = {
    "BearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "ApiKeyAuth": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
PARAMETER_SCHEMAS = {
    "Idempotency-Key": {"type": "string", "maxLength": 255},
    "index": {"type": "integer", "minimum": 1, "maximum": 10000},
}
ERROR_STATUSES = {
    "createJob": [429],
    "jobStatus": [401, 403, 404, 429],
    "createJobsBulk": [429],
    "getWebhookDeliveries": [404],
    "onDemandEncode": [400, 402, 403, 410, 429],
    "onDemandIngestFolder": [400, 401, 404, 410, 429],
    "onDemandStatus": [404, 429],
}
"""The documented errors of every operation; those that are not here have none."""
DEPRECATED = {
    "OnDemandEncodeRequest.outputDropbox",
    "OnDemandFolderIngestRequest.sourceDropbox",
    "OnDemandFolderIngestRequest.outputDropbox",
}
DESTINATIONS = {"cdn": ["type"], "s3": ["type", "bucket", "key"], "google-drive": ["type", "folderId", "fileName"]}
"""Which fields go with which `type` of `OnDemandStatusResponse.destination`; the model has all of them in one class."""


# ---- what the code says


@functools.cache
def said_by_code(named: frozenset[str]) -> dict[str, Any]:
    """Return what the code says; `named` are the schemas of the document, all other models stand inside of others."""
    inner = {spec.kind for cls in MODELS for spec in field_specs(cls) if issubclass(spec.kind, Model)}
    listed = [cls for cls in MODELS if cls.__name__ in named or cls not in inner]
    event = {"type": "string", "enum": sorted(typing.get_args(models.WebhookEventName))}
    return {
        "sections": SECTIONS,
        "servers": [{"url": DEFAULT_BASE_URL}],
        "security_schemes": SECURITY_SCHEMES,
        "operations": {row.id: said_of_operation(row) for row in OPERATIONS.values()},
        "order": list(OPERATIONS),
        "paths": list({row.path: None for row in OPERATIONS.values()}),
        "schemas": {cls.__name__: said_of_model(cls, named) for cls in listed} | {"WebhookEvent": event},
        "deprecated": DEPRECATED,
        "destinations": DESTINATIONS,
    }


def said_of_operation(row: Operation[Any]) -> dict[str, Any]:
    keyed = row.repeat is Repeat.KEYED
    parameters = {f"path {name}": True for name in re.findall(r"\{(\w+)\}", row.path)}
    parameters |= {f"query {name}": True for name in row.query}
    parameters |= {"header Idempotency-Key": False} if keyed else {}
    body: dict[str, Any] | None = None
    if row.body is bytes:
        body = {"application/octet-stream": {"type": "string", "format": "binary"}, "required": row.body_required}
    elif row.body is not None:
        body = {"application/json": {"$ref": row.body.__name__}, "required": row.body_required}
    returns = {} if row.returns is None else {"application/json": {"$ref": row.returns.__name__}}
    errors = {status: {"application/json": {"$ref": "ErrorResponse"}} for status in ERROR_STATUSES.get(row.id, [])}
    return {
        "method": row.method,
        "path": row.path,
        "parameters": {
            name: {"required": required, "schema": PARAMETER_SCHEMAS.get(name.split()[1], {"type": "string"})}
            for name, required in parameters.items()
        },
        "credentials": {
            Auth.ANY: [{"ApiKeyAuth": []}, {"BearerAuth": []}],
            Auth.BEARER: [{"BearerAuth": []}],
            Auth.NONE: [],
        }[row.auth],
        "keyed": keyed,
        "body": body,
        "answers": {row.status: returns} | errors,
    }


def said_of_model(cls: type[Model], named: frozenset[str]) -> dict[str, Any]:
    fields = {wire_name(spec.name): said_of_field(spec, named) for spec in field_specs(cls)}
    return {"type": "object", "properties": fields, "order": list(fields)}


def said_of_field(spec: FieldSpec, named: frozenset[str]) -> dict[str, Any]:
    known = spec.facts
    facts = {
        "enum": sorted(spec.allowed or known.known) or None,
        "format": known.format,
        "minimum": known.minimum,
        "maximum": known.maximum,
        "minLength": known.min_length,
        "maxLength": known.max_length,
    }
    one = said_of_kind(spec.kind, named) | {name: value for name, value in facts.items() if value is not None}
    if spec.many:
        one = {"type": "array", "items": one}
    if known.nullable:
        one["nullable"] = True
    if known.default is not None:
        one["default"] = known.default
    return one | {"required": spec.required}


def said_of_kind(kind: type[Any], named: frozenset[str]) -> dict[str, Any]:
    if issubclass(kind, Model):
        return {"$ref": kind.__name__} if kind.__name__ in named else said_of_model(kind, named)
    names = {str: "string", int: "integer", float: "number", bool: "boolean", datetime: "time", dict: "object"}
    return {} if kind is object else {"type": names[kind]}


# ---- what the document says


def said_by(document: dict[str, Any]) -> dict[str, Any]:
    reader = Reader(document)
    rows = [row for path, item in document["paths"].items() for row in reader.operations(path, item)]
    schemas = document["components"]["schemas"]
    return {
        "sections": set(document),
        "servers": document["servers"],
        "security_schemes": {name: facts_of(node) for name, node in document["components"]["securitySchemes"].items()},
        "operations": dict(rows),
        "order": [name for name, _ in rows],
        "paths": list(document["paths"]),
        "schemas": {name: reader.schema(node, name) for name, node in schemas.items()},
        "deprecated": reader.deprecated,
        "destinations": reader.destinations,
    }


def facts_of(node: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name not in PROSE}


class Reader:
    """Puts operations and schemas into the plain form. What it has no word for stays in it, and so is a difference."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.components: dict[str, dict[str, Any]] = document["components"]
        self.deprecated: set[str] = set()
        self.destinations: dict[str, list[str]] = {}

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in node:
            return facts_of(node)
        _, _, kind, name = node["$ref"].split("/")
        beside = {name: value for name, value in node.items() if name != "$ref"}
        return facts_of(self.components[kind][name]) | beside

    def operations(self, path: str, item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for method, node in item.items():
            rest = facts_of(node)
            parameters = [self.resolved(each) for each in rest.pop("parameters", [])]
            said = {
                "method": method.upper(),
                "path": path,
                "parameters": {f"{each.pop('in')} {each.pop('name')}": each for each in parameters},
                "credentials": sorted(rest.pop("security"), key=str),
                "keyed": rest.pop("x-keyed", False),
                "body": self.content({"required": False} | rest.pop("requestBody")) if "requestBody" in rest else None,
                "answers": {int(status): self.content(each) for status, each in rest.pop("responses").items()},
            }
            yield rest.pop("operationId"), said | rest

    def content(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return what a body or an answer holds, and what else is said of it."""
        said = self.resolved(node)
        schemas = {media: facts_of(each) for media, each in said.pop("content", {}).items()}
        return {media: self.schema(each.pop("schema"), media) | each for media, each in schemas.items()} | said

    def schema(self, node: dict[str, Any], where: str) -> dict[str, Any]:
        schema = facts_of(node)
        if schema.pop("deprecated", False):
            self.deprecated.add(where)
        if "allOf" in schema and len(schema["allOf"]) == 1:  # how OpenAPI 3.0 puts nullable beside a reference
            return self.schema(schema.pop("allOf")[0], where) | schema
        if "$ref" in schema:
            return self.reference(schema.pop("$ref"), where) | schema
        if "oneOf" in schema:
            return self.one_of(schema.pop("oneOf"), where) | schema
        if "enum" in schema:
            schema["enum"] = sorted(schema["enum"], key=str)
        if schema.get("format") == "date-time" and schema.get("type") == "string":
            schema["type"] = "time"
        if schema.get("additionalProperties") is True:  # which is what leaving it out means
            del schema["additionalProperties"]
        if "items" in schema:
            schema["items"] = self.schema(schema["items"], where)
        if "properties" in schema:
            schema["properties"] = self.fields(schema["properties"], schema.pop("required", []), where)
            schema["order"] = list(schema["properties"])
        return schema

    def fields(self, nodes: dict[str, Any], required: list[str], where: str) -> dict[str, Any]:
        fields = {name: self.schema(node, f"{where}.{name}") for name, node in nodes.items()}
        for name in fields.keys() | set(required):
            fields.setdefault(name, {})["required"] = name in required
        return fields

    def reference(self, reference: str, where: str) -> dict[str, Any]:
        name = reference.removeprefix("#/components/schemas/")
        target = self.components["schemas"].get(name, {})
        return self.schema(target, where) if "enum" in target else {"$ref": name}

    def one_of(self, choices: list[dict[str, Any]], where: str) -> dict[str, Any]:
        """Lay the choices over one another, as the one class that stands for all of them does."""
        fields: dict[str, Any] = {}
        for choice in choices:
            said = self.schema(choice, where)
            (tag,) = said["properties"]["type"].pop("enum")
            self.destinations[tag] = said.pop("order")
            alike = [fields.setdefault(name, field) == field for name, field in said.pop("properties").items()]
            if not all(alike) or said != {"type": "object"}:
                return {"oneOf": choices}
        fields["type"]["enum"] = sorted(self.destinations)
        return {"type": "object", "properties": fields, "order": list(fields)}


# ---- the comparison


def differences(document: dict[str, Any]) -> Iterator[str]:
    """Find each place where the code and a document say different things."""
    try:
        said = said_by(document)
    except (KeyError, TypeError, ValueError) as error:
        yield f"openapi.yaml has not the form that is expected: {error!r}"
    else:
        yield from compare(said_by_code(frozenset(document["components"]["schemas"])), said, "")


def compare(code: Any, document: Any, where: str) -> Iterator[str]:
    if isinstance(code, dict) and isinstance(document, dict):
        for name in code | document:
            here = f"{where}/{name}"
            if name not in code or name not in document:
                yield f"{here}: only {'the code' if name in code else 'openapi.yaml'} has it"
            else:
                yield from compare(code[name], document[name], here)
    elif (type(code), code) != (type(document), document):
        yield f"{where}: {code!r} in the code, {document!r} in openapi.yaml"


def test_the_code_says_what_the_document_says() -> None:
    assert list(differences(DOCUMENT)) == []


# ---- the comparison can fail

SAYS_NOTHING: dict[Any, bool] = {"required": False, "additionalProperties": True}
"""Words that say no more than leaving them out does."""


def changed(node: Any, where: str) -> Iterator[str]:
    """Change a document in place in every way, one after the other; undo each when the next is asked for."""
    whole = copy.copy(node)
    for key, value in whole.items() if isinstance(whole, dict) else enumerate(whole):
        here = f"{where}/{key}"
        if key in PROSE and not where.endswith("/properties"):
            continue
        if SAYS_NOTHING.get(key) is not value:
            del node[key]
            yield f"gone: {here}"
            put(node, whole)
        if isinstance(value, dict | list):
            yield from changed(value, here)
        else:
            node[key] = not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1
            yield f"altered: {here}"
            node[key] = value
    if isinstance(node, dict):
        node["new"] = {}
    else:
        node.append({"new": {}} if whole and isinstance(whole[0], dict) else "new")
    yield f"new: {where}"
    put(node, whole)


def put(node: Any, content: Any) -> None:
    node.clear()
    if isinstance(node, dict):
        node.update(content)
    else:
        node.extend(content)


@pytest.mark.parametrize("part", ["servers", "paths", "securitySchemes", "parameters", "responses", "schemas"])
def test_nothing_in_the_document_can_change_without_a_difference(part: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    components = document["components"]
    parts = list(components[part].values()) if part in {"parameters", "responses"} else [(components | document)[part]]
    changes = 0
    unnoticed = []
    for node in parts:
        for change in changed(node, part):
            changes += 1
            if next(differences(document), None) is None:
                unnoticed.append(change)
    assert changes
    assert unnoticed == []
    assert document == DOCUMENT


def rename(node: dict[str, Any], old: str, new: str) -> None:
    items = [(new if key == old else key, value) for key, value in node.items()]
    put(node, dict(items))


def swap(node: Any) -> None:
    """Put the first last."""
    put(
        node,
        dict([*list(node.items())[1:], *list(node.items())[:1]]) if isinstance(node, dict) else node[1:] + node[:1],
    )


Change = Callable[[Any], object]
FOUND: list[tuple[str, Change, str]] = [
    ("/paths", swap, "/order: ['login', 'getBalance'"),
    ("/paths", lambda paths: rename(paths, "/jobs", "/job"), "/operations/createJob/path: '/jobs' in the code, '/job'"),
    ("/paths", lambda paths: rename(paths["/jobs"], "post", "put"), "/operations/createJob/method: 'POST' in the code"),
    (
        "/paths/~jobs/post/responses",
        lambda answers: answers.pop("429"),
        "/operations/createJob/answers/429: only the code",
    ),
    ("/paths/~jobs/post", lambda row: row.update({"x-keyed": False}), "/operations/createJob/keyed: True in the code"),
    ("/paths/~jobs/post/security", lambda either: either[0].update(either.pop()), "/operations/createJob/credentials"),
    ("/paths/~jobs/post/security", list.pop, "/operations/createJob/credentials: [{'ApiKeyAuth': []}, {'BearerAuth'"),
    (
        "/components/schemas",
        lambda all_: rename(all_, "JobOutput", "Output"),
        "/schemas/Output: only openapi.yaml has it",
    ),
    ("/components/schemas", lambda all_: all_.pop("ConfirmResponse"), "/schemas/ConfirmResponse: only the code has it"),
    ("/components/schemas/WebhookEvent/enum", list.pop, "/schemas/WebhookEvent/enum: ['job.canceled', 'job.completed'"),
    ("/components/schemas/JobOutput/properties", swap, "/schemas/JobOutput/order: ['key', 'publicUrl'] in the code"),
    (
        "/components/schemas/JobOutput/properties",
        lambda fields: fields.update(size={"type": "integer"}),
        "/schemas/JobOutput/properties/size: only openapi.yaml has it",
    ),
    (
        "/components/schemas/JobCreateRequest/properties/confirm",
        lambda field: field.update(default=0),
        "/schemas/JobCreateRequest/properties/confirm/default: False in the code, 0 in openapi.yaml",
    ),
    (
        "/components/schemas/JobCreateRequest/properties/fps",
        lambda field: field.update(maximum=120),
        "/schemas/JobCreateRequest/properties/fps/maximum: 240 in the code, 120 in openapi.yaml",
    ),
    (
        "/components/schemas/StatusResponse/properties/pct",
        lambda field: field.pop("nullable"),
        "/schemas/StatusResponse/properties/pct/nullable: only the code has it",
    ),
    (
        "/components/schemas/ApproveUnifiedResponse/properties/estimate/properties",
        lambda fields: fields.pop("reserved"),
        "/schemas/ApproveUnifiedResponse/properties/estimate/properties/reserved: only the code has it",
    ),
    (
        "/components/schemas/OnDemandStatusResponse/properties/destination/oneOf",
        lambda kinds: kinds[2]["properties"].update(bucket=kinds[1]["properties"].pop("bucket")),
        "/destinations/s3: ['type', 'bucket', 'key'] in the code, ['type', 'key'] in openapi.yaml",
    ),
]


@pytest.mark.parametrize(("where", "change", "found"), FOUND)
def test_a_difference_is_named(where: str, change: Change, found: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    node: Any = document
    for key in where.removeprefix("/").split("/"):
        node = node[int(key) if isinstance(node, list) else key.replace("~", "/")]
    change(node)
    assert any(difference.startswith(found) for difference in differences(document))


ROW_CHANGES: dict[str, Any] = {
    "method": "PUT",
    "path": "/jobs/{id}",
    "returns": None,
    "body": None,
    "body_required": False,
    "query": ("ids",),
    "repeat": Repeat.ONCE,
    "auth": Auth.NONE,
    "status": 201,
}
SPEC_CHANGES: dict[str, Any] = {"kind": str, "many": True, "allowed": (1, 2), "required": False}
FACT_CHANGES: dict[str, Any] = {
    "minimum": 2,
    "maximum": 300,
    "min_length": 1,
    "max_length": 1,
    "format": "uuid",
    "nullable": True,
    "default": 30,
    "known": ("1", "2"),
}


@pytest.mark.parametrize("name", ROW_CHANGES)
def test_nothing_in_the_table_can_change_without_a_difference(name: str) -> None:
    assert ROW_CHANGES.keys() == names_of(Operation) - {"id", "find_out"}  # the one is the key, the other is prose
    row = OPERATIONS["createJob"]
    assert said_of_operation(attrs.evolve(row, **{name: ROW_CHANGES[name]})) != said_of_operation(row)


@pytest.mark.parametrize("name", SPEC_CHANGES | FACT_CHANGES)
def test_nothing_in_a_model_can_change_without_a_difference(name: str) -> None:
    assert SPEC_CHANGES.keys() == names_of(FieldSpec) - {"name", "facts"}
    assert FACT_CHANGES.keys() == names_of(Facts) - {"secret", "signed"}  # of which OpenAPI knows nothing
    (spec,) = [each for each in field_specs(models.JobCreateRequest) if each.name == "fps"]
    if name in SPEC_CHANGES:
        other = attrs.evolve(spec, **{name: SPEC_CHANGES[name]})
    else:
        other = attrs.evolve(spec, facts=attrs.evolve(spec.facts, **{name: FACT_CHANGES[name]}))
    assert said_of_field(other, frozenset()) != said_of_field(spec, frozenset())


def names_of(cls: type[attrs.AttrsInstance]) -> set[str]:
    return {attribute.name for attribute in attrs.fields(cls)}
