"""Who may import whom, and what nothing may be called (shared/design.md, sections 2 and 5)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "diffusion_lab"
COMMAND = {"errors", "output", "config", "run", "launch", "comparison"}
MAY_IMPORT = {
    "errors": set(),
    "output": set(),
    "finite": set(),
    "memory": set(),
    "ranks": set(),
    "ranges": set(),
    "noise": set(),
    "power_function": set(),
    "runge_kutta": set(),
    "first_edition": set(),
    "network": set(),
    "process": set(),
    "parameterization": {"process"},
    "denoiser": {"parameterization", "process"},
    "class_posterior": {"denoiser", "parameterization", "process"},
    "guidance": {"class_posterior", "denoiser", "parameterization", "process"},
    "control": {"denoiser", "guidance"},
    "loss": {"class_posterior", "denoiser", "guidance", "likelihood", "process", "noise", "ranks"},
    "flow": {"runge_kutta", "denoiser", "process", "noise"},
    "sampler": {"flow", "denoiser", "process", "noise"},
    "verification": {
        *("class_posterior", "control", "data", "denoiser", "guidance", "loss", "metric", "noise", "parameterization"),
        *("process", "sampler"),
    },
    "likelihood": {"flow", "denoiser", "guidance", "process", "noise"},
    "model": {
        *("finite", "first_edition", "memory", "noise", "ranks"),
        *(
            "class_posterior",
            "control",
            "denoiser",
            "guidance",
            "likelihood",
            "loss",
            "parameterization",
            "process",
            "sampler",
        ),
    },
    "storage": {"errors", "output", "first_edition"},
    "data": {"errors", "finite", "storage"},
    "metric": {"storage"},
    "plot": {"metric", "data", "verification"},
    "interop": {"network", "denoiser", "process", "sampler"},
    "evaluation": {
        *("finite", "noise", "ranks", "storage"),
        *("data", "denoiser", "likelihood", "metric", "model", "sampler"),
    },
    "page": {"config", "storage"},
    "monkeypatches": {"errors"},
    "callback": {
        *("finite", "monkeypatches", "noise", "power_function", "ranks", "storage"),
        *("data", "evaluation", "model", "plot", "sampler"),
    },
    "comparison": {"errors", "output", "cli", "page", "storage"},
    "config": {"errors", "output", "memory", "first_edition", "monkeypatches", "storage"},
    "logger": {"errors", "output", "config", "storage"},
    "checkpoint": {"errors", "first_edition", "storage", "config", "denoiser", "guidance", "loss", "model"},
    "run": {
        *("errors", "output", "cli", "finite", "first_edition", "monkeypatches", "power_function", "ranks", "storage"),
        *("config", "logger", "checkpoint"),
        *("callback", "data", "denoiser", "evaluation", "guidance", "interop", "metric", "model", "page", "plot"),
        *("control", "sampler", "verification"),
    },
    "launch": {
        *("errors", "output", "cli", "memory", "monkeypatches"),
        *("page", "plot", "storage", "config", "run", "comparison"),
    },
    "bench": {
        *("errors", "output", "storage", "config", "run", "checkpoint", "interop"),
        *("callback", "data", "denoiser", "evaluation", "likelihood", "loss", "metric", "model", "network", "noise"),
        *("parameterization", "plot", "process", "sampler"),
        *("control", "verification"),
    },
    # What is typed: `python -m diffusion_lab...` and the console script.
    "__main__": {"cli"},
    "cli": {"errors", "output"},
    "completion": {"cli", *COMMAND},
    "train": COMMAND,
    "sample": COMMAND,
    "compare": COMMAND,
    "report": COMMAND,
    "verify": COMMAND,
    "distill": COMMAND,
    "ema": COMMAND,
    "stats": COMMAND,
    "referee": COMMAND,
    "export": COMMAND,
    "__init__": {"checkpoint"},
}
HYDRA, MAY_USE_HYDRA = {"hydra", "omegaconf"}, {"config", "monkeypatches", "run", "launch"}
TORCH_ONLY = {"torch", "math", "typing", "abc", "collections", "diffusion_lab", "__future__", "functools", "dataclasses",
              "itertools", "annotated_types", "threading"}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or within."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "diffusion_lab":
            found |= {f"diffusion_lab.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part, names = path.relative_to(PACKAGE).parts[0].removesuffix(".py"), imports(path)
    allowed = {part, "ranges", *MAY_IMPORT[part], *(COMMAND if path.name == "__main__.py" else ())}  # which is typed
    ours = {name.split(".")[1] for name in names if name.startswith("diffusion_lab.")}
    assert ours <= allowed, f"{path.name} imports {ours - allowed}"
    tops = {name.split(".")[0] for name in names}
    assert part in MAY_USE_HYDRA or not HYDRA & tops
    assert part not in ("network", "process") or tops <= TORCH_ONLY


def test_there_is_no_circle():
    left = {part: set(needed) for part, needed in MAY_IMPORT.items()}
    while left:
        free = {part for part, needed in left.items() if not needed & left.keys()}
        assert free, f"circle among {sorted(left)}"
        left = {part: needed for part, needed in left.items() if part not in free}


def test_a_model_is_loaded_without_hydra(tmp_path):
    """From a checkpoint, as a user of the Python API does who composes nothing."""
    import lzma

    file = tmp_path / "x.ckpt"
    file.write_bytes(lzma.decompress((Path(__file__).parent / "reference/first_edition/ddpm.ckpt.xz").read_bytes()))
    code = (
        f"import sys, diffusion_lab\nmodel = diffusion_lab.load({str(file)!r})\nmodel.sample(1, steps=2)\n"
        "print(*{'hydra', 'omegaconf'} & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0 and done.stdout == "\n", done.stderr + done.stdout


ROOMS = ("config", "run", "launch", "storage", "logger", "page", "plot")


def test_functions_are_short():
    """Of the rooms around the science: at most 45 lines (issue 15)."""
    for path in (path for room in ROOMS for path in PACKAGE.joinpath(room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path.relative_to(PACKAGE)}: {node.name} is too long"


def test_names_say_something():
    for path in FILES:
        assert not re.search(r"(utils?|helpers?|common|misc|registry|factory|manager)\.py$", path.name), path
        assert path.read_text().count("\n") <= 260, f"{path} is too long to read at once"
