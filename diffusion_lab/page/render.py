"""From the templates beside this file to a page: one file, which loads nothing and sends nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.page import chart
from diffusion_lab.storage.atomic_file import write_text

PAGE = "report.html"
"""Name of the page in the directory of a run, a sweep or a comparison."""

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, values: Mapping[str, Any]) -> str:
    """The HTML of a template with these values, whose text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["axes"] = chart
    environment.filters["breakable"] = breakable
    return environment.get_template(template).render(values)


def breakable(text: str) -> Any:
    """A name that a narrow page may break after its underscores and dots."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_.])(?=\w)", r"\1<wbr>", str(escape(text))))


def write(template: str, values: Mapping[str, Any], path: Path) -> None:
    """Write the page of a template.

    Raises:
        OSError: if it cannot be written.
    """
    write_text(path, render(template, values))
