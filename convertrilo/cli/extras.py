"""What only an extra brings: a missing one is an error that says how to install it."""

import importlib.util
from collections.abc import Generator
from contextlib import contextmanager

from convertrilo.errors import ConfigurationError


@contextmanager
def needing_the_sandbox() -> Generator[None]:
    """Import the sandbox in here.

    Raises:
        ConfigurationError: Something that the extra `sandbox` brings is not installed.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise _missing("imageio_ffmpeg")
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(error.name) from None


def _missing(module: str | None) -> ConfigurationError:
    return ConfigurationError(f'the sandbox needs {module}; install it with: pip install "convertrilo[sandbox]"')
