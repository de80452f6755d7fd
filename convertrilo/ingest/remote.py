"""List pages and send batches on other machines: the tasks that a worker runs, and the engine that distributes them.

A task is a plain function of plain values. An engine may run a task twice: a batch has its idempotency key, and a page
can be listed any number of times. Tasks carry no credentials: a worker uses the API key and the AWS credentials of its
own environment.
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import anyio

from convertrilo._base_client import BaseClient, engine_of
from convertrilo._json import dumps, encode, loads
from convertrilo.errors import ConfigurationError, OutcomeUnknownError
from convertrilo.idempotency import Identity
from convertrilo.ingest.s3_folder import S3Folder, open_folder
from convertrilo.ingest.s3_requests import ListedPage, list_page
from convertrilo.models import S3FolderSource, S3Source
from convertrilo.operations import CREATE_JOBS_BULK
from convertrilo.retry import RetryPolicy

_KEPT = ("index", "jobId", "status", "error", "estimate")
"""The fields of each job in an answer that a worker returns; the other fields only repeat the request."""


# ---- the tasks of a worker


class Place(NamedTuple):
    """The folder that a task works on, without credentials."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    path_style: bool
    anonymous: bool


class Service(NamedTuple):
    """The service that a task sends to, and the retry policy."""

    base_url: str
    sender: str
    """Identifies the API key that the worker must have, without revealing it."""
    retry: RetryPolicy


class Found(NamedTuple):
    """A listed page, and the bucket's region."""

    listed: ListedPage
    region: str


_folders: dict[Place, S3Folder] = {}


def find(place: Place, service: Service, after: str | None, token: str | None) -> Found:
    """List one page of a folder: at a continuation token, or else after a key, or else the first page."""
    return anyio.run(_find, place, service, after, token)


async def _find(place: Place, service: Service, after: str | None, token: str | None) -> Found:
    folder = await _folder(place)
    async with BaseClient(base_url=service.base_url, retry=service.retry) as client:
        listed = await list_page(client, folder, after=after, token=token)
    return Found(listed, folder.region)


def send(place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
    """Send a frozen batch under its key, and return the fields of the answer that matter.

    Args:
        place: The folder, whose credentials are added to the jobs.
        service: The service to send to.
        key: The batch's idempotency key.
        body: The batch, without credentials.
        last_resend: The time after which the batch must not be sent, in seconds since the epoch, because the service
            may have forgotten the key by then.

    Raises:
        OutcomeUnknownError: It is too late to send the batch.
        ConfigurationError: The worker's API key is not the client's, or the worker has no AWS credentials that the API
            accepts.
    """
    return anyio.run(_send, place, service, key, body, last_resend)


async def _send(place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
    if last_resend is not None and time.time() > last_resend:
        raise OutcomeUnknownError(
            "a batch reached a worker too late: the service may have forgotten its key. Nothing was sent.",
            find_out="See the journal's entry.",
            operation=CREATE_JOBS_BULK.id,
            idempotency_key=key,
        )
    wire = loads(body)
    if not place.anonymous:
        _add_credentials((await _folder(place)).source(""), wire)
    async with BaseClient(base_url=service.base_url, retry=service.retry) as client:
        engine, options = engine_of(client)
        if engine.credentials.sender != service.sender:
            raise ConfigurationError(
                "the worker's CONVERTRILO_API_KEY is not the client's API key, and the service may know a batch under "
                "one of the two API keys only. Nothing was sent"
            )
        identity = Identity(key=key, kind="external_id")
        call = engine.frozen_call(CREATE_JOBS_BULK, options, wire=wire, content=encode(wire), identity=identity)
        call.doubt.last_resend = last_resend
        call.doubt.was_sent_before = True  # possibly by another worker
        _, answer, _ = await call.run()
    return _shorten(answer)


async def _folder(place: Place) -> S3Folder:
    """Return the folder with the worker's own credentials, which are loaded once."""
    if place not in _folders:
        source = S3FolderSource(
            bucket=place.bucket,
            prefix=place.prefix,
            endpoint=place.endpoint,
            region=place.region,
            force_path_style=place.path_style,
        )
        _folders[place] = await open_folder(source, anonymous=place.anonymous)
    return _folders[place]


def _add_credentials(credentials: S3Source, wire: Mapping[str, Any]) -> None:
    """Add to each job of a batch the credentials with which the service reads its object."""
    if credentials.access_key_id is None:
        return
    for job in wire["jobs"]:
        source = {
            **job["sourceS3"],
            "accessKeyId": credentials.access_key_id,
            "secretAccessKey": credentials.secret_access_key,
        }
        job["sourceS3"] = dict(sorted(source.items()))


def _shorten(answer: bytes) -> bytes:
    wire: dict[str, Any] = loads(answer)
    jobs = [{name: each[name] for name in _KEPT if name in each} for each in wire.get("jobs") or ()]
    return dumps({"reserved": wire.get("reserved"), "jobs": jobs})


# ---- the engine that distributes the tasks


class IngestEngine(Protocol):
    """Lists pages and sends batches on other machines; it may run a task twice. A run enters and leaves the engine."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None: ...

    async def find(self, place: Place, service: Service, after: str | None, token: str | None) -> Found:
        """Run the task `find` on a worker."""
        ...

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Run the task `send` on a worker."""
        ...


class RemoteRunner:
    """Lists the pages of one folder and sends its batches through an engine."""

    def __init__(self, client: BaseClient, engine: IngestEngine, folder: S3Folder, *, anonymous: bool) -> None:
        inner, options = engine_of(client)
        self._engine = engine
        self._folder = folder
        self._anonymous = anonymous
        self._service = Service(client.base_url, inner.credentials.sender, options.retry)

    async def __aenter__(self) -> object:
        return await self._engine.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._engine.__aexit__(kind, error, traceback)

    @property
    def _place(self) -> Place:
        folder = self._folder
        return Place(folder.bucket, folder.prefix, folder.endpoint, folder.region, folder.path_style, self._anonymous)

    async def list_page(self, after: str | None, token: str | None) -> ListedPage:
        """List one page on a worker, and store the bucket's region in the folder."""
        listed, self._folder.region = await self._engine.find(self._place, self._service, after, token)
        return listed

    async def send_batch(self, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch on a worker."""
        return await self._engine.send(self._place, self._service, key, body, last_resend)
