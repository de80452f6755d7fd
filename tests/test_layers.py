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
    errors _openapi _together _version _clock _whole
    _credentials
    _json _model
    models
    codec
    _objects events operations webhooks
    _manifests idempotency retry
    _batches _limiter _claims _folder_rows _redaction _sent_parts _sqlite
    _content _dedupe_sqlite _frames dedupe journal transport
    _call _folder_record _results
    _engine _reports receiver
    _base_client
    _ledger _poller _storage
    _partial _parts bulk s3 _cancel waiting
    transfers
    encoding
    client
    _remote reconciliation
    _folder_on_demand _folder_run
    ingest
    convertrilo
    sandbox
    _pytest_fixtures cli dask mcp otel
    pytest_plugin
"""
"""Every module of the package, the lowest floor first; `convertrilo` is the package's own `__init__`."""
FLOOR = {module: height for height, floor in enumerate(FLOORS.strip().splitlines()) for module in floor.split()}
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

FOR_THE_SANDBOX = {
    "operations",
    "models",
    "codec",
    "errors",
    "webhooks",
    "_clock",
    "_json",
    "_model",
    "_openapi",
    "_version",
    "sandbox",
}
"""A server that shared the client's idea of a key or of a retry would agree with its bugs."""

DOORWAYS: set[tuple[str, str]] = set()
"""Imports that go up, but not when the module is imported: inside of a function, or for type checkers only."""


class Import(NamedTuple):
    """`importer` imports `imported`: modules of the package, or packages in it."""

    importer: str
    imported: str
    at_once: bool
    """Whether it happens when the importer is imported."""
    where: str


def imports_of(source: str, importer: str, where: str) -> Iterator[Import]:
    """Find what of this package a module imports."""
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while waiting:
        node, at_once = waiting.pop()
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        later = later or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        waiting += [(child, at_once and not later) for child in ast.iter_child_nodes(node)]
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}:{node.lineno} is relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, *path = name.split(".")
            if package == "convertrilo":
                imported = path[0] if path and path[0] in FLOOR else "convertrilo"
                yield Import(
                    importer, imported, at_once, f"{where}:{node.lineno}" if hasattr(node, "lineno") else where
                )


def all_imports() -> list[Import]:
    found: list[Import] = []
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT)
        importer = "convertrilo" if path.name == "__init__.py" and len(path.parts) == 1 else path.parts[0].split(".")[0]
        found += imports_of(file.read_text(encoding="utf-8"), importer, str(path))
    return found


def going_up(imports: list[Import]) -> list[str]:
    return [
        f"{each.where}: {each.importer} imports {each.imported}"
        for each in imports
        if each.importer in FLOOR
        and FLOOR[each.imported] > FLOOR[each.importer]
        and (each.at_once or (each.importer, each.imported) not in DOORWAYS)
    ]


def circle(imports: list[Import]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for each in imports:
        if each.at_once and each.imported != each.importer:
            graph.setdefault(each.importer, set()).add(each.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


def out_of_the_sandbox(imports: list[Import]) -> list[str]:
    """Find what the sandbox imports and must not; its doorway alone hands out a client."""
    return [
        f"{each.where}: {each.imported}"
        for each in imports
        if each.importer == "sandbox"
        and each.imported not in FOR_THE_SANDBOX
        and not (each.imported == "client" and each.where.startswith("sandbox/__init__.py:"))
    ]


IMPORTS = all_imports()


def test_every_module_has_its_floor() -> None:
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {"__init__"} - FLOOR.keys() == set()


def test_imports_go_down_only() -> None:
    assert going_up(IMPORTS) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle(IMPORTS) == []


def test_every_doorway_is_used() -> None:
    assert {(each.importer, each.imported) for each in IMPORTS} >= DOORWAYS


def test_the_sandbox_knows_nothing_of_how_the_client_thinks() -> None:
    assert out_of_the_sandbox(IMPORTS) == []


SEEN = [
    ("import convertrilo.client", "client", True),
    ("from convertrilo.client import AsyncClient", "client", True),
    ("from convertrilo import client as c", "client", True),
    ("from convertrilo import AsyncClient", "convertrilo", True),
    ("import convertrilo", "convertrilo", True),
    ("import a, convertrilo.sandbox.app", "sandbox", True),
    ("class A:\n  from convertrilo import client", "client", True),
    ("try:\n  from convertrilo import client\nexcept ImportError: pass", "client", True),
    ("if TYPE_CHECKING:\n  from convertrilo import client", "client", False),
    ("async def f():\n  if x:\n    from convertrilo import client", "client", False),
]


@pytest.mark.parametrize(("source", "imported", "at_once"), SEEN)
def test_no_way_of_importing_goes_unseen(source: str, imported: str, at_once: bool) -> None:
    (found,) = imports_of(source, "errors", "errors.py")
    assert (found.imported, found.at_once) == (imported, at_once)
    assert len(going_up([found])) == 1


def test_a_doorway_is_open_only_after_the_import() -> None:
    (at_once,) = imports_of("from convertrilo import waiting", "client", "client.py")
    (later,) = imports_of("def f():\n  from convertrilo import waiting", "client", "client.py")
    assert len(going_up([at_once])) == 1
    assert going_up([later]) == []


def test_a_circle_would_be_seen() -> None:
    imports = [Import("transfers", "waiting", True, ""), Import("waiting", "ingest", True, "")]
    assert circle(imports) == []
    assert set(circle([*imports, Import("ingest", "transfers", True, "")])) == {"transfers", "waiting", "ingest"}


@pytest.mark.parametrize("module", ["idempotency", "retry", "journal", "client", "transport", "convertrilo"])
def test_what_the_sandbox_must_not_know_would_be_seen(module: str) -> None:
    assert len(out_of_the_sandbox(list(imports_of(f"import convertrilo.{module}", "sandbox", "sandbox/app.py")))) == 1


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


def test_everything_below_the_edges_works_without_any_extra() -> None:
    modules = [f"convertrilo.{name}" for name in FLOOR if name not in EDGES and (ROOT / f"{name}.py").exists()]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); import convertrilo, {', '.join(modules)}"
    names = (
        f"{blocked}; [getattr(convertrilo, name) for name in convertrilo.__all__]; print(convertrilo.codec.__name__)"
    )
    assert run(names) == ["convertrilo.codec"]
