"""Throws payloads and headers at `webhooks`, by chance or by atheris: `python tests/fuzz_webhooks.py [--help]`.

Whatever arrives, nothing is raised but our own errors, nothing is accepted that was not signed, by the definition of
HMAC and not by Python's `hmac`, and everything is accepted that is as the service sends it.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter, UserDict
from collections.abc import Callable
from typing import Any

import attrs
import httpx

from convertrilo import webhooks
from convertrilo.errors import DecodeError, SignatureError

Pick = Callable[[int], int]
"""Returns a number from 0 to below the given one: where all chance comes from."""

NOW = 1_767_225_600.0
SECRETS = ["whsec_6f1d0c5ab37e", "whsec_another", "ключ", "k" * 200]


@attrs.frozen
class Case:
    """One delivery as it arrives, and what the fuzzer knows of it."""

    payload: Any
    headers: Any
    secrets: Any
    now: float
    signature: Any
    """What the one signature header holds; `None` if there is none, or more than one."""
    usable: list[bytes]
    """The secrets that count."""
    perfect: bool
    """Whether it is as the service sends it, so that it must be accepted."""


# ---- what arrives


def make_case(pick: Pick) -> Case:
    """Make a delivery that is perfect, or wrong in some places."""
    given, usable = _secrets(pick)
    event, body, is_event = _body(pick)
    offset, in_time = _one(pick, [(0.0, True), (2_520.0, True), (-300.0, True), (2_521.0, False), (-301.0, False)])
    signature: Any = hmac_sha256(usable[pick(len(usable))] if usable else b"", body).hex()
    payload: Any = body
    perfect = bool(usable) and is_event and in_time and len(body) <= webhooks.MAX_BYTES
    if pick(3) == 0:
        payload, perfect = _altered(pick, body), False
    if pick(3) == 0:
        signature, perfect = _other_signature(pick, signature), False
    header_event: Any = event
    if pick(8) == 0:
        header_event, perfect = _text(pick), False
    headers, is_signed, is_whole = _headers(pick, signature, header_event)
    return Case(payload, headers, given, NOW + offset, signature if is_signed else None, usable, perfect and is_whole)


def _one(pick: Pick, choices: Any) -> Any:
    return choices[pick(len(choices))]


def _text(pick: Pick) -> str:
    alphabet = "aZ0 .\0\n\"'\\{}[]\ud800\udfffé☀𝄞\x7f"
    return "".join(_one(pick, alphabet) for _ in range(pick(9)))


def _bytes(pick: Pick) -> bytes:
    return bytes(pick(256) for _ in range(pick(40)))


def _secrets(pick: Pick) -> tuple[Any, list[bytes]]:
    if pick(40) == 0:
        return _one(pick, [None, "", b"", [], ["", None], 12, [SECRETS[0], 12], object()]), []
    first, second = SECRETS[pick(4)], SECRETS[pick(4)]
    usable = [first.encode()]
    several = [first.encode(), second.encode()]
    given: tuple[Any, list[bytes]] = _one(
        pick,
        [
            (first, usable),
            (first.encode(), usable),
            ([first], usable),
            ([first, second], several),
            ((second, first.encode()), several),
            ({"", first}, usable),
            ([None, first, b""], usable),
        ],
    )
    return given


def _value(pick: Pick, depth: int = 0) -> Any:
    kind = pick(9 if depth < 4 else 7)
    if kind == 7:
        return [_value(pick, depth + 1) for _ in range(pick(4))]
    if kind == 8:
        return {_text(pick): _value(pick, depth + 1) for _ in range(pick(4))}
    return [None, True, pick(1000) - 500, 2.5, 10 ** pick(30), "j-1", _text(pick)][kind]


_NAMES = ["jobId", "userId", "status", "encoder", "durationSec", "finalNeu", "externalId", "metadata", "error", "new"]
_TIMES = ["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00"]
_BAD_TIMES = ["", "now", "2026-13-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", None, 0, 1e300]
_WHOLE = [
    *(b"", b"null", b"[]", b"{}", b"1", b'"a"', b"NaN", b"\xff", b"\xef\xbb\xbf{}", b'{"data":{}}', b"{" * 50),
    *(b'{"event":"a","timestamp":"2026-01-01","data":null}', b'{"event":"\\ud800","timestamp":"2026-01-01","data":{}}'),
    *(b'{"data":' * 2000 + b"1" + b"}" * 2000, b'{"a":' + b"9" * 5000 + b"}", b"[" * 100_000, b"<!doctype html>"),
]


def _body(pick: Pick) -> tuple[str, bytes, bool]:
    """Return an event's name, a body, and whether that is a body as the service sends it."""
    event = _one(pick, ["job.completed", "job.failed", "webhook.test", "job.new"])
    kind = pick(16)
    if kind == 0:
        return event, _one(pick, _WHOLE), False
    if kind == 1:
        return event, _bytes(pick), False
    data: dict[str, Any] = {"jobId": "j-1", "status": "success", "durationSec": 60, "finalNeu": 1.5, "new": [1]}
    body: dict[str, Any] = {"event": event, "timestamp": _one(pick, _TIMES), "data": data}
    is_event = kind > 5
    if kind == 2:
        data[_one(pick, _NAMES)] = _value(pick)
    elif kind == 3:
        body[_one(pick, ["event", "timestamp", "data", "new"])] = _value(pick)
    elif kind == 4:
        body["timestamp"] = _one(pick, _BAD_TIMES)
    elif kind == 5:
        del body[_one(pick, list(body))]
    elif kind == 6:
        data["metadata"] = {"text": "x" * pick(3_000)}
    return event, json.dumps(body, ensure_ascii=pick(2) == 0).encode(errors="surrogatepass"), is_event


def _altered(pick: Pick, body: bytes) -> Any:
    kind = pick(8)
    if kind == 0:
        return _one(pick, [None, body.decode(errors="replace"), bytearray(body), {}, [], 12])
    place = pick(len(body) + 1)
    if kind < 3:
        return body[:place] + bytes([pick(256)]) + body[place + 1 :]
    return [body[:place], body[place:], body + b"\n", b" " + body, body[:place] + b" " + body[place:]][kind - 3]


def _other_signature(pick: Pick, signature: str) -> Any:
    place = pick(64)
    return _one(
        pick,
        [
            *(None, "", b"", 12, [signature], _text(pick), _bytes(pick), signature.upper(), f" {signature}"),
            *(signature[:place], signature + "0", f"sha256={signature}", "0" * 64, "é" * 64, "z" * 64, "0" * 100_000),
            signature[:place] + _one(pick, "0123456789abcdefABCDEF \0") + signature[place + 1 :],
            bytes.fromhex(signature),
            signature.encode(),
        ],
    )


def _headers(pick: Pick, signature: Any, event: Any) -> tuple[Any, bool, bool]:
    """Return headers in a form that some framework has them in, or in none.

    And whether the signature is in them once, and whether all of them are.
    """
    names = _one(pick, [("X-Webhook-Signature", "X-Webhook-Event"), ("x-webhook-signature", "X-WEBHOOK-EVENT")])
    pairs: list[Any] = [("Content-Type", "application/json"), (names[0], signature), (names[1], event)]
    kind = pick(14)
    if kind == 0:
        return [*pairs, (names[0].upper(), signature)], False, False
    if kind == 1:
        return [*pairs, pairs[2]], True, False
    if kind == 2:
        return [pair for pair in pairs if pair[0] != names[0]], False, False
    if kind == 3:
        wrong = [None, 12, "x", b"x", [1], [(1, 2, 3)], {1: 2}, [("a",)], {}, [], [pairs], object()]
        return _one(pick, wrong), False, False
    if kind == 4 and isinstance(signature, str) and signature.isascii() and event.isascii():
        return httpx.Headers(pairs), True, True
    if kind == 5 and isinstance(signature, str):
        return [(name.encode(), value.encode(errors="surrogatepass")) for name, value in pairs], True, True
    return _one(pick, [dict(pairs), UserDict(pairs), pairs, tuple(pairs), iter(pairs)]), True, True


# ---- what comes of it


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 by its definition, RFC 2104."""
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


def check(case: Case) -> str:
    """Have a delivery verified and parsed, and return what came of it: `accepted`, `refused` or `unreadable`."""
    is_bytes = isinstance(case.payload, bytes)
    given = case.signature.encode(errors="surrogatepass") if isinstance(case.signature, str) else case.signature
    is_signed = is_bytes and any(hmac_sha256(key, case.payload).hex().encode() == given for key in case.usable)
    try:
        verified = webhooks.verify(case.payload, case.signature, case.secrets)
    except SignatureError:
        assert not (is_bytes and case.usable), "it could have been verified"
        verified = False
    assert verified is is_signed, f"verify says {verified}"
    try:
        event = webhooks.parse(case.payload, case.headers, case.secrets, now=case.now)
    except SignatureError:
        outcome = "refused"
    except DecodeError:
        assert is_signed, "an unsigned body was decoded"
        outcome = "unreadable"
    else:
        assert is_signed, "an unsigned body was accepted"
        assert event.event == json.loads(case.payload)["event"], "another event came out"
        outcome = "accepted"
    assert outcome == "accepted" or not case.perfect, "a perfect delivery was not accepted"
    return outcome


def run(cases: int, seed: int) -> Counter[str]:
    """Check so many deliveries, and count what came of them; a failure names the seed of its case."""
    outcomes: Counter[str] = Counter()
    for number in range(cases):
        case_seed = f"{seed}/{number}"
        case = make_case(random.Random(case_seed).randrange)
        try:
            outcomes[check(case)] += 1
        except Exception as error:
            error.add_note(f"case {case_seed}: {case!r:.2000}")
            raise
    return outcomes


def _with_atheris(cases: int, seed: int) -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # nobody has to install it

    atheris.instrument_all()

    def test_one_input(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        check(make_case(lambda below: int(provider.ConsumeIntInRange(0, below - 1))))

    atheris.Setup([sys.argv[0], f"-runs={cases}", f"-seed={seed}", "-max_len=2000", "-verbosity=1"], test_one_input)
    atheris.Fuzz()


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="let coverage lead; needs the package atheris")
    arguments = parser.parse_args()
    if arguments.atheris:
        _with_atheris(arguments.cases, arguments.seed)
        return
    started = time.monotonic()
    outcomes = run(arguments.cases, arguments.seed)
    print(f"{outcomes.total():,} deliveries in {time.monotonic() - started:.0f} s: {dict(outcomes)}")  # noqa: T201  # a program


if __name__ == "__main__":
    main()
