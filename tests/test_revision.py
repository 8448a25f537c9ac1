"""The code's revision is that of the checkout the package lies in, or unknown; it never raises nor waits."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from diffusion_lab.storage import revision as module
from diffusion_lab.storage.revision import revision


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/none"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a committed checkout."""
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\n")
    (folder.parent / "train.py").write_text("import package\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


def test_it_is_the_commit_and_says_whether_tracked_files_differ(package):
    commit = git(package, "rev-parse", "HEAD")
    assert len(commit) == 40 and revision(package) == commit
    (package / "untracked.py").write_text("")
    os.utime(package / "__init__.py", (1, 1))  # touched, not changed
    assert revision(package) == commit
    (package.parent / "train.py").write_text("import package as p\n")
    assert revision(package) == f"{commit}+dirty"
    git(package.parent, "add", "train.py")
    assert revision(package) == f"{commit}+dirty"
    git(package.parent, "commit", "-q", "-m", "second")
    assert revision(package) == git(package, "rev-parse", "HEAD") != commit
    (package.parent / "train.py").unlink()
    assert revision(package).endswith("+dirty")


def test_a_copy_installed_inside_another_checkout_is_not_that_checkout(package):
    installed = package.parent / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("x = 1\n")
    assert revision(installed) == "unknown"


def test_git_variables_of_a_hook_name_no_other_repository(package, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    commit = git(package, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert revision(package) == commit


def test_nothing_is_written_into_the_checkout(package):
    os.utime(package / "__init__.py", (1, 1))  # git would write down in its index that it looked
    index = (package.parent / ".git" / "index").read_bytes()
    revision(package)
    assert (package.parent / ".git" / "index").read_bytes() == index


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a checkout to somebody else")
def test_a_checkout_of_another_user_is_read(package):
    commit = git(package, "rev-parse", "HEAD")
    for path in [package.parent, *package.parent.rglob("*")]:
        os.chown(path, 12345, 12345)
    assert revision(package) == commit


def test_no_commit_no_repository_no_folder_no_git_are_unknown(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert revision(empty) == revision(tmp_path / "missing") == "unknown"
    git(empty, "init", "-q")
    (empty / "__init__.py").write_text("")
    assert revision(empty) == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() == "unknown"


@pytest.mark.parametrize(("hangs_at", "expected"), [("rev-parse", "unknown"), ("status", "0" * 40 + "+unknown")])
def test_a_git_that_hangs_is_left_behind(package, tmp_path, monkeypatch, hangs_at, expected):
    fake = tmp_path / "git"
    zeros = "0" * 40
    fake.write_text(
        f'#!/bin/sh\ncase "$*" in *" {hangs_at} "*) exec sleep 30;; *rev-parse*) echo {zeros}; echo {zeros};; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    start = time.monotonic()
    assert revision(package) == expected
    assert time.monotonic() - start < 1


def test_it_is_that_of_this_package():
    assert Path(__file__).resolve().parents[1] / "diffusion_lab" == module.PACKAGE
    assert revision() == revision(module.PACKAGE)
