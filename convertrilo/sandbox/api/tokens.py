"""Handlers of the account's tokens: the balance, and reservations for a job."""

from collections.abc import Mapping

from convertrilo import operations
from convertrilo.models import TokenBalanceResponse, TokenDeductRequest, TokenReserveRequest
from convertrilo.sandbox.api.call import ApiCall, Handler
from convertrilo.sandbox.state import books
from convertrilo.sandbox.state.problem import invalid_request
from convertrilo.sandbox.state.records import QUEUED, RUNNING, Job
from convertrilo.sandbox.state.store import Tx


def get_balance(call: ApiCall, tx: Tx) -> TokenBalanceResponse:
    """Answer `getBalance`."""
    balance = books.balance_of(tx, call.account)
    return TokenBalanceResponse(available=balance.available, reserved=balance.reserved, trial_grant_remaining=0)


def reserve_tokens(call: ApiCall, tx: Tx) -> None:
    """Answer `reserveTokens`."""
    body = call.body_as(TokenReserveRequest)
    job = _open_job(call, tx, body.job_id)
    tx.change_job(job, reserved=books.reserve(tx, job, body.amount))


def release_tokens(call: ApiCall, tx: Tx) -> None:
    """Answer `releaseTokens`; the price of a queued or running job stays reserved."""
    body = call.body_as(TokenReserveRequest)
    job = call.job(tx, body.job_id)
    if body.amount > job.reserved:
        raise invalid_request(f"{body.amount} tokens cannot be released: {job.reserved} are reserved for the job.")
    if job.status in (QUEUED, RUNNING) and job.reserved - body.amount < (job.price or 0):
        raise invalid_request(f"The job is {job.status}, and its price of {job.price} tokens stays reserved.")
    tx.change_job(job, reserved=books.release(tx, job, body.amount))


def deduct_tokens(call: ApiCall, tx: Tx) -> None:
    """Answer `deductTokens`: spend tokens reserved for the job first, then available ones."""
    body = call.body_as(TokenDeductRequest)
    job = _open_job(call, tx, body.job_id)
    reserved = books.reserve(tx, job, max(0, body.amount - job.reserved))
    books.spend(tx, job, body.amount)
    tx.change_job(job, reserved=reserved - body.amount, spent=job.spent + body.amount)


def _open_job(call: ApiCall, tx: Tx, job_id: str) -> Job:
    job = call.job(tx, job_id)
    if job.ended:
        raise invalid_request(f"The job has ended ({job.status}): nothing can be booked on it.")
    return job


HANDLERS: Mapping[str, Handler] = {
    operations.GET_BALANCE.id: get_balance,
    operations.RESERVE_TOKENS.id: reserve_tokens,
    operations.RELEASE_TOKENS.id: release_tokens,
    operations.DEDUCT_TOKENS.id: deduct_tokens,
}
