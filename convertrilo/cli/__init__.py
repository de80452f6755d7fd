"""The command `convertrilo`: a thin layer over `AsyncClient`."""

import os
import sys

_EXTRA = frozenset({"click", "platformdirs", "rich"})


def main() -> None:
    """Run the command with the process's arguments, and exit with its exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the parent process closed it
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  # open until exit
    try:
        from convertrilo.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.stderr.write(f'convertrilo: this needs {error.name}; install it with: pip install "convertrilo[cli]"\n')
        code = 2
    sys.exit(code)
