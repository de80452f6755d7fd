"""Checks of what is released: `python tests/package.py DIST`, as `nox -s package` does with a fresh build.

Looks into wheel and sdist, then installs the wheel into bare environments: of each supported Python that this machine
has, and of each extra alone. What works without an extra must work, and what does not must say how to install it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = re.findall(r'"(.+)"', (ROOT / "convertrilo" / "_version.py").read_text(encoding="utf-8"))[-1]
EXTRAS = sorted(PROJECT["optional-dependencies"])
PYTHONS = [each.rpartition(" :: ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]

WORKS = {
    "": "import convertrilo as c; [getattr(c, name) for name in c.__all__]; c.AsyncClient('k')",
    "cli": "from convertrilo.cli.app import run; assert run(['--version']) == 0",
    "dask": "from convertrilo.dask import DaskEngine",
    "fast": "from convertrilo import _json; assert _json.orjson",
    "mcp": "import convertrilo.mcp.server",
    "otel": "import convertrilo; from convertrilo.otel import instrument; instrument(convertrilo.AsyncClient('k'))",
    "s3": "import botocore, convertrilo.ingest.listing",
    "sandbox": "import anyio; from convertrilo.sandbox import Sandbox\n"
    "async def main():\n"
    "    async with Sandbox() as sandbox, sandbox.client() as client:\n"
    "        assert (await client.get_balance()).available\n"
    "anyio.run(main)",
}
"""What can be done with each extra alone (and with none, and so with any)."""

MISSING = {
    "cli": "from convertrilo.cli import main; main()",
    "dask": "import convertrilo.dask",
    "mcp": "from convertrilo.mcp import main; main()",
    "otel": "import convertrilo.otel",
    "s3": "import anyio, convertrilo\n"
    "async def main():\n"
    "    async with convertrilo.AsyncClient('k') as client:\n"
    "        job = {'codec': 'av1', 'resolution': '720p', 'fps': 30}\n"
    "        await convertrilo.ingest_folder(client, 's3://bucket/prefix', job, journal='journal.db')\n"
    "anyio.run(main)",
    "sandbox": "import convertrilo.sandbox",
}
"""What cannot be done without an extra; the error names it."""


def main() -> None:
    """Check a folder with one wheel and one sdist in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--quick", action="store_true", help="install with this Python only, and no extra alone")
    arguments = parser.parse_args()
    [wheel], [sdist] = arguments.dist.glob("*.whl"), arguments.dist.glob("*.tar.gz")
    assert set(WORKS) == {"", "all", *EXTRAS} - {"all"}, "WORKS has another list of extras than pyproject.toml"
    check_wheel(wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory() as folder:
        for number, (python, extra) in enumerate(environments(quick=arguments.quick)):
            say(f"{python} [{extra}]")
            check_installed(Path(folder) / str(number), python, wheel, extra)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# ---- what is in them


def check_wheel(wheel: Path) -> None:
    """Check names and metadata of a wheel."""
    assert wheel.name == f"convertrilo-{VERSION}-py3-none-any.whl", wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = f"convertrilo-{VERSION}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "convertrilo").rglob("*") if is_source(path)}
    assert "convertrilo/py.typed" in ours
    expected = ours | {"convertrilo/openapi.yaml"}
    of_wheel = {name for name in names if not name.startswith(info)}
    assert of_wheel == expected, f"not as they should be in the wheel: {sorted(of_wheel ^ expected)}"
    assert f"{info}/licenses/LICENSE" in names
    assert (metadata["Name"], metadata["Version"]) == ("convertrilo", VERSION)
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(EXTRAS)
    bare = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(bare) == len(PROJECT["dependencies"]), bare
    assert str(metadata.get_payload()).startswith("# convertrilo")
    for name in (*PROJECT["scripts"], "convertrilo.pytest_plugin"):
        assert name in entry_points, f"{name} is no entry point"
    say(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e3:.0f} kB")


def is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def check_sdist(sdist: Path) -> None:
    """Check that the sdist has what is needed to build, to test and to read."""
    top = f"convertrilo-{VERSION}"
    assert sdist.name == f"{top}.tar.gz", sdist.name
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {name for name in tracked if not name.startswith(".ci/")}
    assert wanted <= names, f"not in the sdist: {sorted(wanted - names)[:9]}"
    strays = {name for name in names - set(tracked) if name != "PKG-INFO"}
    assert not strays, f"in the sdist, and in no commit: {sorted(strays)[:9]}"
    say(f"{sdist.name}: {len(names)} files, {sdist.stat().st_size / 1e3:.0f} kB")


# ---- what they do


def environments(*, quick: bool) -> Iterator[tuple[str, str]]:
    """Yield each Python and extra to install with; no extra is the empty one."""
    if quick:
        yield sys.executable, ""
        return
    found = [python for version in PYTHONS if (python := find_python(version))]
    for python in found:
        yield python, ""
    for extra in EXTRAS:
        if extra != "all":
            yield found[0], extra
    for python in found[-1:]:
        yield python, "all"


def find_python(version: str) -> str | None:
    """Return a Python of a version that runs, from the path or from pyenv, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python"))), shutil.which(f"python{version}")]
    for python in filter(None, reversed(candidates)):
        done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return python
    say(f"there is no Python {version} here")
    return None


def check_installed(folder: Path, python: str, wheel: Path, extra: str) -> None:
    """Install into a fresh environment, and check what works and what is said to be missing."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    inside = str(folder / "bin" / "python")
    requirement = f"convertrilo[{extra}] @ {wheel.absolute().as_uri()}" if extra else str(wheel)
    command = [sys.executable, "-m", "pip", "--python", inside, "install", "--quiet", "--no-compile", requirement]
    subprocess.run(command, check=True)
    said = run(inside, "-c", "import convertrilo; print(convertrilo.__version__)")
    assert said.stdout.strip() == VERSION, said
    if extra in ("cli", "all"):
        said = subprocess.run([folder / "bin" / "convertrilo", "--version"], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == f"convertrilo, version {VERSION}", said.stdout
    for name, script in WORKS.items():
        if name in ("", extra) or extra == "all":
            done = run(inside, "-c", script)
            assert done.returncode == 0, f"{extra or 'bare'}: {name} does not work: {done.stderr}"
    for name, script in MISSING.items():
        if not extra:
            done = run(inside, "-c", script)
            assert done.returncode != 0, f"{name} works without the extra"
            assert f'pip install "convertrilo[{name}]"' in done.stderr, f"{name}: {done.stderr}"


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(command[0]).parent)


if __name__ == "__main__":
    main()
