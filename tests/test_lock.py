"""Two runs in one directory: the second is refused and told who is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffusion_lab.errors import ConfigError
from diffusion_lab.storage.lock import exclusive
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


def test_one_process_at_a_time_is_inside_and_no_file_stays(tmp_path):
    """Five processes append to a list that each reads before and writes after a moment."""
    code = """
import sys, time
from pathlib import Path
from diffusion_lab.storage.lock import exclusive
path = Path(sys.argv[1])
for _ in range(10):
    with exclusive(path / "lock"):
        before = (path / "list").read_text()
        time.sleep(0.005)
        (path / "list").write_text(before + ".")
"""
    (tmp_path / "list").touch()
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(5)]
    assert [job.wait(60) for job in jobs] == [0] * 5
    assert (tmp_path / "list").read_text() == "." * 50
    assert [path.name for path in tmp_path.iterdir()] == ["list"]


def test_where_no_file_can_be_locked_nobody_waits(tmp_path):
    (tmp_path / "file").touch()
    with exclusive(tmp_path / "file" / "lock"), exclusive(tmp_path / "file" / "lock"):
        pass
