"""What OpenTelemetry sees: a span for each call, a child for each attempt, metrics, and the context passed on."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from loopback import Received, answer, loopback
from object_store import ObjectStore
from opentelemetry import propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support import BASE_URL, EXAMPLES, FOLDER, JOB, Answer, Script, Sent, call, client_of, ok, problem, raised_by

from convertrilo import OPERATIONS, AsyncClient, AttemptEvent, Journal, Repeat, ingest_folder
from convertrilo._http.transport import PoolTransport
from convertrilo.otel import instrument
from convertrilo.sandbox import Sandbox


class Telemetry(NamedTuple):
    """A tracer's and a meter's provider that keep what they are given."""

    tracers: TracerProvider
    meters: MeterProvider
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    def client(self, script: Script, **options: Any) -> AsyncClient:
        return self.instrumented(client_of(script, **options))

    def instrumented(self, client: AsyncClient) -> AsyncClient:
        return instrument(client, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The span of the one call there was, and those of its attempts."""
        spans = self.exporter.get_finished_spans()
        [logical] = [span for span in spans if span.kind is SpanKind.INTERNAL]
        attempts = [span for span in spans if span is not logical]
        assert logical.context is not None
        assert all(span.parent is not None and span.parent.span_id == logical.context.span_id for span in attempts)
        return logical, attempts

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """For each metric its points: labels, and the value, or the count and the sum."""
        found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        data = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = getattr(point, "value", None)
                        value = value if value is not None else (point.count, point.sum)  # type: ignore[union-attr]
                        found.setdefault(metric.name, []).append((dict(point.attributes or {}), value))
        return found


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader])
    yield Telemetry(tracers, meters, exporter, reader)
    tracers.shutdown()
    meters.shutdown()


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


SERVER = {"server.address": "api.test", "server.port": 443}


# ---- spans


async def test_a_call_is_a_span_and_each_attempt_a_child_of_it(telemetry: Telemetry) -> None:
    script = Script(
        httpx.ConnectError("refused"),
        problem(429, "rate_limit_exceeded", headers={"Retry-After": "3", "X-Request-Id": "r-2"}),
        EXAMPLES["createJob"].answered,
    )
    async with telemetry.client(script) as client:
        await client.create_job(JOB, idempotency_key="k")
    logical, attempts = telemetry.spans()
    assert (logical.name, logical.status.status_code) == ("createJob", StatusCode.UNSET)
    of_call = {"convertrilo.operation": "createJob", "convertrilo.idempotency_key": "k"}
    assert attributes(logical) == {**of_call, "convertrilo.identity": "key"}
    common = {
        **of_call,
        **SERVER,
        "http.request.method": "POST",
        "url.template": "/jobs",
        "url.full": f"{BASE_URL}/jobs",
    }
    assert [span.name for span in attempts] == ["POST /jobs"] * 3
    assert {span.kind for span in attempts} == {SpanKind.CLIENT}
    assert [attributes(span) for span in attempts] == [
        {**common, "convertrilo.outcome": "not_sent", "convertrilo.wait": 0.5, "error.type": "not_sent"},
        {
            **common,
            "http.request.resend_count": 1,
            "http.response.status_code": 429,
            "convertrilo.outcome": "refused",
            "convertrilo.error.code": "rate_limit_exceeded",
            "convertrilo.request_id": "r-2",
            "convertrilo.wait": 3.0,
            "error.type": "429",
        },
        {
            **common,
            "http.request.resend_count": 2,
            "http.response.status_code": 200,
            "convertrilo.outcome": "ok",
        },
    ]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_operation_has_its_span(operation: str, telemetry: Telemetry) -> None:
    row = OPERATIONS[operation]
    async with telemetry.client(Script(EXAMPLES[operation].answered)) as client:
        await call(client, operation)
    logical, [attempt] = telemetry.spans()
    seen = attributes(attempt)
    assert logical.name == operation
    assert attempt.name == f"{row.method} {row.path}"
    assert seen["url.template"] == row.path
    assert seen["url.full"] == BASE_URL + EXAMPLES[operation].sent.partition(" ")[2].partition("?")[0]
    assert ("convertrilo.idempotency_key" in attributes(logical)) is (row.repeat is Repeat.KEYED)


async def test_a_call_that_fails_says_with_what(telemetry: Telemetry) -> None:
    async with telemetry.client(Script(problem(402, "insufficient_tokens", "12 are missing"))) as client:
        await raised_by(client.on_demand_ingest_folder(FOLDER))
    logical, [attempt] = telemetry.spans()
    assert logical.status.status_code is StatusCode.ERROR
    assert logical.status.description == "12 are missing"
    assert attributes(logical)["error.type"] == "convertrilo.errors.InsufficientTokensError"
    assert attributes(logical)["convertrilo.error.code"] == "insufficient_tokens"
    assert attributes(attempt)["convertrilo.error.code"] == "insufficient_tokens"
    assert not logical.events  # an exception's traceback is the log's business


async def test_a_call_that_is_cancelled_ends_its_spans(telemetry: Telemetry) -> None:
    async def hang(_: Sent) -> Answer:
        tasks.cancel_scope.cancel()
        await anyio.sleep_forever()
        raise AssertionError

    async with telemetry.client(Script(hang)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.get_balance)
    logical, [attempt] = telemetry.spans()
    assert attributes(attempt)["error.type"] == "interrupted"
    assert logical.status.status_code is StatusCode.ERROR
    assert {value for _, value in telemetry.metrics()["http.client.active_requests"]} == {0}


async def test_a_call_is_a_child_of_what_calls_it_and_calls_side_by_side_do_not_mix(telemetry: Telemetry) -> None:
    tracer = telemetry.tracers.get_tracer("app")
    parents: dict[str, int] = {}

    async def work(name: str) -> None:
        with tracer.start_as_current_span(name) as span:
            parents[name] = span.get_span_context().span_id
            await client.job_status(name)
            assert trace.get_current_span() is span

    client = telemetry.client(Script(Answer(500), ok(EXAMPLES["jobStatus"].answer)))
    async with client, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(work, f"j-{number}")
    spans = telemetry.exporter.get_finished_spans()
    logical = {span.context.span_id: span for span in spans if span.name == "jobStatus" and span.context}
    attempts = [span for span in spans if span.kind is SpanKind.CLIENT]
    assert len(logical) == 10
    assert {span.parent.span_id for span in logical.values() if span.parent} == set(parents.values())
    for attempt in attempts:
        assert attempt.parent is not None
        job = str(attributes(attempt)["url.full"]).split("/")[-2]
        grandparent = logical[attempt.parent.span_id].parent
        assert grandparent is not None
        assert grandparent.span_id == parents[job]


async def test_bulk_says_how_many_jobs_it_has(telemetry: Telemetry) -> None:
    async with telemetry.client(Script(EXAMPLES["createJobsBulk"].answered)) as client:
        await client.create_jobs_bulk({"jobs": [JOB, JOB, JOB]})
    logical, _ = telemetry.spans()
    assert attributes(logical)["convertrilo.batch.size"] == 3
    assert telemetry.metrics()["convertrilo.batch.size"] == [({"convertrilo.operation": "createJobsBulk"}, (1, 3))]


async def test_transfers_have_spans_and_neither_url_nor_context_goes_to_storage(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    url = "https://storage.test/out.mp4?X-Amz-Signature=5f2b0c9a5f2b0c9a"
    script = Script(Answer(503), ok({"a": 1}, content_length="8"))
    async with telemetry.client(script) as client:
        await client.download(url, tmp_path / "out.mp4")
    logical, attempts = telemetry.spans()
    assert (logical.name, [span.name for span in attempts]) == ("download", ["GET", "GET"])
    assert [attributes(span)["convertrilo.outcome"] for span in attempts] == ["unclear", "ok"]
    assert all("storage.test" not in span.to_json() for span in (logical, *attempts))
    assert all("traceparent" not in sent.headers for sent in script.sent)


async def test_the_listing_of_a_folder_is_watched(
    telemetry: Telemetry, object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = object_store.folder(object_store.private_bucket(**{"a.mp4": b"1", "b.mp4": b"2"}))
    events: list[AttemptEvent] = []
    async with (
        Sandbox(seed=1, allow_private_sources=True) as sandbox,
        telemetry.instrumented(sandbox.client(on_event=events.append)) as client,
    ):
        report = await ingest_folder(client, folder, JOB, journal=tmp_path / "run.db")
    assert (report.listed, report.submitted) == (2, 2)
    assert {each.operation for each in events} == {"listObjectsV2", "createJobsBulk"}
    spans = telemetry.exporter.get_finished_spans()
    [logical] = [span for span in spans if span.name == "listObjectsV2"]
    [attempt] = [span for span in spans if span.parent is not None and span.parent == logical.context]
    assert (attempt.name, attributes(attempt)["convertrilo.outcome"]) == ("GET", "ok")
    secrets = (folder.bucket, folder.secret_access_key, "Signature")
    assert not [each for each in secrets if each and each in logical.to_json() + attempt.to_json()]


# ---- context


async def test_the_context_goes_with_every_attempt(telemetry: Telemetry) -> None:
    script = Script(Answer(500), EXAMPLES["getBalance"].answered)
    async with telemetry.client(script) as client:
        await client.get_balance()
    logical, attempts = telemetry.spans()
    received = [
        trace.get_current_span(propagate.extract(dict(sent.headers))).get_span_context() for sent in script.sent
    ]
    assert [each.span_id for each in received] == [span.context.span_id for span in attempts if span.context]
    assert {each.trace_id for each in received} == {logical.context.trace_id if logical.context else 0}


async def test_without_it_no_context_is_sent() -> None:
    script = Script(ok({}))
    async with client_of(script) as client:
        await client.get_balance()
    assert "traceparent" not in script.sent[0].headers


# ---- metrics


async def test_attempts_and_retries_are_counted_by_what_became_of_them(telemetry: Telemetry) -> None:
    async with telemetry.client(Script(Answer(500), Answer(500), ok({}))) as client:
        await client.get_balance()
        await client.get_balance()
    metrics = telemetry.metrics()

    def labels(outcome: str) -> dict[str, str]:
        return {"convertrilo.operation": "getBalance", "convertrilo.outcome": outcome}

    assert metrics["convertrilo.attempts"] == [(labels("unclear"), 2), (labels("ok"), 2)]
    assert metrics["convertrilo.retries"] == [(labels("unclear"), 2)]
    [(of_call, (calls, _))] = metrics["convertrilo.call.duration"]
    assert (of_call, calls) == ({"convertrilo.operation": "getBalance"}, 2)
    common = {**SERVER, "http.request.method": "GET", "url.template": "/tokens/balance"}
    durations = [(of_request, count) for of_request, (count, _) in metrics["http.client.request.duration"]]
    assert durations == [
        ({**common, "http.response.status_code": 500, "error.type": "500"}, 2),
        ({**common, "http.response.status_code": 200}, 2),
    ]


async def test_the_budget_can_be_watched(telemetry: Telemetry) -> None:
    async with (
        telemetry.client(Script(ok({}))) as good,
        telemetry.client(Script(Answer(500)), base_url="https://other.test") as bad,
    ):
        await good.get_balance()
        await raised_by(bad.get_balance())
        watched = telemetry.metrics()["convertrilo.retry_budget"]
    assert sorted((labels["server.address"], left) for labels, left in watched) == [
        ("api.test", 500),
        ("other.test", 500 - 7 * 5),
    ]
    assert "convertrilo.retry_budget" not in telemetry.metrics()  # both clients are closed


async def test_the_pool_can_be_watched(telemetry: Telemetry) -> None:
    async def look(_: Received) -> bytes:
        seen.append(connections())
        return answer(b"{}")

    def connections() -> dict[str, int]:
        metrics = telemetry.metrics()
        open_ones = {labels["http.connection.state"]: n for labels, n in metrics["http.client.open_connections"]}
        [(_, waiting)] = metrics["convertrilo.waiting_requests"]
        return {**open_ones, "waiting": waiting}

    seen: list[dict[str, int]] = []
    async with loopback(look) as server:
        own = AsyncClient("a-key", base_url=server.url, transport=PoolTransport())
        async with telemetry.instrumented(own) as client:
            await client.get_balance()
            seen.append(connections())
    assert seen == [{"active": 1, "idle": 0, "waiting": 0}, {"active": 0, "idle": 1, "waiting": 0}]


async def test_attempts_in_flight_are_counted_while_they_are(telemetry: Telemetry) -> None:
    seen: list[Any] = []

    async def look(_: Sent) -> Answer:
        seen.extend(value for _, value in telemetry.metrics()["http.client.active_requests"])
        return ok({})

    async with telemetry.client(Script(look)) as client:
        await client.get_balance()
    assert seen == [1]
    assert [value for _, value in telemetry.metrics()["http.client.active_requests"]] == [0]


async def test_the_journals_steps_are_timed(telemetry: Telemetry, tmp_path: Path) -> None:
    script = Script(EXAMPLES["createJob"].answered, problem(400, "invalid_body"))
    async with telemetry.client(script, journal=Journal(tmp_path / "j.db")) as client:
        await client.create_job(JOB, idempotency_key="one")
        await raised_by(client.create_job(JOB, idempotency_key="two"))
    steps = {
        labels["convertrilo.journal.step"]: count
        for labels, (count, _) in telemetry.metrics()["convertrilo.journal.duration"]
    }
    assert steps == {"begin": 2, "answer": 1, "forget": 1}


async def test_an_answer_from_the_journal_is_a_call_without_attempts(telemetry: Telemetry, tmp_path: Path) -> None:
    script = Script(EXAMPLES["createJob"].answered)
    async with telemetry.client(script, journal=Journal(tmp_path / "j.db")) as client:
        await client.create_job(JOB, idempotency_key="one")
        telemetry.exporter.clear()
        await client.create_job(JOB, idempotency_key="one")
    logical, attempts = telemetry.spans()
    assert (logical.name, attempts) == ("createJob", [])


# ---- beside everything else


async def test_a_processor_that_fails_breaks_nothing(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SpanProcessor):
        def on_start(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no collector")

        def on_end(self, *_: Any) -> None:
            raise RuntimeError("no collector")

    telemetry.tracers.add_span_processor(Broken())
    before = trace.get_current_span()
    async with telemetry.client(Script(Answer(500), ok({}))) as client:
        await client.get_balance()
    assert "no collector" in caplog.text
    assert trace.get_current_span() is before


async def test_listeners_and_views_work_as_before(telemetry: Telemetry) -> None:
    events: list[AttemptEvent] = []
    async with telemetry.client(Script(ok({})), on_event=events.append) as client:
        await client.with_options(timeout=1).get_balance()
    assert [event.outcome for event in events] == ["ok"]
    assert telemetry.spans()[0].name == "getBalance"


def test_without_the_extra_the_error_says_how_to_install_it() -> None:
    script = "import sys; sys.modules['opentelemetry'] = None; import convertrilo.otel"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert 'ConfigurationError: telemetry needs opentelemetry; install it with: pip install "convertrilo[otel]"' in (
        done.stderr
    )
