"""`submit_jobs` as its user meets it: against the sandbox, and against a model of the service with faults."""

import contextlib
import gc
import itertools
import json
import os
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from fake_clock import FakeClock
from fake_service import CrashError, FakeService, KeyMemory, MortalJournal, turns
from support import API_KEY, BASE_URL, limiter_of, raised_by, set_jitter

from convertrilo import (
    APIError,
    AsyncClient,
    DecodeError,
    IdempotencyConflictError,
    InsufficientTokensError,
    InvalidRequestError,
    JobCreateRequest,
    JobRefusedError,
    Journal,
    JournalError,
    OutcomeUnknownError,
    RetryPolicy,
    ServerError,
    SubmitProgress,
    SubmittedJob,
    TransportError,
    ValidationError,
    derive_key,
)
from convertrilo.bulk.input import BatchReader
from convertrilo.retry import Allowance
from convertrilo.sandbox import Rules, Sandbox


def job(number: int, **rest: Any) -> dict[str, Any]:
    return {"codec": "h264", "resolution": "720p", "fps": 30, "externalId": f"job-{number}", **rest}


def jobs(*numbers: int, **rest: Any) -> list[dict[str, Any]]:
    return [job(number, **rest) for number in numbers]


def client_of(
    service: FakeService,
    journal: Journal | None = None,
    *,
    clock: FakeClock | None = None,
    attempts: int = 3,
    **options: Any,
) -> AsyncClient:
    client = AsyncClient(
        **{"api_key": API_KEY, **options},
        base_url=BASE_URL,
        transport=service.transport_of(journal if isinstance(journal, MortalJournal) else None),
        journal=journal,
        retry=RetryPolicy(max_attempts=attempts),
        clock=clock or FakeClock(),
    )
    return set_jitter(client, 1.0)


async def submit(client: AsyncClient, wanted: Any, **options: Any) -> list[SubmittedJob]:
    return [each async for each in client.submit_jobs(wanted, **options)]


async def submit_to(
    service: FakeService, wanted: Any, journal: Path | None = None, **options: Any
) -> list[SubmittedJob]:
    """Submit in a process of its own."""
    results: list[SubmittedJob] = []
    await collect(results, service, wanted, journal, **options)
    return results


async def collect(
    results: list[SubmittedJob], service: FakeService, wanted: Any, journal: Path | None = None, **options: Any
) -> None:
    """Submit in a process of its own, and keep the results however it ends."""
    async with client_of(service, None if journal is None else Journal(journal, clock=FakeClock())) as client:
        async for each in client.submit_jobs(wanted, **options):
            results.append(each)  # noqa: PERF401  # so that they stay, if it raises


def ids(results: Sequence[SubmittedJob]) -> dict[str | None, str | None]:
    return {each.external_id: each.job_id for each in results}


def errors(results: Sequence[SubmittedJob]) -> dict[str | None, Any]:
    return {each.external_id: each.error for each in results if each.error is not None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


# ---- a result for each job


async def test_every_job_is_made_once_and_its_result_says_which_it_is() -> None:
    async with Sandbox() as sandbox, sandbox.client() as client:
        results = await submit(client, jobs(*range(25)), batch_size=10)
        made = {each.external_id: each.id for each in sandbox.jobs}
    assert len(made) == 25
    assert ids(results) == made
    assert all(each.estimate is not None and each.status == "created" for each in results)
    assert {each.request["externalId"]: each.external_id for each in results} == {name: name for name in made}  # type: ignore[index]


async def test_one_jobs_failure_is_its_own() -> None:
    wanted = [job(0), job(1, fps=0), job(2, sourceUrl="https://videos.test/a.mp4"), job(3)]
    async with Sandbox(rules=Rules(url_ingest=False)) as sandbox, sandbox.client() as client:
        results = {each.request["externalId"]: each for each in await submit(client, wanted)}  # type: ignore[index]
    assert isinstance(results["job-1"].error, ValidationError)
    assert isinstance(results["job-2"].error, JobRefusedError)
    assert results["job-2"].error.code == "url_ingest_disabled"
    assert results["job-0"].job_id
    assert results["job-3"].job_id


async def asynchronously(wanted: Sequence[Any]) -> AsyncIterator[Any]:
    for each in wanted:
        await anyio.lowlevel.checkpoint()
        yield each


MODELS = [JobCreateRequest(codec="av1", resolution="720p", fps=24, external_id=f"job-{number}") for number in range(7)]


@pytest.mark.parametrize("given", [list, tuple, iter, asynchronously], ids=["list", "tuple", "iterator", "async"])
async def test_jobs_come_from_any_iterable_as_models_or_mappings(given: Callable[[Any], Any]) -> None:
    service = FakeService()
    results = await submit_to(service, given([*MODELS, *jobs(7, 8)]), batch_size=4)
    assert ids(results) == service.made
    assert len(service.made) == 9


async def test_what_is_no_job_is_said_and_the_rest_goes_on() -> None:
    service = FakeService()
    results = await submit_to(service, [job(0), None, "job", {"codec": "av1"}, job(1, metadata={"a": float("nan")})])
    assert [type(each.error) for each in results if each.error] == [ValidationError] * 4
    assert service.made.keys() == {"job-0"}


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"concurrency": 0}, {"settings": {"failFast": True}}, {"settings": {"quality": "poor"}}],
)
async def test_what_makes_no_sense_is_said_at_once(wrong: dict[str, Any]) -> None:
    async with AsyncClient("key") as client:
        with pytest.raises(ValidationError):
            client.submit_jobs([], **wrong)
        with pytest.raises(ValidationError):
            client.submit_jobs(job(0))  # type: ignore[arg-type]


async def test_an_answer_that_leaves_a_job_out_is_no_success(path: Path) -> None:
    class Forgetful(FakeService):
        def work_bulk(self, body: bytes) -> tuple[int, bytes]:
            return 200, json.dumps({"jobs": json.loads(super().work_bulk(body)[1])["jobs"][:2]}).encode()

    service = Forgetful()
    results = await submit_to(service, jobs(0, 1, 2), path)
    assert [type(error) for error in errors(results).values()] == [DecodeError]
    assert errors(results).keys() == {"job-2"}


async def test_the_settings_are_those_of_every_batch_and_a_dry_run_makes_nothing(path: Path) -> None:
    service = FakeService()
    results = await submit_to(service, jobs(*range(5)), path, batch_size=2, settings={"dryRun": True})
    assert service.made == {}
    assert [each.estimate for each in results] == [2.5] * 5
    assert errors(results) == {}
    results = await submit_to(service, jobs(*range(5)), path, batch_size=2, settings={"confirm": True})
    assert ids(results) == service.made
    assert {json.loads(body)["settings"]["confirm"] for _, body in service.requests[3:]} == {True}


async def test_progress_is_told_after_every_batch() -> None:
    told: list[SubmitProgress] = []
    wanted = [*jobs(*range(5)), job(5, fps=0)]
    await submit_to(FakeService(), wanted, batch_size=2, concurrency=1, on_progress=told.append)
    assert told[-1] == SubmitProgress(taken=6, submitted=5, failed=1)
    assert len(told) == 3


async def test_what_a_progress_callback_raises_is_raised() -> None:
    def refuse(_: SubmitProgress) -> None:
        raise RuntimeError("full")

    assert "full" in str(await raised_by(submit_to(FakeService(), jobs(0), on_progress=refuse)))


# ---- once, whatever is run again


async def test_without_a_journal_the_same_input_makes_the_same_batches() -> None:
    service = FakeService(refused={"job-3": "probe_failed: no"}, refusals={"job-3": 2})
    first = await submit_to(service, jobs(*range(23)), batch_size=5)
    keys = {key for key, _ in service.requests}
    second = await submit_to(service, jobs(*range(23)), batch_size=5)
    assert {key for key, _ in service.requests} == keys
    assert ids(first) == ids(second) == service.made


async def test_a_batch_has_the_key_of_the_bulk_request_that_it_is() -> None:
    service = FakeService()
    await submit_to(service, jobs(0, 1))
    assert service.requests[0][0] == derive_key("createJobsBulk", {"jobs": jobs(0, 1)})


async def test_with_a_journal_a_rerun_sends_nothing_and_says_the_same(path: Path) -> None:
    service = FakeService(refused={"job-3": "invalid_url: no"})
    first = await submit_to(service, jobs(*range(23)), path, batch_size=5)
    sent = len(service.requests)
    second = await submit_to(service, jobs(*range(23)), path, batch_size=7)
    assert len(service.requests) == sent
    assert ids(first) == ids(second)
    assert str(errors(first)) == str(errors(second))
    assert sorted(str(each.batch) for each in first) == sorted(str(each.batch) for each in second)


async def test_a_grown_and_reordered_input_submits_only_what_is_new(path: Path) -> None:
    service = FakeService()
    known = 20_000 if os.environ.get("CHAOS_SCALE") == "full" else 4_000
    await submit_to(service, jobs(*range(known)), path)
    sent = len(service.requests)
    grown = [
        *jobs(*range(known, known + 250)),
        *jobs(*range(known - 1, -1, -1)),
        *jobs(*range(known + 250, known + 500)),
    ]
    results = await submit_to(service, grown, path)
    assert ids(results) == service.made
    assert len(results) == known + 500
    assert sum(len(json.loads(body)["jobs"]) for _, body in service.requests[sent:]) == 500


async def test_two_of_the_same_in_one_input_are_one_job_and_two_results(path: Path) -> None:
    for journal in (None, path):
        service = FakeService()
        results = await submit_to(service, jobs(0, 1, 0, 2, 0), journal)
        assert [each.external_id for each in results] == ["job-0"] * 3 + ["job-1", "job-2"]
        assert ids(results) == service.made
    service = FakeService()
    results = await submit_to(service, jobs(*[0, 1] * 10), path.with_name("other.db"), batch_size=2)
    assert ids(results) == service.made
    assert len(results) == 20


async def test_another_job_under_a_known_id_is_a_conflict_and_never_a_second_job(path: Path) -> None:
    service = FakeService()
    first = await submit_to(service, [job(0), job(0, fps=60)], path)
    second = await submit_to(service, [job(0, fps=25), job(1)], path)
    third = await submit_to(service, [job(0)], path, settings={"confirm": True})
    for results in (first, second, third):
        assert [type(error) for error in errors(results).values()] == [IdempotencyConflictError]
    assert service.made.keys() == {"job-0", "job-1"}


async def test_a_refused_job_that_was_mended_goes_again(path: Path) -> None:
    service = FakeService(refused={"job-0": "invalid_url: no"}, refusals={"job-0": 1})
    assert errors(await submit_to(service, [job(0)], path)).keys() == {"job-0"}
    results = await submit_to(service, [job(0, originalFilename="a.mov")], path)
    assert ids(results) == service.made


async def test_a_name_for_the_operation_keeps_its_jobs_apart(path: Path) -> None:
    service = FakeService()
    async with client_of(service, Journal(path, clock=FakeClock())) as client:
        await submit(client, jobs(0))
        for _ in range(2):
            await submit(client.with_options(operation="again"), jobs(0))
    assert len(service.created["job-0"]) == 2


async def test_jobs_without_an_id_are_one_in_all_attempts_and_new_in_the_next_run(path: Path) -> None:
    service = FakeService(faults=["answer lost", "failing"])
    wanted = [{**each, "externalId": None} for each in jobs(0, 1, 2)]
    for runs in (1, 2):
        results = await submit_to(service, [*wanted, job(3)], path)
        assert len(service.created[""]) == 3 * runs
        assert {each.job_id for each in results} <= {*service.created[""], *service.created["job-3"]}
    assert len(service.created["job-3"]) == 1


# ---- a crash


async def crash(service: FakeService, path: Path, wanted: Any, **options: Any) -> None:
    """Submit in a process that dies of a fault."""
    async with client_of(service, MortalJournal(path, clock=FakeClock())) as client:
        with pytest.raises(BaseException) as caught:  # noqa: PT011  # looked at below
            await submit(client, wanted, **options)
    assert isinstance(caught.value, CrashError) or caught.group_contains(CrashError)


def sourced(*numbers: int, secret: str = "s3cr3t-of-the-bucket") -> list[dict[str, Any]]:
    source = {"bucket": "videos", "accessKeyId": "AKIAIOSFODNN7", "secretAccessKey": secret}
    return [job(number, sourceS3={**source, "key": f"{number}.mov"}) for number in numbers]


@pytest.mark.parametrize("fault", ["crash before", "crash after", "crash with the answer"])
@pytest.mark.parametrize("made_of", [jobs, sourced], ids=["without_credentials", "with_credentials"])
async def test_a_batch_that_was_under_way_goes_out_again_as_it_was(path: Path, fault: str, made_of: Any) -> None:
    service = FakeService(faults=["", fault])
    await crash(service, path, made_of(*range(12)), batch_size=4, concurrency=1)
    grown = made_of(100, *range(12), 101)
    results = await submit_to(service, grown, path, batch_size=5)
    assert ids(results) == service.made
    assert len(results) == 14
    by_key = dict(itertools.groupby(sorted(service.requests), key=lambda request: request[0]))
    assert all(len({body for _, body in same}) <= 1 for same in by_key.values())
    under_way = service.requests[1]
    assert under_way in service.requests[2:]


async def test_credentials_are_never_on_disk_and_go_out_again_all_the_same(path: Path) -> None:
    service = FakeService(faults=["crash after"])
    await crash(service, path, sourced(0, 1, 2))
    for file in path.parent.glob("journal.db*"):
        content = file.read_bytes()
        assert b"s3cr3t" not in content
        assert b"AKIA" not in content
    results = await submit_to(service, sourced(2, 0, 3), path)  # one is gone: others have its credentials
    assert service.requests[0] in service.requests[1:]
    assert {each.external_id for each in results} == {"job-0", "job-2", "job-3"}
    assert ids(results).items() <= service.made.items()
    assert len(service.made) == 4


async def test_rotated_credentials_are_said_and_make_no_second_job(path: Path) -> None:
    service = FakeService(faults=["crash after"])
    await crash(service, path, sourced(0, 1))
    results = await submit_to(service, sourced(0, 1, secret="another-s3cr3t"), path)
    assert [type(error) for error in errors(results).values()] == [IdempotencyConflictError] * 2
    assert "another-s3cr3t" not in str(results[0].error)
    assert len(service.made) == 2


async def test_a_batch_that_the_service_knows_from_elsewhere_keeps_its_key(path: Path, tmp_path: Path) -> None:
    service = FakeService()
    made = ids(await submit_to(service, sourced(0, 1), path))
    for _ in range(2):
        results = await submit_to(service, sourced(0, 1, secret="another-s3cr3t"), tmp_path / "other.db")
        assert [type(error) for error in errors(results).values()] == [IdempotencyConflictError] * 2
    assert ids(await submit_to(service, sourced(0, 1), tmp_path / "other.db")) == service.made == made
    assert len({key for key, _ in service.requests}) == 1


async def test_what_may_be_forgotten_is_not_sent_again(path: Path) -> None:
    service = FakeService(faults=["crash after"])
    await crash(service, path, jobs(0, 1))
    late = FakeClock(FakeClock().now + 86_401)
    async with client_of(service, Journal(path, clock=late), clock=late) as client:
        results = await submit(client, jobs(0, 1, 2))
    assert [type(error) for error in errors(results).values()] == [OutcomeUnknownError] * 2
    assert service.made.keys() == {"job-0", "job-1", "job-2"}


async def test_what_another_api_key_has_sent_is_not_sent_again(path: Path) -> None:
    service = FakeService(faults=["crash after"])
    await crash(service, path, jobs(0, 1))
    async with client_of(service, Journal(path, clock=FakeClock()), api_key="another") as client:
        results = await submit(client, jobs(0, 1))
    assert [type(error) for error in errors(results).values()] == [OutcomeUnknownError] * 2
    assert len(service.requests) == 1


async def test_two_at_once_on_one_journal_do_not_do_the_same_work(path: Path) -> None:
    service = FakeService()
    results: list[list[SubmittedJob]] = [[], []]

    async def work(number: int) -> None:
        async with client_of(service, Journal(path, clock=FakeClock())) as client:
            results[number] += await submit(client, jobs(*range(100)), batch_size=7)

    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(work, number)
    assert ids(results[0]) == ids(results[1]) == service.made
    assert len({key for key, _ in service.requests}) == len(service.requests)
    assert sum(len(json.loads(body)["jobs"]) for _, body in service.requests) == 100


async def test_a_batch_that_was_dropped_from_the_journal_is_new(path: Path) -> None:
    service = FakeService()
    await submit_to(service, jobs(0, 1), path)
    async with Journal(path) as journal:
        assert await journal.drop(service.requests[0][0])
    await submit_to(service, jobs(0, 1), path)
    assert len(service.created["job-0"]) == 2


# ---- what fails


async def test_what_may_pass_goes_again_in_a_batch_of_its_own_and_the_rest_never_does(path: Path) -> None:
    refused = {"job-1": "probe_failed: no", "job-2": "invalid_url: no", "job-3": "host_not_resolvable: no"}
    service = FakeService(refused=refused, refusals={"job-1": 1, "job-3": 2})
    results = await submit_to(service, jobs(*range(5)), path)
    assert ids(results) == {**service.made, "job-2": None}
    assert service.creation.seen == {"job-1": 2, "job-2": 1, "job-3": 3}
    assert [len(json.loads(body)["jobs"]) for _, body in service.requests] == [5, 2, 1]
    assert len({key for key, _ in service.requests}) == 3


async def test_it_does_not_go_again_for_ever_but_in_the_next_run(path: Path) -> None:
    service = FakeService(refused={"job-0": "probe_failed: no"}, refusals={"job-0": 7})
    results = await submit_to(service, jobs(0), path)
    error = errors(results)["job-0"]
    assert (error.code, error.message) == ("probe_failed", "no")
    tries = len(service.requests)
    assert tries == 3
    await submit_to(service, jobs(0), path)
    results = await submit_to(service, jobs(0), path)
    assert len({key for key, _ in service.requests}) == len(service.requests) == 8
    assert ids(results) == service.made


async def test_jobs_for_which_there_are_no_tokens_go_again_in_the_next_run(path: Path) -> None:
    service = FakeService(refused={"job-0": "insufficient_tokens: no"}, refusals={"job-0": 1})
    assert errors(await submit_to(service, jobs(0, 1), path))["job-0"].code == "insufficient_tokens"
    assert len(service.requests) == 1
    assert ids(await submit_to(service, jobs(0, 1), path)) == service.made


async def test_no_tokens_at_all_is_an_error_that_says_where_things_stand(path: Path) -> None:
    service = FakeService(faults=["", "no tokens"], keys=KeyMemory(remembers_errors=True))
    results: list[SubmittedJob] = []
    error = await raised_by(collect(results, service, jobs(*range(9)), path, batch_size=3, concurrency=1))
    assert isinstance(error, InsufficientTokensError)
    assert "3 jobs are submitted" in error.__notes__[-1]
    assert "the same journal" in error.__notes__[-1]
    assert ids(results) == service.made
    assert ids(await submit_to(service, jobs(*range(9)), path, batch_size=3)) == service.made
    assert len({key for key, _ in service.requests}) == len(service.requests)  # the refusal may be remembered


async def test_a_lost_connection_ends_it_and_nothing_is_lost(path: Path) -> None:
    service = FakeService(faults=["answer lost", "failing", "answer lost"])
    error = await raised_by(submit_to(service, jobs(*range(4)), path, batch_size=2, concurrency=1))
    assert error.attempts == 3
    assert ids(await submit_to(service, jobs(*range(4)), path, batch_size=3)) == service.made


async def test_an_input_that_fails_is_heard_after_the_results(path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield from jobs(*range(5))
        raise OSError("the disk is gone")

    service, results = FakeService(), list[SubmittedJob]()
    error = await raised_by(collect(results, service, broken(), batch_size=2))
    assert str(error) == "the disk is gone"
    assert "1 more jobs were read" in error.__notes__[-1]
    assert ids(results) == service.made
    assert len(results) == 4


# ---- too large


async def test_a_batch_that_is_too_large_is_split_for_good() -> None:
    service = FakeService(most_jobs=3)
    async with client_of(service) as client:
        results = await submit(client, jobs(*range(40)), batch_size=10, concurrency=1)
        refused = [body for _, body in service.requests if len(json.loads(body)["jobs"]) > 3]
        assert ids(results) == service.made
        assert [len(json.loads(body)["jobs"]) for body in refused] == [10, 5]
        results = await submit(client, jobs(*range(40, 80)), batch_size=10)
    assert ids(results).items() <= service.made.items()
    assert max(len(json.loads(body)["jobs"]) for _, body in service.requests[-16:]) <= 3


async def test_too_many_bytes_are_split_as_well(path: Path) -> None:
    service = FakeService(most_bytes=400)
    results = await submit_to(service, jobs(*range(20)), path, batch_size=20)
    assert ids(results) == service.made
    assert len([body for _, body in service.requests if len(body) > 400]) < 5


async def test_it_is_split_the_same_way_in_every_run() -> None:
    service = FakeService(most_jobs=3)
    first = await submit_to(service, jobs(*range(47)), batch_size=10, concurrency=4)
    second = await submit_to(service, jobs(*range(47)), batch_size=10, concurrency=1)
    assert ids(first) == ids(second) == service.made


async def test_the_one_job_that_spoils_a_batch_is_found() -> None:
    service = FakeService(poison=frozenset({"job-5"}))
    async with client_of(service) as client:
        results = await submit(client, jobs(*range(16)), batch_size=16)
        sent = len(service.requests)
        await submit(client, jobs(*range(16, 32)), batch_size=16)
    assert [type(error) for error in errors(results).values()] == [InvalidRequestError]
    assert errors(results).keys() == {"job-5"}
    assert len(service.made) == 31
    assert len(service.requests) == sent + 1  # its size was never the matter


async def test_a_service_that_takes_not_even_one_job_is_heard() -> None:
    service = FakeService(most_jobs=0)
    assert isinstance(await raised_by(submit_to(service, jobs(*range(16)), batch_size=16)), InvalidRequestError)
    assert len(service.requests) == 6


# ---- how it runs


async def test_the_input_is_read_no_faster_than_the_results_and_batches_go_out_together() -> None:
    taken = 0

    def counted() -> Iterator[Any]:
        nonlocal taken
        for each in jobs(*range(1000)):
            taken += 1
            yield each

    service = FakeService(answering=lambda: turns(20))
    async with client_of(service) as client:
        read = 0
        async for _ in client.submit_jobs(counted(), batch_size=10, concurrency=3):
            read += 1
            assert taken - read < 2 * 10 * 3
    assert service.most_running == 3
    assert read == 1000


async def test_whoever_stops_reading_leaves_nothing_running(path: Path) -> None:
    service = FakeService()
    async with client_of(service, Journal(path, clock=FakeClock())) as client:
        async for _ in client.submit_jobs(jobs(*range(100)), batch_size=5):
            break
        assert service.running == 0
        sent = len(service.requests)
        await anyio.lowlevel.checkpoint()
        assert len(service.requests) == sent
    assert ids(await submit_to(service, jobs(*range(100)), path, batch_size=5)) == service.made


async def test_whoever_stops_reading_leaves_nothing_in_memory(path: Path) -> None:
    alive: list[weakref.ref[Any]] = []

    def requests() -> Iterator[JobCreateRequest]:
        for number in range(20):
            request = JobCreateRequest(codec="h264", resolution="720p", fps=30, external_id=f"job-{number}")
            alive.append(weakref.ref(request))
            yield request

    async with client_of(FakeService(), Journal(path, clock=FakeClock())) as client:
        gc.disable()  # the memory must be free at once, without the garbage collector
        try:
            results = client.submit_jobs(requests(), batch_size=10)
            await anext(results)
            del results
            assert [each() for each in alive] == [None] * 20
        finally:
            gc.enable()


async def test_cancellation_at_any_moment_leaves_nothing_running_and_nothing_twice(path: Path) -> None:
    service = FakeService()
    for patience in range(40):
        with anyio.CancelScope() as scope:

            async def interrupt(scope: anyio.CancelScope = scope, turns: int = patience) -> None:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(interrupt)
                await submit_to(service, jobs(*range(patience * 10, patience * 10 + 30)), path, batch_size=3)
        assert service.running == 0
    results = await submit_to(service, jobs(*range(420)), path)
    assert ids(results) == service.made


async def test_a_slow_iterable_gives_others_a_turn() -> None:
    now = last_turn = longest = 0.0

    def slow() -> Iterator[Any]:
        nonlocal now, longest
        for each in jobs(*range(60)):
            now += 0.003
            longest = max(longest, now - last_turn)
            yield each

    async def others() -> None:
        nonlocal last_turn
        while True:
            last_turn = now
            await anyio.lowlevel.checkpoint()

    reader = BatchReader(slow(), 1000, now=lambda: now)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        assert len(await reader.next(lambda: False) or ()) == 60
        tasks.cancel_scope.cancel()
    assert now == pytest.approx(0.18)
    assert 0.01 < longest < 0.03  # a slice and a job; or two of them, as trio takes its tasks in any order


async def test_results_do_not_wait_for_a_batch_that_fills_slowly() -> None:
    clock, read = FakeClock(), 0

    async def slow() -> AsyncIterator[Any]:
        nonlocal read
        for each in jobs(*range(6)):
            for _ in range(50):  # so that what is under way lands meanwhile
                await anyio.lowlevel.checkpoint()
            clock.now += 0.3
            read += 1
            yield each

    async with client_of(FakeService(), clock=clock) as client:
        results = client.submit_jobs(slow(), batch_size=2)
        await anext(results)
        assert read == 3
        assert len([each async for each in results]) == 5


async def test_a_journal_that_fails_is_heard_before_anything_is_sent(path: Path) -> None:
    service = FakeService()
    path.write_bytes(b"no journal")
    error = await raised_by(submit_to(service, jobs(0), path))
    assert "Nothing was sent" in str(error)
    assert service.requests == []


async def test_what_one_service_has_answered_is_not_taken_for_another_s(path: Path) -> None:
    async with Sandbox() as sandbox, sandbox.client(journal=Journal(path)) as client:
        await submit(client, jobs(1))
    async with Sandbox(base_url="https://convertrilo.test") as other, other.client(journal=Journal(path)) as client:
        with pytest.raises(JournalError, match=r"and the client uses https://convertrilo\.test; use another file"):
            await submit(client, jobs(1))
        assert other.jobs == []


async def test_a_journal_may_be_given_for_one_run(path: Path) -> None:
    service = FakeService()
    async with client_of(service) as client:
        await submit(client, jobs(*range(5)), journal=Journal(path))
        await submit(client, jobs(*range(6)), journal=Journal(path))
    assert [len(json.loads(body)["jobs"]) for _, body in service.requests] == [5, 1]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM members").fetchone() == (6,)


async def test_an_error_of_the_service_is_raised_as_it_is() -> None:
    service = FakeService(faults=["failing"] * 3)
    assert isinstance(await raised_by(submit_to(service, jobs(0))), ServerError)


# ---- what nobody expects


async def test_what_another_process_has_taken_over_is_not_forgotten_by_the_first_one(path: Path) -> None:
    class Slow(FakeService):
        async def handle(self, *_: Any, **__: Any) -> httpx.Response:
            assert isinstance(await raised_by(submit_to(service, jobs(0, 1), path)), TransportError)
            return httpx.Response(402, json={"code": "insufficient_tokens", "message": "no"})

    service = FakeService(faults=["answer lost"] + ["no connection"] * 2)
    assert isinstance(await raised_by(submit_to(Slow(), jobs(0, 1), path)), InsufficientTokensError)
    results = await submit_to(service, jobs(0, 1), path)
    assert ids(results) == service.made


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("status", [400, 413, 431])
async def test_a_gateway_that_finds_fault_with_what_is_done_already_makes_no_second_job(
    path: Path, status: int, count: int
) -> None:
    class Behind(FakeService):
        def create(self, request: httpx.Request, journal: MortalJournal | None = None) -> httpx.Response:
            answer = super().create(request, journal)
            return httpx.Response(status, html="<html>") if len(self.requests) == 2 else answer

    service = Behind(faults=["answer lost"])
    results = await submit_to(service, jobs(*range(count + 4)), path, batch_size=count, concurrency=1)
    unknown = [each.error for each in results[:count]]
    assert all(isinstance(each, OutcomeUnknownError) and isinstance(each.__cause__, APIError) for each in unknown)
    assert all(each.error is None for each in results[count:])
    assert ids(await submit_to(service, jobs(*range(count + 4)), path)) == service.made


async def test_a_gateway_that_hangs_up_halfway_through_a_batch_may_call_it_too_large_later(path: Path) -> None:
    class Gateway(FakeService):
        def create(self, request: httpx.Request, journal: MortalJournal | None = None) -> httpx.Response:
            if len(self.requests) == 0:
                self.requests.append(("", b""))
                request.extensions["complete"] = False
                raise httpx.WriteError("reset")
            return httpx.Response(413) if len(request.content) > 200 else super().create(request, journal)

    service = Gateway()
    assert ids(await submit_to(service, jobs(*range(4)), path)) == service.made
    assert len(service.made) == 4


async def test_a_batch_is_not_sent_again_without_credentials_that_it_had(path: Path) -> None:
    first, second = sourced(0, 1)
    second["sourceS3"] = {**second["sourceS3"], "bucket": "elsewhere"}
    third = job(2, sourceUrl="https://videos.test/2.mov?X-Amz-Signature=0a1b&X-Amz-Credential=c")
    service = FakeService(faults=["crash before"])
    await crash(service, path, [first, second, third])
    [result] = await submit_to(service, [first], path)
    assert isinstance(result.error, OutcomeUnknownError)
    assert "2 other jobs of that batch are not in the input" in str(result.error)
    assert len(service.requests) == 1
    assert ids(await submit_to(service, [second, third, first], path)) == service.made
    (_, before), (_, after) = service.requests
    assert before == after


async def test_a_batch_that_may_be_done_says_nothing_of_the_size_that_others_may_have() -> None:
    class Other(FakeService):
        def create(self, request: httpx.Request, journal: MortalJournal | None = None) -> httpx.Response:
            answer = super().create(request, journal)
            return httpx.Response(413) if len(self.requests) == 3 else answer

    service = Other(faults=["", "answer lost"])
    wanted = [*jobs(*range(4), sourceUrl="https://videos.test/a-long-way-down.mov"), *jobs(*range(4, 8))]
    async with client_of(service) as client:
        for _ in range(2):
            results = await submit(client, wanted, batch_size=4, concurrency=1)
    assert ids(results) == service.made
    assert len({key for key, _ in service.requests}) == 2


async def test_credentials_are_lent_and_nothing_else(path: Path) -> None:
    first, second = sourced(0, 1)
    first["sourceS3"]["versionId"] = "v1"
    service = FakeService(faults=["crash before"])
    await crash(service, path, [first, second])
    assert ids(await submit_to(service, [first], path)).keys() == {"job-0"}
    (_, before), (_, after) = service.requests
    assert before == after


async def test_outcomes_without_numbers_are_not_taken_for_those_of_other_jobs(path: Path) -> None:
    class Counting(FakeService):
        def work_bulk(self, body: bytes) -> tuple[int, bytes]:
            outcomes = json.loads(super().work_bulk(body)[1])["jobs"]
            return 200, json.dumps({"jobs": [{**each, "index": None} for each in outcomes[:1] + outcomes[2:]]}).encode()

    service = Counting(refused={"job-2": "rate_limit_exceeded"})
    for _ in range(2):
        results = await submit_to(service, jobs(0, 1, 2), path)
        assert [each.job_id for each in results] == ["j0", None, None]
        assert [type(each.error) for each in results[1:]] == [DecodeError, DecodeError]
    assert len(service.requests) == 1


async def test_a_job_that_is_answered_twice_is_there_if_either_says_so(path: Path) -> None:
    class Stuttering(FakeService):
        def work_bulk(self, body: bytes) -> tuple[int, bytes]:
            outcomes = json.loads(super().work_bulk(body)[1])["jobs"]
            said = [{"index": each["index"], "error": "rate_limit_exceeded"} for each in outcomes]
            return 200, json.dumps({"jobs": [*outcomes, *said, {"index": 99, "jobId": "x"}]}).encode()

    service = Stuttering()
    for _ in range(2):
        assert ids(await submit_to(service, jobs(0, 1), path)) == service.made


async def test_a_run_that_was_cancelled_does_not_end_as_if_it_were_whole() -> None:
    service = FakeService(answering=lambda: turns(5))
    async with client_of(service) as client:
        results = client.submit_jobs(jobs(*range(10)), batch_size=2, concurrency=1)

        async def read() -> None:
            await anext(results)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        error = await raised_by(anext(results))
        assert "cancelled" in str(error)


async def test_a_batch_that_waits_for_its_turn_is_nothing_once_that_is_cancelled(path: Path) -> None:
    clock = FakeClock(sleepers="wait")
    service = FakeService()
    async with client_of(service, Journal(path, clock=FakeClock()), clock=clock) as client:
        limiter_of(client).refused(30.0, clock.monotonic())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, client, jobs(0, 1))
            await clock.until_asleep()
            tasks.cancel_scope.cancel()
    assert service.requests == []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT key FROM operations").fetchall() == []


async def test_a_time_that_makes_no_sense_is_not_waited_for() -> None:
    service = FakeService()
    clock = FakeClock()
    async with client_of(service, clock=clock) as client:
        limiter_of(client).taken(Allowance(0, 999_999_999, 100), clock.monotonic())
        await submit(client, jobs(0))
    assert sum(clock.sleeps) <= 3600
    assert service.made


async def test_two_that_wait_for_each_other_both_go_on(path: Path) -> None:
    service = FakeService(faults=["crash after"])
    await crash(service, path, sourced(0, 1))
    service.faults = ["crash after"]
    await crash(service, path, sourced(2, 3))
    has_begun = anyio.Event(), anyio.Event()
    clocks = FakeClock(), FakeClock()
    results: list[list[SubmittedJob]] = [[], []]

    async def input_of(number: int, first: int, *others: int) -> AsyncIterator[Any]:
        yield sourced(first)[0]
        has_begun[number].set()  # the batch of the first one is taken over, and its other member is not met yet
        await has_begun[1 - number].wait()
        for each in sourced(*others):
            yield each

    async def work(number: int, *wanted: int) -> None:
        async with client_of(service, Journal(path, clock=FakeClock()), clock=clocks[number]) as client:
            given = input_of(number, *wanted)
            results[number] += await submit(client, given, batch_size=1, concurrency=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 0, 0, 2, 1, 3)
        tasks.start_soon(work, 1, 2, 0, 3, 1)
    assert ids(results[0]) == ids(results[1]) == service.made
    assert all(sum(clock.sleeps) < 60 for clock in clocks)
