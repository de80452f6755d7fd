"""Check that the extra `sandbox` is installed; imported before the rest of the sandbox."""

from importlib.util import find_spec

for _name in ("botocore", "starlette", "uvicorn", "yaml"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f'the sandbox needs {_name}; install it with: pip install "convertrilo[sandbox]"', name=_name
        )
