"""An output file that appears only once it is complete: its `.part` file, and the files that it may replace."""

import errno
import os
from pathlib import Path


def part_path(path: Path) -> Path:
    """Return the path of the `.part` file in which a file grows until it is complete."""
    return path.parent / f"{path.name}.part"


def check_replaceable(path: Path) -> None:
    """Check that a file may be written to this path: nothing or a regular file may be there.

    Raises:
        OSError: The path is a folder, a device or a pipe.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
