"""What the client raises: an answer that is not understood, errors by meaning, and no credential in any of them."""

import json
import logging
import pickle
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from credentials import ACCESS_KEY_ID, PASSWORD, SECRET_ACCESS_KEY, SIGNATURE
from fake_clock import FakeClock
from support import (
    API_KEY,
    EXAMPLES,
    JOB,
    TOKEN,
    Answer,
    Script,
    Step,
    call,
    client_of,
    problem,
    raised_by,
)

from convertrilo import (
    OPERATIONS,
    APIError,
    AsyncClient,
    AuthenticationError,
    ConflictError,
    DecodeError,
    GoneError,
    IdempotencyConflictError,
    IdempotencyInProgressError,
    InsufficientTokensError,
    InvalidRequestError,
    Journal,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
    ServerError,
)

NONE = RetryPolicy.none()

# ---- answers that are not what the contract says


@pytest.mark.parametrize(
    ("body", "told", "start"),
    [
        (b"<!DOCTYPE html><html>Log in to the Wi-Fi", "an HTML page, not JSON", b"<!DOCTYPE html><html>Log in"),
        (b"", "empty, not JSON", b""),
        (b"   ", "empty, not JSON", b"   "),
        (b"null", "null, not an object", b"null"),
        (b"[1]", "an array, not an object", b"[1]"),
        (b"{}", "jobId is missing", b"{}"),
        (b'{"jobId":1,"upload":null,"output":{}}', "jobId is a number, not a string", b'{"jobId":1'),
        (b"\xff\xfe", "something else, not JSON", b"\xff\xfe"),
        (b"{" * 5000, "not JSON", b"{{{{"),
        (b"x" * 5000, "something else", b"x" * 200),
    ],
)
async def test_an_answer_that_is_not_understood_is_shown_by_its_first_bytes(
    body: bytes, told: str, start: bytes
) -> None:
    script = Script(Answer(201, body, {"X-Request-Id": "r-1"}))
    async with client_of(script) as client:
        error = await raised_by(client.create_job(JOB, idempotency_key="k"))
    assert type(error) is DecodeError
    assert told in error.message
    assert error.start.startswith(start)
    assert len(error.start) <= 200
    assert (error.status, error.request_id, error.operation, error.attempts) == (201, "r-1", "createJob", 1)
    assert error.idempotency_key == "k"
    assert "idempotency_key='k'" in "".join(error.__notes__)


@pytest.mark.parametrize("operation", [row.id for row in OPERATIONS.values() if row.returns is not None])
async def test_no_operation_takes_a_web_page_for_an_answer(operation: str) -> None:
    async with client_of(Script(Answer(200, b"<html>hello"))) as client:
        error = await raised_by(call(client, operation))
    assert type(error) is DecodeError
    assert error.start == b"<html>hello"


# ---- errors by meaning

ISSUES = [{"path": ["fps"], "message": "too small"}]


@pytest.mark.parametrize(
    ("answer", "kind", "attributes"),
    [
        (problem(400, "invalid_body", issues=ISSUES), InvalidRequestError, {"issues": ISSUES}),
        (problem(400, "invalid_url"), InvalidRequestError, {}),
        (problem(401, "invalid_api_key"), AuthenticationError, {}),
        (
            problem(402, "insufficient_tokens", required=12.5, available=3),
            InsufficientTokensError,
            {"required": 12.5, "available": 3},
        ),
        (
            problem(403, "missing_required_scope", requiredScope="jobs:create"),
            PermissionDeniedError,
            {"required_scope": "jobs:create"},
        ),
        (problem(404, "no_video_files_found"), NotFoundError, {}),
        (problem(409, "idempotency_conflict"), IdempotencyConflictError, {}),
        (problem(409, "idempotency_in_progress"), IdempotencyInProgressError, {}),
        (problem(409, "webhook_limit_exceeded"), ConflictError, {}),
        (problem(410, "deprecated_dropbox"), GoneError, {}),
        (problem(413, "file_too_large"), InvalidRequestError, {}),
        (problem(422, "brand_new_code"), InvalidRequestError, {}),
        (problem(429, "rate_limit_exceeded", headers={"Retry-After": "7"}), RateLimitError, {"retry_after": 7}),
        (problem(500, "internal"), ServerError, {}),
        (problem(599, "very_new"), ServerError, {}),
    ],
)
async def test_an_error_is_known_by_its_class_and_says_all_that_the_service_said(
    answer: Answer, kind: type[APIError], attributes: dict[str, Any]
) -> None:
    answer = Answer(answer.status, answer.body, {**answer.headers, "X-Request-Id": "r-1"})
    script = Script(answer)
    async with client_of(script, retry=NONE) as client:
        error = await raised_by(client.on_demand_encode({"sourceUrl": "https://a.test/b"}, idempotency_key="k"))
    assert type(error) is kind
    said = json.loads(answer.body)
    expected = {
        "message": said["message"],
        "status": answer.status,
        "code": said["code"],
        "issues": None,
        "required_scope": None,
        "required": None,
        "available": None,
        "retry_after": None,
        "request_id": "r-1",
        "operation": "onDemandEncode",
        "idempotency_key": "k",
        "attempts": 1,
        **attributes,
    }
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert type(each) is kind
        assert {name: getattr(each, name) for name in expected} == expected
        for shown in (str(answer.status), said["code"], said["message"], "onDemandEncode", "r-1", "k"):
            assert shown in str(each)


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (Answer(404), "http_404", "the answer is empty"),
        (Answer(404, b" \n"), "http_404", "the answer is empty"),
        (Answer(404, b"<html>nginx"), "http_404", "it begins with '<html>nginx'"),
        (Answer(400, b"[]"), "http_400", "it begins with '[]'"),
        (Answer(400, b'{"detail": "no"}'), "http_400", '{"detail": "no"}'),
        (Answer(400, b'{"code": null, "message": ""}'), "http_400", "not in the service's error format"),
        (Answer(400, b'{"code": {"a": 1}, "message": ["x"]}'), "http_400", "['x']"),
        (Answer(400, b'{"code": "c", "message": 7}'), "c", "7"),
        (Answer(400, b"\xff\xfe"), "http_400", "not in the service's error format"),
        (Answer(400, b'{"code": "c", "message": "m", "required": "x", "available": []}'), "c", "m"),
        (Answer(400, b'{"code": "c", "message": "m", "issues": ' + b"[" * 900 + b"]" * 900 + b"}"), "c", "m"),
        (Answer(400, b"[" * 100_000), "http_400", "[[[["),
        (Answer(302, headers={"Location": "https://elsewhere.test/"}), "http_302", "is the base URL right?"),
        (Answer(308, b"moved", {"Location": "/elsewhere"}), "http_308", "is the base URL right?"),
        (Answer(304), "http_304", "empty"),
    ],
)
async def test_an_error_answer_of_any_form_becomes_a_clear_error(answer: Answer, code: str, told: str) -> None:
    async with client_of(Script(answer)) as client:
        error = await raised_by(client.get_balance())
    assert isinstance(error, APIError)
    assert (error.status, error.code) == (answer.status, code)
    assert told in error.message
    assert len(error.message) < 400
    assert (error.required, error.available) == (None, None)


async def test_a_web_page_of_a_proxy_becomes_a_server_error_after_all_attempts() -> None:
    script = Script(Answer(502, b"<html><h1>502 Bad Gateway</h1></html>"))
    async with client_of(script) as client:
        error = await raised_by(client.create_job(JOB))
    assert type(error) is ServerError
    assert (error.status, error.code, error.attempts) == (502, "http_502", 8)
    assert "<h1>502 Bad Gateway</h1>" in str(error)


@pytest.mark.parametrize(
    ("steps", "noted"),
    [
        ([Answer(500)], True),
        ([httpx.ReadError("")], True),
        ([httpx.ReadError(""), problem(400)], True),
        ([httpx.ReadError(""), *[httpx.ConnectError("")] * 7], True),
        ([problem(409, "idempotency_in_progress")], True),
        ([httpx.ConnectError("")], False),
        ([problem(429)], False),
        ([problem(400)], False),
        ([problem(409, "idempotency_conflict")], False),
    ],
)
async def test_an_error_says_when_the_job_may_exist_all_the_same(steps: list[Step], noted: bool) -> None:
    async with client_of(Script(*steps)) as client:
        error = await raised_by(client.create_job(JOB))
    notes = getattr(error, "__notes__", [])
    assert bool(notes) is noted
    assert getattr(pickle.loads(pickle.dumps(error)), "in_doubt", noted) is noted
    if noted:
        assert f"idempotency_key={error.idempotency_key!r}" in notes[0]
        assert pickle.loads(pickle.dumps(error)).__notes__ == notes


# ---- credentials are never shown

SIGNED = f"https://user:{PASSWORD}@b.s3.test/in.mp4?{httpx.QueryParams({'X-Amz-Signature': SIGNATURE})}"
S3 = {"accessKeyId": ACCESS_KEY_ID, "secretAccessKey": SECRET_ACCESS_KEY}
SECRET_BODY = {**JOB, "sourceUrl": SIGNED, "sourceS3": {"bucket": "bucket", **S3}}
SECRETS = {
    "API key": API_KEY,
    "access key": S3["accessKeyId"],
    "secret key": S3["secretAccessKey"],
    "signature": SIGNATURE,
    "password": PASSWORD,
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in upper case": str.upper,
    "in Python": lambda secret: repr(secret)[1:-1],
    "in JSON": lambda secret: json.dumps(secret)[1:-1],
    "in JSON of PHP": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    "in a URL": lambda secret: str(httpx.QueryParams({"": secret}))[1:],
    "in HTML": lambda secret: re.sub("[^A-Za-z0-9]", lambda each: f"&#{ord(each[0])};", secret),
    "in other HTML": lambda secret: re.sub("[^A-Za-z0-9]", lambda each: f"&#x{ord(each[0]):X};", secret),
}


def shown_by(error: BaseException) -> str:
    """Everything that an error can show to somebody; where Dask is imported, what led to it is pickled with it."""
    chain = [error]
    for each in chain:
        chain += [led for led in (each.__cause__, each.__context__) if led is not None and led not in chain]
    requests = [each._request for each in chain if isinstance(each, httpx.RequestError) and each._request is not None]
    return "\n".join(
        [
            *traceback.format_exception(error),
            *(f"{each!r} {each} {vars(each)} {each.__reduce__()}" for each in chain),
            *(f"{request.url} {request.headers.raw} {request.read()!r}" for request in requests),
            pickle.dumps(error).decode("latin-1"),
        ]
    )


def assert_hidden(secret: str, text: str) -> None:
    """A secret is not in a text, nor any part of it that is the same however it is spelled."""
    telling = re.findall("[A-Za-z0-9]{4,}", secret)
    assert telling
    by_chance = [part for part in telling if len(part) < 8 and re.fullmatch("[A-Fa-f0-9]+", part)]
    assert not by_chance, "a random key holds that by itself, now and then"
    assert not [part for part in telling if part not in ("live", "pass") and part.lower() in text.lower()]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_page_that_echoes_a_credential_does_not_show_it(
    name: str, spelling: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    for padding in (0, 150, 180):
        page = f"{'.' * padding} seen: {SPELLINGS[spelling](SECRETS[name])} </html>"
        with caplog.at_level(logging.DEBUG):
            async with client_of(Script(Answer(status, page.encode()))) as client:
                error = await raised_by(client.create_job(SECRET_BODY))
        if not padding:
            assert "seen: <hidden> </html>" in str(error)
        assert_hidden(SECRETS[name], shown_by(error) + caplog.text)


async def test_no_more_does_an_answer_to_many_jobs() -> None:
    page = " ".join(SECRETS.values())
    async with client_of(Script(Answer(200, page.encode()))) as client:
        results = client.submit_jobs([{**SECRET_BODY, "externalId": "n"}])
        error = await raised_by(anext(results))
    assert type(error) is DecodeError
    for secret in SECRETS.values():
        assert_hidden(secret, shown_by(error))


@pytest.mark.parametrize("name", SECRETS)
async def test_an_error_that_echoes_a_credential_does_not_show_it(name: str) -> None:
    secret = SECRETS[name]
    echo = problem(
        403,
        f"code {secret}",
        f"{secret}! {secret}",
        issues=[{"message": secret, secret: [secret, 1, None]}, secret],
        requiredScope=secret,
    )
    async with client_of(Script(echo)) as client:
        error = await raised_by(client.create_job(SECRET_BODY))
    assert_hidden(secret, shown_by(error))
    assert error.message == "<hidden>! <hidden>"
    assert error.issues == [{"message": "<hidden>", "<hidden>": ["<hidden>", 1, None]}, "<hidden>"]
    assert (error.code, error.required_scope) == ("code <hidden>", "<hidden>")


async def test_a_signed_url_is_shown_without_what_signs_it() -> None:
    async with client_of(Script(problem(400, "host_not_resolvable", f"no such host: {SIGNED}"))) as client:
        error = await raised_by(client.create_job(SECRET_BODY))
    assert error.message == "no such host: https://<hidden>@b.s3.test/in.mp4?<hidden>"


@pytest.mark.parametrize("field", ["code", "idempotency_in_progress", "in", "m", "409"])
async def test_a_credential_that_is_an_ordinary_word_does_not_change_what_an_error_means(field: str) -> None:
    script = Script(problem(409, "idempotency_in_progress"), EXAMPLES["createJob"].answered)
    async with client_of(script) as client:
        await client.create_job({**JOB, "sourceS3": {"accessKeyId": field}})
    assert script.attempts == 2


async def test_of_two_credentials_that_begin_alike_nothing_is_left() -> None:
    source = {"accessKeyId": "AKIA", "secretAccessKey": "AKIA-and-more"}
    async with client_of(Script(problem(400, message="AKIA-and-more AKIA"))) as client:
        error = await raised_by(client.create_job({**JOB, "sourceS3": source}))
    assert error.message == "<hidden> <hidden>"


async def test_a_credential_full_of_signs_is_searched_for_in_no_time() -> None:
    """With a quantifier for each sign, what looks like it up to its end would take years."""
    secret, escaped = f"a{'!' * 30}b", f"a{'%21' * 5000}"
    body = {**JOB, "sourceS3": {"secretAccessKey": secret}}
    async with client_of(Script(problem(400, message=f"{escaped} {escaped[:91]}b {secret} b"))) as client:
        error = await raised_by(client.create_job(body))
    assert error.message == f"{escaped} <hidden> <hidden> b"


@pytest.mark.parametrize("token", ["token-1", "token-2"])
async def test_no_bearer_token_is_shown_be_it_old_or_new(token: str) -> None:
    tokens = iter(["token-1", "token-2"])
    async with client_of(Script(problem(401, message=token)), api_key=None, get_token=lambda: next(tokens)) as client:
        error = await raised_by(client.get_balance())
    assert error.attempts == 2
    assert_hidden(token, shown_by(error))


async def test_neither_password_nor_job_token_is_shown() -> None:
    async with client_of(Script(problem(400, message="pass-w-1 job-token-1"))) as client:
        error = await raised_by(client.login({"email": "a@b.test", "password": "pass-w-1"}))
        assert error.message == "<hidden> job-token-1"
        error = await raised_by(client.public_job_status("j", "job-token-1"))
        assert error.message == "pass-w-1 <hidden>"


@pytest.mark.parametrize("operation", ["getBalance", "createJob", "reserveTokens", "getApiKeys"])
@pytest.mark.parametrize("kind", [httpx.ReadError, httpx.ConnectError, OSError])
async def test_what_a_transport_says_is_shown_without_credentials(operation: str, kind: type[Exception]) -> None:
    used = TOKEN if operation == "getApiKeys" else API_KEY
    for text in ("reset by peer", f"h11: bad header {used!r}"):
        async with client_of(Script(kind(text))) as client:
            error = await raised_by(call(client, operation))
        shown = shown_by(error)
        assert_hidden(used, shown)
        assert ("reset by peer" in shown) is (text == "reset by peer")


async def test_the_request_of_a_cause_has_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset", request=request)

    with caplog.at_level(logging.DEBUG):
        async with AsyncClient(API_KEY, transport=httpx.MockTransport(fail), clock=FakeClock()) as client:
            error = await raised_by(client.create_job(SECRET_BODY))
    assert isinstance(error.__cause__, httpx.ReadError)
    assert error.__cause__.request.method == "POST"
    for secret in SECRETS.values():
        assert_hidden(secret, shown_by(error) + caplog.text)


async def test_a_large_bulk_with_many_credentials_fails_quickly() -> None:
    jobs = [
        {**JOB, "sourceUrl": f"{SIGNED}{number}", "sourceS3": {"accessKeyId": f"A{number}"}} for number in range(2000)
    ]
    async with client_of(Script(problem(400, message="no A17", issues=["x"] * 1000))) as client:
        with anyio.fail_after(60):
            error = await raised_by(client.create_jobs_bulk({"jobs": jobs}))
    assert error.message == "no <hidden>"


async def test_no_credential_is_written_to_disk(tmp_path: Path) -> None:
    script = Script(httpx.ReadError(""), EXAMPLES["createJob"].answered)
    journal = Journal(tmp_path / "j.db", clock=script.clock)
    async with client_of(script, journal=journal, retry=NONE) as client:
        await raised_by(client.create_job(SECRET_BODY))
        await client.create_job(SECRET_BODY, operation="n")
        written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b'"bucket":"bucket"' in written
    assert b"b.s3.test/in.mp4" in written
    for secret in SECRETS.values():
        assert_hidden(secret, written.decode("latin-1").replace("b.s3.test", "").replace("in.mp4", ""))
