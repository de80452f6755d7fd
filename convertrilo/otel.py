"""OpenTelemetry: a span for each call, a child span for each attempt, and metrics, as its HTTP conventions say.

    async with instrument(AsyncClient()) as client: ...

This module needs the extra `otel`, which installs OpenTelemetry's API only: the application configures where spans and
metrics go.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import Token
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from convertrilo._base_client import engine_of
from convertrilo._http.engine import Engine
from convertrilo._http.transport import PoolTransport
from convertrilo._version import __version__
from convertrilo.client import AsyncClient
from convertrilo.errors import APIError, ConfigurationError
from convertrilo.events import AttemptEvent, Beginning, logger

try:
    from opentelemetry import context, metrics, propagate, trace
except ModuleNotFoundError as _error:
    raise ConfigurationError(
        f'telemetry needs {_error.name}; install it with: pip install "convertrilo[otel]"'
    ) from None

C = TypeVar("C", bound=AsyncClient)
P = ParamSpec("P")
T = TypeVar("T")

Attributes = dict[str, str | int | float]

_BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # from the conventions
_JOURNAL_BOUNDARIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
_BATCH_BOUNDARIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def instrument(
    client: C,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> C:
    """Make a client and all its views create spans and metrics, and return the client.

    A call's span is a child of the span that is current when the call is made. Each attempt of the call has a child
    span of kind CLIENT and propagates the context to the service (`traceparent`), never to storage. Neither spans nor
    metrics contain a body, the query of a URL, or a credential.

    Args:
        client: The client, before its first call.
        tracer_provider: Receives the spans; by default the application's global provider.
        meter_provider: Receives the metrics; by default the application's global provider.
    """
    engine, _ = engine_of(client)
    meters = meter_provider or metrics.get_meter_provider()
    instruments = _INSTRUMENTS.get(meters) or _Instruments(meters)
    _INSTRUMENTS[meters] = instruments
    instruments.engines.add(engine)
    engine.observer = _Observer(engine, trace.get_tracer("convertrilo", __version__, tracer_provider), instruments)
    return client


def _harmless(method: Callable[P, T]) -> Callable[P, T | None]:
    """Log exceptions of span processors and metric readers; never let them break the call."""

    @wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception:  # noqa: BLE001  # logged
            logger.exception("OpenTelemetry failed; the request continues")
            return None

    return guarded


class _Instruments:
    """The metrics of one meter provider, shared by its clients."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        meter = provider.get_meter("convertrilo", __version__)
        self.requests = meter.create_histogram(
            "http.client.request.duration",
            unit="s",
            description="Duration of an attempt, in seconds.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self.active = meter.create_up_down_counter(
            "http.client.active_requests", unit="{request}", description="Attempts in flight."
        )
        self.calls = meter.create_histogram(
            "convertrilo.call.duration",
            unit="s",
            description="Duration of a call with all its attempts and waits, in seconds.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self.attempts = meter.create_counter(
            "convertrilo.attempts", unit="{attempt}", description="Attempts, by outcome."
        )
        self.retries = meter.create_counter(
            "convertrilo.retries",
            unit="{attempt}",
            description="Failed attempts that were retried, by outcome.",
        )
        self.batches = meter.create_histogram(
            "convertrilo.batch.size",
            unit="{job}",
            description="Jobs in a bulk request.",
            explicit_bucket_boundaries_advisory=_BATCH_BOUNDARIES,
        )
        self.journal = meter.create_histogram(
            "convertrilo.journal.duration",
            unit="s",
            description="Duration of a step of the journal, in seconds.",
            explicit_bucket_boundaries_advisory=_JOURNAL_BOUNDARIES,
        )
        meter.create_observable_gauge(
            "convertrilo.retry_budget",
            [self._budget],
            unit="{token}",
            description="Tokens left in the retry budget; a retry costs 5.",
        )
        meter.create_observable_up_down_counter(
            "http.client.open_connections", [self._connections], unit="{connection}", description="Open connections."
        )
        meter.create_observable_up_down_counter(
            "convertrilo.waiting_requests",
            [self._waiting],
            unit="{request}",
            description="Requests that wait for a free connection.",
        )

    def _budget(self, _: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        left: dict[str, int] = {}
        for engine in self._open():
            address = str(engine.base_url.host)
            left[address] = min(engine.budget.left, left.get(address, engine.budget.left))
        return [metrics.Observation(each, {"server.address": address}) for address, each in left.items()]

    def _connections(self, _: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        pools = list(self._pools())
        for state, count in (
            ("active", sum(pool.in_flight for pool in pools)),
            ("idle", sum(pool.idle for pool in pools)),
        ):
            yield metrics.Observation(count, {"http.connection.state": state})

    def _waiting(self, _: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        yield metrics.Observation(sum(pool.waiting for pool in self._pools()))

    def _pools(self) -> Iterator[PoolTransport]:
        for engine in self._open():
            if isinstance(engine.transport, PoolTransport):
                yield engine.transport

    def _open(self) -> list[Engine]:
        return [engine for engine in self.engines if not engine.closed]


_INSTRUMENTS: weakref.WeakKeyDictionary[metrics.MeterProvider, _Instruments] = weakref.WeakKeyDictionary()


class _Observer:
    """Observes the calls of one client."""

    def __init__(self, engine: Engine, tracer: trace.Tracer, instruments: _Instruments) -> None:
        self.tracer = tracer
        self.instruments = instruments
        url = engine.base_url
        self.server: Attributes = {
            "server.address": url.host,
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }

    def watch(self, beginning: Beginning) -> "_Observation":
        return _Observation(self, beginning)

    @_harmless
    def journaled(self, step: str, seconds: float) -> None:
        self.instruments.journal.record(seconds, {"convertrilo.journal.step": step})


class _Observation:
    """The span of one call, and the span of its current attempt."""

    def __init__(self, observer: _Observer, beginning: Beginning) -> None:
        self._observer = observer
        self._beginning = beginning
        self._started = self._attempt_started = time.perf_counter()
        self._span: trace.Span = trace.INVALID_SPAN
        self._attempt: trace.Span = trace.INVALID_SPAN
        self._call_context: Token[context.Context] | None = None
        self._attempt_context: Token[context.Context] | None = None
        self._labels: Attributes = {"http.request.method": beginning.method}
        if beginning.path is not None:
            self._labels |= {**observer.server, "url.template": beginning.path}

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(error)

    @_harmless
    def _begin(self) -> None:
        beginning = self._beginning
        attributes = _known(
            {
                "convertrilo.operation": beginning.operation,
                "convertrilo.idempotency_key": beginning.idempotency_key,
                "convertrilo.identity": beginning.identity,
                "convertrilo.batch.size": beginning.items,
            }
        )
        self._span = self._observer.tracer.start_span(beginning.operation, attributes=attributes)
        self._call_context = context.attach(trace.set_span_in_context(self._span))
        if beginning.items is not None:
            self._observer.instruments.batches.record(beginning.items, {"convertrilo.operation": beginning.operation})

    @_harmless
    def _end(self, error: BaseException | None) -> None:
        kind = None if error is None else _kind_of(error)
        if self._attempt_context is not None:  # the attempt was cancelled
            self._finish(kind or "interrupted", None)
        if error is not None:
            self._span.set_status(trace.StatusCode.ERROR, getattr(error, "message", None))
            self._span.set_attribute("error.type", str(kind))
            if isinstance(error, APIError):
                self._span.set_attribute("convertrilo.error.code", error.code)
        self._span.end()
        if self._call_context is not None:
            context.detach(self._call_context)
        labels = _known({"convertrilo.operation": self._beginning.operation, "error.type": kind})
        self._observer.instruments.calls.record(time.perf_counter() - self._started, labels)

    def begin_attempt(self, number: int) -> Mapping[str, str]:
        return self._begin_attempt(number) or {}

    @_harmless
    def _begin_attempt(self, number: int) -> Mapping[str, str]:
        beginning = self._beginning
        attributes = _known(
            {
                **self._labels,
                "url.full": beginning.url,
                "http.request.resend_count": number - 1 or None,
                "convertrilo.operation": beginning.operation,
                "convertrilo.idempotency_key": beginning.idempotency_key,
            }
        )
        name = f"{beginning.method} {beginning.path}" if beginning.path else beginning.method
        self._attempt = self._observer.tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        self._attempt_context = context.attach(trace.set_span_in_context(self._attempt))
        self._attempt_started = time.perf_counter()
        self._observer.instruments.active.add(1, self._labels)
        headers: dict[str, str] = {}
        propagate.inject(headers)
        return headers

    @_harmless
    def end_attempt(self, event: AttemptEvent) -> None:
        kind = None
        if event.outcome != "ok":
            has_error_status = event.status is not None and event.status >= 400
            kind = str(event.status) if has_error_status else event.outcome
        attributes = _known(
            {
                "http.response.status_code": event.status,
                "convertrilo.error.code": event.code,
                "convertrilo.outcome": event.outcome,
                "convertrilo.request_id": event.request_id,
                "convertrilo.wait": event.wait,
            }
        )
        self._attempt.set_attributes(attributes)
        self._finish(kind, event.status)
        labels: Attributes = {"convertrilo.operation": event.operation, "convertrilo.outcome": event.outcome}
        self._observer.instruments.attempts.add(1, labels)
        if event.wait is not None:
            self._observer.instruments.retries.add(1, labels)

    def _finish(self, kind: str | None, status: int | None) -> None:
        if kind is not None:
            self._attempt.set_status(trace.StatusCode.ERROR)
            self._attempt.set_attribute("error.type", kind)
        token, self._attempt_context = self._attempt_context, None
        if token is not None:
            context.detach(token)
        instruments = self._observer.instruments
        instruments.active.add(-1, self._labels)
        labels = _known({**self._labels, "http.response.status_code": status, "error.type": kind})
        instruments.requests.record(time.perf_counter() - self._attempt_started, labels)
        self._attempt.end()


def _known(attributes: Mapping[str, Any]) -> Attributes:
    """Return the attributes that have a value."""
    return {name: value for name, value in attributes.items() if value is not None}


def _kind_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
