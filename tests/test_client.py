"""The client as its user meets it: every operation, paths, bodies and settings."""

import json
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
    EXAMPLES,
    JOB,
    TOKEN,
    Answer,
    Script,
    Sent,
    call,
    client_of,
    method_of,
    ok,
    raised_by,
)

from convertrilo import (
    OPERATIONS,
    AsyncClient,
    ConfigurationError,
    DecodeError,
    JobCreateRequest,
    Journal,
    OnDemandEncodeRequest,
    Repeat,
    RetryPolicy,
    ServerError,
    ValidationError,
    __version__,
)
from convertrilo._model import Model
from convertrilo.codec import from_request
from convertrilo.operations import Auth

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


async def test_a_closed_client_opens_its_journal_no_more(tmp_path: Path) -> None:
    script = Script(ok({}))
    client = client_of(script, journal=Journal(tmp_path / "journal.db"))
    async with client:
        await client.get_balance()
    with pytest.raises(ConfigurationError, match="closed"):
        await anext(client.submit_jobs([{"codec": "av1", "resolution": "720p", "fps": 24, "externalId": "a"}]))
    with pytest.raises(ConfigurationError, match="closed"):
        await client.upload_chunked("j-1", b"film")
    assert [each.name for each in tmp_path.iterdir()] in ([], ["journal.db"])
    assert script.attempts == 1


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
