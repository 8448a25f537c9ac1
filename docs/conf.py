"""Sphinx: the guide, the gallery of executed examples, and the API.  sphinx-build -W -n docs docs/_build"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # docstrings.py, before_example.py
os.environ.update({"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "TQDM_DISABLE": "1"})

import docstrings  # noqa: E402

project = "diffusion_lab"
author = "the authors of diffusion_lab"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "myst_parser",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "examples"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
highlight_language = "none"  # equations in docstrings
html_theme = "furo"
html_title = "diffusion_lab"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_copyright = False
copybutton_prompt_text = "$ "

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

nitpick_ignore_regex = [("py:exc", r"\w+")]  # what a docstring raises
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def source() -> str:
    """Where a notebook installs the package from: $DIFFUSION_LAB_SOURCE, or the checkout's remote repository."""
    command = ["git", "-C", str(HERE), "remote", "get-url", "origin"]
    origin = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return os.environ.get("DIFFUSION_LAB_SOURCE") or f"git+{origin or 'ADDRESS-OF-THE-REPOSITORY'}"


FIRST_CELL = f"""# Where the package is not installed, such as in Colab.
import importlib.util

if importlib.util.find_spec("diffusion_lab") is None:
    %pip install -q "{source()}"
%matplotlib inline"""

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "parallel": 2,
    "reset_modules": ("matplotlib", "before_example.quiet"),
    "remove_config_comments": True,
    "show_signature": False,
    "capture_repr": (),
    "reference_url": {"diffusion_lab": None},
    "image_srcset": ["2x"],
    "min_reported_time": 0,
    "first_notebook_cell": FIRST_CELL,
    "download_all_examples": True,
}


def setup(app: object) -> None:
    app.connect("autodoc-process-docstring", docstrings.to_rst, priority=400)  # before napoleon
