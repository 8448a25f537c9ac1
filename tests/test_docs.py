"""The README and the documentation: their length, links and examples; CI builds the site itself."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    missing = [link for link in missing if "gallery/" not in link]  # made by the build
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_pages_compiles(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(block, str(page), "exec")


EXAMPLES = sorted((ROOT / "docs/examples").rglob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_import_what_exists(example):
    tree = ast.parse(example.read_text())
    assert ast.get_docstring(tree), "a title and what the example shows"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "diffusion_lab":
            module = importlib.import_module(node.module)
            for name in {alias.name for alias in node.names}:
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")


def test_cited_papers_are_in_the_bibliography():
    entries = (ROOT / "docs/references.bib").read_text()
    keys, cited = set(re.findall(r"^@\w+\{(\w+)", entries, re.MULTILINE)), set()
    for example in EXAMPLES:
        cited |= set(",".join(re.findall(r":cite:[pt]:`([^`]+)`", example.read_text())).split(","))
    assert cited - {""} <= keys
    sources = [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "diffusion_lab").rglob("*.py")]
    named = {number for path in sources for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", path.read_text())}
    assert sorted(number for number in named if number not in entries) == []


def test_the_functions_of_equations_exist():
    page = (ROOT / "docs/equations.md").read_text()
    rows = re.findall(r"^\|.*\| `([\w/.]+)` \| `([\w.]+)` \|$", page, re.MULTILINE)
    assert len(rows) > 60
    missing = [row for row in rows if row[1] not in names_of(ROOT / "diffusion_lab" / row[0])]
    assert missing == []


def names_of(path: Path) -> set[str]:
    """Functions and classes of a file, and methods as Class.method."""
    defined = (ast.FunctionDef, ast.ClassDef)
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, defined):
            names |= {
                node.name,
                *(f"{node.name}.{part.name}" for part in getattr(node, "body", ()) if isinstance(part, defined)),
            }
    return names
