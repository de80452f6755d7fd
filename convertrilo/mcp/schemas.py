"""The tools' JSON schemas, derived from openapi.yaml and the models, and the check of arguments against them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as Mismatch

from convertrilo._model import Model, field_specs
from convertrilo._openapi import openapi
from convertrilo.codec import wire_name
from convertrilo.errors import Issue, ValidationError
from convertrilo.idempotency import CREDENTIALS

Schema = dict[str, Any]


def object_schema(properties: Mapping[str, Schema], required: Sequence[str] = (), **more: Any) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        **more,
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def request_schema(cls: type[Model], profiles: Sequence[str]) -> Schema:
    """Return the schema of a request for agents: without credentials and deprecated fields.

    If there are storage profiles, `storageProfile` replaces the credentials of a store.
    """
    return _request(cls, _contract(cls.__name__), profiles)


def _request(cls: type[Model], contract: Mapping[str, Any], profiles: Sequence[str]) -> Schema:
    description = _line(contract.get("description", ""))
    properties: dict[str, Schema] = {}
    for spec in field_specs(cls):
        name = wire_name(spec.name)
        declared = contract["properties"][name]
        if spec.name == "access_key_id" and profiles:
            properties["storageProfile"] = {"type": "string", "enum": list(profiles), "description": _PROFILE}
        elif spec.name == "access_key_id":
            description = f"{description} {_NO_PROFILE}".strip()
        if spec.facts.secret or declared.get("deprecated"):
            continue
        if not issubclass(spec.kind, Model):
            properties[name] = _tidy(declared)
        elif spec.many:
            items = _request(spec.kind, _resolved(declared["items"]), profiles)
            properties[name] = {**_tidy(declared), "items": items}
        else:
            properties[name] = _request(spec.kind, _resolved(declared), profiles)
    return object_schema(
        properties, contract.get("required", ()), **({"description": description} if description else {})
    )


_PROFILE = "The storage profile with the credentials to use; the user has set it up for this server."
_NO_PROFILE = (
    "No storage profile is set up; the user can set one up for this server "
    "(CONVERTRILO_S3_<NAME>_ACCESS_KEY_ID and CONVERTRILO_S3_<NAME>_SECRET_ACCESS_KEY in its environment)."
)


def answer_schema(*classes: type[Model], also: Mapping[str, Schema]) -> Schema:
    """Return the schema of a result: the fields of one or several answers, and those in `also`.

    Fields that the service may add later are allowed.
    """
    properties: dict[str, Schema] = {}
    for cls in classes:
        properties |= _answer(_contract(cls.__name__)).get("properties", {})
    return {"type": "object", "properties": {**properties, **also}, "required": list(also)}


def _answer(declared: Mapping[str, Any]) -> Schema:
    declared = _resolved(declared)
    schema: Schema = {name: declared[name] for name in ("type", "additionalProperties") if name in declared}
    if "description" in declared:
        schema["description"] = _line(declared["description"])
    if "properties" in declared:
        schema["properties"] = {name: _answer(each) for name, each in declared["properties"].items()}
    if "items" in declared:
        schema["items"] = _answer(declared["items"])
    choices = declared.get("oneOf") or declared.get("allOf")
    if choices:
        schema["anyOf"] = [*map(_answer, choices), *([{"type": "null"}] if declared.get("nullable") else [])]
    elif declared.get("nullable"):
        schema["type"] = [declared["type"], "null"]
    return schema


def _resolved(declared: Mapping[str, Any]) -> Mapping[str, Any]:
    return _contract(declared["$ref"].rpartition("/")[2]) if "$ref" in declared else declared


def _contract(name: str) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", openapi()["components"]["schemas"][name])


def _tidy(declared: Mapping[str, Any]) -> Schema:
    schema = dict(declared)
    if "description" in schema:
        schema["description"] = _line(schema["description"])
    return schema


def _line(text: str) -> str:
    return " ".join(text.split())


# ---- arguments


def check(schema: Schema, arguments: Mapping[str, Any]) -> None:
    """Check arguments against a schema. Errors do not quote values, which may be misplaced credentials.

    Raises:
        ValidationError: The arguments do not fit the schema.
    """
    validator: Any = Draft202012Validator(schema)
    found: Iterable[Mismatch] = validator.iter_errors(arguments)
    if issues := [issue for mismatch in found for issue in _issues(mismatch)]:
        raise ValidationError("arguments", issues)


_LIMITS = {
    "type": "must be of type {}",
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be above {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "pattern": "must match {}",
}


def _issues(mismatch: Mismatch) -> list[Issue]:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mismatch.absolute_path)
    rule, limit, instance = (
        str(mismatch.validator),
        cast("Any", mismatch.validator_value),
        cast("Any", mismatch.instance),
    )
    if rule == "additionalProperties":
        properties = cast("Mapping[str, Any]", mismatch.schema)["properties"]
        return [_unknown(f"{path}.{name}", name, properties) for name in instance if name not in properties]
    if rule == "required":
        return [Issue(f"{path}.{name}"[1:], "is required") for name in limit if name not in instance]
    if rule == "enum":
        return [Issue(path[1:], f"must be one of {', '.join(map(str, limit))}")]
    return [Issue(path[1:], _LIMITS.get(rule, f"does not fit {rule}").format(limit))]


def _unknown(path: str, name: str, properties: Mapping[str, Any]) -> Issue:
    if name in CREDENTIALS:
        return Issue(path[1:], "is a credential, which is never an argument; name a storageProfile instead")
    if name == "storageProfile":
        return Issue(path[1:], f"names no storage profile. {_NO_PROFILE}")
    known = f"the arguments are {', '.join(properties)}" if properties else "there are none"
    return Issue(path[1:], f"is not an argument of this tool; {known}")
