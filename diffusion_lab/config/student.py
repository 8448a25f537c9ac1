"""The overrides of a student's training: those of its teacher's, and its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.config.compose import parsed
from diffusion_lab.config.resume import original_overrides, with_origin

OF_THE_TEACHER = (
    "allow_changes", "ckpt_path", "hydra", "init_from", "init_strict", "init_weights", "loss", "sampler",
    "sampler_steps", "time_law",
)  # fmt: skip
"""Keys of the teacher's training, with all below them, that its students do without."""


def of_teacher(run: Path, flags: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (flags, overrides) of a training with the settings of the teacher's run, replaced by `overrides`."""
    part = re.compile(r"[+~]*(\w+)")
    kept = [one for one in original_overrides(run) if part.match(one.get_key_element())[1] not in OF_THE_TEACHER]
    found, given = with_origin(run, list(flags), {one.get_key_element(): one for one in parsed(overrides)})
    words = {one.get_key_element(): one.input_line for one in (*kept, *given.values())}
    return found, list(words.values())
