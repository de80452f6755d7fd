"""Webhook signatures and events: only what the service signed recently is accepted; errors name the reason."""

import hmac
import math
from collections import UserDict
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers as StarletteHeaders
from webhook_help import DATA, NOW, SECRET, body_of, headers_of

from convertrilo import webhooks
from convertrilo.errors import ConfigurationError, DecodeError, SignatureError
from convertrilo.webhooks import DEFAULT_TOLERANCE, WebhookEvent, parse, sign, verify

BODY = body_of()
SIGNATURE = sign(BODY, SECRET)
HEADERS = headers_of(BODY)

# ---- signatures


def test_a_signature_is_the_hex_of_an_hmac_sha256() -> None:
    # RFC 4231, test case 2
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert sign(b"what do ya want for nothing?", "Jefe") == expected
    assert verify(b"what do ya want for nothing?", expected, "Jefe")


@pytest.mark.parametrize("secrets", [SECRET, SECRET.encode(), [SECRET], ("old", SECRET), {SECRET, b"old"}])
@pytest.mark.parametrize("signature", [SIGNATURE, SIGNATURE.encode()], ids=["str", "bytes"])
def test_a_body_is_verified_with_any_of_the_secrets(secrets: Any, signature: Any) -> None:
    assert verify(BODY, signature, secrets)
    assert not verify(BODY + b" ", signature, secrets)


WRONG: dict[str, Any] = {
    "upper case": SIGNATURE.upper(),
    "a space before": f" {SIGNATURE}",
    "a line break after": f"{SIGNATURE}\n",
    "too short": SIGNATURE[:-1],
    "too long": f"{SIGNATURE}0",
    "no hex": "z" * 64,
    "another's": sign(BODY, "another"),
    "with a prefix": f"sha256={SIGNATURE}",
    "empty": "",
    "empty bytes": b"",
    "missing": None,
    "not ASCII": "é" * 64,
    "half a character": "\ud800" * 64,
    "other digits": "\u0660" * 64,
    "with a zero byte": f"{SIGNATURE}\0",
    "a number": 12,
    "a list": [SIGNATURE],
    "raw": bytes.fromhex(SIGNATURE),
    "megabytes": "0" * 5_000_000,
}


@pytest.mark.parametrize("signature", WRONG.values(), ids=WRONG)
def test_any_other_signature_is_just_wrong(signature: Any) -> None:
    assert verify(BODY, signature, SECRET) is False
    assert verify(BODY, signature, ["a", SECRET, b"b"]) is False


@pytest.mark.parametrize("signature", [SIGNATURE, sign(BODY, "b"), sign(BODY, "c"), None, "x"])
def test_every_secret_is_compared_whichever_it_is(signature: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    verify(BODY, signature, [SECRET, "b", "c"])
    assert compared == [sign(BODY, secret).encode() for secret in (SECRET, "b", "c")]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (BODY.decode(), "not str: the signature covers these bytes, and decoded text may differ"),
        (
            {"event": "job.completed"},
            "not dict: the signature covers these bytes, and a parsed and re-encoded body",
        ),
        ([], "not list"),
        (None, "not NoneType"),
        (bytearray(BODY), "not bytearray"),
    ],
)
def test_what_is_not_the_bytes_as_received_is_refused_with_the_reason(payload: Any, reason: str) -> None:
    for attempt in (
        lambda: verify(payload, SIGNATURE, SECRET),
        lambda: parse(payload, HEADERS, SECRET, now=NOW),
        lambda: sign(payload, SECRET),
    ):
        with pytest.raises(SignatureError, match=reason):
            attempt()


@pytest.mark.parametrize("secrets", ["", b"", None, [], [""], [b"", None], ()])
def test_without_a_secret_nothing_is_verified(secrets: Any) -> None:
    with pytest.raises(SignatureError, match="no usable secret"):
        verify(BODY, sign_with_nothing(BODY), secrets)
    with pytest.raises(SignatureError, match="no usable secret"):
        parse(BODY, HEADERS, secrets, now=NOW)


def sign_with_nothing(body: bytes) -> str:
    """Return a signature that anybody can make, with an empty secret."""
    return hmac.new(b"", body, "sha256").hexdigest()


def test_an_empty_secret_among_others_opens_nothing() -> None:
    assert verify(BODY, SIGNATURE, [None, "", SECRET])
    assert not verify(BODY, sign_with_nothing(BODY), [None, "", SECRET])


@pytest.mark.parametrize("secrets", [12, [SECRET, 12], [[SECRET]], object()])
def test_a_secret_of_another_type_is_refused(secrets: Any) -> None:
    with pytest.raises(SignatureError, match="must be str or bytes"):
        verify(BODY, SIGNATURE, secrets)


# ---- events


def test_a_delivery_becomes_a_typed_event() -> None:
    event = parse(BODY, HEADERS, SECRET, now=NOW)
    assert event == WebhookEvent(
        event="job.completed",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        job_id=DATA["jobId"],
        user_id="u-1",
        status="success",
        external_id="holiday.mp4",
        metadata={"album": "2025 ☀"},
        encoder="x264",
        duration_sec=60.5,
        final_neu=2,
    )
    assert not event.extra


def test_a_failed_job_says_why() -> None:
    body = body_of("job.failed", status="failed", error="no video stream", failureCode="probe_failed")
    event = parse(body, headers_of(body, "job.failed"), SECRET, now=NOW)
    assert (event.status, event.error, event.failure_code) == ("failed", "no video stream", "probe_failed")


def test_what_this_version_does_not_know_comes_through() -> None:
    body = body_of("job.archived", colour="blue")[:-1] + b', "version": 2}'
    event = parse(body, headers_of(body, "job.archived"), SECRET, now=NOW)
    assert (event.event, event.extra) == ("job.archived", {"colour": "blue", "version": 2})


def test_a_test_event_has_no_job() -> None:
    body = b'{"event":"webhook.test","timestamp":"2026-01-01T00:00:00Z","data":{"webhookId":"w-1"}}'
    event = parse(body, headers_of(body, "webhook.test"), SECRET, now=NOW)
    assert (event.job_id, event.status, event.extra) == (None, None, {"webhookId": "w-1"})


MAPPINGS: dict[str, Any] = {
    "as sent": HEADERS,
    "lower case": {name.lower(): value for name, value in HEADERS.items()},
    "upper case": {name.upper(): value for name, value in HEADERS.items()},
    "httpx": httpx.Headers(HEADERS),
    "starlette": StarletteHeaders(HEADERS),
    "any mapping": UserDict(HEADERS),
    "ASGI": [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()],
    "pairs": tuple(HEADERS.items()),
    "an iterator": iter(HEADERS.items()),
}


@pytest.mark.parametrize("headers", MAPPINGS.values(), ids=MAPPINGS)
def test_headers_are_found_however_a_framework_has_them(headers: Any) -> None:
    assert parse(BODY, headers, SECRET, now=NOW).job_id == DATA["jobId"]


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in HEADERS.items() if key != name}


REFUSED: dict[str, tuple[Any, str]] = {
    "no signature": (without("X-Webhook-Signature"), "exactly one X-Webhook-Signature header"),
    "two signatures": ([*HEADERS.items(), ("x-webhook-signature", "0")], "exactly one X-Webhook-Signature header"),
    "the same one twice": ([*HEADERS.items(), *HEADERS.items()], "exactly one X-Webhook-Signature header"),
    "a list for a value": ({**HEADERS, "X-Webhook-Signature": [SIGNATURE]}, "does not match the body"),
    "another's signature": ({**HEADERS, "X-Webhook-Signature": sign(BODY, "x")}, "does not match the body"),
    "no event": (without("X-Webhook-Event"), "does not name the event"),
    "another event": ({**HEADERS, "X-Webhook-Event": "job.failed"}, "does not name the event"),
    "two events": ([*HEADERS.items(), ("X-Webhook-Event", "job.completed")], "does not name the event"),
    "no headers": ({}, "exactly one"),
    "None": (None, "neither a mapping nor pairs"),
    "a text": ("X-Webhook-Signature: 0", "neither a mapping nor pairs"),
    "triples": ([(1, 2, 3)], "neither a mapping nor pairs"),
}


@pytest.mark.parametrize(("headers", "reason"), REFUSED.values(), ids=REFUSED)
def test_headers_that_prove_nothing_are_refused(headers: Any, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason) as caught:
        parse(BODY, headers, SECRET, now=NOW)
    assert SIGNATURE not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_byte_altered_anywhere_is_refused() -> None:
    for index in range(len(BODY)):
        for bit in (1, 0x20, 0x80):
            altered = bytearray(BODY)
            altered[index] ^= bit
            with pytest.raises(SignatureError):
                parse(bytes(altered), HEADERS, SECRET, now=NOW)
    for name in ("X-Webhook-Signature", "X-Webhook-Event"):
        for index in range(len(HEADERS[name])):
            for bit in (1, 0x20):
                value = bytearray(HEADERS[name].encode())
                value[index] ^= bit
                with pytest.raises(SignatureError):
                    parse(BODY, {**HEADERS, name: value.decode("latin-1")}, SECRET, now=NOW)


@pytest.mark.parametrize("cut", [1, 10, len(BODY) - 1, len(BODY)])
def test_a_body_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(SignatureError):
        parse(BODY[:-cut], HEADERS, SECRET, now=NOW)


UNREADABLE = {
    "nothing": b"",
    "no JSON": b"hello",
    "no UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "no data": b'{"event":"job.completed","timestamp":"2026-01-01T00:00:00Z"}',
    "data of another type": b'{"event":"job.completed","timestamp":"2026-01-01T00:00:00Z","data":[]}',
    "no event": b'{"timestamp":"2026-01-01T00:00:00Z","data":{}}',
    "no timestamp": b'{"event":"job.completed","data":{}}',
    "a timestamp that is none": b'{"event":"job.completed","timestamp":"hunter2","data":{}}',
    "a timestamp in seconds": b'{"event":"job.completed","timestamp":1767225600,"data":{}}',
    "a job that is no text": b'{"event":"job.completed","timestamp":"2026-01-01T00:00:00Z","data":{"jobId":1}}',
    "too deep": b'{"data":' * 5000 + b"1" + b"}" * 5000,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_signed_and_not_of_the_contract_is_an_error_of_its_own(body: bytes) -> None:
    with pytest.raises(DecodeError, match="the webhook's body") as caught:
        parse(body, headers_of(body), SECRET, now=NOW)
    assert "hunter2" not in str(caught.value)


# ---- age and size

MINUTES = 60.0
AGES = [
    ({}, 0.0, True),
    ({}, 36 * MINUTES + 4 * 15, True),  # the service's last attempt
    ({}, DEFAULT_TOLERANCE, True),
    ({}, DEFAULT_TOLERANCE + 1, False),
    ({}, -299.0, True),
    ({}, -301.0, False),
    ({"tolerance": 60}, 60.0, True),
    ({"tolerance": 60}, 61.0, False),
    ({"tolerance": 60}, -61.0, False),
    ({"tolerance": 0}, 0.0, True),
    ({"tolerance": 0}, 0.5, False),
    ({"tolerance": math.inf}, 1e9, True),
    ({"tolerance": math.inf}, -301.0, False),
]


@pytest.mark.parametrize(("options", "age", "accepted"), AGES)
def test_an_event_is_accepted_while_it_is_recent(options: Any, age: float, accepted: bool) -> None:
    if accepted:
        assert parse(BODY, HEADERS, SECRET, now=NOW + age, **options).job_id
    else:
        with pytest.raises(SignatureError, match="s old" if age > 0 else "ahead of the clock"):
            parse(BODY, HEADERS, SECRET, now=NOW + age, **options)


def test_the_default_tolerance_lets_all_retries_of_the_service_in() -> None:
    assert DEFAULT_TOLERANCE == 60 * (1 + 5 + 30) + 4 * 15 + 300 == 42 * MINUTES


@pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59"])
def test_the_ends_of_time_are_only_too_far(timestamp: str) -> None:
    body = body_of(timestamp=timestamp)
    with pytest.raises(SignatureError, match=r"s old|ahead"):
        parse(body, headers_of(body), SECRET, now=NOW)


def test_the_time_is_the_systems_unless_it_is_given() -> None:
    body = body_of(timestamp=datetime.now(UTC).isoformat())
    assert parse(body, headers_of(body), SECRET).job_id
    with pytest.raises(SignatureError, match="s old"):
        parse(BODY, HEADERS, SECRET)


@pytest.mark.parametrize("tolerance", [-1, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ConfigurationError, match="tolerance"):
        parse(BODY, HEADERS, SECRET, now=NOW, tolerance=tolerance)


def test_a_body_that_is_too_long_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(BODY, HEADERS, SECRET, now=NOW, max_bytes=len(BODY)).job_id
    long = bytes(webhooks.MAX_BYTES + 1)
    headers = headers_of(long)
    monkeypatch.setattr(webhooks, "hmac", None)
    with pytest.raises(SignatureError, match="1048577 bytes, and 1048576 are allowed"):
        parse(long, headers, SECRET, now=NOW)
    with pytest.raises(SignatureError, match="allowed"):
        parse(BODY, HEADERS, SECRET, now=NOW, max_bytes=len(BODY) - 1)
