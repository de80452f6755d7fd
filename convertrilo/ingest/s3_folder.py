"""A folder in S3, or in a store with the same API: its bucket and prefix, its URL, and the credentials that read it."""

import os
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import anyio.to_thread
import attrs

from convertrilo._http.redaction import hider
from convertrilo.errors import ConfigurationError, Issue, ValidationError
from convertrilo.models import S3FolderSource, S3Source

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials

_DEFAULT_REGION = "us-east-1"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_UNRESERVED = "-_.~"


def parse_url(url: str) -> S3FolderSource:
    """Return the folder that `s3://bucket/prefix` names; the prefix is taken literally, nothing in it is decoded.

    Raises:
        ValidationError: The URL has another form.
    """
    scheme, mark, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if not mark or scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise ValidationError("source", [Issue("", f"must be s3://bucket/prefix, not {url[:80]!r}")])
    return S3FolderSource(bucket=bucket, prefix=prefix or None)


@attrs.define(eq=False)
class S3Folder:
    """A prefix in a bucket, and what a request for it needs."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    path_style: bool
    keys: "Credentials | None" = attrs.field(repr=False)
    """botocore's credentials; `None` sends anonymous requests."""

    def url(self, query: Mapping[str, str]) -> str:
        """Return the URL of a request to the bucket, in the form that is signed."""
        where = urlsplit(self.endpoint or _aws_endpoint(self.region))
        host, path = where.netloc, where.path.rstrip("/")
        if self.path_style:
            path += f"/{self.bucket}"
        else:
            host = f"{self.bucket}.{host}"
        parameters = "&".join(f"{name}={quote(value, safe=_UNRESERVED)}" for name, value in sorted(query.items()))
        return f"{where.scheme}://{host}{path or '/'}?{parameters}"

    def frozen_keys(self) -> "ReadOnlyCredentials | None":
        """Return the current credentials; first renew credentials that expire soon, possibly over the network.

        Raises:
            ConfigurationError: The credentials cannot be loaded.
        """
        try:
            return None if self.keys is None else self.keys.get_frozen_credentials()
        except Exception as error:  # errors of botocore, the network or a `credential_process`
            raise ConfigurationError(f"the AWS credentials cannot be loaded: {error}") from error

    async def renew_keys(self) -> None:
        """Renew credentials that expire soon, in a thread, so that `frozen_keys` does not block the event loop.

        Raises:
            ConfigurationError: The credentials cannot be loaded.
        """
        if getattr(self.keys, "refresh_needed", bool)():
            await anyio.to_thread.run_sync(self.frozen_keys, abandon_on_cancel=True)

    def source(self, key: str) -> S3Source:
        """Return an object of the bucket as the source of a job.

        Raises:
            ConfigurationError: The credentials cannot be loaded, or are temporary, which the API does not accept.
        """
        keys = self.frozen_keys()
        if keys is not None and keys.token:
            raise ConfigurationError(
                "these AWS credentials are temporary and need a session token, and the API has no field for it: use "
                "the access key ID and the secret access key of a user who may read the bucket, or list a public "
                "bucket as anonymous"
            )
        return S3Source(
            bucket=self.bucket,
            key=key,
            endpoint=self.endpoint,
            region=self.region,
            access_key_id=None if keys is None else keys.access_key,
            secret_access_key=None if keys is None else keys.secret_key,
            force_path_style=self.path_style,
        )

    def hide_credentials(self, text: str) -> str:
        """Return a text without the folder's credentials.

        Raises:
            ConfigurationError: The credentials cannot be loaded, or are temporary, as in `source`.
        """
        credentials = self.source("")
        hide = hider(text, filter(None, (credentials.access_key_id, credentials.secret_access_key)))
        return hide(text)


async def open_folder(source: str | S3FolderSource, *, anonymous: bool = False) -> S3Folder:
    """Return a folder with the region and the credentials to read it with.

    The credentials are those of the source, or else those of AWS's standard chain (environment, profile, role of the
    machine). Without credentials, requests are anonymous. If the source names no endpoint, `AWS_ENDPOINT_URL_S3` or
    `AWS_ENDPOINT_URL` may name a store other than Amazon's.

    Args:
        source: The folder, or `s3://bucket/prefix`.
        anonymous: Whether to send anonymous requests even if there are credentials.

    Raises:
        ValidationError: The source is not a folder in S3.
        ConfigurationError: botocore is not installed, or AWS's configuration or credentials cannot be loaded.
    """
    if isinstance(source, str):
        source = parse_url(source)
    _check(source, anonymous=anonymous)
    return await anyio.to_thread.run_sync(partial(_open, source, anonymous=anonymous), abandon_on_cancel=True)


def _check(source: S3FolderSource, *, anonymous: bool) -> None:
    issues: list[Issue] = []
    if not _BUCKET.fullmatch(source.bucket):
        issues.append(Issue("bucket", f"is not the name of a bucket: {source.bucket!r}"))
    if source.endpoint is not None:
        where = urlsplit(source.endpoint)
        if where.scheme not in ("http", "https") or not where.hostname or where.query or "@" in where.netloc:
            issues.append(Issue("endpoint", "must be an http or https URL of a host, without user name and query"))
    if (source.access_key_id is None) != (source.secret_access_key is None):
        missing = "access_key_id" if source.access_key_id is None else "secret_access_key"
        issues.append(Issue(missing, "is required with the other half of the credentials"))
    elif source.access_key_id is not None and anonymous:
        issues.append(Issue("access_key_id", "must not be set when the folder is listed as anonymous"))
    if issues:
        raise ValidationError("source", issues)


def _open(source: S3FolderSource, *, anonymous: bool) -> S3Folder:
    try:
        from botocore.credentials import Credentials
        from botocore.session import Session
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'listing S3 needs {error.name}; install it with: pip install "convertrilo[s3]"'
        ) from None
    keys, region, endpoint = None, source.region, source.endpoint
    try:
        session = Session()
        if region is None:
            region = session.get_config_variable("region")
        if endpoint is None:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if source.access_key_id is not None and source.secret_access_key is not None:
            keys = Credentials(source.access_key_id, source.secret_access_key)
        elif not anonymous:
            keys = session.get_credentials()
    except Exception as error:  # errors of botocore or a `credential_process`
        raise ConfigurationError(f"AWS's configuration cannot be used: {error}") from error
    folder = S3Folder(
        bucket=source.bucket,
        prefix=source.prefix or "",
        endpoint=endpoint or None,
        region=region or _DEFAULT_REGION,
        path_style=source.force_path_style is not False,  # the contract's default for a folder
        keys=keys,
    )
    folder.frozen_keys()  # assumes a role here, in this thread
    return folder


def _aws_endpoint(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
