"""Many jobs, by the million: an iterable of them in, frozen batches out to the service, a result for each one back.

It works only while its caller waits for the next result: whoever stops reading leaves nothing running. Meanwhile up to
`concurrency` batches are under way, until there are enough results or they have been waited for long enough.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import anyio.lowlevel
import attrs

from convertrilo import operations as rows
from convertrilo._base_client import BaseClient, engine_of
from convertrilo.bulk.batches import (
    PASSING,
    PASSING_LATER,
    Batch,
    Item,
    Outcome,
    Settings,
    Sizes,
    checked_settings,
    freeze,
    freeze_again,
    halves,
    items_in,
    lend_credentials,
    outcome_of,
    read_outcomes,
)
from convertrilo.bulk.input import Frames, Jobs, conflict
from convertrilo.bulk.results import Results, SubmitProgress, SubmittedJob
from convertrilo.errors import (
    APIError,
    ConvertriloError,
    DecodeError,
    IdempotencyConflictError,
    Issue,
    OutcomeUnknownError,
    ValidationError,
)
from convertrilo.idempotency import Identity
from convertrilo.models import BulkCreateSettings

if TYPE_CHECKING:
    from convertrilo.bulk.ledger import Answered, Known, Ledger
    from convertrilo.journal import Journal
    from convertrilo.journal.batches import Place

_SEND = attrs.evolve(rows.CREATE_JOBS_BULK, returns=None)
"""`createJobsBulk`; its answers are read by `read_outcomes`."""

_TOO_LARGE = frozenset({400, 413, 414, 422, 431})
"""What the service may answer when it minds how much it is; or else one of the jobs, which halving finds out, too."""
_TOO_MANY_BYTES = 413

_ROUNDS = 3
"""How often jobs that were refused for a reason that may pass go again, in one run."""

_LOOK_AGAIN = 0.1
"""Seconds between looks into the journal for what becomes of a batch that another process is sending."""

_TURN = 0.5
"""Seconds after which results that are there are handed out before more batches are sent."""

_Work = Callable[[], Awaitable[object]]


OnSubmit = Callable[[SubmitProgress], object]

Carry = Callable[[str, bytes, float | None], Awaitable[bytes]]
"""Sends a frozen batch, given its key, its bytes, and when it is too late for that (seconds since the epoch)."""


def submit_jobs(
    client: BaseClient,
    jobs: Jobs,
    *,
    settings: BulkCreateSettings | Mapping[str, Any] | None,
    batch_size: int,
    concurrency: int,
    journal: "Journal | None",
    on_progress: OnSubmit | None,
    carry: "Carry | None" = None,
) -> AsyncIterator[SubmittedJob]:
    """Submit many jobs; see `AsyncClient.submit_jobs`. `carry` has a batch sent elsewhere, and not by this client."""
    for name, value in (("batch_size", batch_size), ("concurrency", concurrency)):
        if not value >= 1:
            raise ValidationError(name, [Issue("", f"must be at least 1, not {value!r}")])
    if isinstance(jobs, Mapping | str) or not (hasattr(jobs, "__iter__") or hasattr(jobs, "__aiter__")):
        kind = type(cast("object", jobs)).__name__
        raise ValidationError("jobs", [Issue("", f"must be an iterable of jobs, not a {kind}")])
    _, options = engine_of(client)
    frames = Frames(jobs, batch_size)
    return _Run(client, frames, checked_settings(settings, options.operation), concurrency, journal, on_progress, carry)


@attrs.define(eq=False)
class _Returning:
    """A batch that an earlier run has sent, or was about to, and that goes out again as it was."""

    known: "Known"
    items: list[Item]
    missing: set[int]
    """The positions of those whose credentials, which are not in the journal, are still to be met in the input."""

    @property
    def can_go(self) -> bool:
        """Whether it can go out as it was."""
        lend_credentials(self.items, self.missing)
        return not self.missing


class _Run:
    """One call of `submit_jobs`: its results. No generator: whoever breaks out of its loop need not close this."""

    def __init__(
        self,
        client: BaseClient,
        frames: Frames,
        settings: Settings,
        concurrency: int,
        journal: "Journal | None",
        on_progress: OnSubmit | None,
        carry: "Carry | None",
    ) -> None:
        self._engine, self._options = engine_of(client)
        self._carrier = carry
        self._clock = self._engine.clock
        self._frames = frames
        self._settings = settings
        self._concurrency = concurrency
        self._journal = journal
        self._on_progress = on_progress
        self._sizes = self._engine.shared(Sizes) or self._engine.share(Sizes())
        self._ledger = self._make_ledger(journal or self._engine.journal)
        self._results = Results(self._engine.credentials.api_key, dry_run=settings.dry_run)
        self._error: Exception | None = None
        self._is_done = False
        self._flying = 0
        self._tell_at = 0.0
        self._was_accepted = False
        self._refused_alone = 0
        self._live: dict[int, Batch] = {}
        self._returning: dict[int, _Returning] = {}

    def _make_ledger(self, journal: "Journal | None") -> "Ledger | None":
        if journal is None or self._settings.dry_run:  # which makes nothing
            return None
        from convertrilo.bulk.ledger import Ledger  # it imports sqlite3

        keep = 2 * self._concurrency + 2
        return Ledger(journal, service=self._engine.service, sender=self._engine.credentials.sender, keep=keep)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SubmittedJob:
        waiting = self._results.waiting
        while not waiting:
            if self._error is not None:
                error, self._error, self._is_done = self._error, None, True
                self._note_state(error)
                raise error
            if self._is_done:
                raise StopAsyncIteration
            try:
                await self._work_with_journal()
            except Exception:
                raise
            except BaseException:
                self._error = ConvertriloError("it was cancelled, and what was under way then has no results")
                raise
            waiting.reverse()  # the next one is at the end
        return waiting.pop()

    async def _work_with_journal(self) -> None:
        async with AsyncExitStack() as stack:
            if self._journal is not None:
                await stack.enter_async_context(self._journal)
            elif self._ledger is not None:
                await self._engine.open_journal()
            if self._ledger is None:
                await self._work()
                return
            is_over = True
            try:
                with self._ledger.under_way():
                    await self._work()
                is_over = self._error is not None
            finally:
                if is_over:
                    await self._ledger.let_go_all()

    async def _work(self) -> None:
        """Send batches until there are enough results, or some and a while has passed; then let the rest land."""
        self._tell_at, enough = self._clock.monotonic() + _TURN, self._frames.size * self._concurrency
        self._landed = anyio.Event()
        async with anyio.create_task_group() as tasks:
            while self._error is None and len(self._results.waiting) < enough and not self._is_time_to_tell():
                work = None if self._flying >= self._concurrency else await self._next_work()
                if work is not None:
                    self._flying += 1
                    tasks.start_soon(self._fly, work)
                    await anyio.lowlevel.checkpoint()
                elif self._is_time_to_tell():
                    break
                elif self._flying:
                    await self._landed.wait()
                else:
                    self._is_done = True
                    break

    def _is_time_to_tell(self) -> bool:
        """Whether there are results that have waited for long enough."""
        return bool(self._results.waiting) and self._clock.monotonic() > self._tell_at

    async def _next_work(self) -> _Work | None:
        try:
            frame = await self._frames.next(self._is_time_to_tell)
        except Exception as error:  # noqa: BLE001  # the input's own, raised once the results are read
            self._error = self._error or error
            return None
        for request, refusal in self._frames.take_refused():
            self._results.put(request, None, None, refusal, None)
        if frame is None:  # there are results to be told first
            return None
        if frame:
            return partial(self._submit, frame, is_frame=True)
        if self._returning and not self._flying:  # whose other members are not in the input any more
            _, returning = self._returning.popitem()
            return partial(self._return, returning)
        return None

    async def _fly(self, work: _Work) -> None:
        try:
            await work()
            if self._on_progress is not None:
                self._on_progress(SubmitProgress(self._frames.taken, self._results.submitted, self._results.failed))
        except Exception as error:  # noqa: BLE001  # raised once the others have landed and the results are read
            self._error = self._error or error
        finally:
            self._flying -= 1
            self._landed.set()
            self._landed = anyio.Event()

    def _note_state(self, error: Exception) -> None:
        done = self._results
        open_jobs = self._frames.taken - done.submitted - done.failed
        go_on = "the same jobs and batch_size: the same batches go out under the same keys"
        if self._ledger is not None:
            go_on = "the same journal: what was submitted is known there, and the rest goes on"
        error.add_note(
            f"submit_jobs has stopped: {done.submitted} jobs are submitted and {done.failed} were refused, which their "
            f"results said; {open_jobs} more were taken and are not known to be submitted. Run it again with {go_on}."
        )

    # ---- a batch and what comes of it

    async def _submit(self, items: Sequence[Item], tries: int = 0, *, is_frame: bool = False) -> bool:
        """Freeze a batch, write it down and send it; return whether the service took it, all in all."""
        if self._sizes.too_large(items):
            return all([await self._submit(half, tries) for half in halves(items)])
        batch = freeze(items, self._settings)
        if self._ledger is not None:
            for item in items:
                if item.external_id and not item.identity:
                    item.identify(self._settings)
            try:
                claimed = await self._engine.timed("begin", self._ledger.claim(batch))
            except (IdempotencyConflictError, OutcomeUnknownError) as error:
                self._results.refuse_all(batch, error)
                return True
            if isinstance(claimed, dict):
                rest = await self._look_up(items, claimed)
                if is_frame:
                    self._frames.put_back(rest)
                    return True
                return not rest or await self._submit(rest, tries)
            if claimed is not None:
                return await self._take(batch, read_outcomes(claimed), tries)
        return await self._carry(batch, tries)

    async def _carry(self, batch: Batch, tries: int = 0) -> bool:
        try:
            outcomes = await self._send(batch)
        except (IdempotencyConflictError, OutcomeUnknownError) as error:
            self._results.refuse_all(batch, error)
            return True
        except APIError as error:
            if error.status not in _TOO_LARGE:
                raise
            if not _is_for_what_it_is(batch, error):
                self._results.refuse_all(batch, _unknown(batch, error))
                return False
            return await self._after_refusal(batch, error, tries)
        return await self._take(batch, outcomes, tries)

    async def _send(self, batch: Batch) -> dict[int, Outcome]:
        wire = {"jobs": [item.wire for item in batch.items]}
        ledger, call = self._ledger, None
        if batch.number is not None:
            self._live[batch.number] = batch
        try:
            while wait := self._engine.limiter.wait(self._clock.monotonic()):
                await self._clock.sleep(wait)  # the deadline of the call begins when it has a turn
            call = self._engine.frozen_call(
                _SEND, self._options, wire=wire, content=batch.content, identity=batch.identity
            )
            if ledger is not None:
                assert batch.first_sent_at is not None
                call.doubt.last_resend = batch.first_sent_at + ledger.journal.replay_window
                call.doubt.was_sent_before = batch.was_sent_before
            if self._carrier is not None:
                answer = await self._carrier(batch.identity.key, batch.content, call.doubt.last_resend)
            else:
                with self._engine.watching(call, wire, batch.identity):
                    _, answer, _ = await call.run()
            try:
                outcomes = read_outcomes(answer)
            except DecodeError as error:
                raise call.not_understood(error, answer) from None
        except BaseException as error:
            # Of what was sent elsewhere an API error says whether it is in doubt; any other error leaves it open.
            elsewhere = self._carrier is not None and getattr(error, "in_doubt", True)
            batch.is_in_doubt = batch.was_sent_before or (call is not None and (call.doubt.may_be_done or elsewhere))
            if ledger is not None:
                await self._put_down(ledger, batch, error)
            raise
        self._was_accepted = True
        if ledger is not None:
            await self._engine.timed("answer", ledger.answer(batch, answer))
        return outcomes

    async def _put_down(self, ledger: "Ledger", batch: Batch, error: BaseException) -> None:
        """Leave a batch that was not answered in the journal as what it is: pending, or nothing at all."""
        assert batch.number is not None
        self._live.pop(batch.number, None)
        is_known = isinstance(error, IdempotencyConflictError)  # by its key: under another there would be second jobs
        is_nothing = not is_known and (not batch.is_in_doubt or _is_for_what_it_is(batch, error))
        await (ledger.free(batch) if is_nothing else ledger.let_go([batch.number]))

    async def _take(self, batch: Batch, outcomes: Mapping[int, Outcome], tries: int) -> bool:
        """Turn the outcomes into results; what may be another time is sent once more, in a batch of its own."""
        again: list[Item] = []
        can_go_again = tries < min(_ROUNDS, self._options.retry.max_attempts - 1)
        key = batch.identity.key
        for position, item in enumerate(batch.items):
            outcome = outcome_of(item.external_id, outcomes.get(position))
            if can_go_again and item.requests and outcome is not None and outcome.may_pass(PASSING):
                again.append(item)
            else:
                self._results.give(item, outcome, key)
        if batch.number is not None:
            self._live.pop(batch.number, None)
        if again:
            for item in again:
                item.round = batch.round + 1
                item.replaces = batch.number
            await self._clock.sleep(self._options.retry.backoff(tries + 1, self._engine.random))
            await self._submit(again, tries + 1)
        return True

    async def _after_refusal(self, batch: Batch, error: APIError, tries: int) -> bool:
        """Find out whether the service minds how much it is, or one of the jobs: each half goes on its own."""
        items = [item for item in batch.items if item.requests]
        if error.status == _TOO_MANY_BYTES and len(batch.items) > 1:
            self._sizes.bytes = min(self._sizes.bytes, len(batch.content))
        if len(batch.items) == 1:
            self._refused_alone += 1
            if self._refused_alone > 1 and not self._was_accepted:
                raise error  # it is none of the jobs, then
            self._results.refuse_all(batch, error)
            return False
        for item in items:
            item.replaces = batch.number
        taken = all([await self._submit(half, tries) for half in halves(items) if half])
        if taken and error.status != _TOO_MANY_BYTES:
            self._sizes.jobs = min(self._sizes.jobs, len(batch.items))
        return taken

    # ---- what the journal knows

    async def _look_up(self, items: Sequence[Item], places: "Mapping[bytes, Place]") -> list[Item]:
        """Let jobs that are in batches already have what comes of those; return the ones that are to be sent."""
        rest: list[Item] = []
        found: dict[int, list[tuple[Item, Place]]] = {}
        for item in items:
            place = places.get(item.identity)
            if place is None:
                rest.append(item)
            elif place.is_free:
                rest.append(_freed(item, place.batch, place.round))
            else:
                found.setdefault(place.batch, []).append((item, place))
        for number, members in found.items():
            rest += await self._look_into(number, members)
        return rest

    async def _look_into(self, number: int, members: "Sequence[tuple[Item, Place]]") -> list[Item]:
        """Let jobs have what comes of their batch, by waiting for it or sending it, if need be."""
        assert self._ledger is not None
        until = self._clock.monotonic() + self._options.retry.deadline
        while True:
            if number in self._live:
                self._join(self._live[number].items, members)
                return []
            if number in self._returning:
                return await self._gather(number, members)
            if (answered := self._ledger.outcomes(number)) is not None:
                return self._settle(number, answered, members)
            known = await self._ledger.read(number)
            if known is None:
                return [_freed(item, number, place.round) for item, place in members]
            if known.entry.state == "answered":
                self._ledger.read_answer(known)
            elif known.entry.state == "unknown":
                return self._refuse_members(members, self._ledger.unknown(known))
            elif self._ledger.is_busy(known.row) and self._clock.monotonic() < until:
                ready = next((each for each, returning in self._returning.items() if returning.can_go), None)
                if ready is not None:  # whoever has that batch may be waiting for this one
                    await self._return(self._returning.pop(ready))
                else:
                    await self._clock.sleep(_LOOK_AGAIN)
            else:
                try:
                    is_ours = await self._ledger.take_over(known)
                except OutcomeUnknownError as error:
                    return self._refuse_members(members, error)
                if is_ours:
                    items = items_in(known.entry.body, self._settings)
                    self._returning[number] = _Returning(known, items, known.row.lacking)

    def _refuse_members(self, members: "Sequence[tuple[Item, Place]]", error: ConvertriloError) -> list[Item]:
        for item, _ in members:
            self._results.refuse(item, error, error.idempotency_key)
        return []

    def _join(self, theirs: Sequence[Item], members: "Sequence[tuple[Item, Place]]") -> list[int]:
        """Let jobs of the input stand for members of a batch; return the positions of those that do."""
        joined: list[int] = []
        for item, place in members:
            member = theirs[place.position]
            if member.digest == item.digest:
                member.requests += item.requests
                member.wire, member.content, member.bare = item.wire, item.content, item.bare
                joined.append(place.position)
            else:
                self._results.refuse(item, conflict(), None)
        return joined

    async def _gather(self, number: int, members: "Sequence[tuple[Item, Place]]") -> list[Item]:
        returning = self._returning[number]
        returning.missing.difference_update(self._join(returning.items, members))
        if not returning.missing:
            del self._returning[number]
            await self._return(returning)
        return []

    async def _return(self, returning: _Returning) -> None:
        """Send a batch again, as it was."""
        known = returning.known
        if not returning.can_go:
            error = _lacking(known, len(returning.missing))
            for item in returning.items:
                self._results.refuse(item, error, known.row.key)
            assert self._ledger is not None
            await self._ledger.let_go([known.row.number])
            return
        identity = Identity(key=known.row.key, kind="external_id", name=known.entry.name)
        batch = freeze_again(returning.items, known.entry.body, identity, known.row.round)
        batch.number = known.row.number
        batch.first_sent_at = known.entry.first_sent_at.timestamp()
        await self._carry(batch)

    def _settle(self, number: int, answered: "Answered", members: "Sequence[tuple[Item, Place]]") -> list[Item]:
        """Give jobs what the journal says came of them; return those that may go again."""
        rest: list[Item] = []
        for item, place in members:
            outcome = outcome_of(item.external_id, answered.outcomes.get(place.position))
            is_same = item.digest == place.digest
            is_refused = outcome is not None and outcome.job_id is None and outcome.error is not None
            if outcome is not None and is_refused and (not is_same or outcome.may_pass(PASSING_LATER)):
                rest.append(_freed(item, number, answered.round))
            elif is_same:
                self._results.give(item, outcome, answered.key)
            else:
                self._results.refuse(item, conflict(), None)
        return rest


def _is_for_what_it_is(batch: Batch, error: BaseException) -> bool:
    """Whether a batch is refused for what it is: it was so at each attempt, or the service would have known its key.

    If it may have been done already, that must be the service's own word: a gateway's 400 says nothing of the batch,
    and its 413 nothing of the attempt before, which may have come by another gateway.
    """
    if not isinstance(error, APIError) or error.status not in _TOO_LARGE:
        return False
    return not batch.is_in_doubt or error.code != f"http_{error.status}"


def _unknown(batch: Batch, error: APIError) -> OutcomeUnknownError:
    """Make the error of a batch that may have been done, and that something before the service now turns away."""
    unknown = OutcomeUnknownError(
        f"an earlier attempt may have been done, and the last one was not the service's to answer: {error.message}.",
        find_out="In another batch its jobs could be made twice; run again with its journal, it goes out as it was.",
    )
    unknown.__cause__ = error
    return unknown.with_call(operation=_SEND.id, idempotency_key=batch.identity.key, attempts=error.attempts)


def _lacking(known: "Known", count: int) -> OutcomeUnknownError:
    """Make the error of a batch that cannot go out as it was."""
    return OutcomeUnknownError(
        f"it went out in a batch before, with no answer, and {count} jobs of that are not in the input any more, whose "
        "credentials are not in the journal. Nothing was sent.",
        find_out="Run it again with those jobs, too: the batch goes out as it was. In another one there could be two.",
        operation=_SEND.id,
        idempotency_key=known.row.key,
    )


def _freed(item: Item, number: int, round_number: int) -> Item:
    """Let a job go into a new batch instead of one of which nothing came for it."""
    item.round = round_number + 1
    item.replaces = number
    return item
