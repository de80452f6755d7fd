"""A real S3 server for the tests, started by the tests, and boto3 to fill it and look into it."""

import importlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs

from convertrilo import S3FolderSource

_numbers = itertools.count(1)


@attrs.frozen(eq=False)
class ObjectStore:
    """An S3 server: where it is, and credentials that it knows."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    s3: Any

    @property
    def credentials(self) -> dict[str, str]:
        return {"accessKeyId": self.access_key_id, "secretAccessKey": self.secret_access_key}

    def bucket(self, **objects: bytes) -> str:
        """Make a bucket of its own that anybody may use, with these objects in it."""
        return self._bucket("public-read-write", "public-read", objects)

    def private_bucket(self, **objects: bytes) -> str:
        """Make a bucket of its own that only its owner may use, with these objects in it."""
        return self._bucket("private", "private", objects)

    def _bucket(self, bucket_acl: str, acl: str, objects: Mapping[str, bytes]) -> str:
        name = f"bucket-{next(_numbers)}"
        self.s3.create_bucket(Bucket=name, ACL=bucket_acl)
        for key, content in objects.items():
            self.s3.put_object(Bucket=name, Key=key, Body=content, ACL=acl)
        return name

    def place(self, bucket: str, *, signed: bool = True, **further: Any) -> dict[str, Any]:
        """Return a place in the wire's shape."""
        place = {"bucket": bucket, "endpoint": self.endpoint, "region": "us-east-1", "forcePathStyle": True}
        return {**place, **(self.credentials if signed else {}), **further}

    def folder(self, bucket: str, **further: Any) -> S3FolderSource:
        """Return a bucket as a folder to ingest."""
        return S3FolderSource(
            bucket=bucket,
            endpoint=self.endpoint,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            **further,
        )

    def keys(self, bucket: str) -> list[str]:
        return sorted(each["Key"] for each in self.s3.list_objects_v2(Bucket=bucket).get("Contents", ()))

    def get(self, bucket: str, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def content_type(self, bucket: str, key: str) -> str:
        return str(self.s3.head_object(Bucket=bucket, Key=key)["ContentType"])


def connect(endpoint: str, access_key_id: str, secret_access_key: str) -> ObjectStore:
    boto3 = importlib.import_module("boto3")
    config = importlib.import_module("botocore.config").Config(s3={"addressing_style": "path"})
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        config=config,
    )
    return ObjectStore(endpoint, access_key_id, secret_access_key, client)


@contextmanager
def moto_server() -> Iterator[ObjectStore]:
    """Run moto's server in a thread: it keeps everything, and checks no signature."""
    server = importlib.import_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    store = connect(f"http://{host}:{port}", "AKIDEXAMPLE", "moto-takes-any-secret")
    try:
        yield store
    finally:
        store.s3.close()
        server.stop()
