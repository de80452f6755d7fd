"""Ingest a folder with a Dask cluster: workers list the pages and send the batches; the journal stays in this process.

    await ingest_folder(client, "s3://films", template, journal="run.db", engine=DaskEngine("tcp://scheduler:8786"))

The extra `dask` is needed here and on the workers. Dask may run a task twice, which the batches' idempotency keys make
harmless. Tasks carry no credentials: every worker needs CONVERTRILO_API_KEY in its environment, and AWS's credentials
if the folder is not public. Run workers under a nanny (Dask's default), so that a worker that dies is replaced.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread

from convertrilo.errors import ConfigurationError, ConvertriloError, TransportError
from convertrilo.ingest import remote
from convertrilo.ingest.remote import Found, Place, Service

try:
    import distributed
except ModuleNotFoundError as _error:
    raise ConfigurationError(
        f'a Dask cluster needs {_error.name}; install it with: pip install "convertrilo[dask]"'
    ) from None

T = TypeVar("T")

_MAX_SUBMISSIONS = 3
"""How often a task is submitted when its workers die; each time, Dask itself tries four workers."""
_THREADS = 256
"""Threads that wait for tasks, one for each task."""


class DaskEngine:
    """Runs the requests of `ingest_folder` on the workers of a Dask cluster.

    The engine works on asyncio and trio: Dask's client runs in a thread of its own, and worker threads wait for its
    results.

    Args:
        cluster: The scheduler's address, or a `distributed.Client` that is not asynchronous. Such a client stays open.

    Raises:
        ConfigurationError: The client is asynchronous.
    """

    def __init__(self, cluster: "str | distributed.Client") -> None:
        self._address = cluster if isinstance(cluster, str) else None
        self._client: Any = None if isinstance(cluster, str) else cluster
        if self._client is not None and self._client.asynchronous:
            raise ConfigurationError("the distributed.Client must not be asynchronous: threads wait for its results")

    async def __aenter__(self) -> Self:
        self._limiter = anyio.CapacityLimiter(_THREADS)
        if self._client is None:
            try:
                self._client = await anyio.to_thread.run_sync(self._connect)
            except (OSError, TimeoutError) as error:
                raise TransportError(f"the Dask scheduler {self._address} cannot be reached: {error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._address is not None and self._client is not None:
            client, self._client = self._client, None
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(client.close)

    def _connect(self) -> Any:
        make: Any = distributed.Client
        return make(self._address, set_as_default=False)

    async def find(self, place: Place, service: Service, after: str | None, token: str | None) -> Found:
        """List one page of a folder on a worker.

        Raises:
            TransportError: The cluster does not answer, or several workers died while they ran the task.
            ConvertriloError: The task raised this error on the worker.
        """
        return await self._run(remote.find, place, service, after, token)

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch on a worker, and return the fields of the answer that matter.

        Raises:
            TransportError: The cluster does not answer, or several workers died while they ran the task.
            ConvertriloError: The task raised this error on the worker.
        """
        return await self._run(remote.send, place, service, key, body, last_resend)

    async def _run(self, task: Callable[..., T], *arguments: Any) -> T:
        assert self._client is not None
        submissions = 0
        while True:
            submissions += 1
            name = f"convertrilo-{task.__name__}-{uuid.uuid4().hex}"
            future = self._client.submit(task, *arguments, key=name, pure=False)
            try:
                result: T = await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True, limiter=self._limiter)
            except distributed.KilledWorker as error:
                if submissions == _MAX_SUBMISSIONS:
                    raise TransportError(f"several Dask workers died while they ran the same task: {error}") from error
            except ConvertriloError:  # raised by the task itself, and may be a TimeoutError
                raise
            except (OSError, TimeoutError, CancelledError) as error:
                raise TransportError(f"the Dask cluster does not answer: {error}") from error
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(future.cancel)
                raise
            else:
                return result
