"""What a listener sees: one frozen event for each attempt, and never what it must not see."""

import contextlib
import logging
from typing import Any

import anyio
import attrs
import httpx
import pytest
from credentials import ACCESS_KEY_ID, SECRET_ACCESS_KEY
from fake_clock import FakeClock
from support import API_KEY, EXAMPLES, TOKEN, Answer, Script, Sent, Step, call, client_of, ok, problem, raised_by

from convertrilo import OPERATIONS, AttemptEvent, ConvertriloError, Repeat, log_attempts
from convertrilo.events import notify


async def events_of(operation: str, *steps: Step, **options: Any) -> list[AttemptEvent]:
    """The events of one call."""
    events: list[AttemptEvent] = []
    async with client_of(Script(*steps), on_event=events.append) as client:
        with contextlib.suppress(ConvertriloError):
            await call(client, operation, **options)
    return events


def event(attempt: int, outcome: Any, **fields: Any) -> AttemptEvent:
    return AttemptEvent(operation="createJob", attempt=attempt, outcome=outcome, idempotency_key="k", **fields)


async def test_every_attempt_is_one_event() -> None:
    steps: list[Step] = [
        httpx.ConnectError("refused"),
        problem(429, "rate_limit_exceeded", headers={"Retry-After": "3", "X-Request-Id": "r-2"}),
        httpx.ReadError("reset"),
        Answer(502, b"<html>", {"X-Request-Id": "r-4"}),
        problem(409, "idempotency_in_progress"),
        Answer(200, EXAMPLES["createJob"].answered.body, {"X-Request-Id": "r-6"}),
    ]
    assert await events_of("createJob", *steps, idempotency_key="k") == [
        event(1, "not_sent", wait=0.5, elapsed=0.0),
        event(2, "refused", status=429, code="rate_limit_exceeded", wait=3.0, elapsed=0.5, request_id="r-2"),
        event(3, "unclear", wait=2.0, elapsed=3.5),
        event(4, "unclear", status=502, code="http_502", wait=4.0, elapsed=5.5, request_id="r-4"),
        event(5, "in_progress", status=409, code="idempotency_in_progress", wait=8.0, elapsed=9.5),
        event(6, "ok", status=200, elapsed=17.5, request_id="r-6"),
    ]


@pytest.mark.parametrize(
    ("step", "last"),
    [
        (problem(400, "invalid_body"), event(1, "rejected", status=400, code="invalid_body", elapsed=0.0)),
        (problem(401, "invalid_api_key"), event(1, "rejected", status=401, code="invalid_api_key", elapsed=0.0)),
        (Answer(302), event(1, "rejected", status=302, code="http_302", elapsed=0.0)),
        (Answer(200, b"<html>"), event(1, "undecodable", status=200, elapsed=0.0)),
        (
            problem(429, headers={"Retry-After": "999"}),
            event(1, "refused", status=429, code="some_429", elapsed=0.0),
        ),
        (Answer(200, b"{}", cut=httpx.ReadError("cut")), event(8, "unclear", status=200, elapsed=51.5)),
        (httpx.PoolTimeout(""), event(8, "not_sent", elapsed=51.5)),
    ],
)
async def test_the_last_event_has_no_wait(step: Step, last: AttemptEvent) -> None:
    events = await events_of("createJob", step, idempotency_key="k")
    assert events[-1] == last
    assert [each.attempt for each in events] == list(range(1, last.attempt + 1))
    assert all(each.wait is not None for each in events[:-1])


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_event_names_the_operation_and_the_key_that_was_sent(operation: str) -> None:
    script = Script(EXAMPLES[operation].answered)
    events: list[AttemptEvent] = []
    async with client_of(script, on_event=events.append) as client:
        await call(client, operation)
    (only,) = events
    assert only == AttemptEvent(
        operation=operation,
        attempt=1,
        outcome="ok",
        status=200,
        elapsed=0.0,
        idempotency_key=script.sent[0].key,
    )
    assert (only.idempotency_key is not None) is (OPERATIONS[operation].repeat is Repeat.KEYED)


async def test_a_rejected_token_is_an_event_too() -> None:
    tokens = iter(["old", "new"])
    events: list[AttemptEvent] = []
    script = Script(problem(401, "api_key_expired"), ok({}))
    async with client_of(script, api_key=None, get_token=lambda: next(tokens), on_event=events.append) as client:
        await client.get_balance()
    assert [(each.outcome, each.status, each.wait) for each in events] == [
        ("unauthorized", 401, 0.0),
        ("ok", 200, None),
    ]


async def test_an_attempt_that_is_cancelled_is_an_event_too() -> None:
    events: list[AttemptEvent] = []

    async def hang(_: Sent) -> Answer:
        tasks.cancel_scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError

    client = client_of(Script(Answer(500), hang), on_event=events.append)
    async with client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.get_balance)
    assert [(each.attempt, each.outcome, each.wait) for each in events] == [
        (1, "unclear", 0.5),
        (2, "interrupted", None),
    ]


async def test_what_is_no_error_of_the_wire_ends_the_call_and_is_an_event_too() -> None:
    events: list[AttemptEvent] = []
    async with client_of(Script(LookupError("a bug of the transport")), on_event=events.append) as client:
        error = await raised_by(client.get_balance())
    assert type(error) is LookupError
    assert [(each.outcome, each.wait) for each in events] == [("interrupted", None)]


async def test_elapsed_is_the_time_since_the_call_began() -> None:
    clock = FakeClock()

    async def slow(_: Sent) -> Answer:
        clock.now += 5
        return Answer(500)

    events: list[AttemptEvent] = []
    async with client_of(Script(slow, slow, ok({}), clock=clock), on_event=events.append) as client:
        clock.now += 100
        await client.get_balance()
    assert [each.elapsed for each in events] == [5.0, 10.5, 11.5]


async def test_views_tell_the_same_listener() -> None:
    events: list[AttemptEvent] = []
    async with client_of(Script(ok({})), on_event=events.append) as client:
        await client.with_options(timeout=1).get_balance()
    assert len(events) == 1


def test_an_event_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event(1, "ok", elapsed=0.0).attempt = 2  # type: ignore[misc]  # that is the point


# ---- listeners that fail


@pytest.mark.parametrize("steps", [[ok({})], [Answer(500), ok({})], [httpx.ReadError(""), ok({})]])
async def test_a_listener_that_fails_breaks_nothing(steps: list[Step], caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: AttemptEvent) -> None:
        raise RuntimeError("my dashboard is down")

    script = Script(*steps)
    async with client_of(script, on_event=fail) as client:
        await client.get_balance()
        assert client._engine.budget.left == 500
    assert script.attempts == len(steps)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * len(steps)
    assert "my dashboard is down" in caplog.text


async def test_a_listener_that_fails_does_not_hide_the_error() -> None:
    def fail(_: AttemptEvent) -> None:
        raise RuntimeError("my dashboard is down")

    async with client_of(Script(problem(404)), on_event=fail) as client:
        error = await raised_by(client.job_status("j"))
    assert error.status == 404
    assert error.__context__ is None


def test_nobody_needs_to_listen() -> None:
    notify(None, event(1, "ok", elapsed=0.0))


# ---- the log


@pytest.mark.parametrize(
    ("shown", "level", "text"),
    [
        (
            event(1, "ok", status=200, elapsed=0.0424),
            logging.DEBUG,
            "createJob attempt 1: ok (200) after 0.042 s, key k",
        ),
        (
            event(2, "refused", status=429, code="rate_limit_exceeded", wait=3.0, elapsed=1.5),
            logging.INFO,
            "createJob attempt 2: refused (429 rate_limit_exceeded) after 1.500 s, again in 3.000 s, key k",
        ),
        (
            AttemptEvent(operation="getBalance", attempt=1, outcome="unauthorized", status=401, wait=0.0, elapsed=0.0),
            logging.INFO,
            "getBalance attempt 1: unauthorized (401) after 0.000 s, again in 0.000 s",
        ),
        (
            AttemptEvent(operation="getBalance", attempt=8, outcome="not_sent", elapsed=51.5),
            logging.WARNING,
            "getBalance attempt 8: not_sent after 51.500 s",
        ),
    ],
)
def test_an_attempt_is_a_line_in_the_log(
    shown: AttemptEvent, level: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "convertrilo"):
        log_attempts(shown)
    assert caplog.record_tuples == [("convertrilo", level, text)]
    caplog.clear()
    with caplog.at_level(level + 1, "convertrilo"):
        log_attempts(shown)
    assert not caplog.records


SECRETS = {"secretAccessKey": SECRET_ACCESS_KEY, "accessKeyId": ACCESS_KEY_ID}
SIGNED = "https://b.s3.test/in.mp4?X-Amz-Signature=5f2b0c9a5f2b0c9a"


@pytest.mark.parametrize("step", [ok({}), problem(400, "x" + API_KEY), httpx.ReadError(TOKEN), Answer(200, b"<html>")])
async def test_neither_event_nor_log_holds_a_body_a_url_or_a_credential(
    step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[AttemptEvent] = []

    def listen(event: AttemptEvent) -> None:
        events.append(event)
        log_attempts(event)

    body = {
        "codec": "av1",
        "resolution": "720p",
        "fps": 30,
        "sourceUrl": SIGNED,
        "sourceS3": {"bucket": "b", **SECRETS},
    }
    with caplog.at_level(logging.DEBUG):
        async with client_of(Script(step), on_event=listen) as client:
            with contextlib.suppress(ConvertriloError):
                await client.create_job(body)
            with contextlib.suppress(ConvertriloError):
                await client.get_api_keys()
    shown = repr(events) + caplog.text
    assert events
    for hidden in (API_KEY, TOKEN, *SECRETS.values(), "5f2b0c9a", "b.s3.test", "720p"):
        assert hidden not in shown
