"""`python -m convertrilo.sandbox`: the sandbox over a port, announced as one line of JSON."""

import argparse
import json
import sys
from pathlib import Path

import anyio

from convertrilo.sandbox import Sandbox, serve_until_stopped


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m convertrilo.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (default: loopback only)")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one")
    parser.add_argument("--state", type=Path, help="folder that survives a restart (default: in memory)")
    parser.add_argument("--encoder", choices=["ffmpeg", "instant"], default="ffmpeg")
    parser.add_argument("--max-encodes", type=int, help="how many jobs run at once (default: two)")
    parser.add_argument("--seed", type=int, help="the same ids in every run")
    parser.add_argument("--allow-private-sources", action="store_true", help="sources on this machine are allowed")
    return parser.parse_args()


async def _main(options: argparse.Namespace) -> None:
    sandbox = Sandbox(
        encoder=options.encoder,
        state=options.state,
        seed=options.seed,
        max_encodes=options.max_encodes,
        allow_private_sources=options.allow_private_sources,
    )

    def announce(base_url: str) -> None:
        said = {"baseUrl": base_url, "apiKey": sandbox.api_key, "driveToken": sandbox.drive.access_token}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()

    await serve_until_stopped(sandbox, announce, host=options.host, port=options.port)


if __name__ == "__main__":
    anyio.run(_main, _arguments())
