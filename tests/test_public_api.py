"""The public API, name by name, is as `public_api.txt` has it; a change is made there too, on purpose.

`python tests/test_public_api.py` writes the file anew.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

FILE = Path(__file__).with_name("public_api.txt")
REFERENCE = Path(__file__).parents[1] / "docs" / "REFERENCE.md"
MODULES: dict[str, list[str] | None] = {
    "convertrilo": None,
    "convertrilo.webhooks": None,
    "convertrilo.otel": None,
    "convertrilo.dask": ["DaskEngine"],
    "convertrilo.dedupe": ["DedupeStore"],
    "convertrilo.journal": ["Entry"],
    "convertrilo.operations": ["Auth"],
    "convertrilo.reconciliation": ["Reconciliation"],
    "convertrilo.retry": ["FailureKind"],
    "convertrilo.waiting": ["HasJobId"],
    "convertrilo.sandbox": None,
    "convertrilo.pytest_plugin": None,
}
"""The modules with public names, and which they are where it is not all that a module has for its own."""


def listing() -> str:
    """Every public name with its signature, one a line."""
    lines: list[str] = []
    for name, chosen in MODULES.items():
        module = import_module(name)
        own = [each for each in vars(module) if not each.startswith("_") and _is_at_home(module, each)]
        lines += ["", f"# {name}"]
        for each in sorted(chosen or getattr(module, "__all__", own)):
            lines += _lines(module, each)
    return "\n".join(lines[1:]) + "\n"


def _is_at_home(module: Any, name: str) -> bool:
    value = getattr(module, name)
    return callable(value) and getattr(value, "__module__", None) == module.__name__ and not isinstance(value, type)


def _lines(module: Any, name: str) -> Iterator[str]:
    value = getattr(module, name)
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}({bases})" if bases else f"class {name}"
        yield from (f"    {line}" for line in _members(value))
    elif callable(value) and hasattr(value, "__name__"):
        yield f"{_kind(value)}{name}{_signature(value)}"
    elif hasattr(value, "_get_wrapped_function"):
        yield f"fixture {name}"
    else:
        yield name if name in ("__version__", "OPERATIONS") else f"{name} = {_text(value)}"


def _members(cls: type) -> Iterator[str]:
    if attrs.has(cls):
        yield from (f"{field.name}: {_annotation(field.type)}" for field in attrs.fields(cls) if field.name != "_extra")
    elif "__init__" in _own_members(cls):
        yield f"__init__{_signature(_own_members(cls)['__init__'])}"
    for name, value in sorted(_own_members(cls).items()):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") and name not in ("__aenter__", "__aexit__", "__call__"):
            continue
        if isinstance(value, property):
            yield f"property {name}: {_annotation(inspect.signature(value.fget).return_annotation)}"  # type: ignore[arg-type]
        elif inspect.isfunction(function):
            yield f"{_kind(function)}{name}{_signature(function)}"
        elif not attrs.has(cls) and not inspect.ismemberdescriptor(value):
            yield f"{name} = {_text(value)}"


def _own_members(cls: type) -> dict[str, Any]:
    """Return the members of a class, those of a base that has no public name of its own included."""
    hidden = [base for base in cls.__mro__[1:] if base.__module__ == "convertrilo._base_client"]
    return {name: value for each in [*reversed(hidden), cls] for name, value in vars(each).items()}


def _kind(function: Any) -> str:
    return "async def " if inspect.iscoroutinefunction(function) else "def "


def _text(value: Any) -> str:
    return str(sorted(value)) if isinstance(value, frozenset) else str(value)


def _annotation(annotation: Any) -> str:
    return _short(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _signature(function: Any) -> str:
    return _short(str(inspect.signature(function)))


def _short(text: str) -> str:
    """Leave out the modules of names, and where in memory a default is."""
    return re.sub(
        r"<([\w.]+) object at 0x\w+>",
        r"\1()",
        re.sub(r"(?<!/)\b(convertrilo(\.\w+)*|collections\.abc|typing)\.", "", text),
    )


def test_the_public_api_is_what_the_file_says() -> None:
    known, now = FILE.read_text(encoding="utf-8"), listing()
    changes = difflib.unified_diff(known.splitlines(), now.splitlines(), FILE.name, "the code", lineterm="", n=0)
    assert known == now, "python tests/test_public_api.py writes it anew:\n" + "\n".join(changes)


def test_what_the_reference_shows_is_in_the_file() -> None:
    listed = set(re.findall(r"^(?:class|def|async def) (\w+)", FILE.read_text(encoding="utf-8"), re.MULTILINE))
    shown: set[str] = set()
    for name in re.findall(r"^::: ([\w.]+)", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE):
        if name in MODULES or name in ("convertrilo.errors", "convertrilo.models"):
            module = import_module(name)
            shown |= {each.__name__ for each in vars(module).values() if _is_public_class(each, name)}
        else:
            shown.add(name.rpartition(".")[2])
    assert len(shown) > 100
    assert shown - listed == set()


def _is_public_class(value: Any, module: str) -> bool:
    return inspect.isclass(value) and value.__module__ == module and not value.__name__.startswith("_")


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
