"""Two runs in one directory: the second is refused and told who is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.run_lock import locked

HOLD = """
import sys
from pathlib import Path
from diffusion_lab.storage.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in use by process {first.pid} on "), locked(folder):
        pass
    first.kill()
    first.wait()
    with locked(folder), locked(tmp_path / "another"), pytest.raises(ConfigError, match="in use"), locked(folder):
        pass
    with locked(folder):  # and again, in the same process: the next job of a sweep
        pass
