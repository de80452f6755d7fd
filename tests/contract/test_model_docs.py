"""The docstring of every model field is the description that openapi.yaml has of it: editors and the site show it.

`python tests/contract/test_model_docs.py` writes the docstrings into `models.py`.
"""

import ast
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from convertrilo import models
from convertrilo._model import Model, field_specs
from convertrilo.codec import wire_name

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "convertrilo" / "models.py"
SCHEMAS: dict[str, Any] = yaml.safe_load((ROOT / "openapi.yaml").read_text(encoding="utf-8"))["components"]["schemas"]
WIDTH = 120

Docs = dict[str, str]
"""Documentation by field, such as `JobCreateRequest.fps`."""


# ---- what openapi.yaml says


def described() -> Docs:
    """Return the docstrings that the fields should have."""
    docs: Docs = {}
    for name, schema in SCHEMAS.items():
        if cls := getattr(models, name, None):
            for field, description in descriptions(cls, schema):
                docs.setdefault(field, in_python(description))
                assert docs[field] == in_python(description), f"openapi.yaml describes {field} in two ways"
    return docs


def descriptions(cls: type[Model], schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find the description of each field of a model, and of the models that stand inside it."""
    for each in schema.get("oneOf", [schema]):
        for spec in field_specs(cls):
            if node := each["properties"].get(wire_name(spec.name)):
                yield f"{cls.__name__}.{spec.name}", described_by(node)
                inner = node.get("items", node)
                if issubclass(spec.kind, Model) and not {"$ref", "allOf"} & inner.keys():
                    yield from descriptions(spec.kind, inner)


def described_by(node: dict[str, Any]) -> str:
    """Return the first paragraph about a property, and its default; a reference is described where its schema is."""
    schema = SCHEMAS[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    paragraph = " ".join(schema["description"].strip().partition("\n\n")[0].split())
    default = json.dumps(node["default"]) if node.get("default") in ("", False) else node.get("default")
    return paragraph if default is None else f"{paragraph} Default: `{default}`."


IN_PYTHON = {"null": "None", "true": "True", "false": "False"} | {
    wire_name(spec.name): spec.name
    for cls in vars(models).values()
    if isinstance(cls, type) and issubclass(cls, Model)
    for spec in field_specs(cls)
}


def in_python(description: str) -> str:
    """Return a description with the names in backticks as Python has them."""
    return re.sub(
        "`[^`]*`", lambda code: re.sub(r"\w+", lambda word: IN_PYTHON.get(word[0], word[0]), code[0]), description
    )


# ---- what models.py says


def fields(source: str) -> Iterator[tuple[str, ast.AnnAssign, ast.Expr | None]]:
    """Find each field of the classes in a source, with the docstring below it."""
    for cls in ast.parse(source).body:
        if isinstance(cls, ast.ClassDef):
            for node, below in zip(cls.body, [*cls.body[1:], None], strict=True):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    yield f"{cls.name}.{node.target.id}", node, below if isinstance(below, ast.Expr) else None


def documented(source: str) -> Docs:
    """Return the docstrings that the fields have; an empty one if there is none."""
    return {
        name: "" if doc is None else " ".join(ast.literal_eval(doc.value).split()) for name, _, doc in fields(source)
    }


def written(source: str, docs: Docs) -> str:
    """Return the source with these docstrings."""
    lines = source.splitlines()
    for name, node, doc in reversed(list(fields(source))):
        assert node.end_lineno is not None
        last = node.end_lineno if doc is None else doc.end_lineno
        text = textwrap.indent(f'"""{docs[name]}"""', "    ")
        lines[node.end_lineno : last] = textwrap.wrap(
            text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def test_every_field_has_the_description_of_the_contract() -> None:
    missing = "python tests/contract/test_model_docs.py writes the docstrings"
    assert documented(MODELS.read_text(encoding="utf-8")) == described(), missing


SOURCE = '''class S3Source(Model):
    """An object."""

    bucket: str | None = None
    key: str = field(
        default=None,
    )
    """Old."""
    region: str
'''


def test_docstrings_are_written_below_their_fields_and_wrapped() -> None:
    docs = {"S3Source.bucket": "A bucket.", "S3Source.key": "word " * 40 + "end.", "S3Source.region": "A region."}
    text = written(SOURCE, docs)
    assert documented(text) == docs
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "Old." not in text
    assert written(text, docs) == text
    assert documented(SOURCE) == {"S3Source.bucket": "", "S3Source.key": "Old.", "S3Source.region": ""}


@pytest.mark.parametrize(
    ("description", "docstring"),
    [
        ("The `externalId`, a colon and the name.", "The `external_id`, a colon and the name."),
        ("Without one `null`; the null device is none.", "Without one `None`; the null device is none."),
        (
            "See `onDemandStatus` and `output…`: `isActive: true`.",
            "See `onDemandStatus` and `output…`: `is_active: True`.",
        ),
    ],
)
def test_a_description_is_put_as_python_has_it(description: str, docstring: str) -> None:
    assert in_python(description) == docstring


@pytest.mark.parametrize(
    ("node", "docstring"),
    [
        ({"description": "Code:\n  a word.\n\n| a | table |\n"}, "Code: a word."),
        ({"description": "Speed.\n", "default": "fast"}, "Speed. Default: `fast`."),
        ({"description": "Prefix.", "default": ""}, 'Prefix. Default: `""`.'),
        ({"description": "Whether.", "default": False}, "Whether. Default: `false`."),
        ({"$ref": "#/components/schemas/JobUpload"}, "Where to upload the source."),
    ],
)
def test_the_first_paragraph_and_the_default_are_taken(node: dict[str, Any], docstring: str) -> None:
    assert described_by(node) == docstring


if __name__ == "__main__":
    MODELS.write_text(written(MODELS.read_text(encoding="utf-8"), described()), encoding="utf-8")
    sys.stdout.write(f"{MODELS}\n")
