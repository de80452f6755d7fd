"""Stdin as it arrives: whoever writes there may be slow, or never end, and the command need not wait for that."""

import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from convertrilo.errors import Issue, ValidationError

_READ_BYTES = 1 << 16
_AHEAD = 16
"""How many pieces are read ahead."""

_NOBODY_LISTENS = (anyio.RunFinishedError, anyio.BrokenResourceError, anyio.ClosedResourceError, CancelledError)


@asynccontextmanager
async def arriving_lines() -> AsyncGenerator[AsyncIterator[list[bytes]]]:
    """Yield what iterates over the lines of stdin, each time over all that have arrived by then.

    Raises:
        ValidationError: Stdin cannot be read.
    """
    descriptor = sys.stdin.fileno()  # read past its buffer, whose lock nobody could take while a thread waits there
    token = current_token()
    failure: OSError | None = None
    send, receive = anyio.create_memory_object_stream[bytes](_AHEAD)

    def read() -> None:
        nonlocal failure
        with suppress(*_NOBODY_LISTENS):
            try:
                while piece := os.read(descriptor, _READ_BYTES):
                    anyio.from_thread.run(send.send, piece, token=token)
            except OSError as error:
                failure = error
            anyio.from_thread.run(send.aclose, token=token)

    async def lines() -> AsyncIterator[list[bytes]]:
        rest = b""
        async for piece in receive:
            pieces = [rest, piece]
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while True:
                    pieces.append(receive.receive_nowait())
            *whole, rest = b"".join(pieces).split(b"\n")
            if whole:
                yield whole
        if failure is not None:
            raise ValidationError("stdin", [Issue("-", f"cannot be read: {failure.strerror}")])
        if rest:
            yield [rest]

    with send, receive:
        # Nothing wakes it where nothing arrives, so that it is left behind: a worker of anyio's would be waited for.
        threading.Thread(target=read, name="stdin", daemon=True).start()
        yield lines()
