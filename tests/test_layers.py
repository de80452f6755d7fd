"""Imports go down the floors of the house only, and nothing of an extra is imported with the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import convertrilo

ROOT = Path(convertrilo.__file__).parent

FLOORS = """
    _clock _halving _openapi _tasks _version errors
    _json _model _output_file
    models
    codec
    events operations webhooks
    idempotency retry
    _store
    dedupe journal
    receiver
    _http
    _base_client
    _cancel bulk reconciliation transfers waiting
    encoding
    client
    ingest
    convertrilo
    sandbox.state
    sandbox.outside
    sandbox.encoding
    sandbox.api
    sandbox.web
    sandbox
    _pytest_fixtures cli dask mcp otel
    pytest_plugin
"""
"""Modules and packages, the lowest floor first; `convertrilo` is the package's own `__init__`."""
FLOOR = {unit: height for height, floor in enumerate(FLOORS.strip().splitlines()) for unit in floor.split()}
EDGES = {"sandbox", "cli", "dask", "mcp", "otel", "pytest_plugin", "_pytest_fixtures"}
EXTRAS = [
    "boto3",
    "botocore",
    "click",
    "distributed",
    "imageio_ffmpeg",
    "mcp",
    "opentelemetry",
    "orjson",
    "platformdirs",
    "pytest",
    "rich",
    "starlette",
    "uvicorn",
]

FOR_THE_SANDBOX = {"operations", "models", "codec", "errors", "webhooks"}
FOR_THE_SANDBOX |= {"_clock", "_json", "_model", "_openapi", "_version"}
"""What the sandbox may import. A server that shared the client's idea of a key would agree with its bugs."""
ABOVE_THE_WINGS = "sandbox.sandbox"
"""The only module of the sandbox that may import the client: `Sandbox.client` returns one."""


class Import(NamedTuple):
    """`importer` imports `imported`: modules, by their dotted names within the package."""

    importer: str
    imported: str
    where: str


def module_of(file: Path) -> str:
    """Return the dotted name of a file's module within the package; the package itself is `convertrilo`."""
    *folders, name = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(folders if name == "__init__" else [*folders, name]) or "convertrilo"


FILES = {module_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def unit_of(module: str) -> str:
    """Return the unit in `FLOORS` that a module belongs to."""
    parts = module.split(".")
    units = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((unit for unit in units if unit in FLOOR), module)


def imports_of(source: str, importer: str, where: str) -> Iterator[Import]:
    """Find every import of this package in a module: lazy ones, and those for type checkers only, count as well."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}:{node.lineno} is relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, *path = name.split(".")
            if package == "convertrilo":
                while path and ".".join(path) not in FILES:
                    path.pop()
                yield Import(importer, ".".join(path) or "convertrilo", f"{where}:{getattr(node, 'lineno', 0)}")


def all_imports() -> list[Import]:
    return [
        each
        for module, file in FILES.items()
        for each in imports_of(file.read_text(encoding="utf-8"), module, str(file.relative_to(ROOT)))
    ]


def going_up(imports: list[Import]) -> list[str]:
    return [
        f"{each.where}: {each.importer} imports {each.imported}"
        for each in imports
        if FLOOR[unit_of(each.imported)] > FLOOR[unit_of(each.importer)]
    ]


def circle(imports: list[Import]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for each in imports:
        if each.imported != each.importer:
            graph.setdefault(each.importer, set()).add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


def out_of_the_sandbox(imports: list[Import]) -> list[str]:
    """Find the imports that the sandbox must not have."""
    return [
        f"{each.where}: {each.imported}"
        for each in imports
        if each.importer.split(".")[0] == "sandbox"
        and each.imported.split(".")[0] not in {*FOR_THE_SANDBOX, "sandbox"}
        and (each.importer, each.imported) != (ABOVE_THE_WINGS, "client")
    ]


IMPORTS = all_imports()


def test_every_module_has_its_floor() -> None:
    assert {module for module in FILES if unit_of(module) not in FLOOR} == set()


def test_every_floor_has_its_modules() -> None:
    assert FLOOR.keys() == {unit_of(module) for module in FILES}


def test_at_most_thirty_files_lie_at_the_root() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 30


def test_imports_go_down_only() -> None:
    assert going_up(IMPORTS) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle(IMPORTS) == []


def test_the_sandbox_knows_nothing_of_how_the_client_thinks() -> None:
    assert out_of_the_sandbox(IMPORTS) == []


SEEN = [
    ("import convertrilo.client", "client"),
    ("from convertrilo.client import AsyncClient", "client"),
    ("from convertrilo import client as c", "client"),
    ("from convertrilo import AsyncClient", "convertrilo"),
    ("import convertrilo", "convertrilo"),
    ("import a, convertrilo.sandbox.api.app", "sandbox.api.app"),
    ("from convertrilo.bulk import submit_jobs", "bulk"),
    ("from convertrilo.bulk import run", "bulk.run"),
    ("class A:\n  from convertrilo import client", "client"),
    ("try:\n  from convertrilo import client\nexcept ImportError: pass", "client"),
    ("if TYPE_CHECKING:\n  from convertrilo import client", "client"),
    ("async def f():\n  if x:\n    from convertrilo import client", "client"),
]


@pytest.mark.parametrize(("source", "imported"), SEEN)
def test_no_way_of_importing_goes_unseen(source: str, imported: str) -> None:
    (found,) = imports_of(source, "errors", "errors.py")
    assert found.imported == imported
    assert len(going_up([found])) == 1


def test_a_circle_would_be_seen() -> None:
    imports = [Import("transfers", "waiting", ""), Import("waiting", "ingest", "")]
    assert circle(imports) == []
    assert set(circle([*imports, Import("ingest", "transfers", "")])) == {"transfers", "waiting", "ingest"}


@pytest.mark.parametrize("module", ["idempotency", "retry", "journal", "client", "_http.transport", "convertrilo"])
def test_what_the_sandbox_must_not_know_would_be_seen(module: str) -> None:
    source = f"import convertrilo.{module}"
    assert len(out_of_the_sandbox(list(imports_of(source, "sandbox.api.app", "sandbox/api/app.py")))) == 1


# ---- what is really imported


def run(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_nothing_of_an_extra_is_imported_with_the_package() -> None:
    names = "[getattr(convertrilo, name) for name in convertrilo.__all__]"
    loaded = run(f"import convertrilo, sys; {names}; print(*sys.modules)")
    edges = {f"convertrilo.{name}" for name in EDGES}
    assert "convertrilo.client" in loaded
    assert {name for name in loaded if ".".join(name.split(".")[:2]) in edges} == set()
    assert {"boto3", "botocore", "imageio_ffmpeg", "mcp", "opentelemetry", "pytest", "starlette", "uvicorn"} & set(
        loaded
    ) == set()  # httpx has click


FLOWS = ["bulk", "encoding", "ingest", "reconciliation", "transfers", "waiting"]


def test_a_client_loads_no_flow_and_no_journal() -> None:
    package = run("import sys, convertrilo; print(*sys.modules)")
    client = run("import sys, convertrilo; convertrilo.AsyncClient('key'); print(*sys.modules)")
    assert [name for name in package if name.startswith("convertrilo")] == ["convertrilo._version", "convertrilo"]
    assert "convertrilo._http.transport" in client
    assert {f"convertrilo.{name}" for name in [*FLOWS, "journal", "_store"]} & set(client) == set()
    assert "sqlite3" not in client


def test_a_journal_alone_loads_neither_the_models_nor_the_client() -> None:
    loaded = run("from convertrilo import Journal; import sys; print(*sys.modules)")
    assert "convertrilo.journal.folders" in loaded
    assert {"cattrs", "httpx", "convertrilo.models", "convertrilo.client"} & set(loaded) == set()


def test_everything_below_the_edges_works_without_any_extra() -> None:
    modules = [f"convertrilo.{name}" for name in FILES if name.split(".")[0] not in {*EDGES, "convertrilo"}]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); import convertrilo, {', '.join(modules)}"
    names = (
        f"{blocked}; [getattr(convertrilo, name) for name in convertrilo.__all__]; print(convertrilo.codec.__name__)"
    )
    assert run(names) == ["convertrilo.codec"]
