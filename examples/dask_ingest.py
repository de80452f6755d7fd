"""A folder in S3, encoded through a Dask cluster of which a worker is killed: every video has one job all the same.

    pip install -e ".[dask,s3,sandbox]" "moto[server]"
    python examples/dask_ingest.py /tmp/dask

It starts an S3 server with 200 videos, a sandbox, and a cluster of two worker processes, all on this machine, and hands
the folder to the workers. When half of the jobs are submitted it kills one of them with -9; its nanny starts another
one. Workers have the API key and AWS's credentials in their environment: no task carries any. The folder, a new one
each time, keeps the journal, which is here and not in the cluster, and the report.
"""

import logging
import os
import signal
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import boto3
from distributed import Client, LocalCluster
from moto.server import ThreadedMotoServer

from convertrilo import AsyncClient, IngestProgress, JobCreateRequest, S3FolderSource, ingest_folder
from convertrilo.dask import DaskEngine
from convertrilo.sandbox import Sandbox, serve_in_thread

TEMPLATE = JobCreateRequest(codec="av1", resolution="1080p", fps=30)
BUCKET, VIDEOS, WORKERS = "films", 200, 2


async def ingest(cluster: LocalCluster, endpoint: str, folder: Path) -> None:
    """Hand the folder to the cluster."""
    with Client(cluster, set_as_default=False) as dask:
        workers = list(dask.run(os.getpid).values())

    def kill_one(progress: IngestProgress) -> None:
        if progress.submitted >= VIDEOS // 2 and len(workers) == WORKERS:
            os.kill(workers.pop(), signal.SIGKILL)
            print(f"killed a worker when {progress.submitted} jobs were submitted")

    async with AsyncClient() as client:  # CONVERTRILO_API_KEY, CONVERTRILO_BASE_URL
        report = await ingest_folder(
            client,
            S3FolderSource(bucket=BUCKET, endpoint=endpoint),
            TEMPLATE,
            journal=folder / "run.db",
            batch_size=10,
            engine=DaskEngine(cluster.scheduler_address),
            wait=True,
            on_progress=kill_one,
        )
    print(f"encoded: {report.succeeded} of {report.listed}")
    await report.write(folder / "report.jsonl")


def main(folder: Path) -> None:
    """Run the servers and the cluster."""
    folder.mkdir(parents=True)
    os.chdir(folder)  # Dask leaves files where it works
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "thing", "AWS_DEFAULT_REGION": "us-east-1"}
    sandbox = Sandbox(allow_private_sources=True)
    try:
        s3 = boto3.client("s3", endpoint_url=endpoint)
        s3.create_bucket(Bucket=BUCKET)
        for number in range(VIDEOS):
            s3.put_object(Bucket=BUCKET, Key=f"2026/{number:03}.mp4", Body=b"")
        s3.close()
        with serve_in_thread(sandbox) as base_url:
            os.environ |= {"CONVERTRILO_BASE_URL": base_url, "CONVERTRILO_API_KEY": sandbox.api_key}
            with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
                anyio.run(ingest, cluster, endpoint, folder)
            print(f"the sandbox has made {len(sandbox.jobs)} jobs")
    finally:
        server.stop()


if __name__ == "__main__":  # worker processes import this module
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/dask_ingest.py FOLDER")
    main(Path(sys.argv[1]).absolute())
