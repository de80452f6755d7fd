"""The client to compare with, which openapi-python-client generates from `openapi.yaml`."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

_OPENAPI = Path(__file__).parents[2] / "openapi.yaml"
_PACKAGE = "generated_client"


def generate(directory: Path) -> bool:
    """Generate the client below a directory; return False if the generator is not installed."""
    if importlib.util.find_spec("openapi_python_client") is None:
        return False
    config = directory / "config.yaml"
    config.write_text("post_hooks: []\n")  # the code need not be formatted
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    command += ["--path", str(_OPENAPI), "--config", str(config), "--output-path", str(directory / _PACKAGE)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return True


@attrs.frozen
class Generated:
    """The parts of the generated client that are measured."""

    client: Any
    job_status: Any
    create_jobs_bulk: Any
    models: Any


def load(directory: Path) -> Generated:
    """Import the client that was generated below a directory."""
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
    return Generated(
        client=importlib.import_module(f"{_PACKAGE}.client").AuthenticatedClient,
        job_status=importlib.import_module(f"{_PACKAGE}.api.jobs.job_status").asyncio,
        create_jobs_bulk=importlib.import_module(f"{_PACKAGE}.api.bulk.create_jobs_bulk").asyncio,
        models=importlib.import_module(f"{_PACKAGE}.models"),
    )
