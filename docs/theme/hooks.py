"""Hooks of the site: they add README, changelog, examples and openapi.yaml to it, and point links at them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(?<=\]\()(?![\w+]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside docs/."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    files.append(File.generated(config, "CHANGELOG.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    files.append(File.generated(config, "openapi.yaml", abs_src_path=str(ROOT / "openapi.yaml")))
    for example in sorted((ROOT / "examples").iterdir()):
        scripts = sorted(example.glob("*.py")) if example.is_dir() else [example]
        if scripts:
            code = [f"## {each.name}\n\n```python\n{each.read_text(encoding='utf-8')}```\n" for each in scripts]
            page = f"# examples/{example.name}\n\n" + "\n".join(code)
            files.append(File.generated(config, f"examples/{example.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links at the places of their targets on the site."""
    if page.file.src_uri.startswith("examples/"):
        return markdown
    source = ROOT if page.file.src_uri in ("index.md", "CHANGELOG.md") else ROOT / "docs"
    return _LINK.sub(lambda link: _on_the_site((source / link[1]).resolve()) or link[1], markdown)


def _on_the_site(target: Path) -> str | None:
    path = target.relative_to(ROOT) if target.is_relative_to(ROOT) else None
    if path is None or not target.exists():
        return None
    if path.parts[0] == "docs":
        return str(path.relative_to("docs"))
    if path == Path("README.md"):
        return "index.md"
    return f"examples/{path.stem}.md" if path.parts[0] == "examples" else str(path)
