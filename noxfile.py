"""The project's checks: `nox` runs lint, types, tests, docs and package; `nox -s chaos`, `s3` and `bench` do more."""

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "docs", "package"]
nox.options.reuse_existing_virtualenvs = True

GROUPS = nox.project.dependency_groups
PROJECT = nox.project.load_toml("pyproject.toml")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*GROUPS(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, both strict, and that every public name has one."""
    session.install("-e", ".[all]", *GROUPS(PROJECT, "test", "types"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "convertrilo", "--ignoreexternal")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on asyncio and trio; arguments go to pytest."""
    session.install("-e", ".[all]", *GROUPS(PROJECT, "test"))
    session.run("pytest", "--numprocesses", "auto", "--dist", "worksteal", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Run the tests under faults and kills at their full scale, for minutes; arguments go to pytest."""
    session.install("-e", ".[all]", *GROUPS(PROJECT, "test"))
    files = ["tests/chaos", "tests/_http/test_transport.py", "tests/test_webhook_fuzz.py"]
    session.run("pytest", *(session.posargs or files), env={"CHAOS_SCALE": "full"})


@nox.session
def s3(session: nox.Session) -> None:
    """Run the tests of S3 against Ceph's radosgw, which checks signatures as AWS does; arguments go to pytest."""
    if missing := [name for name in ("radosgw", "ceph-mon", "ceph-osd") if shutil.which(name) is None]:
        packages = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
        session.error(f"{', '.join(missing)} not found; on Debian: {packages}")
    session.install("-e", ".[all]", *GROUPS(PROJECT, "test"))
    files = [
        f"tests/{name}.py"
        for name in ("sandbox/outside/test_sandbox_s3", "sandbox/outside/test_sandbox_s3_signed", "ingest/test_listing")
    ]
    session.run("pytest", *files, *session.posargs, env={"OBJECT_STORE": "radosgw"})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into site/; a warning is an error."""
    session.install(*GROUPS(PROJECT, "docs"))
    session.run(
        "mkdocs", "build", "--quiet", "--config-file", "docs/theme/mkdocs.yml", env={"NO_MKDOCS_2_WARNING": "1"}
    )


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, look into them, and install them bare, with each extra, and on each Python there is."""
    session.install("build", "twine")
    folder = session.create_tmp()
    shutil.rmtree(folder)
    session.run("python", "-m", "build", "--outdir", folder)
    session.run("twine", "check", "--strict", *map(str, Path(folder).iterdir()))
    session.run("python", "tests/package.py", folder, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, side by side in one run, and print ratios; arguments go to the benchmarks."""
    session.install("-e", ".[all]", *GROUPS(PROJECT, "bench"))
    session.run("python", "-m", "tests.bench", *session.posargs)
