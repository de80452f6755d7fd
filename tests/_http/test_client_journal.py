"""Cancelling a call in any state, and the journal around calls: what is sent again, and what never is."""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from fake_clock import FakeClock
from loopback import Received, answer, loopback, until
from support import (
    API_KEY,
    CREATED,
    CREATED_MODEL,
    EXAMPLES,
    JOB,
    Answer,
    Script,
    Sent,
    Step,
    call,
    client_of,
    ok,
    problem,
    raised_by,
)

from convertrilo import (
    OPERATIONS,
    AsyncClient,
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobCreateRequest,
    Journal,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    Repeat,
    RetryPolicy,
    TransportError,
    derive_key,
)
from convertrilo._http.transport import PoolTransport
from convertrilo.sandbox import Rules, Sandbox

NONE = RetryPolicy.none()

# ---- cancelling


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
    script = Script(*steps, clock=FakeClock(sleepers="wait"))
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
        script.clock.now += 3  # as the service may have asked
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
    script = Script(failure, EXAMPLES["createJob"].answered)
    script.clock.suspended = 1e6
    journal = Journal(tmp_path / "j.db", clock=script.clock)
    async with journal, client_of(script, journal=journal) as client:
        error = await raised_by(client.create_job(JOB, operation="n"))
        assert [entry.name async for entry in journal.unknown()] == ["n"]
    assert isinstance(error, OutcomeUnknownError)
    assert script.attempts == error.attempts == 1


@pytest.mark.parametrize("rejected", [False, True])
async def test_a_token_that_comes_when_the_window_is_over_sends_nothing(rejected: bool, tmp_path: Path) -> None:
    clock = FakeClock()

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
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ingest.db"


def journaling(path: Path, clock: FakeClock, *steps: Step, **options: Any) -> tuple[AsyncClient, Script]:
    """A client as a new process has it: with a journal object of its own on the file."""
    script = Script(*steps, clock=clock)
    return client_of(script, journal=Journal(path, clock=clock), **options), script


def files_of(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


async def states(path: Path, clock: FakeClock) -> dict[str, str]:
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
    body: dict[str, Any], named: dict[str, str], path: Path, clock: FakeClock
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
    body: dict[str, Any], named: dict[str, str], failure: Step, path: Path, clock: FakeClock
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
    body: dict[str, Any], named: dict[str, str], path: Path, clock: FakeClock
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
async def test_what_surely_did_not_happen_is_not_on_record(failure: Step, path: Path, clock: FakeClock) -> None:
    client, script = journaling(path, clock, failure, EXAMPLES["createJob"].answered, retry=NONE)
    async with client:
        await raised_by(client.create_job(OWN))
        assert await states(path, clock) == {}
        clock.now += 1e9
        assert await client.create_job(OWN) == CREATED_MODEL
    assert script.attempts == 2


async def test_a_refusal_does_not_take_back_what_an_earlier_call_may_have_done(path: Path, clock: FakeClock) -> None:
    client, _ = journaling(path, clock, httpx.ReadError(""), problem(400), httpx.ConnectError(""), retry=NONE)
    async with client:
        for kind in (TransportError, InvalidRequestError, NotSentError):
            assert type(await raised_by(client.create_job(OWN))) is kind
            assert await states(path, clock) == {derive_key("createJob", OWN): "pending"}


@pytest.mark.parametrize("last", [problem(400), problem(401), problem(429), httpx.ConnectError("")])
async def test_a_refusal_does_not_take_back_what_an_earlier_attempt_may_have_done(
    last: Step, path: Path, clock: FakeClock
) -> None:
    client, script = journaling(path, clock, httpx.ReadError(""), last, retry=RetryPolicy(max_attempts=2))
    async with client:
        await raised_by(client.create_job(OWN))
    assert script.attempts == 2
    assert await states(path, clock) == {derive_key("createJob", OWN): "pending"}


async def test_two_calls_at_once_that_are_both_refused_leave_nothing_on_record(path: Path, clock: FakeClock) -> None:
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
    path: Path, clock: FakeClock
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


async def test_a_key_of_another_body_is_refused_before_anything_is_sent(path: Path, clock: FakeClock) -> None:
    client, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with client:
        await client.create_job(JOB, idempotency_key="k")
        error = await raised_by(client.create_job(OWN, idempotency_key="k"))
    assert type(error) is IdempotencyConflictError
    assert script.attempts == 1


async def test_calls_without_an_identity_are_on_record_each(path: Path, clock: FakeClock) -> None:
    client, script = journaling(path, clock, EXAMPLES["createJob"].answered)
    async with client:
        for _ in range(3):
            await client.create_job(JOB)
    assert list((await states(path, clock)).values()) == ["answered"] * 3
    assert script.attempts == 3


@pytest.mark.parametrize("operation", [row.id for row in OPERATIONS.values() if row.repeat is Repeat.KEYED])
async def test_every_keyed_operation_is_on_record(operation: str, path: Path, clock: FakeClock) -> None:
    client, script = journaling(path, clock, EXAMPLES[operation].answered)
    async with client:
        for _ in range(2):
            assert await call(client, operation, operation="n") == EXAMPLES[operation].result
    assert script.attempts == 1


async def test_other_operations_are_not_on_record(path: Path, clock: FakeClock) -> None:
    client, script = journaling(path, clock, ok({}))
    async with client:
        await client.confirm_job("j")
        await client.get_balance()
    assert script.attempts == 2
    assert await states(path, clock) == {}


@pytest.mark.parametrize("entered", [True, False])
async def test_a_journal_that_cannot_be_used_stops_a_call_before_anything_is_sent(
    entered: bool, tmp_path: Path, clock: FakeClock
) -> None:
    client, script = journaling(tmp_path / "missing" / "j.db", clock, EXAMPLES["createJob"].answered)
    with pytest.raises(JournalError, match="Nothing was sent"):
        await (client.__aenter__() if entered else client.create_job(JOB))
    assert script.attempts == 0
    await client.aclose()
    assert script.closed


async def test_a_journal_is_opened_by_the_first_call_and_closed_with_the_client(path: Path, clock: FakeClock) -> None:
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
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
