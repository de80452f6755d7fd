"""Models survive the wire, and no answer makes reading raise anything but `DecodeError`."""

import contextlib
import json
import pickle
import string
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ANSWERS, INSTANCES, JSON, MODELS, OBJECTS

from convertrilo import models
from convertrilo._json import canonical, encode
from convertrilo._model import Model, field_specs
from convertrilo.codec import from_answer, from_request, read_answer, to_wire, wire_name
from convertrilo.errors import DecodeError, ValidationError

by_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
by_answer = pytest.mark.parametrize("cls", ANSWERS, ids=lambda cls: cls.__name__)

# ---- round trips


@by_model
@settings(max_examples=12)
@given(data=st.data())
def test_a_model_survives_the_wire_in_both_directions(library: Any, cls: type[Model], data: st.DataObject) -> None:
    model = data.draw(INSTANCES[cls])
    sent = library.json.encode(library.codec.to_wire(model))
    assert sent == library.json.canonical(json.loads(sent))
    assert library.codec.read_answer(cls, sent) == model
    assert library.codec.from_request(cls, library.json.loads(sent)) == model
    assert pickle.loads(pickle.dumps(model)) == model


@by_model
def test_every_field_has_a_name_of_its_own_on_the_wire(cls: type[Model]) -> None:
    names = [wire_name(spec.name) for spec in field_specs(cls)]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set(string.ascii_letters + string.digits) for name in names)


NAMES = [
    ("codec", "codec"),
    ("external_id", "externalId"),
    ("job_ids", "jobIds"),
    ("source_s3", "sourceS3"),
    ("access_key_id", "accessKeyId"),
    ("expires_in_days", "expiresInDays"),
    ("part_number", "PartNumber"),
    ("etag", "ETag"),
]


@pytest.mark.parametrize(("name", "on_the_wire"), NAMES)
def test_fields_have_their_camel_case_names_on_the_wire(name: str, on_the_wire: str) -> None:
    assert wire_name(name) == on_the_wire


# ---- unset and null


def test_what_is_not_set_is_not_sent(library: Any) -> None:
    request = models.OnDemandEncodeRequest(
        source_url="https://a/b", fps=None, output_s3=models.S3Output(bucket="b", key="k")
    )
    sent = library.json.encode(library.codec.to_wire(request))
    assert sent == b'{"outputS3":{"bucket":"b","key":"k"},"sourceUrl":"https://a/b"}'


def test_empty_false_and_zero_are_sent(library: Any) -> None:
    request = models.S3FolderSource(bucket="", prefix="", force_path_style=False)
    assert library.codec.to_wire(request) == {"bucket": "", "forcePathStyle": False, "prefix": ""}
    assert library.codec.to_wire(models.BulkCreateRequest(jobs=[])) == {"jobs": []}
    assert library.codec.to_wire(models.TokenBalanceResponse(available=0)) == {"available": 0, "trialExpiresAt": None}


def test_none_is_sent_as_null_where_the_contract_has_null(library: Any) -> None:
    answer = models.JobCreateResponse(job_id="a", upload=None, output=models.JobOutput())
    assert library.codec.to_wire(answer) == {
        "externalId": None,
        "jobId": "a",
        "metadata": None,
        "output": {},
        "outputFilename": None,
        "sourceFilename": None,
        "upload": None,
    }


@pytest.mark.parametrize("body", [b'{"id":"a","output":null,"status":null,"extra":1}', b'{"id":"a","extra":1}'])
def test_null_and_absent_are_both_none(library: Any, body: bytes) -> None:
    status = library.codec.read_answer(models.StatusResponse, body)
    assert (status.id, status.output, status.status) == ("a", None, None)


def test_null_in_a_request_means_not_set() -> None:
    wire = {"sourceUrl": "https://a/b", "fps": None, "outputS3": None, "metadata": None}
    assert from_request(models.OnDemandEncodeRequest, wire) == models.OnDemandEncodeRequest(source_url="https://a/b")


# ---- what this version does not know


def test_unknown_fields_of_an_answer_are_kept_and_written_back(library: Any) -> None:
    body = b'{"id":"a","new":[1e-7,{"b":1,"a":2}],"output":{"key":"k","size":3}}'
    status = library.codec.read_answer(models.StatusResponse, body)
    assert status.extra == {"new": [1e-7, {"b": 1, "a": 2}]}
    assert status.output.extra == {"size": 3}
    written = library.json.encode(library.codec.to_wire(status))
    assert b'"new":[1e-07,{"a":2,"b":1}]' in written
    assert b'"output":{"key":"k","size":3}' in written


def test_unknown_fields_of_a_request_are_sent_in_their_place(library: Any) -> None:
    request = models.ConfirmRequest(container="mp4", quality="best", extra={"hdr": True, "a": {"d": 1, "c": 2.0}})
    sent = library.json.encode(library.codec.to_wire(request))
    assert sent == b'{"a":{"c":2,"d":1},"container":"mp4","hdr":true,"quality":"best"}'


def test_unknown_fields_of_a_request_in_wire_shape_are_sent() -> None:
    wire = {"jobs": [{"codec": "av1", "resolution": "720p", "fps": 24, "hdr": True}], "new": None}
    request = from_request(models.BulkCreateRequest, wire)
    assert request.extra == {"new": None}
    assert request.jobs[0].extra == {"hdr": True}
    assert to_wire(request) == wire


def test_unknown_statuses_codes_and_values_are_let_through(library: Any) -> None:
    read = library.codec.read_answer
    assert read(models.StatusResponse, b'{"status":"paused"}').status == "paused"
    assert read(models.ErrorResponse, b'{"code":"new_code","message":""}').code == "new_code"
    assert read(models.OnDemandStatusResponse, b'{"destination":{"type":"ftp"}}').destination.type == "ftp"
    assert read(models.WebhookListResponse, b'{"webhooks":[{"events":["job.new"]}]}').webhooks[0].events == ("job.new",)
    assert (
        read(models.WebhookDeliveryListResponse, b'{"deliveries":[{"status":"late"}]}').deliveries[0].status == "late"
    )


# ---- times and numbers

AT = datetime(2025, 6, 2, 9, 30, tzinfo=UTC)
TIME_TEXTS = [
    ("2025-06-02T09:30:00Z", AT),
    ("2025-06-02T09:30:00", AT),
    ("2025-06-02 09:30", AT),
    ("2025-06-02T11:30:00+02:00", AT),
    ("2025-06-02T09:30:00.123456Z", AT + timedelta(microseconds=123456)),
    ("2025-06-02T09:30:00.123Z", AT + timedelta(milliseconds=123)),
    ("2025-06-02T09:30:00.123456789Z", AT + timedelta(microseconds=123456)),
    ("2025-06-02", AT.replace(hour=0, minute=0)),
]


@pytest.mark.parametrize(("text", "time"), TIME_TEXTS)
def test_times_are_aware_and_utc_unless_they_say_otherwise(text: str, time: datetime) -> None:
    read = from_answer(models.StatusResponse, {"createdAt": text}).created_at
    assert read is not None
    assert read.tzinfo is not None
    assert read == time
    assert from_request(models.StatusResponse, {"createdAt": text}).created_at == time


def test_times_are_written_in_utc() -> None:
    time = AT.astimezone(timezone(timedelta(hours=-5)))
    assert to_wire(models.StatusResponse(created_at=time))["createdAt"] == "2025-06-02T09:30:00Z"


@pytest.mark.parametrize(("number", "value"), [("30", 30), ("30.0", 30), ("3e1", 30), ("-0.0", 0)])
def test_an_integer_may_be_written_with_a_point(library: Any, number: str, value: int) -> None:
    answer = library.codec.read_answer(models.OnDemandStatusResponse, f'{{"expiresIn":{number}}}'.encode())
    assert (answer.expires_in, type(answer.expires_in)) == (value, int)
    request = library.codec.from_request(models.ApproveUnifiedRequest, {"fps": json.loads(number)})
    assert (request.fps, type(request.fps)) == (value, int)


def test_equal_numbers_have_equal_bytes(library: Any) -> None:
    def sent(target: float) -> bytes:
        return bytes(library.json.encode(library.codec.to_wire(models.ConfirmRequest(vmaf_target=target))))

    assert sent(93) == sent(93.0) == b'{"vmafTarget":93}'
    assert sent(92.5) == b'{"vmafTarget":92.5}'


def test_huge_numbers_are_written_alike(library: Any) -> None:
    request = models.ApproveUnifiedRequest(fps=2**64)
    assert library.json.encode(library.codec.to_wire(request)) == b'{"fps":18446744073709551616}'
    answer = models.TokenBalanceResponse(available=2**53 + 1, reserved=1e-9)
    assert b'"available":9007199254740993,"reserved":1e-09' in library.json.encode(library.codec.to_wire(answer))


# ---- what JSON does not have

UNSENDABLE: list[tuple[dict[str, Any], str]] = [
    ({"metadata": {"a": {1, 2}}}, "JobCreateRequest: metadata or extra: holds a set, which JSON does not have"),
    ({"metadata": {"a": float("nan")}}, "JobCreateRequest: metadata or extra: holds nan, which JSON does not have"),
    ({"metadata": {1: 2}}, "JobCreateRequest: metadata or extra: has a key that is not a string"),
    ({"extra": {"a": {None: 2}}}, "JobCreateRequest: metadata or extra: has a key that is not a string"),
    ({"extra": {1: 2}}, "JobCreateRequest: extra: has a key that is not a string"),
    ({"extra": {"a": b"1"}}, "JobCreateRequest: metadata or extra: holds a bytes, which JSON does not have"),
    ({"external_id": "\ud800"}, "not JSON: holds text that is not valid Unicode"),
    ({"metadata": {"\ud800": 1}}, "not JSON: holds text that is not valid Unicode"),
]


@pytest.mark.parametrize(
    ("fields", "message"), UNSENDABLE, ids=lambda given: str(given).encode("ascii", "replace")[:40]
)
def test_what_json_does_not_have_is_refused_before_it_is_sent(
    library: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        library.json.encode(
            library.codec.to_wire(models.JobCreateRequest(codec="av1", resolution="720p", fps=24, **fields))
        )
    assert str(caught.value) == message


# ---- answers that are not what the contract says

NOT_JSON = [
    (b"", "empty"),
    (b" \n", "empty"),
    (b"<!DOCTYPE html><p>502", "an HTML page"),
    (b"\n <HTML>", "an HTML page"),
    (b"upstream timed out", "something else"),
    (b"\xff\xfe", "something else"),
    (b'{"id":NaN}', "something else"),
    (b'{"id":"a"', "something else"),
    (b"[" * 100_000, "something else"),
]
MISFITS = [
    (models.StatusResponse, b"null", "StatusResponse is null, not an object"),
    (models.StatusResponse, b"[]", "StatusResponse is an array, not an object"),
    (models.StatusResponse, b'"ok"', "StatusResponse is a string, not an object"),
    (models.StatusResponse, b'{"id":1}', "StatusResponse.id is a number, not a string"),
    (models.StatusResponse, b'{"pct":true}', "StatusResponse.pct is a boolean, not a number"),
    (models.StatusResponse, b'{"metadata":[]}', "StatusResponse.metadata is an array, not an object"),
    (models.StatusResponse, b'{"output":{"key":{}}}', "StatusResponse.output.key is an object, not a string"),
    (models.StatusResponse, b'{"createdAt":"today"}', "StatusResponse.createdAt is a string, not a date and time"),
    (models.StatusResponse, b'{"createdAt":1}', "StatusResponse.createdAt is a number, not a date and time"),
    (models.WebhookResponse, b'{"failureCount":1.5}', "WebhookResponse.failureCount is a number, not an integer"),
    (models.WebhookResponse, b'{"failureCount":true}', "WebhookResponse.failureCount is a boolean, not an integer"),
    (models.JobCreateResponse, b'{"jobId":"a","upload":null}', "JobCreateResponse.output is missing"),
    (models.JobCreateResponse, b'{"jobId":null,"output":{}}', "JobCreateResponse.jobId is missing"),
    (models.BulkStatusResponse, b'{"jobs":{}}', "BulkStatusResponse.jobs is an object, not an array"),
    (models.BulkStatusResponse, b'{"jobs":[{},{"id":1}]}', "BulkStatusResponse.jobs[1].id is a number, not a string"),
    (models.BulkStatusResponse, b'{"jobs":[null]}', "BulkStatusResponse.jobs[0] is null, not an object"),
    (models.BulkStatusResponse, b'{"missing":["a",null]}', "BulkStatusResponse.missing[1] is null, not a string"),
]


@pytest.mark.parametrize(("body", "what"), NOT_JSON, ids=lambda given: repr(given)[:40])
def test_an_answer_that_is_not_json_is_called_what_it_is(library: Any, body: bytes, what: str) -> None:
    with pytest.raises(DecodeError) as caught:
        library.codec.read_answer(models.StatusResponse, body)
    assert caught.value.message == f"the answer is {what}, not JSON"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(("cls", "body", "problem"), MISFITS, ids=lambda given: repr(given)[:40])
def test_an_answer_that_does_not_fit_is_explained(library: Any, cls: type[Model], body: bytes, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        library.codec.read_answer(cls, body)
    assert caught.value.message == f"the answer does not fit: {problem}"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("body", [b"<html>" + b"x" * 1000, b"upstream \xff" * 100])
def test_the_first_bytes_of_what_is_not_json_are_shown(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        read_answer(models.StatusResponse, body)
    assert caught.value.start == body[:200]
    assert repr(body[:200]) in str(caught.value)


LEAKS = [
    b'{"key":"SECRET","id":1}',
    b'{"id":1,"key" : "SECRET\\"SECRET"}',
    b'["SECRET"]',
    b'"SECRET"',
    b' {"a":{"b":["x","SECRET',
    b'{"key":"' + b"x" * 180 + b"SECRET" * 10,
    b'{"key":"SECRET\\',
]


@pytest.mark.parametrize("body", LEAKS)
def test_texts_of_an_answer_are_not_shown_because_they_may_be_secret(body: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        read_answer(models.ApiKeyResponse, body)
    assert b"SECRET" not in caught.value.start
    assert "SECRET" not in str(caught.value) + repr(caught.value)


def test_names_and_numbers_of_an_answer_are_shown() -> None:
    with pytest.raises(DecodeError) as caught:
        read_answer(models.ApiKeyResponse, b'{"key":"SECRET","id":1, "list" : [true]}')
    assert caught.value.start == b'{"key":"<hidden>","id":1, "list" : [true]}'


WIRE_NAMES = sorted({wire_name(spec.name) for cls in MODELS for spec in field_specs(cls)})
ANYTHING = JSON | OBJECTS | st.lists(OBJECTS, max_size=2) | st.just("2025-06-02")
DEBRIS = [
    b"",
    b"NaN",
    b"1e400",
    b"-1e400",
    b"9" * 5000,
    b'"\\ud800"',
    b'"\xff"',
    b"[" * 5000,
    b'{"a":' * 500,
    b"\x00",
    b"}",
]


@st.composite
def spoilt(draw: st.DrawFn, cls: type[Model]) -> bytes:
    """Return an answer of which some fields are missing, new, or of another type, and which may be cut or broken."""
    names = [wire_name(spec.name) for spec in field_specs(cls)]
    wire = json.loads(encode(to_wire(draw(INSTANCES[cls]))))
    wire |= draw(st.dictionaries(st.sampled_from(names) | st.sampled_from(WIRE_NAMES), ANYTHING, max_size=3))
    for name in draw(st.sets(st.sampled_from(names), max_size=2)):
        wire.pop(name, None)
    body = canonical(wire)
    cut = draw(st.integers(0, len(body)))
    return draw(st.sampled_from([body, body[:cut], *(body[:cut] + each + body[cut:] for each in DEBRIS)]))


@by_answer
@settings(max_examples=12)
@given(data=st.data())
def test_no_answer_raises_anything_but_a_decode_error(library: Any, cls: type[Model], data: st.DataObject) -> None:
    body = data.draw(spoilt(cls))
    try:
        answer = library.codec.read_answer(cls, body)
    except DecodeError as error:
        assert error.message.startswith("the answer ")  # noqa: PT017  # either outcome is right
    else:
        assert repr(answer).startswith(cls.__name__)
        assert answer == library.codec.read_answer(cls, body)


@by_answer
@settings(max_examples=10)
@given(wire=ANYTHING | st.dictionaries(st.sampled_from(WIRE_NAMES), ANYTHING))
def test_no_json_raises_anything_but_our_errors(cls: type[Model], wire: Any) -> None:
    with contextlib.suppress(DecodeError):
        assert isinstance(from_answer(cls, wire), cls)
    with contextlib.suppress(ValidationError):
        assert isinstance(from_request(cls, wire), cls)


# ---- requests in the wire's shape that are not what the contract allows

GOOD_JOB = {"codec": "av1", "resolution": "720p", "fps": 24}
REFUSED: list[tuple[type[Model], Any, list[str]]] = [
    (models.ConfirmRequest, None, ["must be an object, not null"]),
    (models.ConfirmRequest, [], ["must be an object, not an array"]),
    (models.ConfirmRequest, {1, 2}, ["must be an object, not a set"]),
    (models.ConfirmRequest, models.ConfirmResponse(), ["must be an object, not a ConfirmResponse"]),
    (models.ConfirmRequest, {1: 2}, ["extra: has a key that is not a string"]),
    (models.ConfirmRequest, {"vmafTarget": 101}, ["vmafTarget: must be a number from 1 to 100, not 101"]),
    (models.BulkConfirmRequest, {"jobIds": ["a", 1]}, ["jobIds[1]: must be a string, not 1"]),
    (models.BulkConfirmRequest, {"jobIds": "a"}, ["jobIds: must be a list or tuple, not a str"]),
    (models.BulkCreateRequest, {"jobs": {}}, ["jobs: must be an array, not an object"]),
    (models.StatusResponse, {"createdAt": "now"}, ["createdAt: must be a datetime with a time zone, not 'now'"]),
    (models.StatusResponse, {"createdAt": 5}, ["createdAt: must be a datetime with a time zone, not 5"]),
    (
        models.TokenDeductRequest,
        {"job_id": "a", "amount": 1.5},
        ["jobId: is required", "amount: must be an integer of at least 1, not 1.5", "job_id: is jobId on the wire"],
    ),
    (
        models.BulkCreateRequest,
        {"jobs": [GOOD_JOB, 1], "settings": {"dryRun": "no"}},
        ["jobs[1]: must be an object, not a number", "settings.dryRun: must be a bool, not a str"],
    ),
    (
        models.BulkCreateRequest,
        {"jobs": [GOOD_JOB, {"codec": "vp9", "fps": 0, "sourceS3": {"bucket": 1, "Key": "a"}}]},
        [
            "jobs[1].sourceS3.bucket: must be a string, not 1",
            "jobs[1].sourceS3.Key: is key on the wire",
            "jobs[1].codec: must be one of h264, h265, av1, not 'vp9'",
            "jobs[1].resolution: is required",
            "jobs[1].fps: must be an integer from 1 to 240, not 0",
        ],
    ),
]


@pytest.mark.parametrize(("cls", "wire", "issues"), REFUSED, ids=lambda given: str(given)[:40])
def test_a_request_that_is_not_allowed_is_explained_by_its_names_on_the_wire(
    cls: type[Model], wire: Any, issues: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        from_request(cls, wire)
    assert [str(issue) for issue in caught.value.issues] == issues
    assert str(caught.value) == f"{cls.__name__}: {'; '.join(issues)}"
