"""Converts between models and the wire: the only place that knows camelCase, JSON and canonical bytes.

Each model gets a generated function for reading and one for writing when it is first used. One cattrs converter holds
them. A generated reader only detects that an answer does not fit; a slow second pass then finds the place.
tests/bench/bench_codec.py measures both.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast

import cattrs

from convertrilo._json import NotJsonError, loads, normal
from convertrilo._model import FieldSpec, Model, field_specs, slot_setter
from convertrilo.errors import DecodeError, Issue, ValidationError

_M = TypeVar("_M", bound=Model)

_SHOWN_BYTES = 200
_JSON_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)(\s*:)?', re.DOTALL)


# ---- names

_ODD_NAMES = {"part_number": "PartNumber", "etag": "ETag"}


@cache
def wire_name(name: str) -> str:
    """Return the wire name of a field: `external_id` is `externalId`."""
    head, *tail = name.split("_")
    return _ODD_NAMES.get(name) or head + "".join("Id" if word == "id" else word.capitalize() for word in tail)


# ---- models to the wire


def to_wire(model: Model) -> dict[str, Any]:
    """Return a model in the wire's shape: the fields that are set, under their wire names, in canonical order.

    Raises:
        ValidationError: `metadata` or `extra` holds a value that JSON does not have.
    """
    try:
        return cast("dict[str, Any]", _converter.unstructure(model))
    except NotJsonError as error:
        raise ValidationError(type(model).__name__, [Issue("metadata or extra", str(error))]) from None


def _make_writer(cls: type[Model]) -> Callable[[Model], dict[str, Any]]:
    """Generate the function that writes a model: one statement per field, in the order of the wire names."""
    specs = sorted((wire_name(spec.name), spec) for spec in _fields_of(cls))
    scope: dict[str, Any] = {"normal": normal, "time": _write_time}
    lines = ["def write(model):", "    wire = {}"]
    for name, spec in specs:
        lines.append(f"    value = model.{spec.name}")
        lines.append(f"    if value is not None: wire[{name!r}] = {_write_expression(spec, scope)}")
        if spec.facts.nullable:
            lines.append(f"    else: wire[{name!r}] = None")
    lines.append("    if model._extra:")
    lines.append("        wire.update(normal(model.extra))")
    lines.append("        return {name: wire[name] for name in sorted(wire)}")
    lines.append("    return wire")
    return cast("Callable[[Model], dict[str, Any]]", _compile(lines, scope, "write", cls))


def _write_expression(spec: FieldSpec, scope: dict[str, Any]) -> str:
    if issubclass(spec.kind, Model):
        scope[f"write_{spec.name}"] = _converter.get_unstructure_hook(spec.kind)
        one = f"write_{spec.name}({{}})"
    elif spec.kind is datetime:
        one = "time({})"
    elif spec.kind in (dict, object, float) or (spec.kind is int and not spec.allowed and spec.facts.maximum is None):
        one = "normal({})"
    else:
        one = "{}"
    if not spec.many:
        return one.format("value")
    return "list(value)" if one == "{}" else f"[{one.format('each')} for each in value]"


def _write_time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


# ---- answers to models


def read_answer(cls: type[_M], data: bytes) -> _M:
    """Return the body of an answer as a model. Unknown fields are kept in `extra`, and unknown values are accepted.

    Raises:
        DecodeError: The body is not JSON, or does not have the contract's shape. The error has its first bytes.
    """
    try:
        wire = loads(data)
    except (ValueError, RecursionError):
        raise DecodeError(f"the answer is {_what_is(data)}, not JSON", start=_start(data)) from None
    return from_answer(cls, wire, data)


def from_answer(cls: type[_M], wire: Any, data: bytes = b"") -> _M:
    """Return a parsed answer as a model. `data` is used only in the error message."""
    try:
        return cast("_M", _converter.get_structure_hook(cls)(wire, cls))
    except (_MismatchError, TypeError, ValueError, OverflowError):
        path, problem = _explain(cls, wire, "") or ("", "is not what the contract says")
        where = f"{cls.__name__}.{path}" if path else cls.__name__
        raise DecodeError(f"the answer does not fit: {where} {problem}", start=_start(data)) from None


def check_empty(data: bytes) -> None:
    """Check the answer of an operation that returns nothing: any body is accepted except an HTML page.

    Raises:
        DecodeError: The body is an HTML page, so a proxy has answered instead of the service.
    """
    if _what_is(data) == _WEB_PAGE:
        raise DecodeError(f"the answer is {_WEB_PAGE}", start=_start(data))


_WEB_PAGE = "an HTML page"


def _what_is(data: bytes) -> str:
    start = data.lstrip()[:15].lower()
    if not start:
        return "empty"
    return _WEB_PAGE if start.startswith((b"<!doctype", b"<html")) else "something else"


def _start(data: bytes) -> bytes:
    """Return the first bytes of an answer, for JSON without its strings, which can be tokens or signed URLs."""
    start = data[:_SHOWN_BYTES]
    if not start.lstrip().startswith((b"{", b"[", b'"')):
        return start
    return _JSON_TEXT.sub(lambda match: match[0] if match[1] else b'"<hidden>"', start)


class _MismatchError(Exception):
    """An answer does not fit its model. `_explain` finds the place."""


def _make_reader(cls: type[Model]) -> Callable[[Any, Any], Model]:
    """Generate the function that reads a model: one statement per field, which bypasses `frozen` and the checks."""
    scope: dict[str, Any] = {
        "cls": cls,
        "new": object.__new__,
        "Mismatch": _MismatchError,
        "time": _read_time,
        "whole": _read_integer,
        "put_extra": slot_setter(cls, "_extra"),
    }
    lines = ["def read(wire, _):", "    if wire.__class__ is not dict: raise Mismatch", "    model = new(cls)"]
    lines.append("    get = wire.get")
    for spec in _fields_of(cls):
        scope[f"put_{spec.name}"] = slot_setter(cls, spec.name)
        lines.append(f"    value = get({wire_name(spec.name)!r})")
        lines.append("    if value is not None:")
        lines += [f"        {line}" for line in _read_statements(spec, scope)]
        if spec.required and not spec.facts.nullable:
            lines.append("    else: raise Mismatch")
        lines.append(f"    put_{spec.name}(model, value)")
    lines += ["    put_extra(model, wire)", "    return model"]
    return cast("Callable[[Any, Any], Model]", _compile(lines, scope, "read", cls))


def _read_statements(spec: FieldSpec, scope: dict[str, Any]) -> list[str]:
    target = "each" if spec.many else "value"
    check, convert = [f"if {target}.__class__ is not {spec.kind.__name__}: raise Mismatch"], target
    if issubclass(spec.kind, Model):
        scope[f"read_{spec.name}"] = _converter.get_structure_hook(spec.kind)
        check, convert = [], f"read_{spec.name}({target}, None)"
    elif spec.kind is datetime:
        check, convert = [], f"time({target})"
    elif spec.kind is int:
        check, convert = [], f"{target} if {target}.__class__ is int else whole({target})"
    elif spec.kind is float:
        check = [f"if {target}.__class__ is not float and {target}.__class__ is not int: raise Mismatch"]
    elif spec.kind is object:
        check = []
    if not spec.many:
        return check + ([f"value = {convert}"] if convert != target else []) or ["pass"]
    loop = ["for each in value:", *(f"    {line}" for line in check)] if check else []
    made = "tuple(value)" if convert == target else f"tuple([{convert} for each in value])"
    return ["if value.__class__ is not list: raise Mismatch", *loop, f"value = {made}"]


def _read_time(value: Any) -> datetime:
    if value.__class__ is not str:
        raise _MismatchError
    time = datetime.fromisoformat(value)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _read_integer(value: Any) -> int:
    if value.__class__ is float and value.is_integer():  # JSON has only one number type
        return int(value)
    raise _MismatchError


def _explain(cls: type[Model], wire: Any, path: str) -> tuple[str, str] | None:
    """Return the first path where an answer does not fit, and the problem; `None` if all of it fits."""
    if not isinstance(wire, dict):
        return path, f"is {_json_type(wire)}, not an object"
    values = cast("dict[str, Any]", wire)
    for spec in field_specs(cls):
        name = wire_name(spec.name)
        here = f"{path}.{name}" if path else name
        value = values.get(name)
        if value is None:
            if spec.required and not spec.facts.nullable:
                return here, "is missing"
        elif spec.many and not isinstance(value, list):
            return here, f"is {_json_type(value)}, not an array"
        elif problem := _explain_values(spec, value, here):
            return problem
    return None


def _explain_values(spec: FieldSpec, value: Any, path: str) -> tuple[str, str] | None:
    places = [(f"{path}[{index}]", each) for index, each in enumerate(value)] if spec.many else [(path, value)]
    kind: type[Any] = spec.kind
    for here, each in places:
        if issubclass(kind, Model):
            if problem := _explain(kind, each, here):
                return problem
        elif not _fits(kind, each):
            return here, f"is {_json_type(each)}, not {_KINDS[kind]}"
    return None


_KINDS: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    dict: "an object",
    datetime: "a date and time",
}


def _fits(kind: type[Any], value: Any) -> bool:
    try:
        if kind is datetime:
            _read_time(value)
        elif kind is int and value.__class__ is not int:
            _read_integer(value)
    except (_MismatchError, ValueError, OverflowError):
        return False
    if kind in (datetime, int, object):
        return True
    return value.__class__ is kind or (kind is float and value.__class__ is int)


def _json_type(value: Any) -> str:
    names: dict[Any, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
    }
    if isinstance(value, list | tuple):
        return "an array"
    return names.get(type(value)) or ("an object" if isinstance(value, Mapping) else f"a {type(value).__name__}")


# ---- requests to models


def from_request(cls: type[_M], wire: Any) -> _M:
    """Return a request in the wire's shape as a model. Every value is checked, and `None` means "not set".

    Raises:
        ValidationError: The contract does not allow the request. Every issue has its path on the wire.
    """
    issues: list[Issue] = []
    model = _build(cls, wire, "", issues)
    if model is None or issues:
        raise ValidationError(cls.__name__, issues)
    return model


def _build(cls: type[_M], wire: Any, path: str, issues: list[Issue]) -> _M | None:
    if not isinstance(wire, Mapping):
        issues.append(Issue(path, f"must be an object, not {_json_type(wire)}"))
        return None
    rest = dict(cast("Mapping[str, Any]", wire))
    prefix = f"{path}." if path else ""
    values: dict[str, Any] = {}
    failed: set[str] = set()
    for spec in _fields_of(cls):
        name = wire_name(spec.name)
        value = rest.pop(name, None)
        if value is None:
            continue
        if issubclass(spec.kind, Model):
            found = len(issues)
            value = _build_nested(spec, value, f"{prefix}{name}", issues)
            if len(issues) > found:
                failed.add(spec.name)
                continue
        elif spec.kind is datetime and isinstance(value, str):
            value = _time_or_text(value)
        elif spec.kind is int and isinstance(value, float) and value.is_integer():  # JSON has only one number type
            value = int(value)
        values[spec.name] = value
    try:
        return cls(**values, extra=rest)
    except ValidationError as error:
        issues += [_on_the_wire(cls, prefix, issue) for issue in error.issues if issue.path not in failed]
        return None


def _on_the_wire(cls: type[Model], prefix: str, issue: Issue) -> Issue:
    """Return an issue of a model as an issue of the request in the wire's shape."""
    names = {spec.name: wire_name(spec.name) for spec in field_specs(cls)}
    name = issue.path.removeprefix("extra.")
    if name != issue.path:
        meant = next(each for each in names.values() if each.lower() == name.replace("_", "").lower())
        return Issue(f"{prefix}{name}", f"is {meant} on the wire")
    field, bracket, index = name.partition("[")
    return Issue(f"{prefix}{names.get(field, field)}{bracket}{index}", issue.message)


def _build_nested(spec: FieldSpec, value: Any, path: str, issues: list[Issue]) -> Any:
    if not spec.many:
        return _build(spec.kind, value, path, issues)
    if not isinstance(value, list | tuple):
        issues.append(Issue(path, f"must be an array, not {_json_type(value)}"))
        return None
    values = cast("Sequence[Any]", value)
    return [_build(spec.kind, each, f"{path}[{index}]", issues) for index, each in enumerate(values)]


def _time_or_text(value: str) -> Any:
    try:
        return _read_time(value)
    except ValueError:
        return value  # the model's own check reports it


# ---- the converter


def _fields_of(cls: type[Model]) -> Sequence[FieldSpec]:
    """Return the fields of a model, and store their wire names for `Model.extra`."""
    specs = field_specs(cls)
    if not cls.__wire_names__:
        cls.__wire_names__ = frozenset(wire_name(spec.name) for spec in specs)
    return specs


def _compile(lines: list[str], scope: dict[str, Any], name: str, cls: type[Model]) -> Any:
    # The source holds only field names of our own models.
    exec(compile("\n".join(lines), f"<{name} {cls.__name__}>", "exec"), scope)  # noqa: S102  # see above
    return scope[name]


def _is_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Model)


_converter = cattrs.Converter(detailed_validation=False)
_converter.register_structure_hook_factory(_is_model, _make_reader)
_converter.register_unstructure_hook_factory(_is_model, _make_writer)
