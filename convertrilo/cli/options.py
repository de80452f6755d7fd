"""Options that several commands take, each gathered into one argument."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from convertrilo.cli.output import Output
from convertrilo.cli.service import Service
from convertrilo.cli.wait_flow import Waiting

A_WEEK_MS = 7 * 86_400_000

R = TypeVar("R")
Command = Callable[..., R]

SANDBOX_HELP = (
    "On this machine, with no account and no network; what it makes is there for the next command with --sandbox."
)


def of_service(command: Command[R]) -> Command[R]:
    """Add what says where the service is, as the argument `service`."""

    @click.option("--profile", metavar="NAME", help="The saved account to use, before what the environment says.")
    @click.option("--sandbox", is_flag=True, help=SANDBOX_HELP)
    @wraps(command)
    def wrapped(*arguments: Any, profile: str | None, sandbox: bool, **options: Any) -> R:
        return command(*arguments, service=Service(profile, sandbox=sandbox), **options)

    return wrapped


def of_output(command: Command[R]) -> Command[R]:
    """Add what says how the result is printed, as the argument `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, on stdout.")
    @click.option("--field", metavar="NAME", help="Print one field of the result only.")
    @wraps(command)
    def wrapped(*arguments: Any, as_json: bool, field: str | None, **options: Any) -> R:
        return command(*arguments, output=_output(as_json, field), **options)

    return wrapped


def of_job_output(command: Command[R]) -> Command[R]:
    """Add what says how a job is printed, as the argument `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else, on stdout.")
    @click.option("--field", metavar="NAME", help="Print one field of the result only.")
    @click.option("--job-id-only", is_flag=True, help="Print the job's id only.")
    @click.option("--download-url-only", is_flag=True, help="Print the result's URL only.")
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


def of_quiet(command: Command[R]) -> Command[R]:
    """Add --quiet."""
    return click.option("--quiet", is_flag=True, help="Show errors, and what --json and its like ask for, only.")(
        command
    )


def of_journal(command: Command[R]) -> Command[R]:
    """Add what says where the journal is, as the argument `journal`."""

    @click.option(
        "--journal",
        "journal_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file that keeps what was sent and answered; with it a run goes on where the last one stopped.",
    )
    @wraps(command)
    def wrapped(*arguments: Any, journal_file: Path | None, **options: Any) -> R:
        from convertrilo.journal import Journal

        return command(*arguments, journal=None if journal_file is None else Journal(journal_file), **options)

    return wrapped


def of_timeout(default_ms: int) -> Callable[[Command[R]], Command[R]]:
    """Add what says how long to wait at most, as the argument `timeout`, in seconds."""

    def decorate(command: Command[R]) -> Command[R]:
        @click.option(
            "--timeout-ms",
            type=click.IntRange(1),
            default=default_ms,
            show_default=True,
            help="Milliseconds to wait for the encode at most.",
        )
        @wraps(command)
        def wrapped(*arguments: Any, timeout_ms: int, **options: Any) -> R:
            return command(*arguments, timeout=timeout_ms / 1000, **options)

        return wrapped

    return decorate


def of_waiting(command: Command[R]) -> Command[R]:
    """Add what says how long to wait for one job, and how often to ask, as the argument `waiting`."""

    @of_timeout(3_600_000)
    @click.option(
        "--poll-interval-ms",
        type=click.IntRange(1),
        help="Ask at least so often.  [default: as often as it makes sense, every 0.4 to 15 s]",
    )
    @of_quiet
    @wraps(command)
    def wrapped(*arguments: Any, timeout: float, poll_interval_ms: int | None, quiet: bool, **options: Any) -> R:
        interval = None if poll_interval_ms is None else poll_interval_ms / 1000
        return command(*arguments, waiting=Waiting(timeout, interval, quiet=quiet), **options)

    return wrapped


ENCODING = (
    *("codec", "resolution", "fps", "container", "preset", "bitrate_tier", "quality"),
    *("passes", "optimize", "vmaf_target"),
)
"""The arguments of `of_encoding`."""


def of_encoding(command: Command[R]) -> Command[R]:
    """Add what says how to encode, as arguments of these names."""
    from convertrilo.models import BitrateTier, Codec, Container, Optimize, Preset, Quality, Resolution

    options = [
        click.option("--codec", type=choice(Codec), default="h264", show_default=True),
        click.option(
            "--resolution", type=choice(Resolution), default="1080p", show_default=True, help="At most so high."
        ),
        click.option("--fps", type=click.IntRange(1, 240), default=30, show_default=True, help="Frames a second."),
        click.option(
            "--container", type=choice(Container), help="By default the output's suffix says it, or else mp4."
        ),
        click.option("--preset", type=choice(Preset), help="How much time to spend on quality."),
        click.option("--bitrate-tier", type=choice(BitrateTier)),
        click.option("--quality", type=choice(Quality)),
        click.option("--passes", type=click.IntRange(1, 2)),
        click.option("--optimize", type=choice(Optimize), help="vmaf: the smallest file that looks so good."),
        click.option("--vmaf-target", type=click.FloatRange(50, 99), help="How good, for --optimize vmaf."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def of_s3_output(place: str, whose: str) -> Callable[[Command[R]], Command[R]]:
    """Add what says where in S3 the result goes, as the argument `output_s3`, in the wire's shape.

    Args:
        place: What is named in the bucket: `key`, or `prefix`.
        whose: What it is for, for the help.
    """
    names = ("bucket", place, "region", "endpoint", "access_key_id", "secret_access_key", "force_path_style")

    def decorate(command: Command[R]) -> Command[R]:
        @click.option("--output-s3-bucket", metavar="BUCKET", help=f"{whose}: where to write instead.")
        @click.option(f"--output-s3-{place}", metavar=place.upper())
        @click.option("--output-s3-region", metavar="REGION")
        @click.option("--output-s3-endpoint", metavar="URL", help="Of an S3-compatible store.")
        @click.option("--output-s3-access-key-id", metavar="ID", envvar="CONVERTRILO_OUTPUT_S3_ACCESS_KEY_ID")
        @click.option(
            "--output-s3-secret-access-key",
            metavar="SECRET",
            envvar="CONVERTRILO_OUTPUT_S3_SECRET_ACCESS_KEY",
            show_envvar=True,
            help="Better in the environment, where no other user can read it.",
        )
        @click.option("--output-s3-force-path-style", is_flag=True, default=None)
        @wraps(command)
        def wrapped(*arguments: Any, **options: Any) -> R:
            from convertrilo.codec import wire_name

            given = {wire_name(name): options.pop(f"output_s3_{name}") for name in names}
            found = {name: value for name, value in given.items() if value is not None}
            return command(*arguments, output_s3=found, **options)

        return wrapped

    return decorate


def choice(literal: Any) -> click.Choice[str]:
    """Return the choice of one of a literal's values."""
    return click.Choice(get_args(literal))


def readable_file(path: Path | str) -> None:
    """Check that a file is there and can be read.

    Raises:
        click.UsageError: It is not.
    """
    if not Path(path).is_file():
        raise click.UsageError(f"{Path(path)} is a folder" if Path(path).is_dir() else f"there is no file {path}")
    if not os.access(path, os.R_OK):
        raise click.UsageError(f"{path} cannot be read: permission denied")


def writable_file(path: Path) -> None:
    """Check that a file can be put somewhere, before anything is done for it.

    Raises:
        click.UsageError: It cannot, or would take the place of what is no file.
    """
    if not path.parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise click.UsageError(f"{path} is no regular file")
    if not os.access(path.parent, os.W_OK):
        raise click.UsageError(f"{path} cannot be written: permission denied")
