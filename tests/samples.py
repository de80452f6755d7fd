"""All models, and hypothesis strategies for instances with any values that their fields allow."""

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from convertrilo import models
from convertrilo._model import FieldSpec, Model, field_specs
from convertrilo.operations import OPERATIONS

MODELS: list[type[Model]] = [
    cls for cls in vars(models).values() if isinstance(cls, type) and issubclass(cls, Model) and cls is not Model
]


def within(classes: Iterable[type[Any] | None]) -> list[type[Model]]:
    """Return these models, and the models of their fields."""
    found: list[type[Model]] = []
    waiting = [cls for cls in classes if cls is not None and issubclass(cls, Model)]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found.append(cls)
            waiting += [spec.kind for spec in field_specs(cls) if issubclass(spec.kind, Model)]
    return found


REQUESTS = within(row.body for row in OPERATIONS.values())
ANSWERS = within([models.ErrorResponse, *(row.returns for row in OPERATIONS.values())])

# ---- strategies

INT64 = (-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(*INT64) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
EXTRA = st.dictionaries(st.text().map("x-{}".format), JSON, max_size=2)
VISIBLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)
TEXTS = {"uri": VISIBLE.map("https://{}".format), "email": VISIBLE.map(lambda text: f"{text.replace('@', '')}a@b")}
BY_KIND: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    datetime: st.datetimes(
        datetime(1900, 1, 1),  # noqa: DTZ001  # the strategy adds the zone
        datetime(2200, 1, 1),  # noqa: DTZ001
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    ),
    dict: OBJECTS,
    object: JSON.filter(lambda value: value is not None),
}
INSTANCES: dict[type[Model], st.SearchStrategy[Any]] = {}
"""A strategy for each model: its required fields, any of its optional fields, and fields that it does not declare."""


def one(spec: FieldSpec) -> st.SearchStrategy[Any]:
    """Return a strategy for a field's value, or for one item if the field is a list."""
    facts = spec.facts
    low, high = facts.minimum, facts.maximum
    if spec.allowed or facts.known:
        return st.sampled_from(spec.allowed or (*facts.known, "new"))
    if spec.kind is str:
        return TEXTS.get(facts.format or "", st.text(min_size=facts.min_length or 0, max_size=facts.max_length))
    if spec.kind is int:
        return st.integers(INT64[0] if low is None else int(low), INT64[1] if high is None else int(high))
    if spec.kind is float:
        whole = st.integers(-5 if low is None else int(low), 5 if high is None else int(high))
        return whole | st.floats(low, high, allow_nan=False, allow_infinity=False)
    return INSTANCES[spec.kind] if spec.kind in INSTANCES else BY_KIND[spec.kind]


def values(spec: FieldSpec) -> st.SearchStrategy[Any]:
    every = st.lists(one(spec), max_size=3) if spec.many else one(spec)
    return every | st.none() if spec.facts.nullable else every


def instances(cls: type[Model]) -> st.SearchStrategy[Any]:
    required = {spec.name: values(spec) for spec in field_specs(cls) if spec.required}
    optional = {spec.name: values(spec) for spec in field_specs(cls) if not spec.required}
    return st.fixed_dictionaries(required, optional=optional | {"extra": EXTRA}).map(lambda given: cls(**given))


for each in MODELS:  # models are declared after the models of their fields
    INSTANCES[each] = instances(each)
