"""The client as its user meets it: every operation, settings, bodies, answers, errors, cancelling, and the journal."""

import json
import logging
import pickle
import re
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from loopback import Received, answer, loopback
from support import (
    API_KEY,
    BASE_URL,
    CREATED,
    CREATED_MODEL,
    EXAMPLES,
    JOB,
    TOKEN,
    Answer,
    Clock,
    Script,
    Sent,
    Step,
    call,
    client_of,
    method_of,
    ok,
    problem,
    raised_by,
)

from convertrilo import (
    OPERATIONS,
    APIError,
    AsyncClient,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    DecodeError,
    GoneError,
    IdempotencyConflictError,
    IdempotencyInProgressError,
    InsufficientTokensError,
    InvalidRequestError,
    JobCreateRequest,
    Journal,
    JournalError,
    NotFoundError,
    NotSentError,
    OnDemandEncodeRequest,
    OutcomeUnknownError,
    PermissionDeniedError,
    RateLimitError,
    Repeat,
    RetryPolicy,
    ServerError,
    TransportError,
    ValidationError,
    __version__,
    derive_key,
)
from convertrilo._model import Model
from convertrilo.codec import from_request
from convertrilo.operations import Auth
from convertrilo.sandbox import Rules, Sandbox
from convertrilo.transport import PoolTransport

NONE = RetryPolicy.none()

# ---- every operation


def test_there_is_an_example_of_every_operation() -> None:
    assert set(EXAMPLES) == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operation_sends_what_the_contract_says_and_returns_its_model(operation: str) -> None:
    example, row = EXAMPLES[operation], OPERATIONS[operation]
    script = Script(example.answered)
    async with client_of(script) as client:
        assert await call(client, operation) == example.result
    (sent,) = script.sent
    assert f"{sent.method} {sent.target}" == example.sent
    assert (None if not sent.body else sent.body if row.body is bytes else sent.json) == example.body
    credentials = {
        Auth.ANY: {"x-api-key": API_KEY},
        Auth.BEARER: {"authorization": f"Bearer {TOKEN}"},
        Auth.NONE: {},
    }
    kind = "application/octet-stream" if row.body is bytes else "application/json"
    length = {} if sent.method == "GET" else {"content-length": str(len(sent.body))}
    assert {name: text for name, text in sent.headers.items() if name != "idempotency-key"} == {
        "host": "api.test",
        "user-agent": f"convertrilo-python/{__version__}",
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        **credentials[row.auth],
        **length,
        **({"content-type": kind} if sent.body else {}),
    }
    assert ("idempotency-key" in sent.headers) is (row.repeat is Repeat.KEYED)


@pytest.mark.parametrize(
    "operation", [row.id for row in OPERATIONS.values() if row.body is not None and issubclass(row.body, Model)]
)
async def test_a_model_and_a_mapping_are_the_same_bytes(operation: str) -> None:
    row, script = OPERATIONS[operation], Script(EXAMPLES[operation].answered)
    *path, mapping = EXAMPLES[operation].arguments
    assert row.body is not None
    assert issubclass(row.body, Model)
    async with client_of(script) as client:
        await method_of(client, operation)(*path, mapping)
        await method_of(client, operation)(*path, from_request(row.body, mapping))
    assert script.sent[0].body == script.sent[1].body


@pytest.mark.parametrize(
    "operation", [row.id for row in OPERATIONS.values() if row.body is not None and not row.body_required]
)
async def test_a_body_that_may_be_left_out_is_left_out(operation: str) -> None:
    script = Script(EXAMPLES[operation].answered)
    async with client_of(script) as client:
        await method_of(client, operation)("j-1")
        await method_of(client, operation)("j-1", {})
    assert [sent.body for sent in script.sent] == [b"", b"{}"]
    assert [sent.headers.get("content-type") for sent in script.sent] == [None, "application/json"]


@pytest.mark.parametrize("operation", [row.id for row in OPERATIONS.values() if row.returns is None])
@pytest.mark.parametrize("body", [b"", b'{"ok":true}', b"done"])
async def test_an_answer_that_does_not_matter_is_not_read(operation: str, body: bytes) -> None:
    async with client_of(Script(Answer(204, body))) as client:
        assert await call(client, operation) is None


@pytest.mark.parametrize("operation", [row.id for row in OPERATIONS.values() if row.returns is None])
async def test_a_web_page_is_not_taken_for_success(operation: str) -> None:
    """A proxy that wants a login answers with 200, too."""
    async with client_of(Script(Answer(200, b"<html>Please log in"))) as client:
        error = await raised_by(call(client, operation))
    assert isinstance(error, DecodeError)
    assert "HTML page" in str(error)
    assert OPERATIONS[operation].find_out in "".join(error.__notes__)


async def test_who_must_not_ask_twice_learns_how_to_find_out_what_an_unreadable_answer_meant() -> None:
    async with client_of(Script(Answer(200, b"<html>Please log in"))) as client:
        error = await raised_by(client.confirm_job("j-1"))
    assert isinstance(error, DecodeError)
    assert OPERATIONS["confirmJob"].find_out in "".join(error.__notes__)


# ---- paths and queries


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("a/b", "a%2Fb"),
        ("ü", "%C3%BC"),
        ("a b+c", "a%20b%2Bc"),
        ("a?b#c", "a%3Fb%23c"),
        ("%2e%2e", "%252e%252e"),
        ("../../api-keys", "..%2F..%2Fapi-keys"),
        ("...", "..."),
        ("{id}", "%7Bid%7D"),
        ("a\nb", "a%0Ab"),
        ("0f8fad5b-d9cb-469f-a165-70867728950e", "0f8fad5b-d9cb-469f-a165-70867728950e"),
    ],
)
async def test_an_id_cannot_leave_its_place_in_the_path(given: str, sent: str) -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        await client.job_status(given)
        await client.upload_chunk(given, 10_000, b"x")
        await client.public_job_status("j", given)
    assert [it.target for it in script.sent[:2]] == [f"/jobs/{sent}/status", f"/jobs/{sent}/stream/chunk/10000"]
    assert httpx.URL("https://x" + script.sent[2].target).params["token"] == given


@pytest.mark.parametrize("wrong", ["", ".", "..", "\ud800", None])
async def test_what_names_nothing_is_refused(wrong: Any) -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        for operation, row in OPERATIONS.items():
            if "{" in row.path:
                error = await raised_by(method_of(client, operation)(wrong, *EXAMPLES[operation].arguments[1:]))
                assert type(error) is ValidationError
        if wrong == "\ud800":
            assert type(await raised_by(client.public_job_status("j", wrong))) is ValidationError
    assert script.attempts == 0


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([], "at least one"),
        ("j-1", "a list"),
        (["j-1", ""], r"\[1\]"),
        (["a,b"], r"\[0\].*a,b"),
        ([None], r"\[0\]"),
    ],
)
async def test_bulk_status_wants_ids(ids: Any, told: str) -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        with pytest.raises(ValidationError, match=told):
            await client.bulk_status(ids)
    assert script.attempts == 0


async def test_bulk_status_takes_any_iterable() -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        await client.bulk_status(name for name in ("a b", "ü&", "c"))
    assert script.sent[0].target == "/jobs/bulk/status?ids=a%20b,%C3%BC%26,c"


@pytest.mark.parametrize("index", [0, -1, 10_001])
async def test_a_chunk_has_a_number_from_1_to_10000(index: int) -> None:
    script = Script(ok())
    async with client_of(script) as client:
        with pytest.raises(ValidationError, match="from 1 to 10000"):
            await client.upload_chunk("j", index, b"x")
    assert script.attempts == 0


@pytest.mark.parametrize("data", [b"\x00\xff" * 1000, bytearray(b"x"), memoryview(b"xy"), b""])
async def test_a_chunk_is_sent_as_it_is(data: Any) -> None:
    script = Script(ok())
    async with client_of(script) as client:
        await client.upload_chunk("j", 1, data)
    assert script.sent[0].body == bytes(data)
    assert script.sent[0].headers["content-length"] == str(len(data))


# ---- bodies


async def test_fields_that_this_version_does_not_know_are_sent() -> None:
    script = Script(EXAMPLES["createJob"].answered)
    async with client_of(script) as client:
        await client.create_job({**JOB, "hdr": {"mode": "pq"}})
        await client.create_job(
            JobCreateRequest(codec="h264", resolution="720p", fps=30, extra={"hdr": {"mode": "pq"}})
        )
    assert [sent.json for sent in script.sent] == [{**JOB, "hdr": {"mode": "pq"}}] * 2


@pytest.mark.parametrize(
    ("operation", "body", "told"),
    [
        ("createJob", None, "must be JobCreateRequest or a mapping in the wire's shape, not NoneType"),
        ("createJob", [JOB], "not list"),
        ("createJob", '{"codec": "av1"}', "not str"),
        ("createJob", OnDemandEncodeRequest(source_url="https://a.test/b"), "not OnDemandEncodeRequest"),
        ("createJob", {**JOB, "fps": 0}, "fps"),
        ("createJob", {**JOB, "source_url": "https://a.test"}, "sourceUrl"),
        ("createJobsBulk", {"jobs": [JOB, {**JOB, "codec": "vp9"}]}, r"jobs\[1\].codec"),
        ("createJob", {**JOB, "metadata": {"a": object()}}, "metadata"),
        ("createJob", {**JOB, "originalFilename": "\ud800"}, "not valid Unicode"),
        ("login", {"email": "a@b.test", "password": "short"}, "at least 8 characters"),
    ],
)
async def test_a_body_that_the_contract_does_not_allow_is_refused(operation: str, body: Any, told: str) -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        with pytest.raises(ValidationError, match=told):
            await method_of(client, operation)(body)
    assert script.attempts == 0


@pytest.mark.parametrize("data", ["text", None, {"a": 1}, 7])
async def test_a_chunk_is_bytes(data: Any) -> None:
    script = Script(ok())
    async with client_of(script) as client:
        with pytest.raises(ValidationError, match="must be bytes"):
            await client.upload_chunk("j", 1, data)
    assert script.attempts == 0


# ---- settings


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("https://api.test", "https://api.test/tokens/balance"),
        ("https://api.test/", "https://api.test/tokens/balance"),
        ("http://localhost:8080/v2//", "http://localhost:8080/v2/tokens/balance"),
        ("http://[::1]:8080", "http://[::1]:8080/tokens/balance"),
        ("HTTPS://API.test", "https://api.test/tokens/balance"),
    ],
)
async def test_the_base_url_says_where_the_service_is(base_url: str, address: str) -> None:
    requests: list[httpx.Request] = []

    def record(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={})

    async with AsyncClient(API_KEY, base_url=base_url, transport=httpx.MockTransport(record)) as client:
        await client.get_balance()
    assert str(requests[0].url) == address
    assert requests[0].headers["host"] == requests[0].url.netloc.decode()


@pytest.mark.parametrize(
    "base_url",
    [
        "api.test",
        "ftp://api.test",
        "https://",
        "https:///path",
        "https://me:secret-word@api.test",
        "https://api.test?key=secret-word",
        "https://api.test/#secret-word",
        "https://api.test:port",
        "https://[::1",
        "/relative",
    ],
)
def test_what_is_no_base_url_is_refused_without_showing_secrets(base_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AsyncClient(API_KEY, base_url=base_url)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize("api_key", ["", " ", "two words", "line\n", "sk_ü", "\x00"])
def test_what_cannot_be_an_api_key_is_refused_without_showing_it(api_key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AsyncClient(api_key)
    assert not api_key.strip() or api_key not in str(caught.value)


def test_a_transport_and_an_http_client_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        AsyncClient(API_KEY, transport=Script(ok()), http_client=httpx.AsyncClient())


async def test_key_and_address_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERTRILO_API_KEY", "sk_env")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", "http://env.test:81/api/")
    script = Script(ok({}))
    async with AsyncClient(transport=script) as client:
        assert client.base_url == "http://env.test:81/api"
        await client.get_balance()
    assert script.sent[0].headers["x-api-key"] == "sk_env"
    assert script.sent[0].headers["host"] == "env.test:81"
    assert script.sent[0].target == "/api/tokens/balance"


async def test_what_is_passed_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERTRILO_API_KEY", "sk_env")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", "http://env.test")
    script = Script(ok({}))
    async with client_of(script) as client:
        await client.get_balance()
    async with AsyncClient(get_token=lambda: TOKEN, base_url=BASE_URL, transport=script) as client:
        await client.get_balance()
    assert [sent.headers["host"] for sent in script.sent] == ["api.test"] * 2
    assert script.sent[0].headers["x-api-key"] == API_KEY
    assert script.sent[1].headers["authorization"] == f"Bearer {TOKEN}"
    assert "x-api-key" not in script.sent[1].headers


def test_an_empty_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERTRILO_API_KEY", "")
    monkeypatch.setenv("CONVERTRILO_BASE_URL", "")
    assert AsyncClient(transport=Script(ok())).base_url == "https://api.convertrilo.com"


async def test_a_view_has_options_of_its_own_on_the_same_connections() -> None:
    script = Script(ok({}))
    async with client_of(script, timeout=7) as client:
        view = client.with_options(timeout=2, operation="n", retry=NONE)
        further = view.with_options(timeout=httpx.Timeout(None, read=3.0))
        for each in (client, view, further, client):
            await each.get_balance()
        assert type(view) is AsyncClient
        assert view._engine is further._engine is client._engine
        assert (client._options.operation, view._options.operation, further._options.operation) == (None, "n", "n")
        assert (client._options.retry, further._options.retry) == (RetryPolicy(), NONE)
    assert [sent.timeout["read"] for sent in script.sent] == [7, 2, 3, 7]
    assert [sent.timeout["connect"] for sent in script.sent] == [7, 2, 180, 7]


async def test_the_default_timeouts_are_10_seconds_to_connect_and_30_for_all_else() -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        await client.get_balance()
    assert script.sent[0].timeout == {"connect": 10, "read": 30, "write": 30, "pool": 30}


async def test_a_transport_is_closed_with_its_client() -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        await client.get_balance()
        assert not script.closed
    assert script.closed


async def test_an_http_client_is_used_as_it_is_and_stays_open() -> None:
    def redirect(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tokens/balance":
            return httpx.Response(200, json={"available": 1}, headers={"Set-Cookie": "a=b"})
        return httpx.Response(302, headers={"Location": "https://elsewhere.test/"})

    seen: list[httpx.Request] = []

    async def see(request: httpx.Request) -> None:
        seen.append(request)

    transport = httpx.MockTransport(redirect)
    async with httpx.AsyncClient(transport=transport, event_hooks={"request": [see]}, follow_redirects=True) as theirs:
        async with AsyncClient(API_KEY, http_client=theirs, base_url=BASE_URL, timeout=5) as client:
            assert (await client.get_balance()).available == 1
            error = await raised_by(client.job_status("j"))
        assert not theirs.is_closed
    assert error.status == 302
    assert len(seen) == 2
    assert seen[0].headers["x-api-key"] == API_KEY
    assert seen[0].extensions["timeout"]["read"] == 5


async def test_a_closed_client_says_so() -> None:
    script = Script(ok({}))
    client = client_of(script)
    view = client.with_options(timeout=1)
    await client.aclose()
    await client.aclose()
    for each in (client, view):
        with pytest.raises(ConfigurationError, match="closed"):
            await each.get_balance()
    assert script.attempts == 0


async def test_a_client_that_is_closed_during_a_call_tries_no_more() -> None:
    async def close(_: Sent) -> Answer:
        await client.aclose()
        return Answer(500)

    script = Script(close)
    client = client_of(script)
    assert type(await raised_by(client.get_balance())) is ServerError
    assert script.attempts == 1


async def test_one_client_serves_many_tasks() -> None:
    failures: dict[str, int] = {}
    results: dict[str, str | None] = {}

    async def fail_twice(sent: Sent) -> Answer:
        await anyio.lowlevel.checkpoint()
        failures[sent.target] = failures.get(sent.target, 0) + 1
        return ok({"id": sent.target.split("/")[2]}) if failures[sent.target] == 3 else Answer(500)

    async def one(client: AsyncClient, job: str) -> None:
        results[job] = (await client.job_status(job)).id

    client = client_of(Script(fail_twice), chance=0.0, retry=RetryPolicy(budget=0))
    async with client, anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(one, client, f"j-{number}")
    assert results == {f"j-{number}": f"j-{number}" for number in range(200)}


async def test_over_real_sockets() -> None:
    async def serve(request: Received) -> bytes:
        if request.method == "GET":
            return answer(json.dumps({"available": 3}).encode())
        return answer(json.dumps({**CREATED, "metadata": json.loads(request.body)}).encode())

    async with loopback(serve) as server, AsyncClient(API_KEY, base_url=server.url) as client:
        assert (await client.get_balance()).available == 3
        assert (await client.create_job(JOB)).metadata == JOB
    assert server.accepted == 1
    assert server.requests[1].headers["x-api-key"] == API_KEY


def test_a_client_shows_its_address_and_nothing_else() -> None:
    client = client_of(Script(ok()))
    assert repr(client) == f"AsyncClient(base_url='{BASE_URL}')"
    parts = [client._engine, client._engine.credentials, client._options]
    assert API_KEY not in repr([client, *parts])


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
        (Answer(400, b'{"code": null, "message": ""}'), "http_400", "not of the service's form"),
        (Answer(400, b'{"code": {"a": 1}, "message": ["x"]}'), "http_400", "['x']"),
        (Answer(400, b'{"code": "c", "message": 7}'), "c", "7"),
        (Answer(400, b"\xff\xfe"), "http_400", "not of the service's form"),
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
    if noted:
        assert f"idempotency_key={error.idempotency_key!r}" in notes[0]
        assert pickle.loads(pickle.dumps(error)).__notes__ == notes


# ---- credentials are never shown

SIGNATURE = "5f2b0c9a+5f2b0c9b/0c9a=="
SIGNED = f"https://user:pass-word-1@b.s3.test/in.mp4?{httpx.QueryParams({'X-Amz-Signature': SIGNATURE})}"
S3 = {"accessKeyId": "AKIAIOSFODNN7EXAMPLE", "secretAccessKey": 'wJalrXUtn"FEMI7K/MDENG7+bPxRfi\\=='}
SECRET_BODY = {**JOB, "sourceUrl": SIGNED, "sourceS3": {"bucket": "bucket", **S3}}
SECRETS = {
    "API key": API_KEY,
    "access key": S3["accessKeyId"],
    "secret key": S3["secretAccessKey"],
    "signature": SIGNATURE,
    "password": "pass-word-1",
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
    """Everything that an error can show to somebody."""
    chain = [error]
    while (
        cause := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)
    ) is not None:
        chain.append(cause)
    requests = [each._request for each in chain if isinstance(each, httpx.RequestError) and each._request is not None]
    return "\n".join(
        [
            *traceback.format_exception(error),
            *(f"{each!r} {each} {vars(each)}" for each in chain),
            *(f"{request.url} {request.headers.raw} {request.read()!r}" for request in requests),
            pickle.dumps(error).decode("latin-1"),
        ]
    )


def assert_hidden(secret: str, text: str) -> None:
    """A secret is not in a text, nor any part of it that is the same however it is spelled."""
    telling = re.findall("[A-Za-z0-9]{4,}", secret)
    assert telling
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


@pytest.mark.parametrize("token", ["first-token", "second-token"])
async def test_no_bearer_token_is_shown_be_it_old_or_new(token: str) -> None:
    tokens = iter(["first-token", "second-token"])
    async with client_of(Script(problem(401, message=token)), api_key=None, get_token=lambda: next(tokens)) as client:
        error = await raised_by(client.get_balance())
    assert error.attempts == 2
    assert_hidden(token, shown_by(error))


async def test_neither_password_nor_job_token_is_shown() -> None:
    async with client_of(Script(problem(400, message="pass-word-1 job-token-1"))) as client:
        error = await raised_by(client.login({"email": "a@b.test", "password": "pass-word-1"}))
        assert error.message == "<hidden> job-token-1"
        error = await raised_by(client.public_job_status("j", "job-token-1"))
        assert error.message == "pass-word-1 <hidden>"


@pytest.mark.parametrize("operation", ["getBalance", "createJob", "reserveTokens", "getApiKeys"])
@pytest.mark.parametrize("kind", [httpx.ReadError, httpx.ConnectError, OSError])
async def test_what_a_transport_says_is_shown_without_credentials(operation: str, kind: type[Exception]) -> None:
    for text in ("reset by peer", f"h11: bad header {API_KEY!r} {TOKEN}"):
        async with client_of(Script(kind(text))) as client:
            error = await raised_by(call(client, operation))
        shown = shown_by(error)
        assert_hidden(API_KEY if operation != "getApiKeys" else TOKEN, shown)
        assert ("reset by peer" in shown) is (text == "reset by peer")


async def test_the_request_of_a_cause_has_no_credentials(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset", request=request)

    with caplog.at_level(logging.DEBUG):
        async with AsyncClient(API_KEY, transport=httpx.MockTransport(fail), clock=Clock()) as client:
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


# ---- cancelling


class Stopped(Clock):
    """A clock whose sleepers never wake."""

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await anyio.sleep_forever()


class HangingBody(httpx.AsyncByteStream):
    def __init__(self) -> None:
        self.read = False
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"jobId"'
        self.read = True
        await anyio.sleep_forever()

    async def aclose(self) -> None:
        self.closed += 1


async def hang(_: Any) -> Any:
    await anyio.sleep_forever()


async def until(condition: Callable[[], object]) -> None:
    """Let the other tasks and threads run until something is so."""
    with anyio.fail_after(60):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def cancelled(call: Callable[[], Coroutine[Any, Any, object]], when: Callable[[], object]) -> None:
    """Start a call, and cancel it when something is so."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until(when)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("steps", "left", "pending"),
    [
        pytest.param([hang], 490, True, id="while it is sent"),
        pytest.param([Answer(500)], 490, True, id="between attempts, in doubt"),
        pytest.param([httpx.ConnectError("")], 490, False, id="between attempts, never sent"),
        pytest.param([problem(429)], 490, False, id="between attempts, refused"),
        pytest.param([problem(429, headers={"Retry-After": "3"})], 490, False, id="between attempts, told to wait"),
        pytest.param([problem(409, "idempotency_in_progress")], 490, True, id="while another request is in progress"),
    ],
)
async def test_a_cancelled_call_leaves_everything_consistent(
    steps: list[Step], left: int, pending: bool, tmp_path: Path
) -> None:
    script = Script(*steps, clock=Stopped())
    journal = Journal(tmp_path / "j.db", clock=script.clock)
    async with journal, client_of(script, journal=journal) as client:
        for _ in range(2):
            client._engine.budget.spend()
        await cancelled(
            lambda: client.create_job(JOB, operation="n"),
            lambda: script.clock.sleeps or (steps == [hang] and script.sent),
        )
        assert client._engine.budget.left == left
        assert script.open == 0
        assert [entry.name async for entry in journal.pending()] == (["n"] if pending else [])
        script.steps = (EXAMPLES["createJob"].answered,)
        assert await client.create_job(JOB, operation="n") == CREATED_MODEL
        assert [entry.name async for entry in journal.answered()] == ["n"]
    assert script.sent[0].key == script.sent[-1].key


async def test_a_retry_that_is_cancelled_on_its_way_was_made_and_is_paid_for() -> None:
    script = Script(Answer(500), hang)
    async with client_of(script) as client:
        await cancelled(client.get_balance, lambda: script.attempts == 2)
        assert client._engine.budget.left == 495


async def test_a_call_that_is_cancelled_for_a_token_was_never_made(tmp_path: Path) -> None:
    script, asked = Script(ok({})), anyio.Event()

    async def get_token() -> str:
        asked.set()
        await anyio.sleep_forever()
        raise AssertionError

    journal = Journal(tmp_path / "j.db", clock=script.clock)
    async with journal, client_of(script, journal=journal, api_key=None, get_token=get_token) as client:
        await cancelled(lambda: client.create_job(JOB), asked.is_set)
        assert [entry async for entry in journal.pending()] == []
    assert script.attempts == 0


async def test_a_call_that_is_cancelled_while_it_reads_closes_its_answer() -> None:
    body = HangingBody()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=body))
    async with AsyncClient(API_KEY, transport=transport) as client:
        await cancelled(client.get_balance, lambda: body.read)
    assert body.closed == 1


async def test_calls_that_are_cancelled_in_line_for_a_connection_leave_none_behind(tmp_path: Path) -> None:
    opened = anyio.Event()

    async def serve(request: Received) -> bytes:
        if request.method == "GET":
            await opened.wait()
        return answer(json.dumps(CREATED).encode())

    async with (
        loopback(serve) as server,
        Journal(tmp_path / "j.db") as journal,
        AsyncClient(API_KEY, base_url=server.url, max_connections=1, journal=journal) as client,
        anyio.create_task_group() as tasks,
    ):
        pool: Any = client._engine.send
        transport: PoolTransport = pool.__self__
        tasks.start_soon(client.job_status, "j")
        await until(lambda: server.requests)
        async with anyio.create_task_group() as in_line:
            for number in range(3):
                in_line.start_soon(partial(client.create_job, JOB, operation=f"n-{number}"))
            await until(lambda: transport.waiting == 3)
            in_line.cancel_scope.cancel()
        assert (transport.in_flight, transport.waiting) == (1, 0)
        opened.set()
        assert await client.create_job(JOB, operation="n-1") == CREATED_MODEL
        assert (transport.in_flight, transport.waiting) == (0, 0)
        assert [entry async for entry in journal.pending()] == []
    assert len(server.requests) == 2


# ---- the journal


async def test_a_window_that_closes_during_the_retries_is_the_end_of_them(tmp_path: Path) -> None:
    script = Script(problem(500))
    journal = Journal(tmp_path / "j.db", replay_window=10.0, clock=script.clock)
    async with client_of(script, journal=journal, retry=RetryPolicy(max_attempts=50, deadline=1e6)) as client:
        error = await raised_by(client.create_job(EXAMPLES["createJob"].body, operation="n"))
    assert isinstance(error, OutcomeUnknownError)
    assert script.sent[-1].at - script.sent[0].at <= 10.0
    assert script.attempts > 1


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), problem(429)])
async def test_no_retry_of_a_later_call_is_sent_when_the_window_is_over(failure: Step, tmp_path: Path) -> None:
    script = Script(httpx.ReadError(""), failure, EXAMPLES["createJob"].answered)
    journal = Journal(tmp_path / "j.db", replay_window=10.0, clock=script.clock)
    async with client_of(script, journal=journal, retry=NONE) as client:
        await raised_by(client.create_job(JOB, operation="n"))
        script.clock.now += 9.8
        error = await raised_by(client.with_options(retry=RetryPolicy()).create_job(JOB, operation="n"))
    assert isinstance(error, OutcomeUnknownError)
    assert script.attempts == 2


async def test_a_connection_that_cannot_be_had_again_does_not_mean_that_nothing_was_sent(tmp_path: Path) -> None:
    """The pool sends again on a new connection what an old one may have taken; that one may not come about."""

    async def fail(request: httpx.Request) -> httpx.Response:
        request.extensions["begun"] = True
        raise httpx.ConnectError("refused")

    journal, transport = Journal(tmp_path / "j.db"), httpx.MockTransport(fail)
    async with journal, AsyncClient(API_KEY, transport=transport, journal=journal, retry=NONE) as client:
        error = await raised_by(client.create_job(JOB, operation="n"))
        assert type(error) is TransportError
        assert error.__notes__
        assert [entry.name async for entry in journal.pending()] == ["n"]


class Again(httpx.AsyncBaseTransport):
    """A caller's transport that sends again by itself, and finds no connection then."""

    def __init__(self, pool: PoolTransport) -> None:
        self.pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with pytest.raises(httpx.RemoteProtocolError):
            await self.pool.handle_async_request(request)
        await self.pool.aclose()
        return await self.pool.handle_async_request(request)


@pytest.mark.parametrize(("operation", "kind"), [("createJob", TransportError), ("reserveTokens", OutcomeUnknownError)])
async def test_what_a_callers_transport_has_sent_may_have_happened_though_it_finds_no_connection_afterwards(
    operation: str, kind: type[Exception], tmp_path: Path
) -> None:
    async def hang_up(_: Received) -> None:
        return None

    async with loopback(hang_up) as server, Journal(tmp_path / "j.db") as journal:
        transport = Again(PoolTransport())
        async with AsyncClient(
            API_KEY, base_url=server.url, transport=transport, journal=journal, retry=NONE
        ) as client:
            assert type(await raised_by(call(client, operation))) is kind
        pending = [entry.operation async for entry in journal.pending()]
    assert pending == ["createJob"][: operation == "createJob"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("failure", [httpx.ReadError(""), problem(409, "idempotency_in_progress")])
async def test_a_machine_that_slept_through_the_window_sends_nothing_more(failure: Step, tmp_path: Path) -> None:
    """A laptop's lid, a paused virtual machine: the wall clock goes on, and the monotonic one does not."""

    class Asleep(Clock):
        def time(self) -> float:
            return self.now + (1e6 if self.sleeps else 0.0)

    script = Script(failure, EXAMPLES["createJob"].answered, clock=Asleep())
    journal = Journal(tmp_path / "j.db", clock=script.clock)
    async with journal, client_of(script, journal=journal) as client:
        error = await raised_by(client.create_job(JOB, operation="n"))
        assert [entry.name async for entry in journal.unknown()] == ["n"]
    assert isinstance(error, OutcomeUnknownError)
    assert script.attempts == error.attempts == 1


@pytest.mark.parametrize("rejected", [False, True])
async def test_a_token_that_comes_when_the_window_is_over_sends_nothing(rejected: bool, tmp_path: Path) -> None:
    clock = Clock()

    def get_token() -> str:
        if script.attempts > rejected:
            clock.now += 20.0
        return f"token-{script.attempts}"

    script = Script(httpx.ReadError(""), problem(401), EXAMPLES["createJob"].answered, clock=clock)
    journal = Journal(tmp_path / "j.db", replay_window=10.0, clock=clock)
    client = client_of(script, journal=journal, api_key=None, get_token=get_token, retry=NONE)
    async with journal, client:
        assert type(await raised_by(client.create_job(JOB, operation="n"))) is TransportError
        assert type(await raised_by(client.create_job(JOB, operation="n"))) is OutcomeUnknownError
        assert [entry.name async for entry in journal.unknown()] == ["n"]
    assert script.attempts == 1 + rejected


async def test_a_gateway_that_gives_up_late_leaves_the_operation_on_record(tmp_path: Path) -> None:
    script = Script(problem(503, headers={"retry-after": "1"}))
    journal = Journal(tmp_path / "j.db", clock=script.clock)
    async with journal, client_of(script, journal=journal) as client:
        await raised_by(client.create_job(EXAMPLES["createJob"].body, operation="n"))
        assert [entry.name async for entry in journal.pending()] == ["n"]


async def test_an_answer_of_a_sandbox_is_never_taken_for_the_services(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    sandbox = client_of(Script(EXAMPLES["createJob"].answered), journal=Journal(path), base_url="http://127.0.0.1:8080")
    async with sandbox as client:
        await client.create_job(EXAMPLES["createJob"].body, operation="n")
    service = Script(EXAMPLES["createJob"].answered)
    async with client_of(service, journal=Journal(path)) as client:
        error = await raised_by(client.create_job(EXAMPLES["createJob"].body, operation="n"))
    assert isinstance(error, JournalError)
    assert "localhost" in str(error)
    assert service.attempts == 0


async def second_api_key(sandbox: Sandbox) -> str:
    async with sandbox.client() as client:
        session = await client.login({"email": sandbox.email, "password": sandbox.password})
    async with sandbox.client(api_key=None, get_token=lambda: session.access_token) as client:
        made = await client.create_api_key({"name": "second"})
    assert made.key is not None
    return made.key


async def test_a_new_api_key_makes_no_second_job_where_the_service_keeps_keys_by_api_key(tmp_path: Path) -> None:
    async with Sandbox(rules=Rules(key_scope="api_key")) as sandbox:
        sandbox.faults.lose_response("createJob")
        second = await second_api_key(sandbox)
        async with sandbox.client(journal=Journal(tmp_path / "j.db"), retry=NONE) as client:
            assert type(await raised_by(client.create_job(OWN))) is TransportError
        async with sandbox.client(api_key=second, journal=Journal(tmp_path / "j.db")) as client:
            error = await raised_by(client.create_job(OWN))
        assert type(error) is OutcomeUnknownError
        assert "another API key" in str(error)
        async with sandbox.client(journal=Journal(tmp_path / "j.db")) as client:
            job = await client.create_job(OWN)
        async with sandbox.client(api_key=second, journal=Journal(tmp_path / "j.db")) as client:
            assert await client.create_job(OWN) == job, "what was answered stays answered"
        assert sandbox.assert_created_once(external_id="e-1").id == job.job_id


async def test_a_new_bearer_token_is_no_other_sender(tmp_path: Path) -> None:
    tokens = iter(["first", "second"])
    script = Script(httpx.ReadError(""), EXAMPLES["createJob"].answered)
    journal = Journal(tmp_path / "j.db", clock=script.clock)
    client = client_of(script, journal=journal, api_key=None, get_token=lambda: next(tokens), retry=NONE)
    async with client:
        await raised_by(client.create_job(OWN))
        assert await client.create_job(OWN) == CREATED_MODEL


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ingest.db"


def journaling(path: Path, clock: Clock, *steps: Step, **options: Any) -> tuple[AsyncClient, Script]:
    """A client as a new process has it: with a journal object of its own on the file."""
    script = Script(*steps, clock=clock)
    return client_of(script, journal=Journal(path, clock=clock), **options), script


def files_of(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


async def states(path: Path, clock: Clock) -> dict[str, str]:
    """What a person sees in the journal: the state of each key."""
    async with Journal(path, clock=clock) as journal:
        lists = (journal.pending(), journal.answered(), journal.unknown())
        return {entry.key: entry.state for entries in lists async for entry in entries}


OWN = {**JOB, "externalId": "e-1"}
IDENTITIES: list[tuple[dict[str, Any], dict[str, str]]] = [
    (JOB, {"idempotency_key": "k"}),
    (JOB, {"operation": "n"}),
    (OWN, {}),
]


@pytest.mark.parametrize(("body", "named"), IDENTITIES)
async def test_what_was_answered_is_answered_again_without_a_request(
    body: dict[str, Any], named: dict[str, str], path: Path, clock: Clock
) -> None:
    client, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with client:
        first = await client.create_job(body, **named)
        assert await client.create_job(body, **named) == first == CREATED_MODEL
    clock.now += 1e9
    rerun, nothing = journaling(path, clock, problem(500))
    async with rerun:
        assert await rerun.create_job(JobCreateRequest(**_snake(body)), **named) == first
    assert (script.attempts, nothing.attempts) == (1, 0)


def _snake(body: dict[str, Any]) -> dict[str, Any]:
    return {{"externalId": "external_id"}.get(name, name): value for name, value in body.items()}


@pytest.mark.parametrize(("body", "named"), IDENTITIES)
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadError(""),
        Answer(500),
        Answer(503),
        Answer(200, b"{", cut=httpx.RemoteProtocolError("")),
        Answer(200, b"<html>"),
        problem(409, "idempotency_in_progress"),
    ],
)
async def test_what_was_not_answered_goes_again_with_the_same_key_and_bytes(
    body: dict[str, Any], named: dict[str, str], failure: Step, path: Path, clock: Clock
) -> None:
    first, lost = journaling(path, clock, failure, retry=NONE)
    async with first:
        error = await raised_by(first.create_job(body, **named))
    assert await states(path, clock) == {error.idempotency_key: "pending"}
    clock.now += 86_000
    rerun, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with rerun:
        assert await rerun.create_job(body, **named) == CREATED_MODEL
    assert [(sent.key, sent.body) for sent in script.sent] == [(sent.key, sent.body) for sent in lost.sent]
    assert await states(path, clock) == {error.idempotency_key: "answered"}


@pytest.mark.parametrize(("body", "named"), IDENTITIES)
async def test_past_the_replay_window_nothing_is_sent(
    body: dict[str, Any], named: dict[str, str], path: Path, clock: Clock
) -> None:
    first, _ = journaling(path, clock, httpx.ReadError(""), retry=NONE)
    async with first:
        key = (await raised_by(first.create_job(body, **named))).idempotency_key
    clock.now += 86_401
    rerun, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with rerun:
        error = await raised_by(rerun.create_job(body, **named))
    assert type(error) is OutcomeUnknownError
    assert (error.operation, error.idempotency_key, error.attempts) == ("createJob", key, 0)
    assert script.attempts == 0
    assert await states(path, clock) == {key: "unknown"}


@pytest.mark.parametrize(
    "failure",
    [
        problem(400, "invalid_body"),
        problem(402, "insufficient_tokens"),
        problem(409, "idempotency_conflict"),
        problem(429, headers={"Retry-After": "999"}),
        Answer(302),
        httpx.ConnectError("refused"),
        httpx.PoolTimeout(""),
    ],
)
async def test_what_surely_did_not_happen_is_not_on_record(failure: Step, path: Path, clock: Clock) -> None:
    client, script = journaling(path, clock, failure, EXAMPLES["createJob"].answered, retry=NONE)
    async with client:
        await raised_by(client.create_job(OWN))
        assert await states(path, clock) == {}
        clock.now += 1e9
        assert await client.create_job(OWN) == CREATED_MODEL
    assert script.attempts == 2


async def test_a_refusal_does_not_take_back_what_an_earlier_call_may_have_done(path: Path, clock: Clock) -> None:
    client, _ = journaling(path, clock, httpx.ReadError(""), problem(400), httpx.ConnectError(""), retry=NONE)
    async with client:
        for kind in (TransportError, InvalidRequestError, NotSentError):
            assert type(await raised_by(client.create_job(OWN))) is kind
            assert await states(path, clock) == {derive_key("createJob", OWN): "pending"}


@pytest.mark.parametrize("last", [problem(400), problem(401), problem(429), httpx.ConnectError("")])
async def test_a_refusal_does_not_take_back_what_an_earlier_attempt_may_have_done(
    last: Step, path: Path, clock: Clock
) -> None:
    client, script = journaling(path, clock, httpx.ReadError(""), last, retry=RetryPolicy(max_attempts=2))
    async with client:
        await raised_by(client.create_job(OWN))
    assert script.attempts == 2
    assert await states(path, clock) == {derive_key("createJob", OWN): "pending"}


async def test_two_calls_at_once_that_are_both_refused_leave_nothing_on_record(path: Path, clock: Clock) -> None:
    both = anyio.Event()

    async def refuse(_: Sent) -> Answer:
        if script.attempts == 2:
            both.set()
        await both.wait()
        return problem(400)

    client, script = journaling(path, clock, refuse)
    async with client, anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(raised_by, client.create_job(OWN))
    assert await states(path, clock) == {}


async def test_a_rotated_credential_is_sent_under_the_same_key_and_a_conflict_is_the_callers(
    path: Path, clock: Clock
) -> None:
    steps: list[Step] = [httpx.ReadError(""), problem(409, "idempotency_conflict"), EXAMPLES["createJob"].answered]
    client, script = journaling(path, clock, *steps, retry=NONE)
    bodies = [
        {**OWN, "sourceS3": {"bucket": "b", "secretAccessKey": secret}} for secret in ("old", "new", "old", "new")
    ]
    async with client:
        assert type(await raised_by(client.create_job(bodies[0]))) is TransportError
        assert type(await raised_by(client.create_job(bodies[1]))) is IdempotencyConflictError
        assert list((await states(path, clock)).values()) == ["pending"]
        assert await client.create_job(bodies[2]) == CREATED_MODEL
        assert await client.create_job(bodies[3]) == CREATED_MODEL
    assert [sent.json for sent in script.sent] == bodies[:3]
    assert len({sent.key for sent in script.sent}) == 1


async def test_a_key_of_another_body_is_refused_before_anything_is_sent(path: Path, clock: Clock) -> None:
    client, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with client:
        await client.create_job(JOB, idempotency_key="k")
        error = await raised_by(client.create_job(OWN, idempotency_key="k"))
    assert type(error) is IdempotencyConflictError
    assert script.attempts == 1


async def test_no_credential_is_written_to_disk(path: Path, clock: Clock) -> None:
    client, _ = journaling(path, clock, httpx.ReadError(""), EXAMPLES["createJob"].answered, retry=NONE)
    async with client:
        await raised_by(client.create_job(SECRET_BODY))
        await client.create_job(SECRET_BODY, operation="n")
        written = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b'"bucket":"bucket"' in written
    assert b"b.s3.test/in.mp4" in written
    for secret in SECRETS.values():
        assert_hidden(secret, written.decode("latin-1").replace("b.s3.test", "").replace("in.mp4", ""))


async def test_calls_without_an_identity_are_on_record_each(path: Path, clock: Clock) -> None:
    client, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with client:
        for _ in range(3):
            await client.create_job(JOB)
    assert list((await states(path, clock)).values()) == ["answered"] * 3
    assert script.attempts == 3


@pytest.mark.parametrize("operation", [row.id for row in OPERATIONS.values() if row.repeat is Repeat.KEYED])
async def test_every_keyed_operation_is_on_record(operation: str, path: Path, clock: Clock) -> None:
    client, script = journaling(path, clock, EXAMPLES[operation].answered)
    async with client:
        for _ in range(2):
            assert await call(client, operation, operation="n") == EXAMPLES[operation].result
    assert script.attempts == 1


async def test_other_operations_are_not_on_record(path: Path, clock: Clock) -> None:
    client, script = journaling(path, clock, ok({}))
    async with client:
        await client.confirm_job("j")
        await client.get_balance()
    assert script.attempts == 2
    assert await states(path, clock) == {}


@pytest.mark.parametrize("entered", [True, False])
async def test_a_journal_that_cannot_be_used_stops_a_call_before_anything_is_sent(
    entered: bool, tmp_path: Path, clock: Clock
) -> None:
    client, script = journaling(tmp_path / "missing" / "j.db", clock, EXAMPLES["createJob"].answered)
    with pytest.raises(JournalError, match="Nothing was sent"):
        await (client.__aenter__() if entered else client.create_job(JOB))
    assert script.attempts == 0
    await client.aclose()
    assert script.closed


async def test_a_journal_is_opened_by_the_first_call_and_closed_with_the_client(path: Path, clock: Clock) -> None:
    client, _ = journaling(path, clock, EXAMPLES["createJob"].answered)
    assert not files_of(path)
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(partial(client.create_job, JOB, operation=str(number)))
    assert files_of(path) > {"ingest.db"}
    await client.aclose()
    assert files_of(path) == {"ingest.db"}
    with pytest.raises(ConfigurationError, match="closed"):
        await client.create_job(JOB)
    assert files_of(path) == {"ingest.db"}


async def test_an_answer_is_worth_more_than_its_record(
    path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise JournalError("the disk is full")

    client, script = journaling(path, clock, EXAMPLES["createJob"].answered, problem(400))
    async with client:
        monkeypatch.setattr(Journal, "answer", fail)
        assert await client.create_job(OWN) == CREATED_MODEL
        monkeypatch.setattr(Journal, "forget", fail)
        assert type(await raised_by(client.create_job(JOB))) is InvalidRequestError
    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["the disk is full"] * 2
    assert script.attempts == 2
    assert (await states(path, clock))[derive_key("createJob", OWN)] == "pending"
