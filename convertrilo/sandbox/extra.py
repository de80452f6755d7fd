"""Imported before the rest of the sandbox, to say what is missing and how to install it."""

from importlib.util import find_spec

for _name in ("botocore", "starlette", "uvicorn", "yaml"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f'the sandbox needs {_name}; install it with: pip install "convertrilo[sandbox]"', name=_name
        )
