"""What the handlers of all operations share: state, clock, rules, files, places, the encoder and its queue."""

import hashlib
import hmac
import itertools
from collections.abc import Iterator
from urllib.parse import quote

import attrs

from convertrilo._clock import Clock
from convertrilo.sandbox.encoding.job_encoder import JobEncoder
from convertrilo.sandbox.encoding.worker import Worker
from convertrilo.sandbox.outside.places import Places
from convertrilo.sandbox.state.faults import Faults
from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.rules import Rules
from convertrilo.sandbox.state.store import Store


@attrs.frozen(eq=False, kw_only=True)
class Backend:
    """The sandbox behind its API."""

    store: Store
    clock: Clock
    rules: Rules
    files: Files
    places: Places
    encoder: JobEncoder
    worker: Worker
    faults: Faults
    secret: bytes = attrs.field(repr=False)
    """The secret that presigned URLs are signed with."""

    _requests: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    def request_id(self) -> str:
        """Return the id of the next request."""
        return f"req_{next(self._requests):08d}"

    def sign(self, origin: str, method: str, key: str, expires_at: float) -> str:
        """Return a presigned URL, which allows `method` on one object until it expires."""
        expires = str(int(expires_at))
        return f"{origin}/storage/{quote(key)}?expires={expires}&signature={self._signature(method, key, expires)}"

    def is_signed(self, method: str, key: str, expires: str, signature: str) -> bool:
        """Return whether a presigned URL was signed here and has not expired."""
        known = is_same_secret(signature, self._signature(method, key, expires))
        return known and int(expires) > self.clock.time()

    def _signature(self, method: str, key: str, expires: str) -> str:
        return hmac.new(self.secret, f"{method}\n{key}\n{expires}".encode(), hashlib.sha256).hexdigest()


def is_same_secret(one: str, other: str) -> bool:
    """Compare two secrets in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())
