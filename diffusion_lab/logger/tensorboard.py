"""TensorBoard beside the CSV file, on request: scalars, pictures and the configuration as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from pytorch_lightning import loggers
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffusion_lab.logger.optional import require


@dataclass(frozen=True)
class TensorBoardOptions:
    """The keys of `logger.tensorboard`, explained in conf/logger/default.yaml; plain data."""

    enabled: bool = False


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Events in `<run_dir>/tensorboard`, by optimiser step.

    Args:
        run_dir: the run's directory.
        resumed_from: step from which a run is resumed; TensorBoard ignores later ones in the files.
        part: folder inside, for what is logged after training: TensorBoard reads one writer per folder.

    Raises:
        ConfigError: without the package tensorboard.
    """

    def __init__(self, run_dir: str | Path, resumed_from: int | None = None, part: str | None = None) -> None:
        require("tensorboard")
        purge = None if resumed_from is None else resumed_from + 1
        super().__init__(
            run_dir, name="tensorboard", version="", sub_dir=part, default_hp_metric=False, purge_step=purge
        )

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """The configuration as text, in YAML."""
        lines = yaml.safe_dump(dict(params), sort_keys=False).splitlines()
        self.experiment.add_text("config", "\n".join(f"    {line}" for line in lines))  # indented: Markdown's verbatim

    @rank_zero_only
    def log_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Images and films as they are in their files: TensorBoard plays a GIF that is stored as an image."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for name, path in pictures.items():
            with Image.open(path) as image:
                width, height = image.size
            encoded = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
            values.append(Summary.Value(tag=name, image=encoded))
        self.experiment._get_file_writer().add_summary(Summary(value=values), step)

    @rank_zero_only
    def save(self) -> None:
        """Write what is in memory; Lightning's own method would also write an empty hparams.yaml."""
        self.experiment.flush()
