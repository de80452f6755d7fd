"""The account's books in tokens (neu): prices, reservations and spending.

Each booking is one statement in the transaction that it belongs to. The database refuses books that do not balance.
"""

import math
from collections.abc import Mapping
from typing import Any

from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.records import Account, Job, Tokens
from convertrilo.sandbox.state.store import Tx

NOMINAL_DURATION = 60.0
"""The duration in seconds that is assumed for a source that has not been measured."""

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
    """Return the factor on the base price for an on-demand job."""
    return _HIGH if high_priority else _NORMAL


def price(rate: float, duration: float | None) -> int:
    """Return the price of a video: whole tokens, at least one.

    Args:
        rate: tokens per minute.
        duration: seconds; None for a source that has not been measured.
    """
    minutes = (NOMINAL_DURATION if duration is None else duration) / 60
    return max(1, math.ceil(rate * minutes - 1e-9))


def quote(job: Job) -> int:
    """Return the price of a job with its current settings and the duration known so far."""
    rate = per_minute(job.settings)
    if job.kind == "ondemand":
        rate *= multiplier(high_priority=job.high_priority)
    return price(rate, job.duration)


# ---- bookings


def reserve(tx: Tx, job: Job, amount: int) -> int:
    """Reserve available tokens for a job; public jobs cost nothing.

    Returns:
        The tokens now reserved for the job. After every booking, the caller stores the new numbers in the job.

    Raises:
        Problem: 402 `insufficient_tokens`.
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
    """Release reserved tokens to the job's account, and return how many stay reserved."""
    if amount:
        tx.run(
            "UPDATE accounts SET available = available + ?1, reserved = reserved - ?1 WHERE id = ?2",
            *(amount, job.account),
        )
    return job.reserved - amount


def spend(tx: Tx, job: Job, amount: int, released: int = 0) -> None:
    """Spend `amount` of the tokens reserved for a job, and release `released` of them."""
    if amount or released:
        tx.run(
            "UPDATE accounts SET reserved = reserved - ?1 - ?2, spent = spent + ?1, available = available + ?2"
            " WHERE id = ?3",
            *(amount, released, job.account),
        )


def insufficient(amount: int, available: int) -> Problem:
    """Return the response to an account that has fewer than `amount` tokens available."""
    return Problem(
        402,
        "insufficient_tokens",
        f"This needs {amount} tokens; {available} are available.",
        required=amount,
        available=available,
    )


# ---- accounts


def balance_of(tx: Tx, account: str) -> Tokens:
    """Return the books of an account."""
    row = tx.row("SELECT available, reserved, spent, granted FROM accounts WHERE id = ?", account)
    assert row is not None
    return Tokens(*row)


def open_account(tx: Tx, email: str, password_hash: str, granted: int) -> Account:
    """Create an account with `granted` tokens to spend."""
    account = Account(tx.ids.uuid(), email, available=granted, reserved=0, spent=0, granted=granted)
    tx.run(
        "INSERT INTO accounts (id, email, password, available, reserved, spent, granted) VALUES (?, ?, ?, ?, 0, 0, ?)",
        *(account.id, email, password_hash, granted, granted),
    )
    return account
