"""What `convertrilo encode` does: checks what it was given, encodes, and prints what came out."""

import importlib.util
import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import anyio
import attrs
import click

from convertrilo.cli import output as show
from convertrilo.cli.extras import needing_the_sandbox
from convertrilo.cli.interrupt import interruptible
from convertrilo.client import AsyncClient
from convertrilo.codec import from_request
from convertrilo.errors import ConfigurationError, ConvertriloError
from convertrilo.models import Container, JobCreateRequest, OnDemandEncodeRequest
from convertrilo.transfers import Progress, partial_files

_CONTAINERS: tuple[str, ...] = get_args(Container)


@attrs.define(kw_only=True)
class Encoding:
    """One run of `convertrilo encode`."""

    source: str
    output: Path
    request: JobCreateRequest | OnDemandEncodeRequest
    idempotency_key: str | None
    timeout: float
    sandbox: bool
    as_json: bool
    quiet: bool
    job_id: str | None = None
    """The job, once it is there."""

    @classmethod
    def of(cls, source: str, options: dict[str, Any]) -> "Encoding":
        """Check the options, and say all that is wrong before anything is done.

        Raises:
            click.UsageError: An option or a file is not right.
            ValidationError: A value is not what the contract allows.
        """
        is_url = "://" in source
        container = _container(options["output"], options["container"])
        name = Path(source.partition("?")[0].rpartition("/")[2] if is_url else source)
        output = options["output"] or Path(f"{name.stem or 'output'}.{options['codec']}.{container}")
        _check_files(source, output, is_url=is_url)
        wire = {
            "codec": options["codec"],
            "resolution": options["resolution"],
            "fps": options["fps"],
            "container": container,
            "preset": options["preset"],
            "bitrateTier": options["bitrate_tier"],
            "quality": options["quality"],
            "externalId": options["external_id"],
            "metadata": _metadata(options["metadata"]),
        }
        request: JobCreateRequest | OnDemandEncodeRequest
        if is_url:
            if options["passes"] is not None:
                raise click.UsageError("--passes is for files only, not for URLs")
            wire |= {"sourceUrl": source, "priority": options["priority"]}
            request = from_request(OnDemandEncodeRequest, wire)
        else:
            if options["priority"] is not None:
                raise click.UsageError("--priority is for URLs only, not for files")
            wire |= {"originalFilename": name.name, "passes": options["passes"]}
            request = from_request(JobCreateRequest, wire)
        return cls(
            source=source,
            output=output,
            request=request,
            **{name: options[name] for name in ("idempotency_key", "timeout", "sandbox", "as_json", "quiet")},
        )

    async def run(self) -> None:
        """Encode, show how it goes, and print what came out."""
        started = time.monotonic()
        with show.progress(quiet=self.quiet) as on_progress:
            work = partial(self._work, on_progress=on_progress)
            await interruptible(_client(sandbox=self.sandbox), work, self._tidy_up)
        facts = {
            "jobId": self.job_id,
            "output": str(self.output),
            "size": self.output.stat().st_size,
            "tookSec": round(time.monotonic() - started, 3),
            **await _probed(self.output),
        }
        show.result(facts, as_json=self.as_json, quiet=self.quiet)

    async def _work(self, client: AsyncClient, on_progress: show.Show) -> None:
        def note(at: Progress) -> None:
            self.job_id = at.job_id or self.job_id
            on_progress(at)

        if isinstance(self.request, JobCreateRequest):
            await client.encode_file(
                self.source,
                self.request,
                self.output,
                timeout=self.timeout,
                on_progress=note,
                idempotency_key=self.idempotency_key,
            )
            return
        job = await client.on_demand_encode(self.request, idempotency_key=self.idempotency_key)
        self.job_id = job.job_id
        done = await client.wait_for_on_demand(
            job.job_id,
            timeout=self.timeout,
            on_progress=lambda status: note(Progress("encode", status.progress or 0.0, 100.0, job.job_id)),
        )
        await client.download(done, self.output, on_progress=note)

    async def _tidy_up(self, client: AsyncClient) -> str:
        for file in partial_files(self.output):
            await anyio.Path(file).unlink(missing_ok=True)
        if self.job_id is None:
            return ""
        try:
            if isinstance(self.request, JobCreateRequest):
                await client.cancel_job(self.job_id)
                status = (await client.job_status(self.job_id)).status
            else:
                await client.on_demand_cancel(self.job_id)
                status = (await client.on_demand_status(self.job_id)).status
        except ConvertriloError as error:
            return f"job {self.job_id} could not be canceled: {error}"
        if self.sandbox:
            return "the job has ended with the sandbox"
        return f"job {self.job_id} is {status}"


def _container(output: Path | None, given: str | None) -> str:
    suffix = "" if output is None else output.suffix[1:].lower()
    if suffix in _CONTAINERS:
        if given is not None and given != suffix:
            raise click.UsageError(f"{output} says {suffix}, and --container {given}")
        return suffix
    return given or "mp4"


def _check_files(source: str, output: Path, *, is_url: bool) -> None:
    if is_url:
        if not source.startswith(("http://", "https://")):
            raise click.UsageError("only http and https URLs can be encoded")
    elif not Path(source).is_file():
        raise click.UsageError(f"{source} is a folder" if Path(source).is_dir() else f"there is no file {source}")
    elif not os.access(source, os.R_OK):
        raise click.UsageError(f"{source} cannot be read: permission denied")
    elif output.exists() and output.samefile(source):
        raise click.UsageError(f"{output} is the source itself")
    if not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent}")


def _metadata(given: tuple[str, ...]) -> dict[str, Any] | None:
    metadata: dict[str, Any] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if each.lstrip().startswith("{"):
            try:
                metadata |= json.loads(each)
            except ValueError as error:
                raise click.UsageError(f"--metadata is no JSON object: {error}") from None
        elif mark and name:
            metadata[name] = value
        else:
            raise click.UsageError(f"--metadata takes KEY=VALUE or a JSON object, not {each!r}")
    return metadata or None


@asynccontextmanager
async def _client(*, sandbox: bool) -> AsyncGenerator[AsyncClient]:
    """Yield a client of the real service, or of a sandbox that lives as long."""
    if not sandbox:
        if not os.environ.get("CONVERTRILO_API_KEY"):
            raise ConfigurationError("no API key: set CONVERTRILO_API_KEY, or encode on this machine with --sandbox")
        async with AsyncClient() as client:
            yield client
        return
    with needing_the_sandbox():
        from convertrilo.sandbox import Sandbox, serve
    from convertrilo.transport import PoolTransport

    # Its own connections: a proxy that the environment names is not for this machine.
    async with (
        Sandbox(encoder="ffmpeg", allow_private_sources=True) as service,
        serve(service) as base_url,
        AsyncClient(service.api_key, base_url=base_url, transport=PoolTransport()) as client,
    ):
        yield client


async def _probed(path: Path) -> dict[str, Any]:
    """Return what ffmpeg finds in the output; nothing, where there is no ffmpeg."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return {}
    from convertrilo.sandbox.probe import MediaError, probe

    try:
        info = await probe(path)
    except MediaError:
        return {}
    return {"codec": info.codec, "width": info.width, "height": info.height, "durationSec": info.duration}
