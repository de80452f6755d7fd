"""Ingest with an engine: tasks that run twice, tasks without credentials, and clusters that fail."""

import importlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import dask.config
import distributed
import pytest
from object_store import ObjectStore

from convertrilo import (
    AsyncClient,
    ConfigurationError,
    IngestReport,
    InvalidRequestError,
    OutcomeUnknownError,
    RetryPolicy,
    S3FolderSource,
    TransportError,
    ValidationError,
    ingest_folder,
)
from convertrilo.dask import DaskEngine
from convertrilo.ingest import remote
from convertrilo.ingest.remote import Found, Place, Service
from convertrilo.sandbox import Sandbox, SandboxServer, serve_in_thread

T = TypeVar("T")

TEMPLATE = {"codec": "h264", "resolution": "720p", "fps": 30}
KEYS = [f"films/{number:03}.mp4" for number in range(30)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore, tmp_path: Path) -> Iterator[SandboxServer]:
    """A sandbox on a port; the environment variables are those of a worker."""
    monkeypatch.setattr(remote, "_folders", {})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_access_key)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    sandbox = Sandbox(allow_private_sources=True)
    with serve_in_thread(sandbox) as base_url:
        monkeypatch.setenv("CONVERTRILO_API_KEY", sandbox.api_key)
        monkeypatch.setenv("CONVERTRILO_BASE_URL", base_url)
        yield SandboxServer(base_url, sandbox.api_key, sandbox)


class Twice:
    """Runs every task twice, in threads, and remembers arguments and results."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _run(self, task: Callable[..., T], *arguments: Any) -> T:
        first = await anyio.to_thread.run_sync(task, *arguments)
        result = await anyio.to_thread.run_sync(task, *arguments)
        self.tasks.append((arguments, first, result))
        return result

    async def find(self, place: Place, service: Service, after: str | None, token: str | None) -> Found:
        return await self._run(remote.find, place, service, after, token)

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        return await self._run(remote.send, place, service, key, body, last_resend)


async def ingest(store: ObjectStore, bucket: str, journal: Path, **options: Any) -> IngestReport:
    async with AsyncClient() as client:
        folder = S3FolderSource(bucket=bucket, endpoint=store.endpoint)
        return await ingest_folder(client, folder, TEMPLATE, journal=journal, batch_size=7, **options)


def made(server: SandboxServer) -> dict[str | None, str]:
    jobs = server.sandbox.jobs
    ids = {each.external_id: each.id for each in jobs}
    assert len(ids) == len(jobs), "an object has two jobs"
    return ids


async def test_tasks_that_run_twice_make_no_job_twice(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS, b"video"))
    engine = Twice()
    for _ in range(2):
        report = await ingest(object_store, bucket, tmp_path / "run.db", engine=engine)
        assert (report.listed, report.submitted, len(made(server))) == (30, 30, 30)
    assert {each.external_id: each.job_id async for each in report.rows()} == made(server)
    assert report.reserved == sum(job.price or 0 for job in server.sandbox.jobs)
    assert len(engine.tasks) == 2 + 5, "a page for each run, and a batch for each seven objects"


async def test_no_task_carries_credentials_and_every_job_has_them(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    add_credentials = remote._add_credentials

    def watch(credentials: Any, wire: Any) -> None:
        add_credentials(credentials, wire)
        sent.extend(wire["jobs"])

    monkeypatch.setattr(remote, "_add_credentials", watch)
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS[:3], b"video"))
    engine = Twice()
    await ingest(object_store, bucket, tmp_path / "run.db", engine=engine)
    secrets = (server.api_key, object_store.access_key_id, object_store.secret_access_key)
    carried = pickle.dumps(engine.tasks) + (tmp_path / "run.db").read_bytes()
    assert not [secret for secret in secrets if secret.encode() in carried]
    assert {each["sourceS3"]["secretAccessKey"] for each in sent} == {object_store.secret_access_key}
    assert [list(each["sourceS3"]) for each in sent] == [sorted(each["sourceS3"]) for each in sent]


async def test_a_dry_run_elsewhere_creates_nothing(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS, b"video"))
    report = await ingest(object_store, bucket, tmp_path / "run.db", engine=Twice(), dry_run=True)
    assert report.estimated > 0
    assert server.sandbox.jobs == []


async def test_what_was_begun_elsewhere_is_not_gone_on_with_here(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS, b"video"))
    await ingest(object_store, bucket, tmp_path / "run.db", engine=Twice())
    with pytest.raises(ConfigurationError, match="its engine is true, not false"):
        await ingest(object_store, bucket, tmp_path / "run.db")


class Losing(Twice):
    """Sends batches, and loses the answers."""

    async def send(self, *arguments: Any) -> bytes:
        await super().send(*arguments)
        raise TransportError("the cluster is gone")


async def test_what_a_lost_cluster_has_sent_binds_the_journal_to_its_ingest(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS[:7], b"video"))
    with pytest.raises(TransportError, match="the cluster is gone"):
        await ingest(object_store, bucket, tmp_path / "run.db", engine=Losing())
    for other in ({"engine": Twice(), "shard": "0/2"}, {}):
        with pytest.raises(ConfigurationError, match="the journal holds another ingest"):
            await ingest(object_store, bucket, tmp_path / "run.db", **other)
    first = made(server)
    report = await ingest(object_store, bucket, tmp_path / "run.db", engine=Twice())
    assert {each.external_id: each.job_id async for each in report.rows()} == made(server) == first
    with pytest.raises(TransportError):
        await ingest(object_store, bucket, tmp_path / "run.db", engine=Losing(), from_scratch=True)
    assert len(server.sandbox.jobs) == 14


class Gateway(Twice):
    """Sends batches through a gateway that rejects big ones, possibly after an attempt that went through."""

    def __init__(self, *, in_doubt: bool) -> None:
        super().__init__()
        self._in_doubt = in_doubt

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        if body.count(b"externalId") > 2:
            error = InvalidRequestError("too large", status=413, code="http_413")
            error.in_doubt = self._in_doubt
            raise error
        return await super().send(place, service, key, body, last_resend)


@pytest.mark.parametrize("in_doubt", [False, True])
async def test_a_batch_that_a_workers_gateway_turns_away_is_halved_unless_it_may_be_done(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path, in_doubt: bool
) -> None:
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS[:7], b"video"))
    report = await ingest(object_store, bucket, tmp_path / "run.db", engine=Gateway(in_doubt=in_doubt))
    assert (report.submitted, report.unknown, len(made(server))) == ((0, 7, 0) if in_doubt else (7, 0, 7))
    report = await ingest(object_store, bucket, tmp_path / "run.db", engine=Twice())
    assert (report.submitted, len(made(server))) == (7, 7)


async def test_credentials_in_the_source_are_refused(server: SandboxServer, tmp_path: Path) -> None:
    folder = S3FolderSource(bucket="films", access_key_id="a", secret_access_key="b")
    async with AsyncClient() as client:
        with pytest.raises(ValidationError, match="must not be set with an engine"):
            await ingest_folder(client, folder, TEMPLATE, journal=tmp_path / "run.db", engine=Twice())


# ---- what a worker does


PLACE = Place("films", "", None, "us-east-1", path_style=True, anonymous=True)
BODY = b'{"jobs":[{"codec":"h264","externalId":"a","fps":30,"resolution":"720p"}]}'


def service(server: SandboxServer, sender: str | None = None) -> Service:
    known = AsyncClient()._engine.credentials.sender
    return Service(server.base_url, known if sender is None else sender, RetryPolicy.none())


def test_a_worker_with_another_api_key_sends_nothing(server: SandboxServer) -> None:
    with pytest.raises(ConfigurationError, match="is not the client"):
        remote.send(PLACE, service(server, "other"), "key", BODY, None)
    assert server.sandbox.requests == []


def test_a_batch_that_comes_too_late_is_not_sent(server: SandboxServer) -> None:
    with pytest.raises(OutcomeUnknownError, match="may have forgotten its key"):
        remote.send(PLACE, service(server), "key", BODY, time.time() - 1)
    assert server.sandbox.requests == []


def test_a_batch_that_would_have_to_wait_too_long_is_not_sent_again(server: SandboxServer) -> None:
    server.sandbox.faults.rate_limit("createJobsBulk", retry_after="50")  # another worker may have sent it
    with pytest.raises(OutcomeUnknownError, match="may have forgotten the idempotency key"):
        remote.send(PLACE, service(server)._replace(retry=RetryPolicy()), "key", BODY, time.time() + 40)
    assert server.sandbox.jobs == []


def test_little_comes_back(server: SandboxServer) -> None:
    answer = remote.send(PLACE, service(server), "key", BODY, time.time() + 60)
    (job,) = server.sandbox.jobs
    assert job.id.encode() in answer
    assert b"externalId" not in answer


# ---- Dask


async def test_a_folder_goes_through_a_cluster(
    server: SandboxServer, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Dask leaves a folder in its working directory
    bucket = object_store.private_bucket(**dict.fromkeys(KEYS, b"video"))

    def start() -> distributed.LocalCluster:
        return distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        )

    cluster = await anyio.to_thread.run_sync(start)
    try:
        for engine in (DaskEngine(cluster.scheduler_address), DaskEngine(cluster.scheduler_address)):
            report = await ingest(object_store, bucket, tmp_path / "run.db", engine=engine, wait=True)
            assert (report.succeeded, len(made(server))) == (30, 30)
    finally:
        await anyio.to_thread.run_sync(cluster.close)


async def test_a_scheduler_that_is_not_there_is_said(
    server: SandboxServer, object_store: ObjectStore, nobody: str, tmp_path: Path
) -> None:
    bucket = object_store.private_bucket(**{"a.mp4": b""})
    engine = DaskEngine(f"tcp://{nobody}")
    message = f"the Dask scheduler tcp://{nobody} cannot be reached"
    with dask.config.set({"distributed.comm.timeouts.connect": "50ms"}), pytest.raises(TransportError, match=message):
        await ingest(object_store, bucket, tmp_path / "run.db", engine=engine)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "convertrilo.dask")
    with pytest.raises(ConfigurationError, match=r'pip install "convertrilo\[dask\]"'):
        importlib.import_module("convertrilo.dask")
