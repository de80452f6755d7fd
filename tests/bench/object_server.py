"""moto's S3 server in a process of its own. Its bucket is full before it prints its port."""

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "films"
_ACCOUNT = "123456789012"  # moto's own


def _serve(count: int) -> None:
    backend = importlib.import_module("moto.s3.models").s3_backends[_ACCOUNT]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for number in range(count):
        backend.put_object(BUCKET, f"{number % 10}/{number:07}.mp4", b"")  # over HTTP, this would take minutes
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = importlib.import_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    sys.stdout.write(f"{server.get_host_and_port()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()  # ends when the parent process closes the pipe
    server.stop()


@contextmanager
def serving_objects(count: int) -> Iterator[str]:
    """Start the server with this number of objects in its bucket, and stop it.

    Yields:
        Its URL.
    """
    command = [sys.executable, "-m", "tests.bench.object_server", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
