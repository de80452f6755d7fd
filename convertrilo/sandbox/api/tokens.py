"""The account's books in tokens (neu): prices, reservations and what is spent.

Every booking is one statement inside the transaction of what it is for, and the database itself refuses books that do
not balance.
"""

import math
from collections.abc import Mapping
from typing import Any

from convertrilo.models import TokenBalanceResponse, TokenDeductRequest, TokenReserveRequest
from convertrilo.sandbox.api.call import Call, Handler
from convertrilo.sandbox.state.problem import Problem, invalid_request
from convertrilo.sandbox.state.records import QUEUED, RUNNING, Account, Job, Tokens
from convertrilo.sandbox.state.store import Tx

NOMINAL_DURATION = 60.0
"""Seconds that are assumed of a source nobody has measured."""

_PER_MINUTE = {"480p": 1.0, "720p": 1.5, "1080p": 2.0, "1440p": 3.0, "2160p": 5.0, "4320p": 10.0}
_CODEC = {"h264": 1.0, "h265": 1.5, "av1": 2.0}
_NORMAL, _HIGH = 1.5, 2.0


# ---- prices


def per_minute(settings: Mapping[str, Any]) -> float:
    """Return the base price of a minute of video with these settings (wire names)."""
    frames = max(1.0, settings["fps"] / 30)
    rate: float = _PER_MINUTE[settings["resolution"]] * _CODEC[settings["codec"]] * frames * settings["passes"]
    return rate


def multiplier(*, high_priority: bool) -> float:
    """Return what an on-demand job costs on the base price."""
    return _HIGH if high_priority else _NORMAL


def price(rate: float, duration: float | None) -> int:
    """Return the price of a video: whole tokens, at least one.

    Args:
        rate: tokens for each minute.
        duration: seconds; a nominal minute where nobody has measured.
    """
    minutes = (NOMINAL_DURATION if duration is None else duration) / 60
    return max(1, math.ceil(rate * minutes - 1e-9))


# ---- bookings


def reserve(tx: Tx, job: Job, amount: int) -> int:
    """Reserve tokens of the job's account for it; public jobs cost nothing.

    Returns:
        What is reserved for the job then; this and the other bookings leave it to the caller to write that down.
    """
    if job.account is None or amount == 0:
        return job.reserved
    available = balance_of(tx, job.account).available
    if amount > available:
        raise insufficient(amount, available)
    tx.run(
        "UPDATE accounts SET available = available - ?1, reserved = reserved + ?1 WHERE id = ?2", amount, job.account
    )
    return job.reserved + amount


def release(tx: Tx, job: Job, amount: int) -> int:
    """Give reserved tokens back to the job's account, and return what is still reserved."""
    if amount:
        tx.run(
            "UPDATE accounts SET available = available + ?1, reserved = reserved - ?1 WHERE id = ?2",
            *(amount, job.account),
        )
    return job.reserved - amount


def spend(tx: Tx, job: Job, amount: int, released: int = 0) -> None:
    """Spend tokens that are reserved for the job, and release others."""
    if amount or released:
        tx.run(
            "UPDATE accounts SET reserved = reserved - ?1 - ?2, spent = spent + ?1, available = available + ?2"
            " WHERE id = ?3",
            *(amount, released, job.account),
        )


def insufficient(amount: int, available: int) -> Problem:
    """Return the answer to an account that has less than `amount`."""
    return Problem(
        402,
        "insufficient_tokens",
        f"This takes {amount} tokens, and {available} are available.",
        required=amount,
        available=available,
    )


def balance_of(tx: Tx, account: str) -> Tokens:
    """Return the books of an account."""
    row = tx.row("SELECT available, reserved, spent, granted FROM accounts WHERE id = ?", account)
    assert row is not None
    return Tokens(*row)


def open_account(tx: Tx, email: str, password_hash: str, granted: int) -> Account:
    """Make an account with tokens to spend."""
    account = Account(tx.ids.uuid(), email, available=granted, reserved=0, spent=0, granted=granted)
    tx.run(
        "INSERT INTO accounts (id, email, password, available, reserved, spent, granted) VALUES (?, ?, ?, ?, 0, 0, ?)",
        *(account.id, email, password_hash, granted, granted),
    )
    return account


# ---- operations


def get_balance(call: Call, tx: Tx) -> TokenBalanceResponse:
    """Answer `getBalance`."""
    books = balance_of(tx, call.account)
    return TokenBalanceResponse(available=books.available, reserved=books.reserved, trial_grant_remaining=0)


def reserve_tokens(call: Call, tx: Tx) -> None:
    """Answer `reserveTokens`."""
    body = call.body_as(TokenReserveRequest)
    job = _open_job(call, tx, body.job_id)
    tx.change_job(job, reserved=reserve(tx, job, body.amount))


def release_tokens(call: Call, tx: Tx) -> None:
    """Answer `releaseTokens`."""
    body = call.body_as(TokenReserveRequest)
    job = call.job(tx, body.job_id)
    if body.amount > job.reserved:
        raise invalid_request(f"{body.amount} tokens cannot be released: {job.reserved} are reserved for the job.")
    if job.status in (QUEUED, RUNNING) and job.reserved - body.amount < (job.price or 0):
        raise invalid_request(f"The job is {job.status}, and its price of {job.price} tokens stays reserved.")
    tx.change_job(job, reserved=release(tx, job, body.amount))


def deduct_tokens(call: Call, tx: Tx) -> None:
    """Answer `deductTokens`: from what is reserved for the job first, then from what is available."""
    body = call.body_as(TokenDeductRequest)
    job = _open_job(call, tx, body.job_id)
    reserved = reserve(tx, job, max(0, body.amount - job.reserved))
    spend(tx, job, body.amount)
    tx.change_job(job, reserved=reserved - body.amount, spent=job.spent + body.amount)


def _open_job(call: Call, tx: Tx, job_id: str) -> Job:
    job = call.job(tx, job_id)
    if job.ended:
        raise invalid_request(f"The job has ended ({job.status}): nothing can be booked on it.")
    return job


HANDLERS: Mapping[str, Handler] = {
    "getBalance": get_balance,
    "reserveTokens": reserve_tokens,
    "releaseTokens": release_tokens,
    "deductTokens": deduct_tokens,
}
