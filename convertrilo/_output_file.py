"""A file that takes its place only once it is whole: where it grows, and what it may take the place of."""

import errno
import os
from pathlib import Path


def part_of(path: Path) -> Path:
    """Return where a file is until it is whole."""
    return path.parent / f"{path.name}.part"


def check_place(path: Path) -> None:
    """Refuse to put a file where something else is.

    Raises:
        OSError: It would take the place of a folder, or of a device or a pipe, for all who use it.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
