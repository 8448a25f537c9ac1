"""The commands of the project in processes of their own, without the seconds in which each would import torch anew.

One process for each worker of pytest has imported what `train.py` and `sample.py` import, and forks for every command.
The suite has a hundred of them; tests of what is imported, and when, start Python as a user does.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_zygote: subprocess.Popen[str] | None = None


def run(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the project or `-m` a module, and its arguments, to the end, as `subprocess.run` would."""
    global _zygote
    if _zygote is None or _zygote.poll() is not None:
        command = [sys.executable, __file__]
        _zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        atexit.register(_zygote.kill)
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        job = {"words": [str(word) for word in words], "cwd": str(cwd), "out": str(out), "err": str(err)}
        print(json.dumps({**job, "environment": {**os.environ, **environment}}), file=_zygote.stdin, flush=True)
        code = json.loads(_zygote.stdout.readline())
        return subprocess.CompletedProcess(job["words"], code, out.read_text(), err.read_text())


def serve() -> None:
    """Fork for every line that comes in, and tell the exit status when that process has ended."""
    import quick_hydra
    from hydra import compose, initialize_config_dir

    from diffusion_lab.config.imports import quick_imports

    quick_hydra.install()
    with quick_imports():
        import diffusion_lab.run.sample
        import diffusion_lab.run.train  # noqa: F401

        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            for task, data in (("train", "toy2d"), ("train", "digits"), ("sample", None)):
                compose(task, [f"data={data}"] if data else [])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            work(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def work(job: dict[str, Any]) -> None:
    """Be the command, and nothing afterwards."""
    code = 1
    try:
        os.setsid()
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["environment"])
        for number, name in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
            os.dup2(os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
        module = job["words"][0] == "-m"
        sys.argv = job["words"][module:]
        sys.path[0] = job["cwd"] if module else str(Path(sys.argv[0]).parent)
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    serve()
