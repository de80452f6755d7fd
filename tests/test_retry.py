"""May it be sent again, and when: the design's table row by row, waits, deadlines, the budget, bearer tokens."""

import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import anyio
import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    API_KEY,
    EXAMPLES,
    TOKEN,
    Answer,
    Clock,
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
    APIError,
    AsyncClient,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    ConvertriloError,
    DeadlineExceededError,
    IdempotencyConflictError,
    IdempotencyInProgressError,
    InvalidRequestError,
    NotFoundError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitError,
    Repeat,
    RetryPolicy,
    ServerError,
    TransportError,
)
from convertrilo._base_client import engine_of
from convertrilo.operations import Auth
from convertrilo.retry import FailureKind, RetryBudget, Verdict, kind_of_answer, may_repeat, retry_after

NOW = 1_900_000_000.0
HTML = Answer(502, b"<html><h1>Bad Gateway</h1></html>")
BACKOFF = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0]
TOLD = [3.0] * 7
AT_ONCE: list[float] = []

WITH_ALL = ["read error", "cut in the body", "500", "503"]
ONE_OF_EACH = ["jobStatus", "uploadChunk", "deleteWebhook", "createJob", "onDemandEncode", "reserveTokens", "login"]
ONCE = [row.id for row in OPERATIONS.values() if row.repeat is Repeat.ONCE]
KEYED = [row.id for row in OPERATIONS.values() if row.repeat is Repeat.KEYED]

# ---- the table


@dataclass(frozen=True)
class Failure:
    """A failure that goes on and on: the waits before the client gives up, and what it raises then."""

    step: Step
    raised: type[ConvertriloError]
    waits: list[float]


def answered_429(**headers: str) -> Answer:
    return problem(429, "rate_limit_exceeded", headers={name.replace("_", "-"): it for name, it in headers.items()})


NEVER_SENT = {
    "connect error": Failure(httpx.ConnectError("refused"), NotSentError, BACKOFF),
    "connect timeout": Failure(httpx.ConnectTimeout("slow"), NotSentError, BACKOFF),
    "no free connection": Failure(httpx.PoolTimeout("all busy"), NotSentError, BACKOFF),
    "proxy refuses": Failure(httpx.ProxyError("407"), NotSentError, BACKOFF),
}
REFUSED = {
    "429": Failure(answered_429(), RateLimitError, BACKOFF),
    "429 with Retry-After": Failure(answered_429(retry_after="3"), RateLimitError, TOLD),
    "429 with a Retry-After that is no pause": Failure(answered_429(retry_after="0"), RateLimitError, BACKOFF),
    "503 with Retry-After": Failure(problem(503, headers={"Retry-After": "3"}), ServerError, TOLD),
}
UNCLEAR = {
    "write error": Failure(httpx.WriteError("broken pipe"), TransportError, BACKOFF),
    "write timeout": Failure(httpx.WriteTimeout(""), TransportError, BACKOFF),
    "read error": Failure(httpx.ReadError("reset"), TransportError, BACKOFF),
    "read timeout": Failure(httpx.ReadTimeout(""), TransportError, BACKOFF),
    "socket error": Failure(OSError("reset"), TransportError, BACKOFF),
    "cut in the headers": Failure(httpx.RemoteProtocolError("hung up"), TransportError, BACKOFF),
    "cut in the body": Failure(Answer(200, b'{"a": 1}', cut=httpx.RemoteProtocolError("cut")), TransportError, BACKOFF),
    "garbled body": Failure(Answer(200, b"{}", cut=httpx.DecodingError("no gzip")), TransportError, BACKOFF),
    "protocol error of ours": Failure(httpx.LocalProtocolError("HTTP/2 stream reset"), TransportError, BACKOFF),
    "408": Failure(problem(408), InvalidRequestError, BACKOFF),
    "500": Failure(problem(500), ServerError, BACKOFF),
    "500 with Retry-After": Failure(problem(500, headers={"Retry-After": "3"}), ServerError, TOLD),
    "502 in HTML": Failure(HTML, ServerError, BACKOFF),
    "503": Failure(Answer(503), ServerError, BACKOFF),
    "503 with a Retry-After that says nothing": Failure(
        Answer(503, headers={"Retry-After": "soon"}), ServerError, BACKOFF
    ),
    "504": Failure(problem(504), ServerError, BACKOFF),
    "524 of a proxy": Failure(Answer(524), ServerError, BACKOFF),
}
STANDING = {
    "400": Failure(problem(400, "invalid_body"), InvalidRequestError, AT_ONCE),
    "404": Failure(problem(404, "not_found"), NotFoundError, AT_ONCE),
    "409": Failure(problem(409, "some_conflict"), ConflictError, AT_ONCE),
    "409 idempotency_conflict": Failure(problem(409, "idempotency_conflict"), IdempotencyConflictError, AT_ONCE),
    "418": Failure(problem(418), InvalidRequestError, AT_ONCE),
    "redirect": Failure(Answer(302, headers={"Location": "https://elsewhere.test/"}), InvalidRequestError, AT_ONCE),
}


def rows(*tables: dict[str, Failure]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "failure", [pytest.param(it, id=name) for table in tables for name, it in table.items()]
    )


def assert_gave_up_after(script: Script, error: ConvertriloError, waits: list[float]) -> None:
    assert script.clock.sleeps == waits
    assert script.attempts == error.attempts == len(waits) + 1
    assert script.open == 0


@pytest.mark.parametrize("operation", ONE_OF_EACH)
@rows(NEVER_SENT, REFUSED, STANDING)
async def test_what_surely_did_not_happen_is_sent_again_and_what_was_decided_is_not(
    operation: str, failure: Failure
) -> None:
    script = Script(failure.step)
    async with client_of(script) as client:
        error = await raised_by(call(client, operation))
    assert type(error) is failure.raised
    assert error.operation == operation
    assert_gave_up_after(script, error, failure.waits)


@pytest.mark.parametrize(
    ("operation", "failure"),
    [
        pytest.param(operation, failure, id=f"{operation}-{name}")
        for name, failure in UNCLEAR.items()
        for operation in (OPERATIONS if name in WITH_ALL else ONE_OF_EACH)
    ],
)
async def test_what_may_have_happened_is_sent_again_only_where_that_does_no_harm(
    operation: str, failure: Failure
) -> None:
    script = Script(failure.step)
    async with client_of(script) as client:
        error = await raised_by(call(client, operation))
    assert error.operation == operation
    if OPERATIONS[operation].repeat is Repeat.ONCE:
        assert type(error) is OutcomeUnknownError
        assert_gave_up_after(script, error, AT_ONCE)
    else:
        assert type(error) is failure.raised
        assert_gave_up_after(script, error, failure.waits)


@pytest.mark.parametrize("operation", ["jobStatus", "uploadChunk", "createJob", "onDemandIngestFolder"])
@rows(NEVER_SENT, REFUSED, UNCLEAR)
async def test_a_failure_that_passes_is_not_noticed(operation: str, failure: Failure) -> None:
    script = Script(failure.step, failure.step, EXAMPLES[operation].answered)
    async with client_of(script) as client:
        assert await call(client, operation) == EXAMPLES[operation].result
    assert script.clock.sleeps == failure.waits[:2]
    assert script.attempts == 3


@pytest.mark.parametrize("operation", ONE_OF_EACH)
async def test_a_key_that_is_in_progress_is_asked_for_again(operation: str) -> None:
    script = Script(problem(409, "idempotency_in_progress"))
    async with client_of(script) as client:
        error = await raised_by(call(client, operation))
        assert client._engine.budget.left == 500
    assert type(error) is IdempotencyInProgressError
    assert_gave_up_after(script, error, AT_ONCE if operation in ONCE else BACKOFF)
    assert len({sent.key for sent in script.sent}) == 1


@pytest.mark.parametrize("operation", ONCE)
@rows({name: UNCLEAR[name] for name in WITH_ALL})
async def test_an_unknown_outcome_says_what_may_have_happened_and_how_to_find_out(
    operation: str, failure: Failure
) -> None:
    async with client_of(Script(failure.step)) as client:
        error = await raised_by(call(client, operation))
    assert error.find_out == OPERATIONS[operation].find_out
    assert error.message.startswith(f"{operation} may or may not have happened: ")
    assert error.message.endswith(error.find_out)
    assert error.attempts == 1
    if isinstance(failure.step, Exception):
        assert error.__cause__ is failure.step
    elif not isinstance(failure.step, Answer) or failure.step.status >= 300:
        assert type(error.__cause__) is failure.raised
    else:
        assert isinstance(error.__cause__, httpx.RequestError)


@pytest.mark.parametrize("operation", ["reserveTokens", "createPublicJob"])
async def test_an_outcome_becomes_unknown_at_a_later_attempt_too(operation: str) -> None:
    script = Script(httpx.ConnectError("refused"), answered_429(), httpx.ReadError("reset"))
    async with client_of(script) as client:
        error = await raised_by(call(client, operation))
    assert type(error) is OutcomeUnknownError
    assert error.attempts == script.attempts == 3


def test_every_class_and_kind_has_its_verdict() -> None:
    table = {
        FailureKind.NOT_SENT: (Verdict.AGAIN, Verdict.AGAIN),
        FailureKind.REFUSED: (Verdict.AGAIN, Verdict.AGAIN),
        FailureKind.UNCLEAR: (Verdict.AGAIN, Verdict.OUTCOME_UNKNOWN),
        FailureKind.IN_PROGRESS: (Verdict.AGAIN, Verdict.RAISE),
        FailureKind.UNAUTHORIZED: (Verdict.AGAIN, Verdict.AGAIN),
        FailureKind.REJECTED: (Verdict.RAISE, Verdict.RAISE),
    }
    assert set(table) == set(FailureKind)
    for kind, (repeatable, once) in table.items():
        assert may_repeat(Repeat.ONCE, kind) is once
        for repeat in (Repeat.SAFE, Repeat.IDEMPOTENT, Repeat.KEYED):
            assert may_repeat(repeat, kind) is repeatable


@given(st.integers(300, 999), st.booleans())
def test_no_status_of_a_failing_server_is_taken_for_a_decision(status: int, told: bool) -> None:
    kind = kind_of_answer(status, "x", told_to_wait=told, has_token=False)
    assert (kind is FailureKind.REJECTED) is (status < 500 and status not in (408, 429))


# ---- how long to wait


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 100), st.floats(0, 1000))
def test_a_wait_is_drawn_from_nothing_to_a_backoff_that_doubles(
    attempt: int, chance: float, initial: float, longest: float
) -> None:
    policy = RetryPolicy(initial_backoff=initial, max_backoff=longest)
    bound = min(longest, initial * 2.0 ** min(attempt - 1, 1000))
    assert policy.backoff(attempt, lambda: 0.0) == 0
    assert policy.backoff(attempt, lambda: 1.0) <= bound * (1 + 1e-9)
    assert policy.backoff(attempt, lambda: chance) == chance * policy.backoff(attempt, lambda: 1.0)
    if attempt < 60:
        assert policy.backoff(attempt, lambda: 1.0) == pytest.approx(bound)


async def test_waits_are_drawn_anew_each_time() -> None:
    script, draws = Script(HTML), iter([0.5, 0.0, 1.0, 0.25, 0.125, 0.75, 0.0625])
    async with client_of(script) as client:
        engine_of(client)[0].random = lambda: next(draws)
        await raised_by(client.get_balance())
    assert script.clock.sleeps == [0.25, 0.0, 2.0, 1.0, 1.0, 12.0, 1.25]


def in_seconds(seconds: float) -> str:
    return formatdate(NOW + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "7"}, 7),
        (429, {"retry-after": " 7.5 "}, 7.5),
        (429, {"Retry-After": "0"}, 0),
        (503, {"Retry-After": in_seconds(12)}, 12),
        (503, {"Retry-After": in_seconds(12).replace("GMT", "+0000")}, 12),
        (503, {"Retry-After": in_seconds(12).replace("GMT", "-0000")}, 12),
        (429, {"Retry-After": in_seconds(-100)}, 0),
        (429, {"Retry-After": "soon"}, None),
        (429, {"Retry-After": "-3"}, None),
        (429, {"Retry-After": "nan"}, None),
        (429, {"Retry-After": "inf"}, None),
        (429, {"Retry-After": ""}, None),
        (429, {"Retry-After": "Mon, 99 Foo 2024 99:99:99 GMT"}, None),
        (429, {}, None),
        (429, {"RateLimit-Reset": "9"}, 9),
        (429, {"X-RateLimit-Reset": "9"}, 9),
        (429, {"X-RateLimit-Reset": str(int(NOW) + 9)}, 9),
        (429, {"X-RateLimit-Reset": str(int(NOW) * 1000 + 9500)}, 9.5),
        (429, {"X-RateLimit-Reset": str(int(NOW) - 9)}, 0),
        (429, {"X-RateLimit-Reset": "tomorrow"}, None),
        (429, {"RateLimit": "limit=100, remaining=0, reset=9"}, 9),
        (429, {"RateLimit": '"default";r=0;t=9'}, 9),
        (429, {"RateLimit": "limit=100, remaining=0"}, None),
        (429, {"Retry-After": "7", "RateLimit-Reset": "9", "X-RateLimit-Reset": "11"}, 7),
        (429, {"RateLimit-Reset": "9", "X-RateLimit-Reset": "11"}, 9),
        (503, {"RateLimit-Reset": "9"}, None),
        (200, {"RateLimit-Reset": "9"}, None),
    ],
)
def test_the_service_says_when_to_come_again(status: int, headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(status, httpx.Headers(headers), NOW) == seconds


header_text = st.text(st.characters(codec="latin-1"), max_size=40) | st.from_regex(
    r"\A(\w{3}, )?\d{1,5} \w{3} \d{1,6}( \d{1,3}:\d{1,3}(:\d{1,3})?)?( [+-]\d{1,6}| GMT)?\Z"
)


@given(st.sampled_from(["retry-after", "ratelimit", "ratelimit-reset", "x-ratelimit-reset"]), header_text)
def test_no_header_breaks_a_retry(name: str, text: str) -> None:
    seconds = retry_after(429, {name: text}, NOW)
    assert seconds is None or 0 <= seconds < math.inf


async def test_a_wait_that_the_service_asks_for_is_kept_to_and_shown() -> None:
    script = Script(answered_429(retry_after=in_seconds(40)), ok({"available": 1}))
    async with client_of(script, chance=0.0) as client:
        await client.get_balance()
    assert script.clock.sleeps == [40.0]


@pytest.mark.parametrize(
    ("step", "policy"),
    [
        (answered_429(retry_after="61"), RetryPolicy()),
        (answered_429(ratelimit_reset="3600"), RetryPolicy()),
        (answered_429(retry_after="30"), RetryPolicy(deadline=30)),
        (problem(503, headers={"Retry-After": "6"}), RetryPolicy(max_retry_after=5)),
        (HTML, RetryPolicy(deadline=0.5)),
        (httpx.ConnectError("refused"), RetryPolicy(deadline=0.25)),
    ],
)
async def test_a_wait_that_is_too_long_is_not_begun(step: Step, policy: RetryPolicy) -> None:
    script = Script(step)
    async with client_of(script, retry=policy) as client:
        error = await raised_by(client.get_balance())
        assert client._engine.budget.left == 500
    assert isinstance(error, APIError | NotSentError)
    assert_gave_up_after(script, error, AT_ONCE)
    if isinstance(error, RateLimitError):
        assert error.retry_after in (61, 3600, 30)


# ---- how often


async def test_none_means_once() -> None:
    script = Script(httpx.ConnectError("refused"))
    async with client_of(script, retry=RetryPolicy.none()) as client:
        error = await raised_by(client.get_balance())
    assert_gave_up_after(script, error, AT_ONCE)


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("step", [HTML, answered_429(retry_after="1"), httpx.ConnectTimeout("")])
async def test_no_more_attempts_than_allowed(step: Step, most: int) -> None:
    script = Script(step)
    async with client_of(script) as client:
        error = await raised_by(client.with_options(retry=RetryPolicy(max_attempts=most)).get_balance())
    assert error.attempts == script.attempts == most


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"initial_backoff": -1},
        {"max_backoff": -0.1},
        {"max_retry_after": math.nan},
        {"deadline": 0},
        {"budget": -1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


def test_a_policy_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().deadline = 1  # type: ignore[misc]  # that is the point


# ---- the deadline


async def test_no_attempt_is_given_more_time_than_the_deadline_leaves() -> None:
    script = Script(HTML)
    timeout = httpx.Timeout(30, connect=10, pool=None)
    async with client_of(script, timeout=timeout, retry=RetryPolicy(deadline=40)) as client:
        await raised_by(client.get_balance())
    left = [40, 39.5, 38.5, 36.5, 32.5, 24.5, 8.5]
    assert script.clock.sleeps == BACKOFF[:6]
    assert [sent.timeout for sent in script.sent] == [
        {"connect": min(10, it), "read": min(30, it), "write": min(30, it), "pool": it} for it in left
    ]


async def test_all_attempts_and_waits_share_one_deadline() -> None:
    clock = Clock()

    async def slow(_: Sent) -> Answer:
        clock.now += 50
        return HTML

    script = Script(slow, clock=clock)
    async with client_of(script) as client:
        error = await raised_by(client.get_balance())
    assert script.attempts == error.attempts == 4
    assert clock.now - NOW == 4 * 50 + 0.5 + 1 + 2


async def test_nothing_is_sent_after_the_deadline() -> None:
    clock = Clock()

    def slow_token() -> str:
        clock.now += 180
        return TOKEN

    script = Script(ok({}), clock=clock)
    async with client_of(script, api_key=None, get_token=slow_token) as client:
        error = await raised_by(client.reserve_tokens({"jobId": "j", "amount": 1}))
    assert type(error) is DeadlineExceededError
    assert error.attempts == script.attempts == 0


async def hang(_: Sent) -> Answer:
    await anyio.sleep_forever()
    raise AssertionError


async def hanging_token() -> str:
    await anyio.sleep_forever()
    raise AssertionError


class Hanging(httpx.AsyncByteStream):
    """A body that never ends, and knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> Any:
        yield b"{"
        await anyio.sleep_forever()

    async def aclose(self) -> None:
        self.closed = True


SOON = RetryPolicy(deadline=0.01)


@pytest.mark.parametrize("operation", ONE_OF_EACH)
async def test_an_attempt_that_hangs_is_ended_by_the_deadline(operation: str) -> None:
    script = Script(hang)
    async with client_of(script, retry=SOON) as client:
        error = await raised_by(call(client, operation))
    late = error.__cause__ if operation in ONCE else error
    assert type(error) is (OutcomeUnknownError if operation in ONCE else DeadlineExceededError)
    assert type(late) is DeadlineExceededError
    assert isinstance(late, TimeoutError)
    assert "0.01 seconds" in str(error)
    assert error.attempts == script.attempts == 1


async def test_a_body_that_hangs_is_ended_by_the_deadline_and_closed() -> None:
    body = Hanging()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=body))
    async with AsyncClient(API_KEY, transport=transport, retry=SOON, clock=Clock()) as client:
        with pytest.raises(DeadlineExceededError):
            await client.get_balance()
    assert body.closed


async def test_a_token_source_that_hangs_is_ended_by_the_deadline() -> None:
    script = Script(ok({}))
    async with client_of(script, retry=SOON, get_token=hanging_token, api_key=None) as client:
        error = await raised_by(client.reserve_tokens({"jobId": "j", "amount": 1}))
    assert type(error) is DeadlineExceededError
    assert error.attempts == script.attempts == 0


async def test_the_callers_own_deadline_is_the_callers() -> None:
    async with client_of(Script(hang)) as client:
        with anyio.move_on_after(0.01) as scope:
            await client.get_balance()
    assert scope.cancelled_caught


# ---- the budget


def test_a_retry_costs_and_success_pays() -> None:
    budget = RetryBudget(12)
    assert budget.spend()
    assert budget.spend()
    assert budget.left == 2
    assert not budget.spend()
    assert budget.left == 2
    budget.reward()
    budget.give_back()
    assert budget.left == 8
    budget.give_back()
    assert budget.left == 12


@given(st.integers(0, 1000), st.lists(st.sampled_from(["spend", "give_back", "reward"])))
def test_a_budget_stays_between_nothing_and_its_capacity(capacity: int, actions: list[str]) -> None:
    budget = RetryBudget(capacity)
    for action in actions:
        getattr(budget, action)()
        assert 0 <= budget.left <= capacity


def test_a_client_rides_out_a_hundred_failures_in_a_row() -> None:
    budget = RetryBudget(RetryPolicy().budget)
    assert sum(budget.spend() for _ in range(1000)) == 100


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([ok({})], 491),
        ([HTML, ok({})], 490),
        ([HTML, HTML, ok({})], 485),
        ([httpx.ConnectError(""), ok({})], 490),
        ([answered_429(), ok({})], 490),
        ([answered_429(retry_after="1"), ok({})], 490),
        ([answered_429(retry_after="1"), HTML, ok({})], 490),
        ([HTML, answered_429(retry_after="1"), ok({})], 490),
        ([HTML, problem(404)], 485),
        ([problem(404)], 490),
        ([HTML], 490 - 7 * 5),
        ([Answer(200, b"<html>")], 490),
    ],
)
async def test_what_a_call_does_to_the_budget(steps: list[Step], left: int) -> None:
    async with client_of(Script(*steps)) as client:
        for _ in range(2):
            client._engine.budget.spend()
        with contextlib.suppress(ConvertriloError):
            await client.get_balance()
        assert client._engine.budget.left == left


async def test_an_empty_budget_raises_at_once_and_told_waits_go_on() -> None:
    script = Script(*[HTML] * 4, answered_429(retry_after="1"), ok({}), HTML, clock=Clock())
    async with client_of(script, retry=RetryPolicy(budget=14)) as client:
        error = await raised_by(client.get_balance())
        assert error.attempts == 3
        error = await raised_by(client.with_options(retry=RetryPolicy(budget=500)).get_balance())
        assert error.attempts == 1
        await client.get_balance()
        assert client._engine.budget.left == 4
        error = await raised_by(client.with_options(timeout=5).get_balance())
        assert error.attempts == 1


async def test_success_fills_an_empty_budget_again() -> None:
    script = Script(HTML, HTML, *[ok({})] * 5, HTML, ok({}))
    async with client_of(script, retry=RetryPolicy(budget=5)) as client:
        assert (await raised_by(client.get_balance())).attempts == 2
        for number in range(5):
            assert client._engine.budget.left == number
            await client.get_balance()
        await client.get_balance()
    assert script.attempts == 9


async def test_a_budget_of_nothing_is_off() -> None:
    script = Script(HTML)
    async with client_of(script, retry=RetryPolicy(budget=0)) as client:
        for _ in range(30):
            assert (await raised_by(client.get_balance())).attempts == 8


# ---- bearer tokens


@dataclass
class Source:
    """Hands out one token after the other when the last one is declared dead, or always the same."""

    tokens: list[str]
    asked: int = 0

    def sync(self) -> str:
        self.asked += 1
        return self.tokens[0]

    async def asynchronous(self) -> str:
        await anyio.lowlevel.checkpoint()
        return self.sync()


def accepts(token: str, value: Any = None) -> Callable[[Sent], Awaitable[Answer]]:
    async def check(sent: Sent) -> Answer:
        return (
            ok(value or {}) if sent.headers["authorization"] == f"Bearer {token}" else problem(401, "invalid_api_key")
        )

    return check


kinds_of_source = pytest.mark.parametrize("kind", ["sync", "asynchronous"])


@kinds_of_source
@pytest.mark.parametrize("operation", [it for it in OPERATIONS if OPERATIONS[it].auth is not Auth.NONE])
async def test_a_rejected_token_is_replaced_once(operation: str, kind: str) -> None:
    source = Source(["old"])

    async def reject_the_old(sent: Sent) -> Answer:
        source.tokens = ["new"]
        return await accepts("new", EXAMPLES[operation].answer)(sent)

    script = Script(reject_the_old)
    async with client_of(script, api_key=None, get_token=getattr(source, kind), retry=RetryPolicy.none()) as client:
        assert await call(client, operation) == EXAMPLES[operation].result
    assert [sent.headers["authorization"] for sent in script.sent] == ["Bearer old", "Bearer new"]
    assert source.asked == 2
    assert len({(sent.key, sent.body) for sent in script.sent}) == 1


@kinds_of_source
async def test_many_tasks_with_a_rejected_token_ask_for_a_new_one_once(kind: str) -> None:
    source, rejected = Source(["old"]), anyio.Event()

    async def reject_all_together(sent: Sent) -> Answer:
        if script.attempts == 100:
            source.tokens = ["new"]
            rejected.set()
        await rejected.wait()
        return await accepts("new")(sent)

    script = Script(reject_all_together)
    async with client_of(script, api_key=None, get_token=getattr(source, kind)) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(client.get_balance)
        assert source.asked == 101
        assert script.attempts == 200
        await client.get_balance()
    assert source.asked == 102


@kinds_of_source
async def test_many_tasks_learn_together_that_there_is_no_other_token(kind: str) -> None:
    source, rejected, errors = Source(["only"]), anyio.Event(), []

    async def reject_all_together(_: Sent) -> Answer:
        if script.attempts == 100:
            rejected.set()
        await rejected.wait()
        return problem(401, "invalid_api_key")

    async def one(client: AsyncClient) -> None:
        errors.append(await raised_by(client.get_balance()))

    script = Script(reject_all_together)
    async with client_of(script, api_key=None, get_token=getattr(source, kind)) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(one, client)
        assert source.asked == 101
        assert script.attempts == 100
        assert {(type(error), error.attempts) for error in errors} == {(AuthenticationError, 1)}
        await raised_by(client.get_balance())
        assert source.asked == 103


async def test_a_token_that_comes_late_does_not_undo_a_renewal() -> None:
    """The source answers the first question last; by then others have learnt that its token is old."""
    asked, late = 0, anyio.Event()

    async def get_token() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await late.wait()
            return "old"
        return "old" if asked == 2 else f"new-{asked}"

    async def check(sent: Sent) -> Answer:
        return problem(401) if sent.headers["authorization"].endswith("old") else ok({})

    script = Script(check)
    async with client_of(script, api_key=None, get_token=get_token) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.get_balance)
        await anyio.wait_all_tasks_blocked()
        await client.get_balance()
        late.set()
    assert asked == 3
    assert script.attempts == 4


async def test_a_second_rejected_token_is_the_end() -> None:
    tokens = iter(["first", "second", "third"])
    script = Script(problem(401, "api_key_expired"))
    async with client_of(script, api_key=None, get_token=lambda: next(tokens)) as client:
        error = await raised_by(client.get_balance())
    assert type(error) is AuthenticationError
    assert error.code == "api_key_expired"
    assert error.attempts == script.attempts == 2
    assert next(tokens) == "third"


async def test_a_renewed_token_is_kept_through_later_attempts() -> None:
    source = Source(["old"])

    async def reject(_: Sent) -> Answer:
        source.tokens = ["new"]
        return problem(401)

    script = Script(reject, HTML, httpx.ReadError(""), ok({}))
    async with client_of(script, api_key=None, get_token=source.sync) as client:
        await client.get_balance()
    assert [sent.headers["authorization"] for sent in script.sent][1:] == ["Bearer new"] * 3
    assert source.asked == 2


async def test_a_rejected_api_key_is_not_tried_again() -> None:
    script = Script(problem(401, "invalid_api_key"))
    async with client_of(script) as client:
        error = await raised_by(client.get_balance())
    assert type(error) is AuthenticationError
    assert_gave_up_after(script, error, AT_ONCE)


async def test_a_cancelled_renewal_leaves_it_to_the_next() -> None:
    asked = 0

    async def get_token() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            await anyio.sleep_forever()
        return "old" if asked == 1 or asked == 3 else "new"

    script = Script(accepts("new"))
    async with client_of(script, api_key=None, get_token=get_token) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get_balance)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await client.get_balance()
    assert asked == 4


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ü", "tab\t", b"bytes", None, 7])
async def test_what_cannot_be_a_token_is_refused_without_showing_it(token: Any) -> None:
    script = Script(ok({}))
    async with client_of(script, api_key=None, get_token=lambda: token) as client:
        error = await raised_by(client.get_balance())
    assert type(error) is ConfigurationError
    assert script.attempts == 0
    assert not token or str(token) not in str(error)


async def test_what_a_token_source_raises_reaches_the_caller() -> None:
    def fail() -> str:
        raise LookupError("no token today")

    script = Script(ok({}))
    async with client_of(script, api_key=None, get_token=fail) as client:
        with pytest.raises(LookupError, match="no token today"):
            await client.get_balance()
    assert script.attempts == 0


async def test_a_retry_whose_token_cannot_be_had_is_not_paid_for() -> None:
    tokens = iter(["first"])

    def get_token() -> str:
        return next(tokens, "") or _raise()

    script = Script(HTML)
    async with client_of(script, api_key=None, get_token=get_token) as client:
        with pytest.raises(LookupError):
            await client.get_balance()
        assert client._engine.budget.left == 500


def _raise() -> str:
    raise LookupError


@pytest.mark.parametrize("operation", [it for it in OPERATIONS if OPERATIONS[it].auth is Auth.BEARER])
async def test_an_api_key_is_not_enough_to_manage_api_keys(operation: str) -> None:
    script = Script(ok({}))
    async with client_of(script, get_token=None) as client:
        error = await raised_by(call(client, operation))
    assert type(error) is ConfigurationError
    assert "get_token" in error.message
    assert error.operation == operation
    assert script.attempts == 0


@pytest.mark.parametrize("operation", [it for it in OPERATIONS if OPERATIONS[it].auth is not Auth.NONE])
async def test_without_credentials_nothing_is_sent(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVERTRILO_API_KEY", raising=False)
    script = Script(ok({}))
    async with client_of(script, api_key=None, get_token=None) as client:
        error = await raised_by(call(client, operation))
    assert type(error) is ConfigurationError
    assert script.attempts == 0
