"""`convertrilo` without a command: ask what to encode, and show the equivalent command."""

import shlex
from pathlib import Path
from typing import Any

import click

from convertrilo.cli.options import choice
from convertrilo.cli.output import note
from convertrilo.models import Codec, OnDemandResolution, Quality


def ask() -> list[str]:
    """Ask on the terminal what to encode, and return the arguments of the equivalent command."""
    note("What do you want to encode? (Ctrl-C quits; convertrilo --help lists all commands.)")
    source = _prompt("File or URL", value_proc=_source)
    codec = _prompt("Codec", type=choice(Codec), default="h264")
    resolution = _prompt("Maximum height", type=choice(OnDemandResolution), default="1080p")
    quality = _prompt("Quality", type=choice(Quality), default="better")
    stem = Path(source.partition("?")[0].rpartition("/")[2]).stem or "output"
    path = _prompt("Output file", default=f"{stem}.{codec}.mp4")
    arguments = ["encode", source, "--codec", codec, "--resolution", resolution, "--quality", quality, "-o", path]
    if not _has_account() and click.confirm(
        "No account is configured. Encode on this machine?", default=True, err=True
    ):
        arguments.append("--sandbox")
    note(f"The same as one command: convertrilo {shlex.join(arguments)}")
    return arguments


def _prompt(text: str, **options: Any) -> str:
    return str(click.prompt(text, err=True, **options))


def _source(text: str) -> str:
    source = text.strip()
    if "://" not in source and not Path(source).expanduser().is_file():
        raise click.BadParameter(f"there is no file {source}")
    return source if "://" in source else str(Path(source).expanduser())


def _has_account() -> bool:
    from convertrilo.cli.settings import account_settings

    account = account_settings(None)
    return bool(account.api_key or account.access_token)
