"""Imports that need an extra: a missing extra raises an error that says how to install it."""

import importlib.util
from collections.abc import Generator
from contextlib import contextmanager

from convertrilo.errors import ConfigurationError


@contextmanager
def requires_sandbox_extra() -> Generator[None]:
    """Guard the imports of the sandbox in a `with` block.

    Raises:
        ConfigurationError: A dependency of the extra `sandbox` is not installed.
    """
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise _missing("imageio_ffmpeg")
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(error.name) from None


def _missing(module: str | None) -> ConfigurationError:
    return ConfigurationError(f'the sandbox needs {module}; install it with: pip install "convertrilo[sandbox]"')
