"""diffusion_lab: score-based and diffusion models, each piece checked against an exact answer."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.checkpoint import load

try:
    __version__ = version("diffusion_lab")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # torch takes seconds to import; --help and a refused config must not wait for it.
    if name == "load":
        from diffusion_lab.checkpoint import load

        return load
    raise AttributeError(f"module 'diffusion_lab' has no attribute {name!r}")
