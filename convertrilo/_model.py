"""The base of the models: frozen attrs classes whose fields carry the contract's facts and are checked on creation."""

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, TypeVar, cast

import attrs
from attrs import field

from convertrilo.errors import Issue, ValidationError

_M = TypeVar("_M", bound="Model")


@attrs.frozen(kw_only=True)
class Facts:
    """What the contract says about a field beyond its type."""

    minimum: float | None = None
    maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    format: str | None = None
    nullable: bool = False
    secret: bool = False
    """Whether the field is a credential: hidden in `repr`, and not part of an idempotency key."""
    signed: bool = False
    """Whether the field is a URL that may carry a signature: its query is hidden in `repr`."""
    default: Any = None
    """The value that the service assumes if the field is not sent. The client never fills it in."""
    known: tuple[str, ...] = ()
    """Values that an answer is known to have. Other values are accepted, too."""


def facts(**given: Any) -> dict[str, Any]:
    """Return attrs metadata with the `Facts` of a field."""
    return {"facts": Facts(**given)}


_NO_FACTS = Facts()


@attrs.frozen(kw_only=True)
class FieldSpec:
    """One field of a model: its type in parts, and its facts."""

    name: str
    kind: type[Any]
    """`str`, `int`, `float`, `bool`, `datetime`, `dict` (any JSON object), `object` (any JSON value) or a model."""
    many: bool
    """Whether the field is a sequence of that kind."""
    allowed: tuple[Any, ...]
    """The allowed values; empty if any value of the kind is allowed."""
    required: bool
    facts: Facts


_SPECS: dict[type["Model"], tuple[FieldSpec, ...]] = {}


def field_specs(cls: type["Model"]) -> tuple[FieldSpec, ...]:
    """Return the fields of a model in order, without `extra`."""
    if cls not in _SPECS:
        hints = typing.get_type_hints(cls)
        _SPECS[cls] = tuple(
            _spec(attribute, hints[attribute.name])
            for attribute in attrs.fields(cast("type[attrs.AttrsInstance]", cls))
            if attribute.name != "_extra"
        )
    return _SPECS[cls]


def _spec(attribute: "attrs.Attribute[Any]", hint: Any) -> FieldSpec:
    kind: Any = next(arm for arm in _arms(hint) if arm is not type(None))
    many = typing.get_origin(kind) is Sequence
    if many:
        kind = typing.get_args(kind)[0]
    allowed = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if allowed:
        kind = allowed[0].__class__
    elif kind is Any:
        kind = object
    elif typing.get_origin(kind) is Mapping:
        kind = dict
    return FieldSpec(
        name=attribute.name,
        kind=kind,
        many=many,
        allowed=allowed,
        required=attribute.default is attrs.NOTHING,
        facts=attribute.metadata.get("facts", _NO_FACTS),
    )


def _arms(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


# ---- the base class


class _Signature:
    """The signature for `help()` and `inspect.signature()`, built only when they ask for it."""

    def __get__(self, instance: object, cls: type["Model"]) -> inspect.Signature:
        hints = typing.get_type_hints(cls)
        kind = inspect.Parameter.KEYWORD_ONLY
        fields = [
            inspect.Parameter(
                spec.name, kind, default=inspect.Parameter.empty if spec.required else None, annotation=hints[spec.name]
            )
            for spec in field_specs(cls)
        ]
        extra = inspect.Parameter("extra", kind, default=None, annotation=Mapping[str, Any] | None)
        return inspect.Signature([*fields, extra])


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def model(cls: type[_M]) -> type[_M]:
    """Make a frozen, slotted attrs class with `Model`'s `__init__` (one pass over the fields), equality and `repr`."""
    # attrs compiles an initialiser even with init=False, which for all models is a third of the package's import time.
    # So attrs sees fields that need no initialiser, and the fields are restored afterwards.
    declared: list[tuple[attrs.Attribute[Any], Any]] = []

    def hide(_: type, fields: list["attrs.Attribute[Any]"]) -> list["attrs.Attribute[Any]"]:
        for each in fields:
            declared.append((each, each.default))
            _set_attribute(each, init=False, default=attrs.NOTHING)
        return fields

    frozen = attrs.frozen(kw_only=True, init=False, eq=False, repr=False, match_args=False, field_transformer=hide)(cls)
    for each, default in declared:
        _set_attribute(each, init=True, default=default)
    return frozen


def _set_attribute(attribute: "attrs.Attribute[Any]", **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(attribute, name, value)


@model
class Model:
    """The base class of all models: checked construction, `extra`, equality, and a `repr` without secrets."""

    # A model that was read from an answer keeps the whole answer in _extra, so that unknown fields cost no time until
    # they are read. The codec knows the wire names and puts the wire names of the known fields into __wire_names__.
    _extra: Mapping[str, Any] = field(factory=dict[str, Any], alias="extra")
    __wire_names__: ClassVar[frozenset[str]] = frozenset()
    __signature__: ClassVar[Any] = _Signature()

    def __init__(self, *, extra: Mapping[str, Any] | None = None, **values: Any) -> None:
        cls = type(self)
        issues: list[Issue] = []
        for name, put, required, many, check in _PLANS.get(cls) or _plan(cls):
            value = values.pop(name, None)
            if value is None:
                if required:
                    issues.append(Issue(name, "is required"))
            elif problem := check(value):
                issues.append(problem if isinstance(problem, Issue) else Issue(name, problem))
            elif many:
                value = tuple(value)
            put(self, value)
        if extra:
            issues += _misplaced(cls, extra)
        if values:
            raise TypeError(
                f"{cls.__name__} has no field {', '.join(values)}; extra={{...}} sends fields it does not know"
            )
        if issues:
            raise ValidationError(cls.__name__, issues)
        _put_extra(self, extra or _NO_EXTRA)

    @property
    def extra(self) -> Mapping[str, Any]:
        """Fields that this version does not know, in the wire's shape."""
        return {name: value for name, value in self._extra.items() if name not in self.__wire_names__}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = [spec.name for spec in field_specs(type(self))]
        return all(getattr(self, name) == getattr(other, name) for name in names) and self.extra == other.extra

    def __hash__(self) -> int:
        values = (getattr(self, spec.name) for spec in field_specs(type(self)))
        return hash((type(self), *(value for value in values if isinstance(value, str | int | float))))

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle the extras only, not the whole answer: the process that unpickles may not know the wire names yet.
        values = {spec.name: getattr(self, spec.name) for spec in field_specs(type(self))}
        return _revive, (type(self), values, self.extra)

    def __repr__(self) -> str:
        shown = [
            f"{spec.name}={_repr_value(spec.facts, value)}"
            for spec in field_specs(type(self))
            if (value := getattr(self, spec.name)) is not None
        ]
        if names := sorted(self.extra):
            shown.append(f"extra=<{', '.join(names)}>")  # names only: unknown values may be secret
        return f"{type(self).__name__}({', '.join(shown)})"


_Check = Callable[[Any], str | Issue | None]


_NO_EXTRA: Mapping[str, Any] = {}

_Plan = tuple[tuple[str, Callable[[Model, Any], None], bool, bool, _Check], ...]
_PLANS: dict[type[Model], _Plan] = {}


def slot_setter(cls: type[Model], name: str) -> Callable[[Model, Any], None]:
    """Return the function that sets a field of a frozen model: the slot's descriptor, the fastest way past `frozen`."""
    setter: Callable[[Model, Any], None] = getattr(cls, name).__set__
    return setter


_put_extra = slot_setter(Model, "_extra")


def _plan(cls: type[Model]) -> _Plan:
    """Prepare the steps of a class's `__init__`, once per class."""
    _PLANS[cls] = tuple(
        (
            spec.name,
            slot_setter(cls, spec.name),
            spec.required and not spec.facts.nullable,
            spec.many,
            _check_many(spec) if spec.many else _check_one(spec),
        )
        for spec in field_specs(cls)
    )
    return _PLANS[cls]


def _revive(cls: type[Model], values: Mapping[str, Any], extra: Mapping[str, Any]) -> Model:
    """Restore a pickled model without checking it: values of answers are not checked either."""
    made = cls.__new__(cls)
    for name, put, *_ in _PLANS.get(cls) or _plan(cls):
        put(made, values.get(name))
    _put_extra(made, extra)
    return made


def _misplaced(cls: type[Model], extra: Mapping[Any, Any]) -> list[Issue]:
    if not all(isinstance(name, str) for name in extra):
        return [Issue("extra", "has a key that is not a string")]
    fields = {spec.name.replace("_", ""): spec.name for spec in field_specs(cls)}
    plain = {name: name.replace("_", "").lower() for name in extra}
    return [Issue(f"extra.{name}", f"is the field {fields[key]}") for name, key in plain.items() if key in fields]


def _check_many(spec: FieldSpec) -> _Check:
    check = _check_one(spec)

    def check_all(values: Any) -> str | Issue | None:
        if not isinstance(values, list | tuple):  # show the type only: a mapping may hold credentials
            return f"must be a list or tuple, not a {type(values).__name__}"
        for index, value in enumerate(cast("Sequence[Any]", values)):
            if problem := check(value):
                return Issue(f"{spec.name}[{index}]", str(problem))
        return None

    return check_all


def _check_one(spec: FieldSpec) -> _Check:
    if spec.allowed:
        return _check_allowed(spec.allowed)
    if spec.kind in (int, float):
        return _check_number(spec)
    if spec.kind is str:
        return _check_text(spec)
    if spec.kind is datetime:
        return _check_time
    return _check_kind(spec.kind)


def _check_allowed(allowed: tuple[Any, ...]) -> _Check:
    values = frozenset(allowed)
    kind = allowed[0].__class__
    listed = ", ".join(map(str, allowed))

    def check(value: Any) -> str | None:
        if value.__class__ is kind and value in values:
            return None
        return f"must be one of {listed}, not {_shown(value)}"

    return check


def _check_number(spec: FieldSpec) -> _Check:
    kinds = (int,) if spec.kind is int else (int, float)
    least, most = spec.facts.minimum, spec.facts.maximum
    low = -sys.float_info.max if least is None else least
    high = sys.float_info.max if most is None else most
    noun = "an integer" if spec.kind is int else "a number"
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"

    def check(value: Any) -> str | None:
        if isinstance(value, kinds) and value.__class__ is not bool and low <= value <= high:
            return None
        return f"must be {noun}{bounds}, not {_shown(value)}"

    return check


_FORMATS = {
    "uri": (re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+").fullmatch, "must be an absolute URL"),
    "email": (re.compile(r"[^@\s]+@[^@\s]+").fullmatch, "must be an e-mail address"),
}


def _check_text(spec: FieldSpec) -> _Check:
    least, most = spec.facts.min_length or 0, spec.facts.max_length
    matches, expected = _FORMATS.get(spec.facts.format or "", (None, ""))
    hidden = spec.facts.secret or spec.facts.signed

    def check(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be a string, not {f'a {type(value).__name__}' if hidden else _shown(value)}"
        if len(value) < least:
            return f"must have at least {least} characters, not {len(value)}"
        if most is not None and len(value) > most:
            return f"must have at most {most} characters, not {len(value)}"
        if matches is not None and not matches(value):
            return f"{expected}, not {_shown(fit_to_show(value) if hidden else value)}"
        return None

    return check


def _check_time(value: Any) -> str | None:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return None
    return f"must be a datetime with a time zone, not {_shown(value)}"


def _check_kind(kind: type[Any]) -> _Check:
    expected, noun = (Mapping, "a mapping") if kind is dict else (kind, f"a {kind.__name__}")

    def check(value: Any) -> str | None:
        return None if isinstance(value, expected) else f"must be {noun}, not a {type(value).__name__}"

    return check


def _repr_value(known: Facts, value: Any) -> str:
    if known.secret:
        return "<hidden>"
    return repr(fit_to_show(value)) if known.signed and isinstance(value, str) else repr(value)


def fit_to_show(url: str) -> str:
    """Return a URL that may be shown: without user name, password, query and fragment, which can be secrets."""
    return re.sub(r"[?#].*", "?<hidden>", re.sub(r"(^|//)[^/?#]*@", r"\1", url), flags=re.DOTALL)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
