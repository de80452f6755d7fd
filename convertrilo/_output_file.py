"""An output file that appears only once it is complete: the `.part` file it grows in, and what it may replace."""

import errno
import os
from pathlib import Path


def part_path(path: Path) -> Path:
    """Return the path of the `.part` file in which a file grows until it is complete."""
    return path.parent / f"{path.name}.part"


def check_replaceable(path: Path) -> None:
    """Raise unless a file may be put at this path: nothing or a regular file must be there.

    Raises:
        OSError: A folder is there, or a device or a pipe, which other programs may use.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
