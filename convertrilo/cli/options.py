"""Options that several commands share; each decorator gathers its options into one argument of the command."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from convertrilo.cli.job_wait import JobWait
from convertrilo.cli.output import Output
from convertrilo.cli.service import ServiceTarget

WEEK_MS = 7 * 86_400_000

R = TypeVar("R")
Command = Callable[..., R]

SANDBOX_HELP = (
    "Use the local sandbox instead of the service: no account, no network. Its jobs are kept for later commands with "
    "--sandbox."
)


def service_options(command: Command[R]) -> Command[R]:
    """Add the options that choose the service, as the argument `service`."""

    @click.option("--profile", metavar="NAME", help="The saved account to use; overrides the environment.")
    @click.option("--sandbox", is_flag=True, help=SANDBOX_HELP)
    @wraps(command)
    def wrapped(*arguments: Any, profile: str | None, sandbox: bool, **options: Any) -> R:
        return command(*arguments, service=ServiceTarget(profile, sandbox=sandbox), **options)

    return wrapped


def output_options(command: Command[R]) -> Command[R]:
    """Add the options that choose how a result is printed, as the argument `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, on stdout.")
    @click.option("--field", metavar="NAME", help="Print only this field of the result.")
    @wraps(command)
    def wrapped(*arguments: Any, as_json: bool, field: str | None, **options: Any) -> R:
        return command(*arguments, output=_output(as_json, field), **options)

    return wrapped


def job_output_options(command: Command[R]) -> Command[R]:
    """Add the options that choose how a job is printed, as the argument `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, on stdout.")
    @click.option("--field", metavar="NAME", help="Print only this field of the result.")
    @click.option("--job-id-only", is_flag=True, help="Print only the job's id.")
    @click.option("--download-url-only", is_flag=True, help="Print only the output's download URL.")
    @wraps(command)
    def wrapped(
        *arguments: Any, as_json: bool, field: str | None, job_id_only: bool, download_url_only: bool, **options: Any
    ) -> R:
        fields = [field, "jobId" if job_id_only else None, "downloadUrl" if download_url_only else None]
        return command(*arguments, output=_output(as_json, *fields), **options)

    return wrapped


def _output(as_json: bool, *fields: str | None) -> Output:
    given = [each for each in fields if each is not None]
    if as_json + len(given) > 1:
        raise click.UsageError("--json, --field, --job-id-only and --download-url-only exclude each other")
    return Output(as_json=as_json, field=given[0] if given else None)


def quiet_option(command: Command[R]) -> Command[R]:
    """Add --quiet."""
    return click.option(
        "--quiet", is_flag=True, help="Print only errors, and what --json and similar options ask for."
    )(command)


def journal_option(command: Command[R]) -> Command[R]:
    """Add --journal, as the argument `journal`."""

    @click.option(
        "--journal",
        "journal_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file that records what was sent and answered, so that a rerun continues where the last run stopped.",
    )
    @wraps(command)
    def wrapped(*arguments: Any, journal_file: Path | None, **options: Any) -> R:
        from convertrilo.journal import Journal

        return command(*arguments, journal=None if journal_file is None else Journal(journal_file), **options)

    return wrapped


def timeout_option(default_ms: int) -> Callable[[Command[R]], Command[R]]:
    """Add --timeout-ms, as the argument `timeout`, in seconds."""

    def decorate(command: Command[R]) -> Command[R]:
        @click.option(
            "--timeout-ms",
            type=click.IntRange(1),
            default=default_ms,
            show_default=True,
            help="Longest wait for encoding to end, in milliseconds.",
        )
        @wraps(command)
        def wrapped(*arguments: Any, timeout_ms: int, **options: Any) -> R:
            return command(*arguments, timeout=timeout_ms / 1000, **options)

        return wrapped

    return decorate


def wait_options(command: Command[R]) -> Command[R]:
    """Add the options that say how to wait for one job, as the argument `waiting`."""

    @timeout_option(3_600_000)
    @click.option(
        "--poll-interval-ms",
        type=click.IntRange(1),
        help="Longest time between two reads of the job's status, in milliseconds.  [default: adapts to the job, "
        "400 to 15000]",
    )
    @quiet_option
    @wraps(command)
    def wrapped(*arguments: Any, timeout: float, poll_interval_ms: int | None, quiet: bool, **options: Any) -> R:
        interval = None if poll_interval_ms is None else poll_interval_ms / 1000
        return command(*arguments, waiting=JobWait(timeout, interval, quiet=quiet), **options)

    return wrapped


ENCODING = (
    *("codec", "resolution", "fps", "container", "preset", "bitrate_tier", "quality"),
    *("passes", "optimize", "vmaf_target"),
)
"""The arguments that `encoding_options` adds."""


def encoding_options(command: Command[R]) -> Command[R]:
    """Add the options that say how to encode, as the arguments in `ENCODING`."""
    from convertrilo.models import BitrateTier, Codec, Container, Optimize, Preset, Quality, Resolution

    options = [
        click.option("--codec", type=choice(Codec), default="h264", show_default=True, help="Video codec."),
        click.option(
            "--resolution",
            type=choice(Resolution),
            default="1080p",
            show_default=True,
            help="Maximum height of the output.",
        ),
        click.option(
            "--fps",
            type=click.IntRange(1, 240),
            default=30,
            show_default=True,
            help="Frame rate, in frames per second.",
        ),
        click.option(
            "--container",
            type=choice(Container),
            help="File format.  [default: mp4, or the suffix of encode's --output]",
        ),
        click.option(
            "--preset", type=choice(Preset), help="Encoding speed; a slower preset compresses better.  [default: fast]"
        ),
        click.option("--bitrate-tier", type=choice(BitrateTier), help="Bitrate for the resolution.  [default: medium]"),
        click.option(
            "--quality", type=choice(Quality), help="Quality level of the output.  [default: the service's own]"
        ),
        click.option(
            "--passes", type=click.IntRange(1, 2), help="Number of encoding passes over the source.  [default: 1]"
        ),
        click.option(
            "--optimize", type=choice(Optimize), help="vmaf: aim for the score of --vmaf-target instead of a bitrate."
        ),
        click.option(
            "--vmaf-target", type=click.FloatRange(50, 99), help="VMAF score to aim for, with --optimize vmaf."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def s3_output_options(place: str, applies_to: str) -> Callable[[Command[R]], Command[R]]:
    """Add the options for an output in S3, as the argument `output_s3`, in the wire's shape.

    Args:
        place: What the output names in the bucket: `key` or `prefix`.
        applies_to: When the options apply, for the help text.
    """
    names = ("bucket", place, "region", "endpoint", "access_key_id", "secret_access_key", "force_path_style")

    def decorate(command: Command[R]) -> Command[R]:
        @click.option("--output-s3-bucket", metavar="BUCKET", help=f"{applies_to}: write the output to this S3 bucket.")
        @click.option(f"--output-s3-{place}", metavar=place.upper(), help=f"The output's {place} in the bucket.")
        @click.option("--output-s3-region", metavar="REGION", help="The bucket's region.")
        @click.option("--output-s3-endpoint", metavar="URL", help="Endpoint of an S3-compatible store.")
        @click.option(
            "--output-s3-access-key-id",
            metavar="ID",
            envvar="CONVERTRILO_OUTPUT_S3_ACCESS_KEY_ID",
            show_envvar=True,
            help="Access key id for the bucket.",
        )
        @click.option(
            "--output-s3-secret-access-key",
            metavar="SECRET",
            envvar="CONVERTRILO_OUTPUT_S3_SECRET_ACCESS_KEY",
            show_envvar=True,
            help="Secret access key for the bucket. Prefer the environment variable: other users can read options.",
        )
        @click.option(
            "--output-s3-force-path-style", is_flag=True, default=None, help="Put the bucket in the path of the URL."
        )
        @wraps(command)
        def wrapped(*arguments: Any, **options: Any) -> R:
            from convertrilo.codec import wire_name

            given = {wire_name(name): options.pop(f"output_s3_{name}") for name in names}
            found = {name: value for name, value in given.items() if value is not None}
            return command(*arguments, output_s3=found, **options)

        return wrapped

    return decorate


def choice(literal: Any) -> click.Choice[str]:
    """Return an option type that takes the values of a `Literal`."""
    return click.Choice(get_args(literal))


def parse_metadata(given: tuple[str, ...]) -> dict[str, Any] | None:
    """Return all values of --metadata as one object, or None if there are none.

    Raises:
        click.UsageError: A value is neither KEY=VALUE nor a JSON object.
    """
    metadata: dict[str, Any] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if each.lstrip().startswith("{"):
            try:
                metadata |= json.loads(each)
            except ValueError as error:
                raise click.UsageError(f"--metadata is not a JSON object: {error}") from None
        elif mark and name:
            metadata[name] = value
        else:
            raise click.UsageError(f"--metadata takes KEY=VALUE or a JSON object, not {each!r}")
    return metadata or None
