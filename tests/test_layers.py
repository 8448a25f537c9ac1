"""Who may import whom, and what nothing may be called (shared/design.md, section 4)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "diffusion_lab"
MAY_IMPORT = {
    "network": set(),
    "process": set(),
    "noise": set(),
    "file_lock": set(),
    "whole_file": {"file_lock"},
    "finite": set(),
    "memory": set(),
    "bad_item": set(),
    "output": set(),
    "parameterization": {"process"},
    "denoiser": {"parameterization", "process"},
    "guidance": {"denoiser"},
    "loss": {"denoiser", "process", "noise"},
    "runge_kutta": set(),
    "flow": {"runge_kutta", "denoiser", "process", "noise"},
    "sampler": {"flow", "denoiser", "process", "noise"},
    "likelihood": {"flow", "denoiser", "process", "noise"},
    "model": {
        "finite",
        "memory",
        "denoiser",
        "loss",
        "sampler",
        "likelihood",
        "parameterization",
        "process",
        "noise",
        "ranks",
    },
    "data": {"bad_item", "finite", "whole_file"},
    "metric": {"whole_file"},
    "picture": {"metric"},
    "plot": {"picture"},
    "pitfall": {"data", "picture", "plot"},
    "interop": {"network"},
    "ranks": set(),
    "evaluation": {
        "file_lock",
        "finite",
        "model",
        "data",
        "metric",
        "likelihood",
        "noise",
        "denoiser",
        "sampler",
        "ranks",
        "whole_file",
    },
    "callback": {
        "finite",
        "model",
        "data",
        "evaluation",
        "picture",
        "pitfall",
        "plot",
        "sampler",
        "ranks",
        "whole_file",
    },
    "comparison": {"plot"},
    "bench": {
        "callback",
        "checkpoint",
        "data",
        "denoiser",
        "evaluation",
        "interop",
        "launch",
        "likelihood",
        "loss",
        "metric",
        "model",
        "network",
        "noise",
        "output",
        "parameterization",
        "process",
        "sampler",
    },
}
HEAVY = {"hydra", "omegaconf"}
MAY_USE_HYDRA = {"launch", "checkpoint"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    return set(names) | {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imports(path)
    own = {n.split(".")[1] for n in names if n.startswith("diffusion_lab.")}
    own |= {
        a.name
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.ImportFrom) and n.module == "diffusion_lab"
        for a in n.names
    }
    if part in MAY_IMPORT and path.name != "__main__.py":  # a command, as train.py is
        assert own - {part} <= MAY_IMPORT[part], f"{path.name} imports {own - {part} - MAY_IMPORT[part]}"
    if part not in MAY_USE_HYDRA:
        assert not HEAVY & {n.split(".")[0] for n in names}
    if part in ("network", "process"):
        assert {n.split(".")[0] for n in names} <= {
            "torch",
            "math",
            "typing",
            "abc",
            "collections",
            "diffusion_lab",
            "__future__",
            "functools",
            "dataclasses",
            "itertools",
        }


def test_names_say_something():
    for path in FILES:
        assert not re.search(r"(utils?|helpers?|common|misc|registry|factory|manager)\.py$", path.name), path
        assert path.read_text().count("\n") <= 260, f"{path} is too long to read at once"
