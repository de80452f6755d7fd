"""A folder on a Dask cluster: workers list the pages and send the batches, the journal stays here.

    await ingest_folder(client, "s3://films", template, journal="run.db", engine=DaskEngine("tcp://scheduler:8786"))

Needs the extra `dask` here and on the workers. Dask may run a task twice: the batches' keys make that harmless. Tasks
carry no credentials: every worker has CONVERTRILO_API_KEY, and AWS's if the folder is not public, in its environment.
Workers run under a nanny (Dask's default), or one that dies is not replaced.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread

from convertrilo.errors import ConfigurationError, ConvertriloError, TransportError
from convertrilo.ingest import remote as _remote
from convertrilo.ingest.remote import Found, Place, Service

try:
    import distributed
except ModuleNotFoundError as _error:
    raise ConfigurationError(
        f'a Dask cluster needs {_error.name}; install it with: pip install "convertrilo[dask]"'
    ) from None

T = TypeVar("T")

_TRIES = 3
"""How often a task is handed in whose workers died; Dask itself gives it to four workers each time."""
_THREADS = 256
"""Tasks that can be waited for at once."""


class DaskEngine:
    """Hands the work of `ingest_folder` to the workers of a Dask cluster.

    On asyncio and trio alike: Dask's client has a thread of its own, and its answers are waited for in threads.

    Args:
        cluster: The scheduler's address, or a `distributed.Client` that is not asynchronous; that one stays open.
    """

    def __init__(self, cluster: "str | distributed.Client") -> None:
        self._address = cluster if isinstance(cluster, str) else None
        self._client: Any = None if isinstance(cluster, str) else cluster
        if self._client is not None and self._client.asynchronous:
            raise ConfigurationError("the distributed.Client must not be asynchronous: it is waited for in threads")

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
        """List one page on a worker."""
        return await self._run(_remote.find, place, service, after, token)

    async def send(self, place: Place, service: Service, key: str, body: bytes, last_resend: float | None) -> bytes:
        """Send a frozen batch on a worker."""
        return await self._run(_remote.send, place, service, key, body, last_resend)

    async def _run(self, task: Callable[..., T], *arguments: Any) -> T:
        assert self._client is not None
        tries = 0
        while True:
            tries += 1
            name = f"convertrilo-{task.__name__}-{uuid.uuid4().hex}"
            future = self._client.submit(task, *arguments, key=name, pure=False)
            try:
                result: T = await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True, limiter=self._limiter)
            except distributed.KilledWorker as error:
                if tries == _TRIES:
                    raise TransportError(f"one Dask worker after the other has died of a task: {error}") from error
            except ConvertriloError:  # the task's own, which may be a TimeoutError
                raise
            except (OSError, TimeoutError, CancelledError) as error:
                raise TransportError(f"the Dask cluster does not answer: {error}") from error
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(future.cancel)
                raise
            else:
                return result
