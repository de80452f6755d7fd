"""A storage and a service for big files in a process of its own: a thread per connection, and meaningless bytes.

The last segment of the path says how many bytes GET answers. PUT and POST are read to their ends, and the first segment
says after how many milliseconds they are answered.
"""

import re
import socket
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress

from .server import started

_LENGTH = re.compile(rb"\r\n(?:content-length: *(\d+)|transfer-encoding: *chunked)", re.IGNORECASE)
_PIECE = bytes(1024 * 1024)
_DONE = b'{"ok":true,"uploadId":"u-1"}'


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    room = memoryview(bytearray(1024 * 1024))
    received = b""
    with suppress(ConnectionError), connection:
        while True:
            while b"\r\n\r\n" not in received:
                if not (data := connection.recv(65536)):
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            method, path, _ = head.split(b" ", 2)
            length = _LENGTH.search(head)
            left = int(length[1]) if length else 0
            taken = min(left, len(received))
            received, left = received[taken:], left - taken
            while left:
                if not (count := connection.recv_into(room, min(left, len(room)))):
                    return
                left -= count
            words = path.decode().split("/")
            if method == b"GET":
                size = int(words[-1])
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % size)
                for start in range(0, size, len(_PIECE)):
                    connection.sendall(_PIECE[: size - start] if size - start < len(_PIECE) else _PIECE)
            else:
                time.sleep(int(words[1]) / 1000)
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % len(_DONE) + _DONE)


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def serving() -> AbstractContextManager[str]:
    """Start this server, yield its URL, and stop it."""
    return started("tests.bench.file_server")


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()  # ends when the parent process closes the pipe
