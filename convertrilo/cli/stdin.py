"""The lines of stdin as they arrive, so that a slow or endless writer does not hold up the command."""

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
_READ_AHEAD = 16
"""How many pieces the thread reads ahead."""

_READER_GONE = (anyio.RunFinishedError, anyio.BrokenResourceError, anyio.ClosedResourceError, CancelledError)


@asynccontextmanager
async def arriving_lines() -> AsyncGenerator[AsyncIterator[list[bytes]]]:
    """Yield an iterator over stdin, whose items are the lists of lines that have arrived since the last item.

    Raises:
        ValidationError: Stdin cannot be read.
    """
    descriptor = sys.stdin.fileno()  # not the buffered stream: the waiting thread would hold its lock
    token = current_token()
    failure: OSError | None = None
    send, receive = anyio.create_memory_object_stream[bytes](_READ_AHEAD)

    def read() -> None:
        nonlocal failure
        with suppress(*_READER_GONE):
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
        # A daemon thread: nothing wakes it while no input arrives, and anyio would wait for a worker thread to end.
        threading.Thread(target=read, name="stdin", daemon=True).start()
        yield lines()
