"""Checks of the local files that a command is given, made before the command does any work."""

import os
from pathlib import Path

import click


def check_readable(path: Path | str) -> None:
    """Check that a file exists and can be read.

    Raises:
        click.UsageError: The file does not exist, is a folder, or cannot be read.
    """
    if not Path(path).is_file():
        raise click.UsageError(f"{Path(path)} is a folder" if Path(path).is_dir() else f"there is no file {path}")
    if not os.access(path, os.R_OK):
        raise click.UsageError(f"{path} cannot be read: permission denied")


def check_writable(path: Path) -> None:
    """Check that a file can be written at a path.

    Raises:
        click.UsageError: The folder does not exist or is read-only, or the path names something other than a file.
    """
    if not path.parent.is_dir():
        raise click.UsageError(f"there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise click.UsageError(f"{path} is not a regular file")
    if not os.access(path.parent, os.W_OK):
        raise click.UsageError(f"{path} cannot be written: permission denied")
