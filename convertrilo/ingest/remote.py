"""What a worker elsewhere does for a folder: it lists a page, or sends a frozen batch, with credentials of its own.

Plain functions of plain values, to be run by an engine that may run them twice: a batch has its key, and a page can be
listed any number of times. API key and AWS's credentials are those of the worker's environment: none are handed over.
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
from convertrilo.ingest.listing import Folder, Listed, list_page, open_folder
from convertrilo.models import S3FolderSource
from convertrilo.operations import CREATE_JOBS_BULK
from convertrilo.retry import RetryPolicy

_KEPT = ("index", "jobId", "status", "error", "estimate")
"""What comes back of each job: the rest of an answer repeats what was sent."""

_folders: dict[tuple[Any, ...], Folder] = {}


class Place(NamedTuple):
    """Where objects are, without credentials."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    path_style: bool
    anonymous: bool


class Service(NamedTuple):
    """Where the service is, and how persistent to be."""

    base_url: str
    sender: str
    """Tells the API key that must be the worker's, without being one."""
    retry: RetryPolicy


class Found(NamedTuple):
    """A page, and the region that the bucket turned out to be in."""

    listed: Listed
    region: str


def find(place: Place, service: Service, after: str | None, token: str | None) -> Found:
    """List one page of a folder."""
    return anyio.run(_find, place, service, after, token)


async def _find(place: Place, service: Service, after: str | None, token: str | None) -> Found:
    folder = await _folder(place)
    async with BaseClient(base_url=service.base_url, retry=service.retry) as client:
        listed = await list_page(client, folder, after=after, token=token)
    return Found(listed, folder.region)


def send(place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
    """Send a frozen batch under its key, and return what matters of the answer.

    Args:
        place: Where the objects are: whose credentials the jobs are given.
        service: Where to send it.
        key: The batch's idempotency key.
        body: The batch, without credentials.
        last_resend: Seconds since the epoch after which the service may have forgotten the key.

    Raises:
        OutcomeUnknownError: It is too late to send it.
        ConfigurationError: The worker's API key is not the one of whoever hands out the work, or it has no AWS
            credentials that can be sent.
    """
    return anyio.run(_send, place, service, key, body, last_resend)


async def _send(place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
    if last_resend is not None and time.time() > last_resend:
        raise OutcomeUnknownError(
            "a batch came to a worker when the service may have forgotten its key. Nothing was sent.",
            find_out="The journal's entry has the rest.",
            operation=CREATE_JOBS_BULK.id,
            idempotency_key=key,
        )
    wire = loads(body)
    if not place.anonymous:
        _lend((await _folder(place)).source(""), wire)
    async with BaseClient(base_url=service.base_url, retry=service.retry) as client:
        engine, options = engine_of(client)
        if engine.credentials.sender != service.sender:
            raise ConfigurationError(
                "the worker's CONVERTRILO_API_KEY is not that of the client which hands out the work, and the service "
                "may know a batch from one of them only. Nothing was sent"
            )
        identity = Identity(key=key, kind="external_id")
        call = engine.frozen_call(CREATE_JOBS_BULK, options, wire=wire, content=encode(wire), identity=identity)
        call.doubt.last_resend = last_resend
        call.doubt.was_sent_before = True  # by another worker, for all that this one knows
        _, answer, _ = await call.run()
    return _shortened(answer)


async def _folder(place: Place) -> Folder:
    """Return the folder with the worker's own credentials; they are looked for once."""
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


def _lend(credentials: Any, wire: Mapping[str, Any]) -> None:
    """Give every job the credentials to read its object with."""
    if credentials.access_key_id is None:
        return
    for job in wire["jobs"]:
        source = {
            **job["sourceS3"],
            "accessKeyId": credentials.access_key_id,
            "secretAccessKey": credentials.secret_access_key,
        }
        job["sourceS3"] = dict(sorted(source.items()))


def _shortened(answer: bytes) -> bytes:
    wire: dict[str, Any] = loads(answer)
    jobs = [{name: each[name] for name in _KEPT if name in each} for each in wire.get("jobs") or ()]
    return dumps({"reserved": wire.get("reserved"), "jobs": jobs})


# ---- who hands out the work


class IngestEngine(Protocol):
    """What lists pages and sends batches elsewhere; it may do so twice. Entered while a folder is worked on."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any: ...

    async def find(self, place: Place, service: Service, after: str | None, token: str | None) -> Found:
        """List one page, as `find` does."""
        ...

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch, as `send` does."""
        ...


class Elsewhere:
    """The two steps of the work that an engine does."""

    def __init__(self, client: BaseClient, engine: IngestEngine, folder: Folder, *, anonymous: bool) -> None:
        inner, options = engine_of(client)
        self._engine = engine
        self._folder = folder
        self._anonymous = anonymous
        self._service = Service(client.base_url, inner.credentials.sender, options.retry)

    async def __aenter__(self) -> Any:
        return await self._engine.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        return await self._engine.__aexit__(kind, error, traceback)

    @property
    def _place(self) -> Place:
        folder = self._folder
        return Place(folder.bucket, folder.prefix, folder.endpoint, folder.region, folder.path_style, self._anonymous)

    async def ask(self, after: str | None, token: str | None) -> Listed:
        """List one page."""
        listed, self._folder.region = await self._engine.find(self._place, self._service, after, token)
        return listed

    async def carry(self, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch."""
        return await self._engine.send(self._place, self._service, key, body, last_resend)
