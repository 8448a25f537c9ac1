"""The revision of the code that runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def revision(package: Path = PACKAGE, timeout: float = 0.45) -> str:
    """The git commit of the checkout that `package` belongs to, with "+dirty" where a tracked file differs from it.

    "unknown" without git and for an installed copy, even one that lies inside another project's checkout.  git is
    run twice, for at most `timeout` s each; if only the comparison takes longer, the commit carries "+unknown".
    """
    try:
        # The second name resolves only if the package is in the commit.
        found = _git(package, timeout, "rev-parse", "HEAD", "HEAD:./__init__.py")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    if found.returncode:
        return "unknown"
    try:
        changed = _git(package, timeout, "status", "--porcelain", "--untracked-files=no")
        suffix = "+unknown" if changed.returncode else "+dirty" if changed.stdout else ""
    except (OSError, subprocess.SubprocessError):
        suffix = "+unknown"
    return found.stdout.split()[0] + suffix


def _git(folder: Path, timeout: float, *words: str) -> subprocess.CompletedProcess[str]:
    # A hook's GIT_DIR names another repository; nothing may be written into this one, whoever owns it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
