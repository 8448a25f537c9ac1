"""diffusion_lab: score-based and diffusion models, each piece checked against an exact answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.checkpoint import load

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    # --help and a refused config must not wait for torch, which takes seconds, nor for the package's metadata.
    if name == "load":
        from diffusion_lab.checkpoint import load

        return load
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("diffusion_lab")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0"
    raise AttributeError(f"module 'diffusion_lab' has no attribute {name!r}")
