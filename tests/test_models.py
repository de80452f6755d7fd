"""Models are frozen values that say what is wrong with them, and keep secrets to themselves."""

import copy
import inspect
import math
import pickle
import re
import subprocess
import sys
from collections import UserDict
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from samples import ANSWERS, MODELS

from convertrilo import models
from convertrilo._json import encode
from convertrilo._model import FieldSpec, Model, field_specs, fit_to_show
from convertrilo.codec import from_answer, read_answer, to_wire, wire_name
from convertrilo.errors import ValidationError

JOB: dict[str, Any] = {"codec": "av1", "resolution": "720p", "fps": 24}
FIELDS = [(cls, spec) for cls in MODELS for spec in field_specs(cls)]

by_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


def by_field(fields: list[tuple[type[Model], FieldSpec]]) -> pytest.MarkDecorator:
    ids = [f"{cls.__name__}.{spec.name}" for cls, spec in fields]
    assert ids
    return pytest.mark.parametrize(("cls", "spec"), fields, ids=ids)


def sample(spec: FieldSpec) -> Any:
    """Return some value that a field takes."""
    texts = {"uri": "https://a.example/b", "email": "a@b.example"}
    by_kind = {
        str: texts.get(spec.facts.format or "", "some text"),
        int: int(spec.facts.minimum or 1),
        float: float(spec.facts.minimum or 1.5),
        bool: True,
        datetime: datetime(2025, 6, 2, tzinfo=UTC),
        dict: {"a": 1},
        object: ["anything"],
    }
    one = spec.allowed[0] if spec.allowed else filled(spec.kind) if issubclass(spec.kind, Model) else by_kind[spec.kind]
    return (one,) if spec.many else one


def filled(cls: type[Model], **fields: Any) -> Any:
    """Return a model of which every field is set."""
    return cls(**({spec.name: sample(spec) for spec in field_specs(cls)} | fields))


# ---- values


@by_model
def test_a_model_is_frozen(cls: type[Model]) -> None:
    model = filled(cls)
    for spec in field_specs(cls):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(model, spec.name, None)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        model.new = 1
    assert not hasattr(model, "__dict__")


def test_a_list_that_was_given_can_change_without_changing_the_model() -> None:
    jobs = [models.JobCreateRequest(**JOB)]
    request = models.BulkCreateRequest(jobs=jobs)
    jobs.clear()
    assert request.jobs == (models.JobCreateRequest(**JOB),)


@by_model
def test_models_with_the_same_fields_are_equal(cls: type[Model]) -> None:
    model, same = filled(cls), filled(cls)
    assert model == same
    assert hash(model) == hash(same)
    assert model != filled(cls, extra={"new": 1})
    for spec in field_specs(cls):
        if not spec.required:
            assert model != filled(cls, **{spec.name: None})


def test_models_of_two_classes_are_not_equal() -> None:
    reserve = models.TokenReserveRequest(job_id="a", amount=1)
    assert reserve != models.TokenDeductRequest(job_id="a", amount=1)
    assert reserve != {"job_id": "a", "amount": 1}


def test_models_can_be_keys_and_members() -> None:
    jobs = [models.JobCreateRequest(**JOB, external_id=f"job-{number % 3}", metadata={"a": 1}) for number in range(9)]
    assert len(set(jobs)) == 3


@by_model
def test_a_model_can_be_copied_and_pickled(cls: type[Model]) -> None:
    model = filled(cls, extra={"new": {"a": [1]}})
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other == model
        assert hash(other) == hash(model)
        assert other.extra == {"new": {"a": [1]}}


def test_a_pickled_answer_means_the_same_in_a_process_that_has_read_none() -> None:
    status = from_answer(models.StatusResponse, {"id": "a", "status": "paused", "new": 1})
    script = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()))"
    shown = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(status), capture_output=True, check=True)
    assert shown.stdout.decode().strip() == repr(status) == "StatusResponse(id='a', status='paused', extra=<new>)"


def test_a_request_can_be_varied() -> None:
    job = models.JobCreateRequest(**JOB, metadata={"a": 1}, extra={"hdr": True})
    faster = attrs.evolve(job, fps=60, metadata=None)  # type: ignore[misc]  # mypy knows attrs by its decorators only
    assert faster == models.JobCreateRequest(codec="av1", resolution="720p", fps=60, extra={"hdr": True})
    with pytest.raises(ValidationError, match="fps: must be an integer from 1 to 240, not 500"):
        attrs.evolve(job, fps=500)  # type: ignore[misc]  # as above


@by_model
def test_help_shows_the_fields_and_which_of_them_are_required(cls: type[Model]) -> None:
    parameters = inspect.signature(cls).parameters
    specs = field_specs(cls)
    assert list(parameters) == [*(spec.name for spec in specs), "extra"]
    assert {name for name, each in parameters.items() if each.default is inspect.Parameter.empty} == {
        spec.name for spec in specs if spec.required
    }
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters.values())
    assert inspect.getdoc(cls)


# ---- what is allowed

S3 = models.S3Output(bucket="b", key="k")
REFUSED: list[tuple[type[Model], dict[str, Any], str]] = [
    (models.JobCreateRequest, {"codec": "vp9"}, "codec: must be one of h264, h265, av1, not 'vp9'"),
    (models.JobCreateRequest, {"codec": ["av1"]}, "codec: must be one of h264, h265, av1, not ['av1']"),
    (models.JobCreateRequest, {"codec": None}, "codec: is required"),
    (models.JobCreateRequest, {"passes": 3}, "passes: must be one of 1, 2, not 3"),
    (models.JobCreateRequest, {"passes": True}, "passes: must be one of 1, 2, not True"),
    (models.JobCreateRequest, {"passes": "1"}, "passes: must be one of 1, 2, not '1'"),
    (models.JobCreateRequest, {"fps": 0}, "fps: must be an integer from 1 to 240, not 0"),
    (models.JobCreateRequest, {"fps": 241}, "fps: must be an integer from 1 to 240, not 241"),
    (models.JobCreateRequest, {"fps": 24.0}, "fps: must be an integer from 1 to 240, not 24.0"),
    (models.JobCreateRequest, {"fps": "24"}, "fps: must be an integer from 1 to 240, not '24'"),
    (models.JobCreateRequest, {"fps": True}, "fps: must be an integer from 1 to 240, not True"),
    (models.JobCreateRequest, {"vmaf_target": 49.9}, "vmaf_target: must be a number from 50 to 99, not 49.9"),
    (models.JobCreateRequest, {"vmaf_target": math.nan}, "vmaf_target: must be a number from 50 to 99, not nan"),
    (models.JobCreateRequest, {"vmaf_target": "90"}, "vmaf_target: must be a number from 50 to 99, not '90'"),
    (models.JobCreateRequest, {"external_id": "x" * 256}, "external_id: must have at most 255 characters, not 256"),
    (models.JobCreateRequest, {"external_id": 7}, "external_id: must be a string, not 7"),
    (models.JobCreateRequest, {"confirm": 1}, "confirm: must be a bool, not a int"),
    (models.JobCreateRequest, {"metadata": [1]}, "metadata: must be a mapping, not a list"),
    (models.JobCreateRequest, {"source_s3": {"bucket": "b"}}, "source_s3: must be a S3Source, not a dict"),
    (models.JobCreateRequest, {"source_s3": S3}, "source_s3: must be a S3Source, not a S3Output"),
    (models.JobCreateRequest, {"source_url": "a.mp4"}, "source_url: must be an absolute URL, not 'a.mp4'"),
    (models.JobCreateRequest, {"source_url": "http://a b"}, "source_url: must be an absolute URL, not 'http://a b'"),
    (models.JobCreateRequest, {"extra": {"sourceUrl": "a"}}, "extra.sourceUrl: is the field source_url"),
    (models.JobCreateRequest, {"extra": {"FPS": 1}}, "extra.FPS: is the field fps"),
    (models.JobCreateRequest, {"extra": {1: 1}}, "extra: has a key that is not a string"),
    (models.TokenDeductRequest, {"amount": 0}, "amount: must be an integer of at least 1, not 0"),
    (models.TokenBalanceResponse, {"available": math.inf}, "available: must be a number, not inf"),
    (models.TokenBalanceResponse, {"available": True}, "available: must be a number, not True"),
    (models.AuthLoginRequest, {"email": "me"}, "email: must be an e-mail address, not 'me'"),
    (models.AuthLoginRequest, {"password": "short"}, "password: must have at least 8 characters, not 5"),
    (models.BulkCreateRequest, {"jobs": {}}, "jobs: must be a list or tuple, not a dict"),
    (models.BulkCreateRequest, {"jobs": [S3]}, "jobs[0]: must be a JobCreateRequest, not a S3Output"),
    (models.BulkConfirmRequest, {"job_ids": "abc"}, "job_ids: must be a list or tuple, not a str"),
    (models.BulkConfirmRequest, {"job_ids": ["a", None]}, "job_ids[1]: must be a string, not None"),
    (models.ApiKeyCreateRequest, {"scopes": ["jobs:read", "x"]}, "scopes[1]: must be one of jobs:create, jobs:read,"),
    (models.WebhookCreateRequest, {"events": ["webhook.test"]}, "events[0]: must be one of job.created, job.queued,"),
    (models.StatusResponse, {"created_at": datetime(2025, 6, 2)}, "created_at: must be a datetime with a time zone"),  # noqa: DTZ001  # the point
    (models.StatusResponse, {"created_at": "2025-06-02"}, "created_at: must be a datetime with a time zone, not '2025"),
    (models.S3Source, {"region": b"x" * 100}, f"region: must be a string, not {repr(b'x' * 100)[:77]}..."),
]


@pytest.mark.parametrize(("cls", "fields", "problem"), REFUSED, ids=lambda given: str(given)[:40])
def test_what_is_not_allowed_is_refused_with_field_value_and_what_is(
    cls: type[Model], fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        filled(cls, **fields)
    assert str(caught.value).startswith(f"{cls.__name__}: {problem}")
    assert len(caught.value.issues) == 1


ALLOWED: list[tuple[type[Model], dict[str, Any]]] = [
    (models.JobCreateRequest, {"fps": 1}),
    (models.JobCreateRequest, {"fps": 240}),
    (models.JobCreateRequest, {"vmaf_target": 50}),
    (models.JobCreateRequest, {"vmaf_target": 99.0}),
    (models.JobCreateRequest, {"external_id": "\U0001f600" * 255}),
    (models.JobCreateRequest, {"external_id": ""}),
    (models.JobCreateRequest, {"metadata": UserDict(a=1)}),
    (models.JobCreateRequest, {"source_url": "s3://bucket/ключ?sig=1#2"}),
    (models.AuthLoginRequest, {"password": "12345678"}),
    (models.BulkCreateRequest, {"jobs": ()}),
    (models.JobCreateResponse, {"upload": None}),
]


@pytest.mark.parametrize(("cls", "fields"), ALLOWED, ids=lambda given: str(given)[:40])
def test_what_is_allowed_is_kept_as_it_is(cls: type[Model], fields: dict[str, Any]) -> None:
    model = filled(cls, **fields)
    assert [getattr(model, name) for name in fields] == list(fields.values())


@by_field([(cls, spec) for cls, spec in FIELDS if spec.allowed])
def test_a_refusal_lists_every_value_that_is_allowed(cls: type[Model], spec: FieldSpec) -> None:
    wrong = "neither" if not spec.many else ["neither"]
    with pytest.raises(ValidationError, match=re.escape(f"must be one of {', '.join(map(str, spec.allowed))}, not")):
        filled(cls, **{spec.name: wrong})


@by_field([(cls, spec) for cls, spec in FIELDS if spec.required and not spec.facts.nullable])
def test_a_required_field_that_is_missing_is_named(cls: type[Model], spec: FieldSpec) -> None:
    with pytest.raises(ValidationError, match=f"{spec.name}: is required"):
        cls(**{each.name: sample(each) for each in field_specs(cls) if each.name != spec.name})


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        models.JobCreateRequest(codec="vp9", fps=0, extra={"sourceUrl": ""})  # type: ignore[call-arg, arg-type]  # the point
    assert [issue.path for issue in caught.value.issues] == ["codec", "resolution", "fps", "extra.sourceUrl"]


def test_an_unknown_field_is_named_with_the_way_to_send_it() -> None:
    with pytest.raises(TypeError, match=re.escape("JobCreateRequest has no field hdr; extra={...} sends fields")):
        models.JobCreateRequest(**JOB, hdr=True)  # type: ignore[call-arg]  # the point


# ---- extra


def test_extra_fields_are_kept_and_reachable() -> None:
    assert models.JobCreateRequest(**JOB, extra={"hdr": {"a": 1}}).extra == {"hdr": {"a": 1}}
    assert models.JobCreateRequest(**JOB).extra == {}


def test_what_is_got_from_extra_can_change_without_changing_the_model() -> None:
    status = from_answer(models.StatusResponse, {"id": "a", "new": 1})
    status.extra.clear()  # type: ignore[attr-defined]  # a Mapping to the type checker, a copy at run time
    assert status.extra == {"new": 1}


@by_field(FIELDS)
def test_a_field_of_the_model_is_no_extra(cls: type[Model], spec: FieldSpec) -> None:
    for name in (spec.name, wire_name(spec.name), spec.name.upper()):
        with pytest.raises(ValidationError, match=f"extra.{name}: is the field {spec.name}"):
            filled(cls, extra={name: 1})


# ---- secrets

SECRET = [(cls, spec) for cls, spec in FIELDS if spec.facts.secret]
SIGNED = [(cls, spec) for cls, spec in FIELDS if spec.facts.signed]
URL = "https://user:hunter2@host.example/dir/file.mp4?X-Amz-Signature=hunter2&a=b#hunter2"


def test_every_field_that_sounds_like_a_secret_is_one() -> None:
    sounds = re.compile(r"password|secret|token|access_key|^key$")
    known = {
        *["S3Source.key", "S3Output.key", "JobUpload.key", "JobOutput.key", "OnDemandDestination.key"],  # of objects
    }
    heard = {f"{cls.__name__}.{spec.name}" for cls, spec in FIELDS if sounds.search(spec.name) and spec.kind is str}
    assert heard - known == {f"{cls.__name__}.{spec.name}" for cls, spec in SECRET}


def test_every_url_that_may_be_signed_is_known() -> None:
    urls = re.compile(r"url|endpoint|^webhook$")
    known = {"JobOutput.public_url", "OnDemandEncodeResponse.status_url"}
    found = {f"{cls.__name__}.{spec.name}" for cls, spec in FIELDS if urls.search(spec.name) and spec.kind is str}
    assert found - known == {f"{cls.__name__}.{spec.name}" for cls, spec in SIGNED}


@by_field(SECRET)
def test_a_secret_is_not_shown(cls: type[Model], spec: FieldSpec) -> None:
    shown = repr(filled(cls, **{spec.name: "hunter2 hunter2"}))
    assert f"{spec.name}=<hidden>" in shown
    assert "hunter2" not in shown


@by_field(SIGNED)
def test_a_url_is_shown_without_its_signature(cls: type[Model], spec: FieldSpec) -> None:
    shown = repr(filled(cls, **{spec.name: URL}))
    assert f"{spec.name}='https://host.example/dir/file.mp4?<hidden>'" in shown
    assert "hunter2" not in shown


@by_field(SECRET + SIGNED)
@pytest.mark.parametrize(
    "value", [b"hunter2", ["hunter2"], {"hunter2": "hunter2"}, f" {URL}", f"{URL}\n", "hu2"], ids=repr
)
def test_a_secret_that_is_refused_is_not_shown_either(cls: type[Model], spec: FieldSpec, value: Any) -> None:
    try:
        shown = repr(filled(cls, **{spec.name: value}))
    except ValidationError as error:
        shown = str(error) + repr(error) + repr(error.issues)
        assert spec.name in shown
    assert "hunter2" not in shown


@by_field([(cls, spec) for cls, spec in FIELDS if issubclass(spec.kind, Model)])
def test_secrets_in_a_mapping_where_a_model_belongs_are_not_shown(cls: type[Model], spec: FieldSpec) -> None:
    for value in ({"accessToken": "hunter2"}, [{"accessToken": "hunter2"}], "hunter2"):
        with pytest.raises(ValidationError) as caught:
            filled(cls, **{spec.name: value})
        assert "hunter2" not in str(caught.value)


@by_model
def test_values_of_extra_fields_are_not_shown_because_they_may_be_secret(cls: type[Model]) -> None:
    shown = repr(filled(cls, extra={"newer": "hunter2", "new": "hunter2"}))
    assert shown.endswith("extra=<new, newer>)")
    assert "hunter2" not in shown


def test_a_repr_shows_what_is_set_and_nothing_else() -> None:
    request = models.BulkCreateRequest(jobs=[models.JobCreateRequest(**JOB, source_s3=models.S3Source(bucket="b"))])
    assert repr(request) == (
        "BulkCreateRequest(jobs=(JobCreateRequest(codec='av1', resolution='720p', fps=24, "
        "source_s3=S3Source(bucket='b')),))"
    )


SHOWN = [
    ("https://host/a?b=c", "https://host/a?<hidden>"),
    ("https://host/a#b?c", "https://host/a?<hidden>"),
    ("https://host/a?b\nc", "https://host/a?<hidden>"),
    ("https://me@host/a", "https://host/a"),
    ("https://me:pass@host/@a", "https://host/@a"),
    ("s3://bucket/key", "s3://bucket/key"),
    ("no url", "no url"),
]


@pytest.mark.parametrize(("url", "shown"), SHOWN)
def test_what_may_be_secret_in_a_url_is_hidden(url: str, shown: str) -> None:
    assert fit_to_show(url) == shown


# ---- answers


@pytest.mark.parametrize("cls", ANSWERS, ids=lambda cls: cls.__name__)
def test_an_answer_is_equal_to_the_same_model_made_by_hand(cls: type[Model]) -> None:
    by_hand = filled(cls, extra={"new": 1})
    answer = read_answer(cls, encode(to_wire(by_hand)))
    assert answer == by_hand
    assert hash(answer) == hash(by_hand)
    assert repr(answer) == repr(by_hand)


def test_a_status_says_when_nothing_changes_any_more() -> None:
    assert sorted(models.TERMINAL_STATUSES) == ["canceled", "failed", "success"]


def test_times_can_be_compared_and_subtracted() -> None:
    status = from_answer(
        models.StatusResponse, {"startedAt": "2025-06-02T09:30:00", "finishedAt": "2025-06-02T11:31:00+02:00"}
    )
    assert status.started_at is not None
    assert status.finished_at is not None
    assert status.finished_at - status.started_at == timedelta(minutes=1)
