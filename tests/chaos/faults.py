"""The faults that can happen to a request and to its answer on their way."""

from collections.abc import Mapping

from proxy import Plan, close, refuse, reset, stall


def http(status: str, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def problem(status: str, code: str, *headers: str) -> bytes:
    return http(status, b'{"code":"%b","message":"It is not to be."}' % code.encode(), *headers)


BAD_GATEWAY = http("502 Bad Gateway", b"<html><h1>502 Bad Gateway</h1></html>", kind="text/html")
TOO_MANY = "429 Too Many Requests"
UNAVAILABLE = "503 Service Unavailable"
NOW = "Retry-After: 0"

FAULTS: Mapping[str, Plan] = {
    "connections refused": Plan(sent=0, answered=None, end=refuse),
    "reset before the request": Plan(sent=0, answered=None, end=reset),
    "reset in the request's head": Plan(sent=0.2, answered=None, end=reset),
    "reset in the request's body": Plan(sent=0.9, answered=None, end=reset),
    "reset after the request": Plan(answered=None, end=reset),
    "committed, and the answer lost": Plan(answered=0, end=reset),
    "committed, and the answer's head cut": Plan(answered=0.1, end=close),
    "committed, and the answer's body cut": Plan(answered=0.9, end=close),
    "stalled": Plan(sent=0, answered=None, end=stall),
    "committed, and the answer stalled": Plan(answered=0.5, end=stall),
    "429": Plan(sent=0, instead=problem(TOO_MANY, "rate_limit_exceeded")),
    "429 with Retry-After": Plan(sent=0, instead=problem(TOO_MANY, "rate_limit_exceeded", NOW)),
    "500": Plan(sent=0, instead=problem("500 Internal Server Error", "internal_error")),
    "committed, and 500": Plan(instead=problem("500 Internal Server Error", "internal_error")),
    "502 with HTML": Plan(sent=0, instead=BAD_GATEWAY),
    "committed, and 502 with HTML": Plan(instead=BAD_GATEWAY),
    "503": Plan(sent=0, instead=problem(UNAVAILABLE, "unavailable")),
    "503 with Retry-After": Plan(sent=0, instead=problem(UNAVAILABLE, "unavailable", NOW)),
    "committed, and 503": Plan(instead=problem(UNAVAILABLE, "unavailable")),
    "in progress": Plan(sent=0, instead=problem("409 Conflict", "idempotency_in_progress")),
}
