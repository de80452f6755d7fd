"""Whatever arrives as a webhook: no error but ours, nothing accepted that is not signed, nothing refused that is right.

A short run of `fuzz_webhooks`; `CHAOS_SCALE=full` (`nox -s chaos`) makes it a million cases, and
`python tests/fuzz_webhooks.py --atheris` lets coverage lead.
"""

import hmac
import os
from typing import Any

import pytest
from fuzz_webhooks import NOW, check, hmac_sha256, make_case, run
from hypothesis import given, settings
from hypothesis import strategies as st

from convertrilo import webhooks
from convertrilo.errors import DecodeError, SignatureError


def test_thousands_of_deliveries_end_in_an_event_or_in_our_errors() -> None:
    cases = 1_000_000 if os.environ.get("CHAOS_SCALE") == "full" else 10_000
    outcomes = run(cases, seed=7)
    assert outcomes.total() == cases
    assert min(outcomes["accepted"], outcomes["unreadable"], outcomes["refused"]) > cases / 14


@settings(max_examples=200)
@given(st.data())
def test_hypothesis_finds_no_delivery_that_does_otherwise(data: st.DataObject) -> None:
    check(make_case(lambda below: data.draw(st.integers(0, below - 1))))


ANYTHING = st.one_of(
    st.none(), st.text(max_size=70), st.binary(max_size=70), st.integers(), st.floats(), st.lists(st.text())
)


@settings(max_examples=200)
@given(ANYTHING, ANYTHING | st.dictionaries(ANYTHING.filter(lambda x: not isinstance(x, list)), ANYTHING), ANYTHING)
def test_nothing_at_all_is_accepted_of_nonsense(payload: Any, headers: Any, secrets: Any) -> None:
    with pytest.raises((SignatureError, DecodeError)):
        webhooks.parse(payload, headers, secrets, now=NOW)


# ---- the fuzzer finds what it is there for


def lenient(expected: bytes, given: bytes) -> bool:
    return expected == given.lower().strip()


def by_prefix(expected: bytes, given: bytes) -> bool:
    return bool(given) and expected.startswith(given)


def strict_about_types(expected: bytes, given: bytes) -> bool:
    return hmac.compare_digest(expected.decode(), given.decode())


@pytest.mark.parametrize("compare", [lenient, by_prefix, strict_about_types])
def test_a_careless_comparison_would_be_found(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        new = hmac.new
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(webhooks, "hmac", Careless)
    with pytest.raises((AssertionError, TypeError, ValueError)):
        run(cases=5_000, seed=7)


def test_a_signature_that_is_not_looked_at_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_matches", lambda *_: True)
    with pytest.raises(AssertionError):
        run(cases=1_000, seed=7)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_the_fuzzers_own_hmac_is_hmac(size: int) -> None:
    key, message = bytes(range(size)), b"m" * size
    assert hmac_sha256(key, message) == hmac.digest(key, message, "sha256")
