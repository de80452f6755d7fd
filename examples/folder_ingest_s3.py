"""A folder in S3 of which every video is encoded once: estimated, encoded, grown, and encoded again.

    pip install -e ".[s3,sandbox]" "moto[server]"
    python examples/folder_ingest_s3.py /tmp/folder

It starts an S3 server with three videos and a sandbox that really encodes, both on this machine, and shows: what a dry
run says and costs (nothing is created); the run, to the end of every job; and the same call after a video was added and
another one was replaced, which makes two jobs, not five. The folder, a new one each time, keeps the journal and the
report.
"""

import logging
import os
import sys
from pathlib import Path

import anyio
import boto3
from moto.server import ThreadedMotoServer

from convertrilo import AsyncClient, IngestProgress, JobCreateRequest, S3FolderSource, ingest_folder
from convertrilo.sandbox import Sandbox

CLIP = Path(__file__).parent / "media" / "big-buck-bunny-5s.mp4"
TEMPLATE = JobCreateRequest(codec="h264", resolution="480p", fps=12)
BUCKET = "films"


def show(progress: IngestProgress) -> None:
    """Say how far it is."""
    print(f"{progress.listed} listed, {progress.submitted} submitted, {progress.succeeded} succeeded")


async def ingest(client: AsyncClient, source: S3FolderSource, folder: Path) -> None:
    """Estimate, encode and report."""
    journal = folder / "run.db"
    estimate = await ingest_folder(client, source, TEMPLATE, journal=journal, dry_run=True)
    print(f"estimate: {estimate.listed - estimate.submitted} videos to submit, {estimate.estimated:g} tokens in all")
    report = await ingest_folder(client, source, TEMPLATE, journal=journal, wait=True, on_progress=show)
    print(f"encoded: {report.succeeded} of {report.listed}, tokens reserved: {report.reserved}")
    async for row in report.rows():
        print(f"  {row.status} {row.key} {row.job_id}")
    await report.write(folder / "report.csv")


async def main(folder: Path) -> None:
    """Run the servers, and the folder's two lives."""
    await anyio.Path(folder).mkdir(parents=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing", "AWS_DEFAULT_REGION": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=endpoint)
    source = S3FolderSource(bucket=BUCKET, endpoint=endpoint)  # with the credentials of the environment
    try:
        s3.create_bucket(Bucket=BUCKET)
        for key in ("2026/one.mp4", "2026/two & a half.mp4", "2026/three.mp4", "2026/notes.txt"):
            s3.put_object(Bucket=BUCKET, Key=key, Body=CLIP.read_bytes())
        async with (
            Sandbox(encoder="ffmpeg", allow_private_sources=True, state=folder / "sandbox") as sandbox,
            sandbox.client() as client,
        ):
            await ingest(client, source, folder)
            print("one video more, and another in place of one.mp4")
            s3.put_object(Bucket=BUCKET, Key="2026/four.mp4", Body=CLIP.read_bytes())
            s3.put_object(Bucket=BUCKET, Key="2026/one.mp4", Body=CLIP.read_bytes() + b"\0")
            await ingest(client, source, folder)
            print(f"the sandbox has made {len(sandbox.jobs)} jobs")
    finally:
        s3.close()
        server.stop()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/folder_ingest_s3.py FOLDER")
    anyio.run(main, Path(sys.argv[1]))
