"""A video at a URL, encoded at once and kept by the service: where the output is, and the output as a file.

    pip install -e ".[sandbox]"
    python examples/url_to_cdn.py out.mp4

It shows what a lost answer costs, which is nothing: the first answer of the service is thrown away on purpose, and
there is one job all the same. The service is a sandbox that really encodes; to it, every URL is a clip of five seconds.
With CONVERTRILO_API_KEY set, `encode` is all you need, with `AsyncClient()`.
"""

import sys
from pathlib import Path

import anyio
import httpx

from convertrilo import AsyncClient, AttemptEvent, OnDemandEncodeRequest, OnDemandStatusResponse
from convertrilo.sandbox import Sandbox

CLIP = (Path(__file__).parent / "media" / "big-buck-bunny-5s.mp4").read_bytes()


def show_attempt(event: AttemptEvent) -> None:
    """Print what became of an attempt that creates."""
    if event.operation == "onDemandEncode":
        print(f"attempt {event.attempt}: {event.outcome}, key {event.idempotency_key}")


def show_progress(status: OnDemandStatusResponse) -> None:
    """Print how far it is."""
    print(f"{status.status}, {status.progress or 0:g} %")


async def encode(client: AsyncClient, url: str, output: Path) -> None:
    """Have a video encoded, wait, and fetch the output."""
    request = OnDemandEncodeRequest(
        source_url=url,
        codec="h264",
        resolution="480p",
        fps=12,
        external_id="bunny",  # your name for what is wanted once: a rerun finds the same job
    )
    job = await client.on_demand_encode(request)
    done = await client.wait_for_on_demand(job.job_id, timeout=600, on_progress=show_progress)
    assert done.download_url is not None
    print(f"the output is at {httpx.URL(done.download_url).copy_with(query=None)} for {done.expires_in} s")
    await client.download(done, output)


async def main(output: Path) -> None:
    """Do it in a sandbox."""
    internet = httpx.MockTransport(lambda _: httpx.Response(200, content=CLIP))
    async with (
        Sandbox(encoder="ffmpeg", source_transport=internet) as sandbox,
        sandbox.client(on_event=show_attempt) as client,
    ):
        sandbox.faults.lose_response("onDemandEncode", times=1)
        await encode(client, "https://example.com/big-buck-bunny.mp4", output)
        size = (await anyio.Path(output).stat()).st_size
        print(f"the sandbox has made {len(sandbox.jobs)} job; {output} has {size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/url_to_cdn.py OUTPUT")
    anyio.run(main, Path(sys.argv[1]))
