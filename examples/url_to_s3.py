"""A video at a URL, encoded into your own bucket.

    pip install -e ".[sandbox]" "moto[server]"
    python examples/url_to_s3.py

It starts an S3 server with a video and a sandbox that really encodes, both on this machine, and shows where the output
is; what a bucket that is not there does to the job, which is not what it does to the request; and that neither a log
line nor a model as it is printed has the credentials in it, although they travel in the body.
"""

import logging

import anyio
import boto3
from moto.server import ThreadedMotoServer

from convertrilo import AsyncClient, JobFailedError, OnDemandEncodeRequest, S3Output, log_attempts
from convertrilo.sandbox import Sandbox

CLIP = anyio.Path(__file__).parent / "media" / "big-buck-bunny-5s.mp4"
ACCESS_KEY, SECRET_KEY = "AKIAEXAMPLE", "a-secret-of-the-bucket-1"


async def encode(client: AsyncClient, url: str, output: S3Output) -> None:
    """Have a video encoded into a bucket, and wait."""
    request = OnDemandEncodeRequest(source_url=url, codec="h264", resolution="480p", fps=12, output_s3=output)
    job = await client.on_demand_encode(request)
    try:
        done = await client.wait_for_on_demand(job.job_id, timeout=600)
    except JobFailedError as error:
        print(f"the job failed: {error.failure_message}")
    else:
        print(f"the job wrote {done.destination}")


async def main() -> None:
    """Run the servers, and encode twice."""
    logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
    logging.getLogger("convertrilo").setLevel(logging.DEBUG)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=endpoint, **keys)
    try:
        s3.create_bucket(Bucket="films", ACL="public-read-write")
        s3.put_object(Bucket="films", Key="in.mp4", Body=await CLIP.read_bytes(), ACL="public-read")
        output = S3Output(
            bucket="films",
            key="out/bunny.mp4",
            endpoint=endpoint,  # Amazon's own needs none
            region="us-east-1",
            force_path_style=True,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
        )
        async with (
            Sandbox(encoder="ffmpeg", allow_private_sources=True) as sandbox,
            sandbox.client(on_event=log_attempts) as client,
        ):
            await encode(client, f"{endpoint}/films/in.mp4", output)
            nowhere = S3Output(bucket="no-such-bucket", key="out.mp4", endpoint=endpoint, force_path_style=True)
            await encode(client, f"{endpoint}/films/in.mp4", nowhere)
        size = s3.head_object(Bucket="films", Key="out/bunny.mp4")["ContentLength"]
        print(f"films/out/bunny.mp4 has {size} bytes; as the client shows it: {output}")
    finally:
        s3.close()
        server.stop()


if __name__ == "__main__":
    anyio.run(main)
