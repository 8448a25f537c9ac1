"""The files around the code: citation, changes, container, contributing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from test_layers import MAY_IMPORT, PACKAGE

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert citation["version"] == version
    assert f"## [{version}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
    converter = pytest.importorskip("cffconvert")
    converter.Citation((ROOT / "CITATION.cff").read_text()).validate()


def test_every_package_is_described():
    packages = {part for part in MAY_IMPORT if (PACKAGE / part).is_dir()}
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Packages and their imports")[2]
    assert packages == {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)
    }


def test_what_the_container_copies_exists_and_is_let_in():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists() and f"!{name}" in allowed, name


def test_links_of_the_project_files_lead_somewhere():
    for file in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^):#]+)[^)]*\)", (ROOT / file).read_text()):
            assert (ROOT / target).exists() or target.startswith("http"), (file, target)


def test_the_issue_forms_are_forms():
    for file in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text())
        assert form["name"] and form["description"] and all("type" in part for part in form["body"]), file
